//! Where randomness comes from.

use candle_core::{Device, Tensor};

use crate::Result;

/// One picture's own stream of standard normal noise.
pub trait Noise: Send {
    /// The next tensor of the stream, f32 of this shape on `device`.
    ///
    /// # Errors
    /// When the tensor cannot be made.
    fn normal(&mut self, shape: &[usize], device: &Device) -> Result<Tensor>;
}
