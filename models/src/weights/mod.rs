//! Finding and opening weights.

mod builtin;
mod repository;
mod safetensors;
mod tensors;

pub use builtin::BUILTIN_MODEL;
pub use repository::{Bytes, MODEL_INDEX, Repository};
pub use tensors::{MemorySource, TensorSource, Tensors};
