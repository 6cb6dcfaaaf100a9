//! T5's encoder: a transformer whose positions are a bias on the attention's scores, shared by all layers.
//!
//! Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2020, with the
//! gated feed-forward of version 1.1 (Shazeer, "GLU Variants Improve Transformer", 2020); the reference is transformers'
//! `T5EncoderModel`.

use candle_core::{DType, Tensor};
use easel_kernels::{Linear, RmsNorm, attention, gelu, gelu_tanh, quick_gelu, silu};
use serde::Deserialize;

use crate::weights::{Tensors, linear_no_bias};
use crate::{Error, Result};

/// The architectures whose encoder this is.
const MODEL_TYPES: [&str; 2] = ["t5", "mt5"];

/// `text_encoder_2/config.json` or its like; what is absent is transformers' default.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct T5Config {
    /// The architecture, which must be T5's own.
    pub model_type: String,
    /// Ids that have an embedding.
    pub vocab_size: usize,
    /// The width of the states.
    pub d_model: usize,
    /// The width of one attention head; the heads together need not be as wide as the states.
    pub d_kv: usize,
    /// The width inside of the feed-forward layers.
    pub d_ff: usize,
    /// Transformer layers.
    pub num_layers: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Kinds of distance that the position bias tells apart, half of them for each direction.
    pub relative_attention_num_buckets: usize,
    /// The distance from which on all are one.
    pub relative_attention_max_distance: usize,
    /// Added to the mean square in the normalisations.
    pub layer_norm_epsilon: f64,
    /// The activation of the feed-forward layers, after `gated-` where they have a gate.
    pub feed_forward_proj: String,
    /// Whether the feed-forward layers have a gate, where the file says so beside `feed_forward_proj`.
    pub is_gated_act: Option<bool>,
    /// The activation's own name, where the file gives one beside `feed_forward_proj`.
    pub dense_act_fn: Option<String>,
}

impl Default for T5Config {
    fn default() -> Self {
        Self {
            model_type: MODEL_TYPES[0].to_owned(),
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".to_owned(),
            is_gated_act: None,
            dense_act_fn: None,
        }
    }
}

impl T5Config {
    /// Checks what no type can say.
    ///
    /// # Errors
    /// Names `file` and the key that is not supported, or the keys that contradict each other.
    pub fn check(&self, file: &str) -> Result<()> {
        let fault = |message: String| Err(Error::file(file, message));
        if !MODEL_TYPES.contains(&self.model_type.as_str()) {
            return fault(format!("model_type is {:?}; supported: {}", self.model_type, MODEL_TYPES.join(", ")));
        }
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("d_kv", self.d_kv),
            ("d_ff", self.d_ff),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
        ];
        if let Some((key, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return fault(format!("{key} is 0; at least 1 is needed"));
        }
        let (buckets, distance) = (self.relative_attention_num_buckets, self.relative_attention_max_distance);
        if buckets < 4 || !buckets.is_multiple_of(2) || distance <= buckets / 4 {
            return fault(format!(
                "relative_attention_num_buckets is {buckets} and relative_attention_max_distance {distance}; an even \
                 number of at least 4 buckets, and a distance beyond a quarter of them, are expected"
            ));
        }
        self.feed_forward().map(|_| ()).map_err(|message| Error::file(file, message))
    }

    /// The activation, and whether there is a gate; what is wrong where the configuration names none that is known.
    fn feed_forward(&self) -> std::result::Result<(Activation, bool), String> {
        let named = self.feed_forward_proj.as_str();
        let (gated, name) = match named.strip_prefix("gated-") {
            // Version 1.1 means the approximation.
            Some("gelu") => (true, "gelu_new"),
            Some(name) => (true, name),
            None => (false, named),
        };
        let (key, name) = match &self.dense_act_fn {
            Some(name) => ("dense_act_fn", name.as_str()),
            None => ("feed_forward_proj", name),
        };
        let known = Activation::NAMES.iter().find(|(known, _)| *known == name).map(|(_, activation)| *activation);
        let activation = known.ok_or_else(|| {
            let names: Vec<&str> = Activation::NAMES.iter().map(|(name, _)| *name).collect();
            format!("{key} asks for the activation {name:?}; supported: {}", names.join(", "))
        })?;
        Ok((activation, self.is_gated_act.unwrap_or(gated)))
    }
}

