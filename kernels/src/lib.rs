//! The operations that easel's models are made of.
//!
//! A model calls an operation of this crate instead of a chain of tensor
//! operations, so that a faster form for one device can take its place without
//! a change to any model. Each operation has a *plain* form in candle's tensor
//! operations, which is the oracle that every other form is tested against;
//! CPU and CUDA forms stand behind the same face.
//!
//! Two rules hold for every form:
//!
//! - images are channels-last, (b, h, w, c), and sequences are (b, n, c);
//! - **a row's result does not depend on the number of rows** in its batch,
//!   nor on what the other rows hold, to the last bit. A *row* is one index of
//!   the first dimension. On the CPU this is tested for every operation; on a
//!   GPU it is as true as the vendor's batched matrix product makes it.

mod activations;
mod ada_layer_norm;
mod add;
mod attention;
mod conv2d;
mod count;
mod cpu;
mod cuda;
mod device;
mod dispatch;
mod group_norm;
mod layer_norm;
mod linear;
mod mapped;
mod memory;
mod metal;
#[cfg(feature = "onednn")]
mod onednn;
mod plain;
mod quantized;
mod replay;
mod rope;
mod timestep;
mod upsample;

pub use activations::{geglu, gelu, gelu_tanh, quick_gelu, silu};
pub use ada_layer_norm::{ada_layer_norm, gated_add};
pub use add::add;
pub use attention::{attention, causal_mask};
pub use conv2d::{Conv2d, Conv2dConfig, Padding};
pub use count::counted;
pub use cpu::{bf16_products, on_pool, weight_bytes};
pub use device::{cuda_device, cuda_memory, cuda_name, device_beside, elsewhere, upload};
pub use dispatch::{plain_forms, with_direct_convolutions, with_plain_forms};
pub use group_norm::GroupNorm;
pub use layer_norm::{LayerNorm, RmsNorm};
pub use linear::Linear;
pub use mapped::Mapped;
pub use memory::{KeepingAllocator, give_back_memory, kept_memory};
pub use quantized::{Float8, Iq4, Quantized, QuantizedFormat, QuantizedScale, SharedBytes};
pub use replay::{Parts, Replay, beside, on_refused_replay, replayed, replays, with_replays};
pub use rope::{Pairing, rms_norm_rope, rotary};
pub use timestep::timestep_embedding;
pub use upsample::upsample_nearest;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod truths;
