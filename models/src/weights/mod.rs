//! Finding and opening weights.

mod builtin;
mod deferred;
mod fetching;
mod files;
mod gguf;
mod hub;
mod layers;
mod layouts;
mod part_files;
mod repository;
mod safetensors;
mod single_file;
mod tensors;

pub use builtin::BUILTIN_MODEL;
pub(crate) use fetching::listening;
pub use files::Bytes;
pub use hub::HubOptions;
pub use layers::{conv2d, group_norm, layer_norm, linear, linear_no_bias, pointwise};
pub use repository::{MODEL_INDEX, Repository};
pub use tensors::{MemorySource, TensorInfo, TensorSource, Tensors};