/// The activation of the feed-forward layers.
#[derive(Debug, Clone, Copy)]
enum Activation {
    Relu,
    Gelu,
    GeluTanh,
    QuickGelu,
    Silu,
}

impl Activation {
    /// transformers' names.
    const NAMES: [(&str, Self); 8] = [
        ("relu", Self::Relu),
        ("gelu", Self::Gelu),
        ("gelu_new", Self::GeluTanh),
        ("gelu_fast", Self::GeluTanh),
        ("gelu_pytorch_tanh", Self::GeluTanh),
        ("quick_gelu", Self::QuickGelu),
        ("silu", Self::Silu),
        ("swish", Self::Silu),
    ];

    fn forward(self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Relu => x.relu(),
            Self::Gelu => gelu(x),
            Self::GeluTanh => gelu_tanh(x),
            Self::QuickGelu => quick_gelu(x),
            Self::Silu => silu(x),
        }
    }
}

/// T5's encoder.
pub struct T5Encoder {
    tokens: Tensor,
    /// A row of biases for each bucket, (buckets, heads) in f32.
    position_bias: Tensor,
    buckets: Buckets,
    layers: Vec<Layer>,
    norm: RmsNorm,
    dtype: DType,
}

impl T5Encoder {
    /// Builds the encoder from its weights, which have transformers' names.
    ///
    /// # Errors
    /// Names the file, the key and the shape of a tensor that is missing or does not fit the configuration.
    pub fn new(config: &T5Config, weights: &Tensors) -> Result<Self> {
        let T5Config { vocab_size, d_model, num_heads, relative_attention_num_buckets, .. } = *config;
        let encoder = weights.pp("encoder");
        // One tensor under two names: which of them a file keeps is a matter of its age.
        let shared = weights.pp("shared");
        let embeddings = if shared.contains("weight") { shared } else { encoder.pp("embed_tokens") };
        let blocks = encoder.pp("block");
        let bias = blocks.pp("0.layer.0.SelfAttention.relative_attention_bias");
        Ok(Self {
            tokens: embeddings.get("weight", &[vocab_size, d_model])?,
            position_bias: bias.get("weight", &[relative_attention_num_buckets, num_heads])?.to_dtype(DType::F32)?,
            buckets: Buckets {
                number: relative_attention_num_buckets,
                max_distance: config.relative_attention_max_distance,
            },
            layers: (0..config.num_layers).map(|at| Layer::new(config, &blocks.pp(at))).collect::<Result<_>>()?,
            norm: rms_norm(config, &encoder.pp("final_layer_norm"))?,
            dtype: weights.dtype(),
        })
    }

    /// Encodes token ids, (b, l) in u32; gives (b, l, `d_model`).
    ///
    /// `mask` is (b, l) in u8, 0 where a token must not be seen. At least one token of a row must be seen.
    ///
    /// # Errors
    /// When an id has no embedding, or a tensor operation fails.
    pub fn forward(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (rows, length) = ids.dims2()?;
        let bias = self.bias(length, mask)?;
        let embedded = self.tokens.index_select(&ids.flatten_all()?, 0)?.reshape((rows, length, ()))?;
        // The states of large T5s leave the range of f16 between the layers. transformers keeps the last projection of
        // each layer in f32 there, whose results make all that follows f32; so do we.
        let mut x = embedded.to_dtype(residual_dtype(self.dtype))?;
        for layer in &self.layers {
            x = layer.forward(&x, &bias)?;
        }
        Ok(self.norm.forward(&x)?.to_dtype(self.dtype)?)
    }

    /// What is added to the attention's scores: (1, heads, l, l), or (b, heads, l, l) with a mask, in f32.
    fn bias(&self, length: usize, mask: Option<&Tensor>) -> Result<Tensor> {
        let device = self.tokens.device();
        let heads = self.position_bias.dim(1)?;
        let buckets: Vec<u32> = (0..length)
            .flat_map(|query| (0..length).map(move |key| (query, key)))
            .map(|(query, key)| self.buckets.of(query, key))
            .collect();
        let index = Tensor::from_vec(buckets, length * length, device)?;
        let bias = self.position_bias.index_select(&index, 0)?; // (l·l, heads)
        let bias = bias.t()?.reshape((1, heads, length, length))?;
        let Some(mask) = mask else { return Ok(bias) };
        let rows = mask.dim(0)?;
        let seen = mask.reshape((rows, 1, 1, length))?;
        let hidden = Tensor::new(f32::NEG_INFINITY, device)?.broadcast_as(seen.shape())?;
        let mask = seen.where_cond(&hidden.zeros_like()?, &hidden)?;
        Ok(bias.broadcast_add(&mask)?)
    }
}

