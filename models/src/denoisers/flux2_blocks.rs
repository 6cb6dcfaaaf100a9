//! The blocks of FLUX.2's transformer.

use candle_core::{D, DType, Tensor};
use easel_kernels::{Pairing, RmsNorm, ada_layer_norm, attention, gated_add, rms_norm_rope, rotary, silu};

use super::adapters::{AdapterPoints, Adapters, Projection};
use super::axes::Rotation;
use super::flux2_config::Flux2Config;
use super::image_prompt::ImagePrompts;
use crate::weights::{Tensors, linear_no_bias};
use crate::{Error, Result};

/// The largest f16: diffusers keeps a stream of that type within it.
const F16_MAX: f32 = 65_504.0;

/// What every block of one model call sees beside the tokens.
pub(super) struct Step<'a> {
    pub(super) rotation: &'a Rotation,
    pub(super) pictures: &'a ImagePrompts,
    pub(super) adapters: &'a Adapters,
}

/// Shift, scale and gate, each (b, width).
struct Modulation<'a> {
    shift: &'a Tensor,
    scale: &'a Tensor,
    gate: &'a Tensor,
}

/// The modulation that begins at part `at`.
fn modulation(parts: &[Tensor], at: usize) -> Result<Modulation<'_>> {
    match parts.get(at..at + 3) {
        Some([shift, scale, gate]) => Ok(Modulation { shift, scale, gate }),
        _ => Err(Error::Unsupported(format!("a block's modulation has {} parts", parts.len()))),
    }
}

/// A projection without a bias, to which adapters can hang.
fn projection(weights: &Tensors, inputs: usize, outputs: usize, points: &mut AdapterPoints) -> Result<Projection> {
    Ok(Projection::new(linear_no_bias(weights, inputs, outputs)?, weights, points))
}

/// Keeps an f16 stream finite, as diffusers does.
fn bounded(x: Tensor) -> Result<Tensor> {
    if x.dtype() == DType::F16 { Ok(x.clamp(-F16_MAX, F16_MAX)?) } else { Ok(x) }
}

/// `silu(first half) · second half` of the last dimension.
fn swiglu(x: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (gate, value) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    Ok((silu(&gate.contiguous()?)? * value)?)
}

/// The normalisation of queries and keys, by head.
struct HeadNorms {
    q: RmsNorm,
    k: RmsNorm,
    heads: usize,
}

impl HeadNorms {
    fn new(weights: &Tensors, names: [&str; 2], config: &Flux2Config) -> Result<Self> {
        let [q, k] = names.map(|name| -> Result<RmsNorm> {
            let weight = weights.pp(name).get("weight", &[config.attention_head_dim])?;
            Ok(RmsNorm::new(weight, config.eps)?)
        });
        Ok(Self { q: q?, k: k?, heads: config.num_attention_heads })
    }

    /// Queries and keys (b, n, width) to the same.
    fn forward(&self, q: &Tensor, k: &Tensor) -> Result<[Tensor; 2]> {
        let normed = |x: &Tensor, norm: &RmsNorm| -> Result<Tensor> {
            let (b, n, width) = x.dims3()?;
            Ok(norm.forward(&x.reshape((b, n, self.heads, width / self.heads))?)?.reshape((b, n, width))?)
        };
        Ok([normed(q, &self.q)?, normed(k, &self.k)?])
    }

    /// Queries and keys (b, n, width) to the same, turned to their positions besides.
    fn turned(&self, q: &Tensor, k: &Tensor, Rotation { cosines, sines }: &Rotation) -> Result<[Tensor; 2]> {
        let turned =
            |x: &Tensor, norm: &RmsNorm| rms_norm_rope(x, norm, cosines, sines, self.heads, Pairing::Interleaved);
        Ok([turned(q, &self.q)?, turned(k, &self.k)?])
    }
}

/// Attention of all tokens to all, after their rotation.
fn attend(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, rotation: &Rotation) -> Result<Tensor> {
    let turned = |x: &Tensor| rotary(x, &rotation.cosines, &rotation.sines, heads, Pairing::Interleaved);
    Ok(attention(&turned(q)?, &turned(k)?, v, heads, None)?)
}

/// One stream's half of a double block.
struct Stream {
    q: Projection,
    k: Projection,
    v: Projection,
    norms: HeadNorms,
    out: Projection,
    wide: Projection,
    narrow: Projection,
    eps: f64,
}

