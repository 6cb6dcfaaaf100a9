//! Enlarging an image by repeating pixels.

use candle_core::{Result, Tensor, bail};

use crate::dispatch::form;

/// Resizes `x` (b, h0, w0, c) of any type to (b, h, w, c): pixel i of the result is pixel floor(i · in / out).
///
/// As PyTorch does, the quotient in / out is rounded to f32 first, which moves a few pixels of odd sizes.
///
/// # Errors
/// If an image without pixels is asked for or given.
pub fn upsample_nearest(x: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    let (_, height, width, _) = x.dims4()?;
    if [h, w, height, width].contains(&0) {
        bail!("upsample_nearest: cannot resize ({height}, {width}) to ({h}, {w})");
    }
    form!(x, upsample_nearest in [cpu, cuda])(x, h, w)
}