/// How distances between tokens are told apart: one by one up to a quarter of the buckets, then in growing steps.
#[derive(Debug, Clone, Copy)]
struct Buckets {
    number: usize,
    max_distance: usize,
}

impl Buckets {
    /// The bucket of a query and a key at these positions.
    fn of(self, query: usize, key: usize) -> u32 {
        let half = self.number / 2;
        let side = if key > query { half } else { 0 };
        let (distance, exact) = (key.abs_diff(query), half / 2);
        if distance < exact {
            return (side + distance) as u32;
        }
        // In f32 step by step as torch computes it, because a distance may lie right at a bucket's edge.
        let share = (distance as f32 / exact as f32).ln() / (self.max_distance as f64 / exact as f64).ln() as f32;
        let beyond = (share * (half - exact) as f32) as usize;
        (side + (exact + beyond).min(half - 1)) as u32
    }
}

/// One transformer layer, normalised before each half.
struct Layer {
    norm1: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    heads: usize,
    /// The square root of a head's width, by which kernels divide the scores and T5 does not.
    scale: f64,
    norm2: RmsNorm,
    gate: Option<Linear>,
    inner: Linear,
    activation: Activation,
    last: Linear,
    dtype: DType,
}

impl Layer {
    fn new(config: &T5Config, weights: &Tensors) -> Result<Self> {
        let T5Config { d_model: width, d_kv, d_ff, num_heads: heads, .. } = *config;
        let (activation, gated) = config.feed_forward().map_err(Error::Unsupported)?;
        let (first, second) = (weights.pp("layer.0"), weights.pp("layer.1"));
        let (attention, dense) = (first.pp("SelfAttention"), second.pp("DenseReluDense"));
        let inner = |name: &str| linear_no_bias(&dense.pp(name), width, d_ff);
        let (gate, inner) = if gated { (Some(inner("wi_0")?), inner("wi_1")?) } else { (None, inner("wi")?) };
        let last = dense.pp("wo").to_dtype(residual_dtype(weights.dtype()));
        Ok(Self {
            norm1: rms_norm(config, &first.pp("layer_norm"))?,
            q: linear_no_bias(&attention.pp("q"), width, heads * d_kv)?,
            k: linear_no_bias(&attention.pp("k"), width, heads * d_kv)?,
            v: linear_no_bias(&attention.pp("v"), width, heads * d_kv)?,
            out: linear_no_bias(&attention.pp("o"), heads * d_kv, width)?,
            heads,
            scale: (d_kv as f64).sqrt(),
            norm2: rms_norm(config, &second.pp("layer_norm"))?,
            gate,
            inner,
            activation,
            last: linear_no_bias(&last, d_ff, width)?,
            dtype: weights.dtype(),
        })
    }

    /// `x` is (b, l, d) in the residual's type, and so is the result.
    fn forward(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?.to_dtype(self.dtype)?;
        let q = (self.q.forward(&normed)? * self.scale)?;
        let seen = attention(&q, &self.k.forward(&normed)?, &self.v.forward(&normed)?, self.heads, Some(bias))?;
        let x = (x + self.out.forward(&seen)?.to_dtype(x.dtype())?)?;

        let normed = self.norm2.forward(&x)?.to_dtype(self.dtype)?;
        let inner = self.inner.forward(&normed)?;
        let inner = match &self.gate {
            Some(gate) => (self.activation.forward(&gate.forward(&normed)?)? * inner)?,
            None => self.activation.forward(&inner)?,
        };
        Ok((&x + self.last.forward(&inner.to_dtype(x.dtype())?)?)?)
    }
}

/// The type of what goes from layer to layer.
fn residual_dtype(dtype: DType) -> DType {
    if dtype == DType::F16 { DType::F32 } else { dtype }
}

