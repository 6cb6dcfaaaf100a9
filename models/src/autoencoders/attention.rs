//! Attention over an image's positions with one head, as the autoencoder has it in its middle.

use candle_core::Tensor;
use easel_kernels::{GroupNorm, Linear, attention};

use crate::Result;
use crate::weights::{Tensors, group_norm, pointwise};

/// The projections' names: query, key, value and output.
type Names = [&'static str; 4];

/// The names that diffusers writes.
const NAMES: Names = ["to_q", "to_k", "to_v", "to_out.0"];

/// The names that it wrote before 2023, which many published weights still have.
const OLD_NAMES: Names = ["query", "key", "value", "proj_attn"];

/// A normalised self-attention beside a shortcut.
pub(crate) struct SpatialAttention {
    norm: GroupNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
}

impl SpatialAttention {
    pub(crate) fn new(weights: &Tensors, channels: usize, groups: usize, eps: f64) -> Result<Self> {
        let old = weights.pp(OLD_NAMES[0]).contains("weight");
        let [query, key, value, out] = if old { OLD_NAMES } else { NAMES };
        // Some files keep them as the 1x1 convolutions that they were at first.
        let project = |name| pointwise(&weights.pp(name), channels, channels);
        Ok(Self {
            norm: group_norm(&weights.pp("group_norm"), channels, groups, eps)?,
            query: project(query)?,
            key: project(key)?,
            value: project(value)?,
            out: project(out)?,
        })
    }

    /// (b, h, w, c) to the same.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, h, w, c) = x.dims4()?;
        let states = self.norm.forward(x)?.reshape((b, h * w, c))?; // (b, h*w, c)
        let (q, k, v) = (self.query.forward(&states)?, self.key.forward(&states)?, self.value.forward(&states)?);
        let mixed = self.out.forward(&attention(&q, &k, &v, 1, None)?)?;
        Ok((mixed.reshape((b, h, w, c))? + x)?)
    }
}
