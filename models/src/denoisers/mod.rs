//! The networks that predict noise, velocity or the clean latents.

pub(crate) mod activation;
mod adapters;
mod axes;
mod condition;
pub(crate) mod config;
mod flux;
mod flux2;
mod flux2_blocks;
mod flux2_config;
mod flux_blocks;
mod flux_config;
pub(crate) mod resample;
pub(crate) mod resnet;
mod sd3;
mod sd3_config;
#[cfg(test)]
pub(crate) mod testing;
mod time_embedding;
mod transformer;
mod unet;
mod unet_blocks;
mod unet_config;
mod z_image;
mod z_image_block;

pub use activation::Activation;
pub use adapters::{AdapterPoints, Adapters, LowRank};
pub use condition::{AddedContext, Condition, Context, ImageProjection};
pub use config::{PerLevel, SampleSize};
pub use flux::{Flux, FluxCondition, FluxContext, FluxHooks, FluxResiduals};
pub use flux_config::FluxConfig;
pub use flux2::{Flux2, Flux2Condition};
pub use flux2_config::Flux2Config;
pub use resnet::TimeScaleShift;
pub use sd3::{Sd3, Sd3Condition, Sd3Hooks};
pub use sd3_config::{QkNorm, Sd3Config};
pub use unet::{Hooks, Residuals, UNet};
pub use unet_config::{AdditionEmbedType, DownBlockType, MidBlockType, UNetConfig, UpBlockType};
pub use z_image::{ZImage, ZImageCondition, ZImageConfig};
