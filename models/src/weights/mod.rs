//! Finding and opening weights.
