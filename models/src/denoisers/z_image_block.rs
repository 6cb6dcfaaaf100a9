//! One layer of Z-Image's transformer.

use candle_core::Tensor;
use easel_kernels::{Linear, Pairing, RmsNorm, attention, gated_add, rms_norm_rope, rotary, silu};

use super::adapters::{AdapterPoints, Adapters, Projection};
use super::axes::Rotation;
use super::image_prompt::ImagePrompts;
use super::z_image_config::ZImageConfig;
use crate::Result;
use crate::weights::{Tensors, linear, linear_no_bias};

/// The epsilon of the normalisation of queries and keys, which no configuration names.
const QK_EPS: f64 = 1e-5;

/// What every layer of one model call sees beside the tokens.
pub(super) struct Step<'a> {
    pub(super) rotation: &'a Rotation,
    /// The embedded time, (b, 256); `None` for the text's own layers.
    pub(super) time: Option<&'a Tensor>,
    /// Where image prompts hang; `None` for layers without.
    pub(super) place: Option<Place<'a>>,
    pub(super) adapters: &'a Adapters,
}

/// A layer's place for image prompts: its number, and how many tokens at the stream's beginning are the picture's.
pub(super) struct Place<'a> {
    pub(super) pictures: &'a ImagePrompts,
    pub(super) at: usize,
    pub(super) tokens: usize,
}

impl Place<'_> {
    /// `x` (b, n, dim) with what the picture's part of the `queries`, (b, n, dim), sees of the prompts.
    fn look(&self, x: Tensor, queries: &Tensor, heads: usize) -> Result<Tensor> {
        if self.pictures.is_empty() {
            return Ok(x);
        }
        let (picture, rest) = (x.narrow(1, 0, self.tokens)?, x.narrow(1, self.tokens, x.dim(1)? - self.tokens)?);
        let picture = self.pictures.look(self.at, picture, &queries.narrow(1, 0, self.tokens)?, heads)?;
        Ok(Tensor::cat(&[picture, rest], 1)?)
    }
}

/// Attention and a gated feed-forward layer, each normalised before and behind.
pub(super) struct Block {
    attention: Attention,
    attention_norms: [RmsNorm; 2],
    feed_forward: FeedForward,
    feed_forward_norms: [RmsNorm; 2],
    modulation: Option<Linear>,
}

/// What the time makes of a layer, each (b, dim).
struct Modulation {
    scale_attention: Tensor,
    gate_attention: Tensor,
    scale_feed_forward: Tensor,
    gate_feed_forward: Tensor,
}

impl Block {
    pub(super) fn new(
        weights: &Tensors,
        config: &ZImageConfig,
        modulated: bool,
        points: &mut AdapterPoints,
    ) -> Result<Self> {
        let ZImageConfig { dim, norm_eps, .. } = *config;
        let norm =
            |name: &str| -> Result<RmsNorm> { Ok(RmsNorm::new(weights.pp(name).get("weight", &[dim])?, norm_eps)?) };
        let modulation = || linear(&weights.pp("adaLN_modulation.0"), dim.min(256), 4 * dim);
        Ok(Self {
            attention: Attention::new(&weights.pp("attention"), config, points)?,
            attention_norms: [norm("attention_norm1")?, norm("attention_norm2")?],
            feed_forward: FeedForward::new(&weights.pp("feed_forward"), config, points)?,
            feed_forward_norms: [norm("ffn_norm1")?, norm("ffn_norm2")?],
            modulation: modulated.then(modulation).transpose()?,
        })
    }

    /// (b, n, dim) to the same.
    pub(super) fn forward(&self, x: &Tensor, step: &Step) -> Result<Tensor> {
        let [before, behind] = &self.attention_norms;
        let [before_ff, behind_ff] = &self.feed_forward_norms;
        let Some(modulation) = self.modulation(step)? else {
            let (mixed, _) = self.attention.forward(&before.forward(x)?, step)?;
            let x = (x + behind.forward(&mixed)?)?;
            let inner = self.feed_forward.forward(&before_ff.forward(&x)?, step)?;
            return Ok((&x + behind_ff.forward(&inner)?)?);
        };
        let Modulation { scale_attention, gate_attention, scale_feed_forward, gate_feed_forward } = &modulation;
        let scaled = before.forward(x)?.broadcast_mul(&scale_attention.unsqueeze(1)?)?;
        let (mixed, queries) = self.attention.forward(&scaled, step)?;
        let x = gated_add(x, gate_attention, &behind.forward(&mixed)?)?;
        let scaled = before_ff.forward(&x)?.broadcast_mul(&scale_feed_forward.unsqueeze(1)?)?;
        let inner = behind_ff.forward(&self.feed_forward.forward(&scaled, step)?)?;
        let x = gated_add(&x, gate_feed_forward, &inner)?;
        step.place.as_ref().map_or(Ok(x.clone()), |place| place.look(x, &queries, self.attention.heads))
    }

