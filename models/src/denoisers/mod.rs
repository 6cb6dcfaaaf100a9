//! The networks that predict noise, velocity or the clean latents.

pub(crate) mod activation;
mod adapters;
mod condition;
pub(crate) mod config;
pub(crate) mod resample;
pub(crate) mod resnet;
#[cfg(test)]
pub(crate) mod testing;
mod time_embedding;
mod transformer;
mod unet;
mod unet_blocks;
mod unet_config;

pub use activation::Activation;
pub use adapters::{AdapterPoints, Adapters, LowRank};
pub use condition::{AddedContext, Condition, Context};
pub use config::{PerLevel, SampleSize};
pub use resnet::TimeScaleShift;
pub use unet::{Hooks, Residuals, UNet};
pub use unet_config::{AdditionEmbedType, DownBlockType, MidBlockType, UNetConfig, UpBlockType};
