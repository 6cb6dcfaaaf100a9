//! Finding and opening weights.

mod builtin;
mod layers;
mod layouts;
mod repository;
mod safetensors;
mod single_file;
mod tensors;

pub use builtin::BUILTIN_MODEL;
pub use layers::{conv2d, group_norm, layer_norm, linear, linear_no_bias, pointwise};
pub use repository::{Bytes, MODEL_INDEX, Repository};
pub use tensors::{MemorySource, TensorInfo, TensorSource, Tensors};