    fn modulation(&self, step: &Step) -> Result<Option<Modulation>> {
        let (Some(linear), Some(time)) = (&self.modulation, step.time) else { return Ok(None) };
        let all = linear.forward(time)?; // (b, 4·dim)
        let width = all.dim(1)? / 4;
        let part = |at: usize| all.narrow(1, at * width, width)?.contiguous();
        Ok(Some(Modulation {
            scale_attention: (part(0)? + 1.0)?,
            gate_attention: part(1)?.tanh()?,
            scale_feed_forward: (part(2)? + 1.0)?,
            gate_feed_forward: part(3)?.tanh()?,
        }))
    }
}

/// Self-attention with rotary positions and, mostly, normalised queries and keys.
struct Attention {
    to_q: Projection,
    to_k: Projection,
    to_v: Projection,
    to_out: Projection,
    norms: Option<[RmsNorm; 2]>,
    heads: usize,
}

impl Attention {
    fn new(weights: &Tensors, config: &ZImageConfig, points: &mut AdapterPoints) -> Result<Self> {
        let (dim, heads) = (config.dim, config.n_heads);
        let mut projection = |name: &str| -> Result<Projection> {
            let weights = weights.pp(name);
            Ok(Projection::new(linear_no_bias(&weights, dim, dim)?, &weights, points))
        };
        let norm = |name: &str| -> Result<RmsNorm> {
            Ok(RmsNorm::new(weights.pp(name).get("weight", &[dim / heads])?, QK_EPS)?)
        };
        let norms = || -> Result<[RmsNorm; 2]> { Ok([norm("norm_q")?, norm("norm_k")?]) };
        Ok(Self {
            to_q: projection("to_q")?,
            to_k: projection("to_k")?,
            to_v: projection("to_v")?,
            to_out: projection("to_out.0")?,
            norms: config.qk_norm.then(norms).transpose()?,
            heads,
        })
    }

    /// What the tokens (b, n, dim) saw, and their queries before they were turned to their positions.
    fn forward(&self, x: &Tensor, step: &Step) -> Result<(Tensor, Tensor)> {
        let (b, n, dim) = x.dims3()?;
        let Rotation { cosines, sines } = step.rotation;
        let turned = |y: &Tensor| rotary(y, cosines, sines, self.heads, Pairing::Interleaved);
        let (mut q, k) = (self.to_q.forward(x, step.adapters)?, self.to_k.forward(x, step.adapters)?);
        let k = if let Some([norm_q, norm_k]) = &self.norms {
            q = norm_q.forward(&q.reshape((b, n, self.heads, dim / self.heads))?)?.reshape((b, n, dim))?;
            rms_norm_rope(&k, norm_k, cosines, sines, self.heads, Pairing::Interleaved)?
        } else {
            turned(&k)?
        };
        let v = self.to_v.forward(x, step.adapters)?;
        let mixed = attention(&turned(&q)?, &k, &v, self.heads, None)?;
        Ok((self.to_out.forward(&mixed, step.adapters)?, q))
    }
}

/// Shazeer, "GLU Variants Improve Transformer", 2020, with SiLU.
struct FeedForward {
    gate: Projection,
    up: Projection,
    down: Projection,
}

impl FeedForward {
    fn new(weights: &Tensors, config: &ZImageConfig, points: &mut AdapterPoints) -> Result<Self> {
        let (dim, hidden) = (config.dim, config.hidden());
        let mut projection = |name: &str, inputs: usize, outputs: usize| -> Result<Projection> {
            let weights = weights.pp(name);
            Ok(Projection::new(linear_no_bias(&weights, inputs, outputs)?, &weights, points))
        };
        Ok(Self {
            gate: projection("w1", dim, hidden)?,
            up: projection("w3", dim, hidden)?,
            down: projection("w2", hidden, dim)?,
        })
    }

    fn forward(&self, x: &Tensor, step: &Step) -> Result<Tensor> {
        let gated = (silu(&self.gate.forward(x, step.adapters)?)? * self.up.forward(x, step.adapters)?)?;
        self.down.forward(&gated, step.adapters)
    }
}