fn rms_norm(config: &T5Config, weights: &Tensors) -> Result<RmsNorm> {
    Ok(RmsNorm::new(weights.get("weight", &[config.d_model])?, config.layer_norm_epsilon)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::denoisers::testing::{distance, numbers, view, weights_for};

    fn config() -> T5Config {
        let feed_forward_proj = "gated-gelu".to_owned();
        // A head's width is no square, so that the scale is no whole number.
        T5Config {
            vocab_size: 50,
            d_model: 16,
            d_kv: 6,
            d_ff: 24,
            num_layers: 2,
            num_heads: 3,
            feed_forward_proj,
            ..T5Config::default()
        }
    }

    fn ids(rows: &[&[u32]]) -> Tensor {
        Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
    }

    const PROMPT: [u32; 5] = [7, 23, 41, 5, 1];
    const OTHER: [u32; 5] = [9, 1, 0, 0, 0];

    #[test]
    fn distances_fall_into_the_buckets_of_transformers() {
        // transformers 5.23, `T5Attention._relative_position_bucket`.
        let buckets = Buckets { number: 32, max_distance: 128 };
        let after: [(usize, u32); 12] = [
            (0, 0),
            (1, 17),
            (7, 23),
            (8, 24),
            (11, 24),
            (12, 25),
            (16, 26),
            (32, 28),
            (64, 30),
            (90, 30),
            (91, 31),
            (500, 31),
        ];
        for (distance, bucket) in after {
            assert_eq!(buckets.of(3, 3 + distance), bucket, "{distance}");
            assert_eq!(buckets.of(3 + distance, 3), bucket.saturating_sub(16), "-{distance}");
        }
    }

    #[test]
    fn a_prompt_is_encoded_alike_alone_and_in_a_batch() {
        let weights = view(weights_for(|weights| T5Encoder::new(&config(), weights)));
        let encoder = T5Encoder::new(&config(), &weights).unwrap();
        let alone = encoder.forward(&ids(&[&PROMPT]), None).unwrap();
        let batch = encoder.forward(&ids(&[&OTHER, &PROMPT]), None).unwrap();
        assert_eq!(numbers(&alone), numbers(&batch.narrow(0, 1, 1).unwrap()));
    }

    #[test]
    fn masked_tokens_do_not_reach_the_others() {
        let weights = view(weights_for(|weights| T5Encoder::new(&config(), weights)));
        let encoder = T5Encoder::new(&config(), &weights).unwrap();
        let mask = Tensor::new(&[[1u8, 1, 1, 0, 0]], &Device::Cpu).unwrap();
        let whole = encoder.forward(&ids(&[&PROMPT]), Some(&mask)).unwrap().narrow(1, 0, 3).unwrap();
        let short = encoder.forward(&ids(&[&PROMPT[..3]]), None).unwrap();
        assert!(distance(&whole, &short) < 1e-6);
        let seen = encoder.forward(&ids(&[&PROMPT]), None).unwrap().narrow(1, 0, 3).unwrap();
        assert!(distance(&seen, &short) > 1e-3);
    }

    #[test]
    fn states_beyond_the_range_of_f16_survive_in_it() {
        let mut weights = weights_for(|weights| T5Encoder::new(&config(), weights));
        let last = weights.get_mut("encoder.block.0.layer.1.DenseReluDense.wo.weight").unwrap();
        *last = (&*last * 3e5).unwrap();
        let wide = T5Encoder::new(&config(), &view(weights.clone())).unwrap();
        let half = T5Encoder::new(&config(), &view(weights).to_dtype(DType::F16)).unwrap();
        let expected = wide.forward(&ids(&[&PROMPT]), None).unwrap();
        let found = half.forward(&ids(&[&PROMPT]), None).unwrap().to_dtype(DType::F32).unwrap();
        assert!(distance(&found, &expected) < 1e-2);
    }

    #[test]
    fn what_the_encoder_cannot_be_is_refused_by_its_key() {
        let told = |json: &str| {
            let config: T5Config = serde_json::from_str(json).unwrap();
            config.check("text_encoder_3/config.json").err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(told("{}"), "");
        assert_eq!(told(r#"{"feed_forward_proj": "gated-silu"}"#), "");
        assert!(told(r#"{"model_type": "umt5"}"#).starts_with("text_encoder_3/config.json: model_type is \"umt5\""));
        assert!(
            told(r#"{"feed_forward_proj": "mish"}"#).contains("feed_forward_proj asks for the activation \"mish\"")
        );
        assert!(told(r#"{"num_heads": 0}"#).contains("num_heads is 0"));
        assert!(told(r#"{"relative_attention_max_distance": 8}"#).contains("relative_attention_max_distance 8"));
    }
}
