//! The transformer between a UNet's residual blocks.
//!
//! After `Transformer2DModel` and `BasicTransformerBlock` of diffusers (`models/transformers/transformer_2d.py`,
//! `models/attention.py`): self-attention, cross-attention to the text, and a gated feed-forward layer, over
//! the image's positions.

use candle_core::{DType, Tensor};
use easel_kernels::{GroupNorm, LayerNorm, attention, geglu};

use super::adapters::{AdapterPoints, Adapters, Projection};
use super::condition::{KeyValue, Step};
use crate::Result;
use crate::weights::{Tensors, group_norm, layer_norm, linear, linear_no_bias, pointwise};

/// The epsilon of the group normalisation before a transformer, which no configuration names.
const GROUP_NORM_EPS: f64 = 1e-6;

/// The epsilon of the layer normalisations in a transformer, which no configuration names.
const LAYER_NORM_EPS: f64 = 1e-5;

/// The sizes of one transformer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TransformerConfig {
    pub(crate) channels: usize,
    pub(crate) heads: usize,
    pub(crate) layers: usize,
    /// Channels of the text states.
    pub(crate) context: usize,
    pub(crate) groups: usize,
    /// Whether the outer projections are stored as linear layers, and not as 1x1 convolutions.
    pub(crate) linear_projection: bool,
    /// Whether attention is computed in f32 whatever the network's type.
    pub(crate) upcast_attention: bool,
}

impl TransformerConfig {
    /// Channels inside: those that divide evenly between the heads.
    fn inner(&self) -> usize {
        self.channels / self.heads * self.heads
    }
}

/// What is numbered while a network is built: adapter points, and cross-attention layers in the order of the blocks.
#[derive(Default)]
pub(crate) struct Numbering {
    pub(crate) points: AdapterPoints,
    pub(crate) contexts: usize,
}

/// Transformer layers over an image's positions, beside a shortcut.
pub(crate) struct SpatialTransformer {
    norm: GroupNorm,
    proj_in: Projection,
    layers: Vec<TransformerLayer>,
    proj_out: Projection,
}

impl SpatialTransformer {
    pub(crate) fn new(weights: &Tensors, config: &TransformerConfig, numbering: &mut Numbering) -> Result<Self> {
        let mut outer = |name, inputs, outputs| -> Result<Projection> {
            let weights = weights.pp(name);
            let layer = if config.linear_projection {
                linear(&weights, inputs, outputs)
            } else {
                pointwise(&weights, inputs, outputs)
            };
            Ok(Projection::new(layer?, &weights, &mut numbering.points))
        };
        let proj_in = outer("proj_in", config.channels, config.inner())?;
        let proj_out = outer("proj_out", config.inner(), config.channels)?;
        let blocks = weights.pp("transformer_blocks");
        Ok(Self {
            norm: group_norm(&weights.pp("norm"), config.channels, config.groups, GROUP_NORM_EPS)?,
            proj_in,
            layers: (0..config.layers)
                .map(|i| TransformerLayer::new(&blocks.pp(i), config, numbering))
                .collect::<Result<_>>()?,
            proj_out,
        })
    }

    /// (b, h, w, c) to the same.
    pub(crate) fn forward(&self, x: &Tensor, step: &Step) -> Result<Tensor> {
        let (b, h, w, c) = x.dims4()?;
        let states = self.norm.forward(x)?.reshape((b, h * w, c))?; // (b, h*w, c)
        let mut states = self.proj_in.forward(&states, step.adapters)?; // (b, h*w, inner)
        for layer in &self.layers {
            states = layer.forward(&states, step)?;
        }
        let sum = self.proj_out.forward_add(&states, &x.reshape((b, h * w, c))?, step.adapters)?; // (b, h*w, c)
        Ok(sum.reshape((b, h, w, c))?)
    }

    /// The cross-attention layers, in the order of their numbers.
    pub(crate) fn cross_attentions(&self) -> impl Iterator<Item = &CrossAttention> {
        self.layers.iter().map(|layer| &layer.cross)
    }
}

struct TransformerLayer {
    norm1: LayerNorm,
    own: SelfAttention,
    norm2: LayerNorm,
    cross: CrossAttention,
    norm3: LayerNorm,
    feed_forward: FeedForward,
}

impl TransformerLayer {
    fn new(weights: &Tensors, config: &TransformerConfig, numbering: &mut Numbering) -> Result<Self> {
        let norm = |name| layer_norm(&weights.pp(name), config.inner(), LAYER_NORM_EPS);
        Ok(Self {
            norm1: norm("norm1")?,
            own: SelfAttention::new(&weights.pp("attn1"), config, numbering)?,
            norm2: norm("norm2")?,
            cross: CrossAttention::new(&weights.pp("attn2"), config, numbering)?,
            norm3: norm("norm3")?,
            feed_forward: FeedForward::new(&weights.pp("ff"), config, numbering)?,
        })
    }

    fn forward(&self, x: &Tensor, step: &Step) -> Result<Tensor> {
        let x = self.own.forward_add(&self.norm1.forward(x)?, x, step)?;
        let x = self.cross.forward_add(&self.norm2.forward(&x)?, &x, step)?;
        self.feed_forward.forward_add(&self.norm3.forward(&x)?, &x, step.adapters)
    }
}