/// The names of a stream's layers.
struct Names {
    qkv: [&'static str; 3],
    norms: [&'static str; 2],
    out: &'static str,
    feed_forward: &'static str,
}

const PICTURE: Names =
    Names { qkv: ["to_q", "to_k", "to_v"], norms: ["norm_q", "norm_k"], out: "to_out.0", feed_forward: "ff" };

const TEXT: Names = Names {
    qkv: ["add_q_proj", "add_k_proj", "add_v_proj"],
    norms: ["norm_added_q", "norm_added_k"],
    out: "to_add_out",
    feed_forward: "ff_context",
};

impl Stream {
    fn new(weights: &Tensors, names: &Names, config: &Flux2Config, points: &mut AdapterPoints) -> Result<Self> {
        let (width, hidden) = (config.width(), config.hidden());
        let (attention, feed_forward) = (weights.pp("attn"), weights.pp(names.feed_forward));
        let mut square = |name: &str| projection(&attention.pp(name), width, width, points);
        let [q, k, v] = names.qkv.map(&mut square);
        let out = square(names.out)?;
        Ok(Self {
            q: q?,
            k: k?,
            v: v?,
            norms: HeadNorms::new(&attention, names.norms, config)?,
            out,
            wide: projection(&feed_forward.pp("linear_in"), width, 2 * hidden, points)?,
            narrow: projection(&feed_forward.pp("linear_out"), hidden, width, points)?,
            eps: config.eps,
        })
    }

    /// Queries, keys and values of the stream's tokens.
    fn project(&self, x: &Tensor, by: &Modulation, step: &Step) -> Result<[Tensor; 3]> {
        let normed = ada_layer_norm(x, by.scale, by.shift, self.eps)?;
        let [q, k] =
            self.norms.forward(&self.q.forward(&normed, step.adapters)?, &self.k.forward(&normed, step.adapters)?)?;
        Ok([q, k, self.v.forward(&normed, step.adapters)?])
    }

    /// The stream after `mixed`, what attention gave it, and its feed-forward layer.
    fn finish(&self, x: &Tensor, mixed: &Tensor, parts: &[Tensor], step: &Step) -> Result<Tensor> {
        let x = gated_add(x, modulation(parts, 0)?.gate, &self.out.forward(mixed, step.adapters)?)?;
        let by = modulation(parts, 3)?;
        let normed = ada_layer_norm(&x, by.scale, by.shift, self.eps)?;
        let inner = swiglu(&self.wide.forward(&normed, step.adapters)?)?; // (b, n, hidden)
        Ok(gated_add(&x, by.gate, &self.narrow.forward(&inner, step.adapters)?)?)
    }
}

/// A block with weights for the picture and for the text, which meet in attention.
pub(super) struct DoubleBlock {
    picture: Stream,
    text: Stream,
    heads: usize,
}

impl DoubleBlock {
    pub(super) fn new(weights: &Tensors, config: &Flux2Config, points: &mut AdapterPoints) -> Result<Self> {
        Ok(Self {
            picture: Stream::new(weights, &PICTURE, config, points)?,
            text: Stream::new(weights, &TEXT, config, points)?,
            heads: config.num_attention_heads,
        })
    }

    /// `picture` (b, n, width) and `text` (b, l, width) to the same, each by its modulation; `at` is the block's number.
    pub(super) fn forward(
        &self,
        picture: &Tensor,
        text: &Tensor,
        [picture_by, text_by]: [&[Tensor]; 2],
        at: usize,
        step: &Step,
    ) -> Result<(Tensor, Tensor)> {
        let (n, l) = (picture.dim(1)?, text.dim(1)?);
        let [q, k, v] = self.picture.project(picture, &modulation(picture_by, 0)?, step)?;
        let [text_q, text_k, text_v] = self.text.project(text, &modulation(text_by, 0)?, step)?;
        let join = |text: Tensor, picture: Tensor| Tensor::cat(&[text, picture], 1); // (b, l + n, width)
        let mixed = attend(&join(text_q, q.clone())?, &join(text_k, k)?, &join(text_v, v)?, self.heads, step.rotation)?;
        let picture = self.picture.finish(picture, &mixed.narrow(1, l, n)?.contiguous()?, picture_by, step)?;
        let picture = step.pictures.look(at, picture, &q, self.heads)?;
        let text = self.text.finish(text, &mixed.narrow(1, 0, l)?.contiguous()?, text_by, step)?;
        Ok((picture, bounded(text)?))
    }
}

/// A block in which attention and the feed-forward layer stand beside each other, their projections in one.
pub(super) struct SingleBlock {
    wide: Projection,
    norms: HeadNorms,
    narrow: Projection,
    heads: usize,
    width: usize,
    hidden: usize,
    eps: f64,
}

impl SingleBlock {
    pub(super) fn new(weights: &Tensors, config: &Flux2Config, points: &mut AdapterPoints) -> Result<Self> {
        let (width, hidden, attention) = (config.width(), config.hidden(), weights.pp("attn"));
        Ok(Self {
            wide: projection(&attention.pp("to_qkv_mlp_proj"), width, 3 * width + 2 * hidden, points)?,
            norms: HeadNorms::new(&attention, ["norm_q", "norm_k"], config)?,
            narrow: projection(&attention.pp("to_out"), width + hidden, width, points)?,
            heads: config.num_attention_heads,
            width,
            hidden,
            eps: config.eps,
        })
    }

    /// (b, n, width) to the same.
    pub(super) fn forward(&self, x: &Tensor, parts: &[Tensor], step: &Step) -> Result<Tensor> {
        let by = modulation(parts, 0)?;
        let normed = ada_layer_norm(x, by.scale, by.shift, self.eps)?;
        let all = self.wide.forward(&normed, step.adapters)?; // (b, n, 3·width + 2·hidden)
        let part = |at: usize| all.narrow(2, at * self.width, self.width);
        let [q, k] = self.norms.turned(&part(0)?, &part(1)?, step.rotation)?;
        let mixed = attention(&q, &k, &part(2)?, self.heads, None)?;
        let inner = swiglu(&all.narrow(2, 3 * self.width, 2 * self.hidden)?.contiguous()?)?;
        let both = Tensor::cat(&[mixed, inner], 2)?; // (b, n, width + hidden)
        bounded(gated_add(x, by.gate, &self.narrow.forward(&both, step.adapters)?)?)
    }
}
