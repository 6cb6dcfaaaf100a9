//! The blocks of FLUX.1's transformer.

use candle_core::{D, DType, Tensor};
use easel_kernels::{Pairing, RmsNorm, ada_layer_norm, attention, gated_add, rms_norm_rope, rotary};

use super::adapters::{AdapterPoints, Adapters, Projection};
use super::axes::Rotation;
use super::flux_config::FluxConfig;
use super::image_prompt::ImagePrompts;
use crate::weights::{Tensors, linear};
use crate::{Error, Result};

/// Added to the variance in every normalisation; no configuration names it.
pub(super) const EPS: f64 = 1e-6;

/// How much wider the feed-forward layers are inside.
const MLP_RATIO: usize = 4;

/// The largest number of f16.
const F16_MAX: f32 = 65504.0;

/// What every block of one model call sees beside the tokens.
pub(super) struct Step<'a> {
    /// The activated embedding of timestep, guidance and pooled text, (b, width).
    pub(super) vector: &'a Tensor,
    pub(super) rotation: &'a Rotation,
    pub(super) pictures: &'a ImagePrompts,
    pub(super) adapters: &'a Adapters,
}

/// Queries, keys and values, (b, n, width) each.
struct Attended {
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
}

impl Attended {
    /// The sequence of this one's tokens, then the other's.
    fn then(&self, other: &Self) -> Result<Self> {
        Ok(Self {
            queries: Tensor::cat(&[&self.queries, &other.queries], 1)?,
            keys: Tensor::cat(&[&self.keys, &other.keys], 1)?,
            values: Tensor::cat(&[&self.values, &other.values], 1)?,
        })
    }

    /// The attention of all tokens to all, at their positions.
    fn attend(&self, heads: usize, rotation: &Rotation) -> Result<Tensor> {
        let turn = |x: &Tensor| rotary(x, &rotation.cosines, &rotation.sines, heads, Pairing::Interleaved);
        Ok(attention(&turn(&self.queries)?, &turn(&self.keys)?, &self.values, heads, None)?)
    }
}

/// The projections of tokens to [`Attended`], with normalised queries and keys.
struct Attend {
    queries: Projection,
    keys: Projection,
    values: Projection,
    norm_queries: RmsNorm,
    norm_keys: RmsNorm,
    heads: usize,
}