/// Queries, the output projection, and how scores are computed: what both attentions have.
struct Heads {
    to_q: Projection,
    to_out: Projection,
    heads: usize,
    upcast: bool,
}

impl Heads {
    fn new(weights: &Tensors, config: &TransformerConfig, numbering: &mut Numbering) -> Result<Self> {
        let inner = config.inner();
        let (q, out) = (weights.pp("to_q"), weights.pp("to_out.0"));
        Ok(Self {
            to_q: Projection::new(linear_no_bias(&q, inner, inner)?, &q, &mut numbering.points),
            to_out: Projection::new(linear(&out, inner, inner)?, &out, &mut numbering.points),
            heads: config.heads,
            upcast: config.upcast_attention,
        })
    }

    /// What queries (b, n, inner) see of keys and values (b, m, inner).
    fn look(&self, queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        let dtype = queries.dtype();
        if self.upcast && dtype != DType::F32 {
            let [q, k, v] = [queries, keys, values].map(|tensor| tensor.to_dtype(DType::F32));
            return Ok(attention(&q?, &k?, &v?, self.heads, None)?.to_dtype(dtype)?);
        }
        Ok(attention(queries, keys, values, self.heads, None)?)
    }
}

struct SelfAttention {
    heads: Heads,
    to_k: Projection,
    to_v: Projection,
}

impl SelfAttention {
    fn new(weights: &Tensors, config: &TransformerConfig, numbering: &mut Numbering) -> Result<Self> {
        let (k, v, inner) = (weights.pp("to_k"), weights.pp("to_v"), config.inner());
        Ok(Self {
            heads: Heads::new(weights, config, numbering)?,
            to_k: Projection::new(linear_no_bias(&k, inner, inner)?, &k, &mut numbering.points),
            to_v: Projection::new(linear_no_bias(&v, inner, inner)?, &v, &mut numbering.points),
        })
    }

    fn forward_add(&self, x: &Tensor, residual: &Tensor, step: &Step) -> Result<Tensor> {
        let (keys, values) = (self.to_k.forward(x, step.adapters)?, self.to_v.forward(x, step.adapters)?);
        let mixed = self.heads.look(&self.heads.to_q.forward(x, step.adapters)?, &keys, &values)?;
        self.heads.to_out.forward_add(&mixed, residual, step.adapters)
    }
}

/// Attention to the text, whose keys and values do not change from step to step and so are projected once.
pub(crate) struct CrossAttention {
    heads: Heads,
    to_k: Projection,
    to_v: Projection,
    number: usize,
}

impl CrossAttention {
    fn new(weights: &Tensors, config: &TransformerConfig, numbering: &mut Numbering) -> Result<Self> {
        let (k, v, inner) = (weights.pp("to_k"), weights.pp("to_v"), config.inner());
        let number = numbering.contexts;
        numbering.contexts += 1;
        Ok(Self {
            heads: Heads::new(weights, config, numbering)?,
            to_k: Projection::new(linear_no_bias(&k, config.context, inner)?, &k, &mut numbering.points),
            to_v: Projection::new(linear_no_bias(&v, config.context, inner)?, &v, &mut numbering.points),
            number,
        })
    }

    /// Keys and values, (b, l, inner), of text states (b, l, context).
    pub(crate) fn project(&self, states: &Tensor, adapters: &Adapters) -> Result<KeyValue> {
        let (keys, values) = (self.to_k.forward(states, adapters)?, self.to_v.forward(states, adapters)?);
        Ok(KeyValue { keys, values })
    }

    fn forward_add(&self, x: &Tensor, residual: &Tensor, step: &Step) -> Result<Tensor> {
        let KeyValue { keys, values } = &step.context[self.number];
        let queries = self.heads.to_q.forward(x, step.adapters)?;
        let mixed = self.heads.look(&queries, keys, values)?;
        let mixed = step.pictures.look_by(self.number, mixed, &queries, |q, k, v| self.heads.look(q, k, v))?;
        self.heads.to_out.forward_add(&mixed, residual, step.adapters)
    }
}

/// Shazeer, "GLU Variants Improve Transformer", 2020, with the exact GELU, at four times the width.
struct FeedForward {
    proj_in: Projection,
    proj_out: Projection,
}

impl FeedForward {
    fn new(weights: &Tensors, config: &TransformerConfig, numbering: &mut Numbering) -> Result<Self> {
        let (width, hidden) = (config.inner(), 4 * config.inner());
        let (first, last) = (weights.pp("net.0.proj"), weights.pp("net.2"));
        Ok(Self {
            proj_in: Projection::new(linear(&first, width, 2 * hidden)?, &first, &mut numbering.points),
            proj_out: Projection::new(linear(&last, hidden, width)?, &last, &mut numbering.points),
        })
    }

    fn forward_add(&self, x: &Tensor, residual: &Tensor, adapters: &Adapters) -> Result<Tensor> {
        let gated = geglu(&self.proj_in.forward(x, adapters)?)?; // (b, n, 4c)
        self.proj_out.forward_add(&gated, residual, adapters)
    }
}
