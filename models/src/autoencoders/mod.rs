//! Between pixels and latents.

mod attention;
mod decoder;
mod encoder;
mod kl;
mod kl_config;
mod mid_block;
mod patches;
mod posterior;
mod preview;
mod tiling;

pub use kl::AutoencoderKl;
pub use kl_config::{AutoencoderKlConfig, DownBlockType, UpBlockType};
pub use posterior::Posterior;
pub use preview::Preview;
pub use tiling::Tiling;
