//! Tensors and diffusion: everything of easel that is not a server.
//!
//! A *family* ([`families`]) opens a model's weights and puts a text encoder, a
//! denoiser, an autoencoder and a scheduler configuration together behind the
//! one trait that the engine knows, [`Pipeline`]. Samplers ([`samplers`]) are
//! step machines that never call the model, which is what lets requests of any
//! step count share a batch.

mod batch_key;
mod card;
mod error;
mod image;
mod pipeline;
mod resize;
mod trajectory;

pub mod autoencoders;
pub mod denoisers;
pub mod families;
pub mod measure;
pub mod samplers;
pub mod text;
pub mod weights;

pub use batch_key::{BatchKey, Mismatch};
pub use card::{Abilities, Fit, ModelCard, ReferenceSides, Size, Sizes, Strengths};
pub use easel_kernels::{
    KeepingAllocator, beside, bf16_products, cuda_device, cuda_memory, cuda_name, give_back_memory, kept_memory,
    on_refused_replay,
};
pub use error::{Error, Result};
pub use image::{GrayImage, RgbImage};
pub use pipeline::{Conditioning, InitImage, Loading, Part, Pipeline, Prompt, RenderSpec, Stage};
pub use trajectory::Trajectory;
