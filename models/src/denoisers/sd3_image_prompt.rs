//! Image prompts of Stable Diffusion 3, whose tokens depend on the step.
//!
//! After `IPAdapterTimeImageProjection` and `SD3IPAdapterJointAttnProcessor2_0` of diffusers (`models/embeddings.py`,
//! `models/attention_processor.py`), which are made after InstantX's "SD3.5-Large-IP-Adapter", 2024: a resampler that is told
//! the time makes a picture's features into tokens, and at each attention the picture that is drawn looks at itself and at
//! those tokens once more, with normalisations of the adapter's own.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use easel_kernels::{LayerNorm, Linear, ada_layer_norm, attention, gelu, silu};

use super::activation::Activation;
use super::sd3_blocks::{EPS, HeadNorm};
use super::sd3_config::{QkNorm, Sd3Config};
use super::time_embedding::{Mlp, Sinusoids};
use crate::weights::{Tensors, layer_norm, linear, linear_no_bias};
use crate::{Error, Result};

/// The epsilon of the resampler's normalisations, which no configuration names.
const RESAMPLER_EPS: f64 = 1e-5;

/// Channels of each of the resampler's heads, which no configuration names.
const HEAD: usize = 64;

/// The inner width of the resampler's feed-forward layers, in its widths.
const FEED_FORWARD: usize = 4;

/// The sizes of an adapter, which its weights tell; the default is that of `SD3.5-Large-IP-Adapter`.
#[derive(Debug, Clone)]
pub struct Sd3ImageAdapterConfig {
    /// Channels of the picture's features.
    pub features: usize,
    /// The resampler's width.
    pub width: usize,
    /// Its layers.
    pub layers: usize,
    /// Its heads, of 64 channels each.
    pub heads: usize,
    /// Tokens that it makes of a picture.
    pub tokens: usize,
    /// Channels of the sinusoids that a timestep becomes.
    pub sinusoids: usize,
}

impl Default for Sd3ImageAdapterConfig {
    fn default() -> Self {
        Self { features: 1152, width: 1280, layers: 4, heads: 20, tokens: 64, sinusoids: 320 }
    }
}

/// An image prompt adapter of Stable Diffusion 3.
pub struct Sd3ImageAdapter {
    resampler: Resampler,
    /// One for each place of the network.
    layers: Vec<JointLayer>,
    dtype: DType,
}

impl Sd3ImageAdapter {
    /// Builds the adapter of a network, in whose type `weights` must come; they have diffusers' names, the resampler's under
    /// `image_proj` and those of the attentions, numbered as the network's places are, under `ip_adapter`.
    ///
    /// # Errors
    /// Names the file and the key when a weight is missing or of another shape.
    pub fn new(config: &Sd3ImageAdapterConfig, network: &Sd3Config, weights: &Tensors) -> Result<Self> {
        let layers = weights.pp("ip_adapter");
        Ok(Self {
            resampler: Resampler::new(config, network.width(), &weights.pp("image_proj"))?,
            layers: (0..network.attentions_before(network.num_layers))
                .map(|at| JointLayer::new(config, network, &layers.pp(at)))
                .collect::<Result<_>>()?,
            dtype: weights.dtype(),
        })
    }
}

/// A picture that a row looks at beside its text.
#[derive(Clone)]
pub struct Sd3ImagePrompt {
    adapter: Arc<Sd3ImageAdapter>,
    features: Tensor,
    scale: f64,
}

impl Sd3ImagePrompt {
    /// `features` (1, m, c) of the picture, as its encoder gives them; `scale` is how much the picture counts, and at 0 it is
    /// not looked at.
    ///
    /// # Errors
    /// When there is more than one row of features.
    pub fn new(adapter: Arc<Sd3ImageAdapter>, features: &Tensor, scale: f64) -> Result<Self> {
        let (rows, _, _) = features.dims3()?;
        if rows != 1 {
            return Err(Error::Unsupported(format!("an image prompt needs one row of features, not {rows}")));
        }
        let features = features.to_dtype(adapter.dtype)?;
        Ok(Self { adapter, features, scale })
    }

    /// How many places the adapter has layers for.
    pub(super) fn places(&self) -> usize {
        self.adapter.layers.len()
    }

