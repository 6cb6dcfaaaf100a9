//! Finding and opening weights.

mod tensors;

pub use tensors::{MemorySource, TensorSource, Tensors};