impl Attend {
    /// `names` are those of the three projections and the two norms.
    fn new(config: &FluxConfig, weights: &Tensors, names: [&str; 5], points: &mut AdapterPoints) -> Result<Self> {
        let (width, head) = (config.width(), config.attention_head_dim);
        let norm = |name: &str| -> Result<RmsNorm> { Ok(RmsNorm::new(weights.pp(name).get("weight", &[head])?, EPS)?) };
        Ok(Self {
            norm_queries: norm(names[3])?,
            norm_keys: norm(names[4])?,
            queries: project(&weights.pp(names[0]), width, width, points)?,
            keys: project(&weights.pp(names[1]), width, width, points)?,
            values: project(&weights.pp(names[2]), width, width, points)?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, x: &Tensor, adapters: &Adapters) -> Result<Attended> {
        let (b, n, width) = x.dims3()?;
        let by_head = |norm: &RmsNorm, x: &Tensor| -> Result<Tensor> {
            let heads = x.reshape((b, n, self.heads, width / self.heads))?;
            Ok(norm.forward(&heads)?.reshape((b, n, width))?)
        };
        Ok(Attended {
            queries: by_head(&self.norm_queries, &self.queries.forward(x, adapters)?)?,
            keys: by_head(&self.norm_keys, &self.keys.forward(x, adapters)?)?,
            values: self.values.forward(x, adapters)?,
        })
    }

    /// The attention of all tokens of `x` to all, at their positions.
    fn attend(&self, x: &Tensor, step: &Step) -> Result<Tensor> {
        let Rotation { cosines, sines } = step.rotation;
        let turned = |x: &Tensor, norm: &RmsNorm| -> Result<Tensor> {
            Ok(rms_norm_rope(x, norm, cosines, sines, self.heads, Pairing::Interleaved)?)
        };
        let queries = turned(&self.queries.forward(x, step.adapters)?, &self.norm_queries)?;
        let keys = turned(&self.keys.forward(x, step.adapters)?, &self.norm_keys)?;
        Ok(attention(&queries, &keys, &self.values.forward(x, step.adapters)?, self.heads, None)?)
    }
}

/// The keys of one stream of a [`DoubleBlock`].
struct StreamNames {
    modulation: &'static str,
    attend: [&'static str; 5],
    out: &'static str,
    feed_forward: &'static str,
}

const IMAGE: StreamNames = StreamNames {
    modulation: "norm1.linear",
    attend: ["to_q", "to_k", "to_v", "norm_q", "norm_k"],
    out: "to_out.0",
    feed_forward: "ff",
};

const TEXT: StreamNames = StreamNames {
    modulation: "norm1_context.linear",
    attend: ["add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k"],
    out: "to_add_out",
    feed_forward: "ff_context",
};

/// The weights that text or image have for themselves in a [`DoubleBlock`].
struct Stream {
    modulation: Projection,
    attend: Attend,
    out: Projection,
    widen: Projection,
    narrow: Projection,
}

impl Stream {
    fn new(config: &FluxConfig, weights: &Tensors, names: &StreamNames, points: &mut AdapterPoints) -> Result<Self> {
        let width = config.width();
        let attention = weights.pp("attn");
        let net = weights.pp(names.feed_forward).pp("net");
        Ok(Self {
            modulation: project(&weights.pp(names.modulation), width, 6 * width, points)?,
            attend: Attend::new(config, &attention, names.attend, points)?,
            out: project(&attention.pp(names.out), width, width, points)?,
            widen: project(&net.pp("0.proj"), width, MLP_RATIO * width, points)?,
            narrow: project(&net.pp(2), MLP_RATIO * width, width, points)?,
        })
    }

    /// Shift, scale and gate of the attention, then of the feed-forward layers, (b, width) each.
    fn modulate(&self, step: &Step) -> Result<[Tensor; 6]> {
        modulation(&self.modulation, step)
    }

    fn attended(&self, x: &Tensor, [shift, scale, ..]: &[Tensor; 6], step: &Step) -> Result<Attended> {
        self.attend.forward(&ada_layer_norm(x, scale, shift, EPS)?, step.adapters)
    }

    /// Adds what the tokens saw, then the feed-forward layers.
    fn finish(&self, x: &Tensor, seen: &Tensor, modulation: &[Tensor; 6], step: &Step) -> Result<Tensor> {
        let [_, _, gate, mlp_shift, mlp_scale, mlp_gate] = modulation;
        let x = gated_add(x, gate, &self.out.forward(seen, step.adapters)?)?;
        let normed = ada_layer_norm(&x, mlp_scale, mlp_shift, EPS)?;
        let wide = self.widen.forward_gelu_tanh(&normed, step.adapters)?;
        Ok(gated_add(&x, mlp_gate, &self.narrow.forward(&wide, step.adapters)?)?)
    }
}

/// A block in which text and image have their own weights, and attend to each other.
pub(super) struct DoubleBlock {
    text: Stream,
    image: Stream,
    heads: usize,
}

impl DoubleBlock {
    pub(super) fn new(config: &FluxConfig, weights: &Tensors, points: &mut AdapterPoints) -> Result<Self> {
        Ok(Self {
            text: Stream::new(config, weights, &TEXT, points)?,
            image: Stream::new(config, weights, &IMAGE, points)?,
            heads: config.num_attention_heads,
        })
    }

    /// `text` (b, l, width) and `image` (b, n, width) to the same; `at` is the block's number.
    pub(super) fn forward(&self, text: &Tensor, image: &Tensor, at: usize, step: &Step) -> Result<(Tensor, Tensor)> {
        let (text_modulation, image_modulation) = (self.text.modulate(step)?, self.image.modulate(step)?);
        let from_image = self.image.attended(image, &image_modulation, step)?;
        let attended = self.text.attended(text, &text_modulation, step)?.then(&from_image)?;
        let seen = attended.attend(self.heads, step.rotation)?; // (b, l + n, width)
        let (length, tokens) = (text.dim(1)?, image.dim(1)?);
        let text = self.text.finish(text, &seen.narrow(1, 0, length)?, &text_modulation, step)?;
        let image = self.image.finish(image, &seen.narrow(1, length, tokens)?, &image_modulation, step)?;
        let image = step.pictures.look(at, image, &from_image.queries, self.heads)?;
        Ok((bounded(text)?, image))
    }
}

/// A block of one sequence, whose attention and feed-forward layers work side by side.
pub(super) struct SingleBlock {
    modulation: Projection,
    attend: Attend,
    widen: Projection,
    out: Projection,
}

impl SingleBlock {
    pub(super) fn new(config: &FluxConfig, weights: &Tensors, points: &mut AdapterPoints) -> Result<Self> {
        let (width, wide) = (config.width(), MLP_RATIO * config.width());
        Ok(Self {
            modulation: project(&weights.pp("norm.linear"), width, 3 * width, points)?,
            attend: Attend::new(config, &weights.pp("attn"), IMAGE.attend, points)?,
            widen: project(&weights.pp("proj_mlp"), width, wide, points)?,
            out: project(&weights.pp("proj_out"), width + wide, width, points)?,
        })
    }

    /// `x` (b, n, width) to the same.
    pub(super) fn forward(&self, x: &Tensor, step: &Step) -> Result<Tensor> {
        let [shift, scale, gate] = modulation(&self.modulation, step)?;
        let normed = ada_layer_norm(x, &scale, &shift, EPS)?;
        let seen = self.attend.attend(&normed, step)?;
        let wide = self.widen.forward_gelu_tanh(&normed, step.adapters)?;
        let both = Tensor::cat(&[seen, wide], D::Minus1)?; // (b, n, 5 · width)
        bounded(gated_add(x, &gate, &self.out.forward(&both, step.adapters)?)?)
    }
}

/// A linear layer that adapters can name.
fn project(weights: &Tensors, inputs: usize, outputs: usize, points: &mut AdapterPoints) -> Result<Projection> {
    Ok(Projection::new(linear(weights, inputs, outputs)?, weights, points))
}

/// The N vectors, (b, width) each, that a layer makes of the step's.
fn modulation<const N: usize>(layer: &Projection, step: &Step) -> Result<[Tensor; N]> {
    let chunks = layer.forward(step.vector, step.adapters)?.chunk(N, D::Minus1)?;
    chunks.try_into().map_err(|_| Error::Unsupported(format!("a modulation could not be split into {N}")))
}

/// Keeps what overflows in f16 finite, where diffusers does.
fn bounded(x: Tensor) -> Result<Tensor> {
    if x.dtype() == DType::F16 { Ok(x.clamp(-F16_MAX, F16_MAX)?) } else { Ok(x) }
}