    /// What the picture is at a step; `None` where it does not count.
    pub(super) fn at(&self, timestep: f64) -> Result<Option<Sd3Picture>> {
        if self.scale == 0.0 {
            return Ok(None);
        }
        let (tokens, time) = self.adapter.resampler.forward(&self.features, timestep)?;
        Ok(Some(Sd3Picture { adapter: Arc::clone(&self.adapter), tokens, time, scale: self.scale }))
    }
}

/// An image prompt at one step.
pub(super) struct Sd3Picture {
    adapter: Arc<Sd3ImageAdapter>,
    /// (1, t, width of the network).
    tokens: Tensor,
    /// The activated embedding of the time, (1, width of the resampler).
    time: Tensor,
    scale: f64,
}

impl Sd3Picture {
    /// What a row's tokens see at place `at`, (1, n, width), from their queries, keys and values as they were before they
    /// were normalised.
    pub(super) fn look(&self, at: usize, raw: [Tensor; 3], heads: usize) -> Result<Tensor> {
        let Some(layer) = self.adapter.layers.get(at) else {
            return Err(Error::Unsupported(format!("an image prompt has no layer {at}")));
        };
        Ok((layer.forward(raw, &self.tokens, &self.time, heads)? * self.scale)?)
    }
}

/// What the adapter hangs on one attention.
struct JointLayer {
    /// From the activated time to a shift and a scale of the tokens.
    modulation: Linear,
    to_k: Linear,
    to_v: Linear,
    norm_q: HeadNorm,
    norm_k: HeadNorm,
    norm_token_k: HeadNorm,
}

impl JointLayer {
    fn new(config: &Sd3ImageAdapterConfig, network: &Sd3Config, weights: &Tensors) -> Result<Self> {
        let width = network.width();
        let norm = |name: &str| HeadNorm::new(QkNorm::RmsNorm, &weights.pp(name), network.attention_head_dim);
        Ok(Self {
            modulation: linear(&weights.pp("norm_ip.linear"), config.width, 2 * width)?,
            to_k: linear_no_bias(&weights.pp("to_k_ip"), width, width)?,
            to_v: linear_no_bias(&weights.pp("to_v_ip"), width, width)?,
            norm_q: norm("norm_q")?,
            norm_k: norm("norm_k")?,
            norm_token_k: norm("norm_ip_k")?,
        })
    }

    /// Queries, keys and values (1, n, width) of what is drawn and `tokens` (1, t, width) to (1, n, width).
    fn forward(&self, [q, k, v]: [Tensor; 3], tokens: &Tensor, time: &Tensor, heads: usize) -> Result<Tensor> {
        let [shift, scale] = parts(&self.modulation.forward(time)?)?;
        let tokens = ada_layer_norm(tokens, &scale, &shift, EPS)?;
        let keys =
            Tensor::cat(&[self.norm_k.forward(&k)?, self.norm_token_k.forward(&self.to_k.forward(&tokens)?)?], 1)?;
        let values = Tensor::cat(&[v, self.to_v.forward(&tokens)?], 1)?; // (1, n + t, width)
        Ok(attention(&self.norm_q.forward(&q)?, &keys, &values, heads, None)?)
    }
}

/// Makes a picture's features into tokens, told the time: a few learned queries look at the features and at each other.
struct Resampler {
    queries: Tensor,
    proj_in: Linear,
    sinusoids: Sinusoids,
    time: Mlp,
    layers: Vec<ResamplerLayer>,
    proj_out: Linear,
    norm_out: LayerNorm,
}

impl Resampler {
    fn new(config: &Sd3ImageAdapterConfig, outputs: usize, weights: &Tensors) -> Result<Self> {
        let Sd3ImageAdapterConfig { features, width, layers, tokens, sinusoids, .. } = *config;
        let blocks = weights.pp("layers");
        Ok(Self {
            queries: weights.get("latents", &[1, tokens, width])?,
            proj_in: linear(&weights.pp("proj_in"), features, width)?,
            sinusoids: Sinusoids { dim: sinusoids, flip_sin_to_cos: true, freq_shift: 0.0 },
            time: Mlp::new(&weights.pp("time_embedding"), sinusoids, width, Activation::Silu)?,
            layers: (0..layers).map(|at| ResamplerLayer::new(config, &blocks.pp(at))).collect::<Result<_>>()?,
            proj_out: linear(&weights.pp("proj_out"), width, outputs)?,
            norm_out: layer_norm(&weights.pp("norm_out"), outputs, RESAMPLER_EPS)?,
        })
    }

