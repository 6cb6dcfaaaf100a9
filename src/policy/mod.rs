//! Who may do what.

mod keys;
mod priority;

pub use keys::{Caller, KeyError, Keys};
