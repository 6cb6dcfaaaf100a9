//! Who may do what.

mod keys;

pub use keys::{Caller, KeyError, Keys};
