//! The whole engine, driven over a fake model with a known solution.

mod batching;
mod beside;
mod fairness;
pub(super) mod fake;
mod faults;
mod lifecycle;
mod residency;
mod stages;