    /// `features` (1, m, c) to tokens (1, t, outputs), and the activated embedding of the time, (1, width).
    fn forward(&self, features: &Tensor, timestep: f64) -> Result<(Tensor, Tensor)> {
        let time = self.time.forward(&self.sinusoids.forward(&[timestep], features)?)?.to_dtype(features.dtype())?;
        let features = self.proj_in.forward(features)?.broadcast_add(&time.unsqueeze(1)?)?; // (1, m, width)
        let time = silu(&time)?;
        let mut tokens = self.queries.clone();
        for layer in &self.layers {
            tokens = layer.forward(&features, &tokens, &time)?;
        }
        Ok((self.norm_out.forward(&self.proj_out.forward(&tokens)?)?, time))
    }
}

/// Attention and feed-forward layers of the resampler.
struct ResamplerLayer {
    modulation: Linear,
    norm_features: LayerNorm,
    norm_tokens: LayerNorm,
    to_q: Linear,
    to_kv: Linear,
    to_out: Linear,
    heads: usize,
    norm_feed_forward: LayerNorm,
    wide: Linear,
    narrow: Linear,
}

impl ResamplerLayer {
    fn new(config: &Sd3ImageAdapterConfig, weights: &Tensors) -> Result<Self> {
        let (width, heads) = (config.width, config.heads);
        let (inner, attn, net) = (heads * HEAD, weights.pp("attn"), weights.pp("ff.net"));
        let norm = |name: &str| layer_norm(&weights.pp(name), width, RESAMPLER_EPS);
        Ok(Self {
            modulation: linear(&weights.pp("adaln_proj"), width, 4 * width)?,
            norm_features: norm("ln0")?,
            norm_tokens: norm("ln1")?,
            to_q: linear_no_bias(&attn.pp("to_q"), width, inner)?,
            to_kv: linear_no_bias(&attn.pp("to_kv"), width, 2 * inner)?,
            to_out: linear_no_bias(&attn.pp("to_out.0"), inner, width)?,
            heads,
            norm_feed_forward: norm("adaln_norm")?,
            wide: linear_no_bias(&net.pp("0.proj"), width, FEED_FORWARD * width)?,
            narrow: linear_no_bias(&net.pp(2), FEED_FORWARD * width, width)?,
        })
    }

    /// `features` (1, m, width), `tokens` (1, t, width) and `time` (1, width) to the tokens, (1, t, width).
    fn forward(&self, features: &Tensor, tokens: &Tensor, time: &Tensor) -> Result<Tensor> {
        let [shift, scale, late_shift, late_scale] = parts(&self.modulation.forward(time)?)?;
        let adapt = |x: Tensor, scale: &Tensor, shift: &Tensor| -> Result<Tensor> {
            Ok(x.broadcast_mul(&(scale.unsqueeze(1)? + 1.0)?)?.broadcast_add(&shift.unsqueeze(1)?)?)
        };
        let normed = adapt(self.norm_tokens.forward(tokens)?, &scale, &shift)?;
        let seen = Tensor::cat(&[&self.norm_features.forward(features)?, &normed], 1)?; // (1, m + t, width)
        let (queries, both) = (self.to_q.forward(&normed)?, self.to_kv.forward(&seen)?);
        let half = queries.dim(2)?;
        let (keys, values) = (both.narrow(2, 0, half)?.contiguous()?, both.narrow(2, half, half)?.contiguous()?);
        let tokens = (tokens + self.to_out.forward(&attention(&queries, &keys, &values, self.heads, None)?)?)?;
        let normed = adapt(self.norm_feed_forward.forward(&tokens)?, &late_scale, &late_shift)?;
        Ok((&tokens + self.narrow.forward(&gelu(&self.wide.forward(&normed)?)?)?)?)
    }
}

/// (1, N·c) to N of (1, c).
fn parts<const N: usize>(modulation: &Tensor) -> Result<[Tensor; N]> {
    let parts = modulation.chunk(N, 1)?.iter().map(Tensor::contiguous).collect::<candle_core::Result<Vec<_>>>()?;
    parts.try_into().map_err(|_| Error::Unsupported(format!("a modulation could not be split into {N}")))
}
