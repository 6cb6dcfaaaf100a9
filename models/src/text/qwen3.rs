//! Qwen3's transformer, as an encoder of prompts.
//!
//! Yang et al., "Qwen3 Technical Report", 2025; the reference is transformers' `Qwen3Model`: causal, with grouped queries,
//! normalised queries and keys, rotary positions and a gated feed-forward layer. Image models take the hidden states of
//! some of its layers; nothing is generated, and the layers behind the last one asked for are not computed.

use candle_core::{DType, Tensor};
use easel_kernels::{Linear, Pairing, RmsNorm, attention, causal_mask, rms_norm_rope, silu};
use serde::Deserialize;

use crate::denoisers::config::{Neutral, check, parse};
use crate::weights::{Tensors, linear, linear_no_bias};
use crate::{Error, Result};

/// The base of the rotary frequencies where the file names none.
const ROPE_THETA: f64 = 10_000.0;

/// `text_encoder/config.json` of a Qwen3; what is absent is transformers' default.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Qwen3Config {
    /// Ids that have an embedding.
    pub vocab_size: usize,
    /// The width of the states.
    pub hidden_size: usize,
    /// The width inside of the feed-forward layers.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Heads of queries.
    pub num_attention_heads: usize,
    /// Heads of keys and values, which divide the heads of queries into groups; `None` is as many as those.
    pub num_key_value_heads: Option<usize>,
    /// Channels of a head.
    pub head_dim: usize,
    /// The longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in normalisations.
    pub rms_norm_eps: f64,
    /// Whether the projections of the attention have a bias.
    pub attention_bias: bool,
    /// The base of the rotary frequencies, in older files.
    pub rope_theta: Option<f64>,
    /// The rotary positions, in newer files.
    pub rope_parameters: Option<RopeParameters>,
    /// Changes to the rotary frequencies, in older files.
    pub rope_scaling: Option<RopeParameters>,
    /// Whether some layers see a window of the sequence only.
    pub use_sliding_window: bool,
    /// The window's length.
    pub sliding_window: Option<usize>,
    /// Layers before the first with a window.
    pub max_window_layers: usize,
    /// The kind of each layer; `None` is what the three keys about windows say.
    pub layer_types: Option<Vec<String>>,
}

/// How rotary frequencies are made.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct RopeParameters {
    /// The base of the frequencies.
    pub rope_theta: Option<f64>,
    /// Which rule; absent and `default` are the plain one.
    #[serde(alias = "type")]
    pub rope_type: Option<String>,
}

impl Default for Qwen3Config {
    fn default() -> Self {
        Self {
            vocab_size: 151_936,
            hidden_size: 4096,
            intermediate_size: 22_016,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: Some(32),
            head_dim: 128,
            max_position_embeddings: 32_768,
            rms_norm_eps: 1e-6,
            attention_bias: false,
            rope_theta: None,
            rope_parameters: None,
            rope_scaling: None,
            use_sliding_window: false,
            sliding_window: Some(4096),
            max_window_layers: 28,
            layer_types: None,
        }
    }
}

const NEUTRAL: &[Neutral] = &[("model_type", &["\"qwen3\""]), ("hidden_act", &["\"silu\""])];

impl Qwen3Config {
    /// Reads the configuration of an encoder; `file` is its name in errors.
    ///
    /// # Errors
    /// Names the file and the key when a value is of a wrong type, unsupported or contradicts another.
    pub fn from_json(file: &str, json: &str) -> Result<Self> {
        let config: Self = parse(file, json, NEUTRAL)?;
        config.check(file)?;
        Ok(config)
    }

    fn check(&self, file: &str) -> Result<()> {
        let check = |key: &str, right: bool, message: String| check(file, key, right, message);
        let (heads, groups) = (self.num_attention_heads, self.key_value_heads());
        let message = format!("{heads} heads cannot share {groups} heads of keys (num_key_value_heads)");
        check("num_attention_heads", heads > 0 && groups > 0 && heads % groups == 0, message)?;
        let even = self.head_dim > 0 && self.head_dim.is_multiple_of(2);
        check("head_dim", even, format!("is {}; an even number is expected", self.head_dim))?;
        check("num_hidden_layers", self.num_hidden_layers > 0, "is 0; at least 1 is expected".to_owned())?;
        for (key, rope) in [("rope_parameters", &self.rope_parameters), ("rope_scaling", &self.rope_scaling)] {
            let kind = rope.as_ref().and_then(|rope| rope.rope_type.as_deref()).unwrap_or("default");
            let message = format!("rope_type is {kind:?}; easel runs models where it is \"default\"");
            check(key, kind == "default", message)?;
        }
        let theta = self.theta();
        check("rope_theta", theta > 0.0 && theta.is_finite(), format!("{theta} is not above 0"))?;
        if let Some(kinds) = &self.layer_types {
            let message = format!("has {} values for {} layers", kinds.len(), self.num_hidden_layers);
            check("layer_types", kinds.len() == self.num_hidden_layers, message)?;
            if let Some(kind) = kinds.iter().find(|kind| *kind != "full_attention") {
                let message = format!("has {kind:?}; easel runs models where all are \"full_attention\"");
                return check("layer_types", false, message);
            }
            return Ok(());
        }
        let windowed =
            self.use_sliding_window && self.sliding_window.is_some() && self.max_window_layers < self.num_hidden_layers;
        let message = "is true; easel runs models whose layers see the whole sequence".to_owned();
        check("use_sliding_window", !windowed, message)
    }

    /// Whether [`Qwen3::up_to`] this layer loads the tensor of this key, in either of the two spellings: not the layers behind
    /// it, nor the output layer.
    pub fn loads(&self, key: &str, last: usize) -> bool {
        let key = key.strip_prefix("model.").unwrap_or(key);
        match key.strip_prefix("layers.") {
            Some(rest) => rest.split('.').next().and_then(|at| at.parse().ok()).is_some_and(|at: usize| at < last),
            None if key == "norm.weight" => last >= self.num_hidden_layers,
            None => key == "embed_tokens.weight",
        }
    }

    fn key_value_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn theta(&self) -> f64 {
        let newer = self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta);
        newer.or(self.rope_theta).unwrap_or(ROPE_THETA)
    }
}

/// Which tokens of a batch of prompts are padding.
#[derive(Debug, Clone)]
pub struct Qwen3Mask {
    /// Added to the scores, (b, 1, l, l).
    scores: Tensor,
    /// 1 where a position sees anything and 0 where it does not, (b, l, 1): padding before a text.
    sighted: Option<Tensor>,
}

impl Qwen3Mask {
    /// The mask of (b, l) in u8, 0 where a token is padding; every position sees itself and what came before, without
    /// padding.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn new(mask: &Tensor, dtype: DType) -> Result<Self> {
        let (rows, length) = mask.dims2()?;
        let device = mask.device();
        let shown = mask.to_vec2::<u8>()?;
        let mut scores = Vec::with_capacity(rows * length * length);
        let mut sighted = Vec::with_capacity(rows * length);
        for row in &shown {
            for query in 0..length {
                let blind = row[..=query].iter().all(|&shown| shown == 0);
                sighted.push(f32::from(u8::from(!blind)));
                // A position that sees nothing looks at itself, lest the softmax be of nothing; its result is dropped.
                let sees = |key: usize| key <= query && (row[key] != 0 || (blind && key == query));
                scores.extend((0..length).map(|key| if sees(key) { 0.0 } else { f32::NEG_INFINITY }));
            }
        }
        let all = sighted.iter().all(|&value| value == 1.0);
        let sighted = Tensor::from_vec(sighted, (rows, length, 1), device)?.to_dtype(dtype)?;
        let scores = Tensor::from_vec(scores, (rows, 1, length, length), device)?.to_dtype(dtype)?;
        Ok(Self { scores, sighted: (!all).then_some(sighted) })
    }

    /// The mask of prompts of `length` tokens without padding.
    fn whole(length: usize, like: &Tensor) -> Result<Self> {
        let scores = causal_mask(length, like.device())?.reshape((1, 1, length, length))?.to_dtype(like.dtype())?;
        Ok(Self { scores, sighted: None })
    }
}

/// Qwen3 without its output layer.
pub struct Qwen3 {
    config: Qwen3Config,
    tokens: Tensor,
    layers: Vec<Layer>,
    /// Behind the last layer, where that is there.
    norm: Option<RmsNorm>,
}

impl Qwen3 {
    /// Builds the encoder from its weights: `Qwen3ForCausalLM`'s keys, or `Qwen3Model`'s, which have no prefix.
    ///
    /// # Errors
    /// Names the file, the key and the shape of a tensor that is missing or does not fit the configuration.
    pub fn new(config: &Qwen3Config, weights: &Tensors) -> Result<Self> {
        Self::up_to(config, weights, config.num_hidden_layers)
    }

    /// [`Self::new`] of the first `last` layers: those behind the last hidden state that is asked for need no memory.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn up_to(config: &Qwen3Config, weights: &Tensors, last: usize) -> Result<Self> {
        let width = config.hidden_size;
        let whole = last >= config.num_hidden_layers;
        let model = if weights.contains("embed_tokens.weight") { weights } else { &weights.pp("model") };
        let layers = model.pp("layers");
        Ok(Self {
            tokens: model.pp("embed_tokens").get("weight", &[config.vocab_size, width])?,
            layers: (0..last.min(config.num_hidden_layers))
                .map(|at| Layer::new(config, &layers.pp(at)))
                .collect::<Result<_>>()?,
            norm: whole.then(|| rms_norm(&model.pp("norm"), width, config.rms_norm_eps)).transpose()?,
            config: config.clone(),
        })
    }

    /// Hidden states of token ids (b, l) in u32: of each index in `wanted`, (b, l, hidden_size).
    ///
    /// 0 is the embeddings, i what layer i gave, and the last layer's are normalised, as transformers counts.
    ///
    /// # Errors
    /// When there is no such layer, or a tensor operation fails.
    pub fn hidden_states(&self, ids: &Tensor, mask: Option<&Qwen3Mask>, wanted: &[usize]) -> Result<Vec<Tensor>> {
        let (rows, length) = ids.dims2()?;
        let count = self.layers.len();
        let last = wanted.iter().copied().max().unwrap_or(0);
        if last > count {
            let message = format!("the hidden state {last} was asked of a text encoder of {count} layers");
            return Err(Error::Unsupported(message));
        }
        let mut hidden = self.tokens.index_select(&ids.flatten_all()?, 0)?.reshape((rows, length, ()))?;
        let mask = match mask {
            Some(mask) => mask.clone(),
            None => Qwen3Mask::whole(length, &hidden)?,
        };
        let positions = self.positions(length)?;
        let mut states = vec![None; count + 1];
        states[0] = Some(hidden.clone());
        for (at, layer) in self.layers[..last].iter().enumerate() {
            hidden = layer.forward(&hidden, &positions, &mask)?;
            states[at + 1] = Some(match &self.norm {
                Some(norm) if at + 1 == count => norm.forward(&hidden)?,
                _ => hidden.clone(),
            });
        }
        Ok(wanted.iter().filter_map(|&at| states[at].clone()).collect())
    }

    /// Cosines and sines of each position, (l, `head_dim`/2) in f32.
    fn positions(&self, length: usize) -> Result<(Tensor, Tensor)> {
        let (half, theta) = (self.config.head_dim / 2, self.config.theta());
        let exponent = |at: usize| f64::from((2 * at) as f32 / (2 * half) as f32);
        // transformers rounds frequencies and angles to f32.
        let frequencies: Vec<f32> = (0..half).map(|at| 1.0 / theta.powf(exponent(at)) as f32).collect();
        let angles = (0..length).flat_map(|position| frequencies.iter().map(move |by| f64::from(position as f32 * by)));
        let (cosines, sines): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
        let tensor = |values| Tensor::from_vec(values, (length, half), self.tokens.device());
        Ok((tensor(cosines)?, tensor(sines)?))
    }
}

/// One transformer layer, normalised before each half.
struct Layer {
    norm1: RmsNorm,
    attention: Attention,
    norm2: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Layer {
    fn new(config: &Qwen3Config, weights: &Tensors) -> Result<Self> {
        let Qwen3Config { hidden_size: width, intermediate_size: inner, rms_norm_eps: eps, .. } = *config;
        let mlp = weights.pp("mlp");
        Ok(Self {
            norm1: rms_norm(&weights.pp("input_layernorm"), width, eps)?,
            attention: Attention::new(config, &weights.pp("self_attn"))?,
            norm2: rms_norm(&weights.pp("post_attention_layernorm"), width, eps)?,
            gate: linear_no_bias(&mlp.pp("gate_proj"), width, inner)?,
            up: linear_no_bias(&mlp.pp("up_proj"), width, inner)?,
            down: linear_no_bias(&mlp.pp("down_proj"), inner, width)?,
        })
    }

    /// `x` is (b, l, d), and so is the result.
    fn forward(&self, x: &Tensor, positions: &(Tensor, Tensor), mask: &Qwen3Mask) -> Result<Tensor> {
        let x = (x + self.attention.forward(&self.norm1.forward(x)?, positions, mask)?)?;
        let normed = self.norm2.forward(&x)?;
        let inner = (silu(&self.gate.forward(&normed)?)? * self.up.forward(&normed)?)?; // (b, l, intermediate)
        Ok((x + self.down.forward(&inner)?)?)
    }
}

/// Self-attention in which several heads of queries share one of keys and values.
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    heads: usize,
    groups: usize,
    head_dim: usize,
}

impl Attention {
    fn new(config: &Qwen3Config, weights: &Tensors) -> Result<Self> {
        let Qwen3Config { hidden_size: width, num_attention_heads: heads, head_dim, rms_norm_eps: eps, .. } = *config;
        let groups = config.key_value_heads();
        let linear = if config.attention_bias { linear } else { linear_no_bias };
        Ok(Self {
            q: linear(&weights.pp("q_proj"), width, heads * head_dim)?,
            k: linear(&weights.pp("k_proj"), width, groups * head_dim)?,
            v: linear(&weights.pp("v_proj"), width, groups * head_dim)?,
            out: linear(&weights.pp("o_proj"), heads * head_dim, width)?,
            q_norm: rms_norm(&weights.pp("q_norm"), head_dim, eps)?,
            k_norm: rms_norm(&weights.pp("k_norm"), head_dim, eps)?,
            heads,
            groups,
            head_dim,
        })
    }

    fn forward(&self, x: &Tensor, (cosines, sines): &(Tensor, Tensor), mask: &Qwen3Mask) -> Result<Tensor> {
        let turned =
            |x: &Tensor, norm: &RmsNorm, heads: usize| rms_norm_rope(x, norm, cosines, sines, heads, Pairing::Halves);
        let q = turned(&self.q.forward(x)?, &self.q_norm, self.heads)?; // (b, l, heads·d)
        let k = self.spread(&turned(&self.k.forward(x)?, &self.k_norm, self.groups)?)?;
        let v = self.spread(&self.v.forward(x)?)?;
        let mut mixed = attention(&q, &k, &v, self.heads, Some(&mask.scores))?;
        if let Some(sighted) = &mask.sighted {
            mixed = mixed.broadcast_mul(sighted)?;
        }
        Ok(self.out.forward(&mixed)?)
    }

    /// (b, l, groups·d) to (b, l, heads·d): each group's head for every head of queries in it.
    fn spread(&self, x: &Tensor) -> Result<Tensor> {
        let (b, l, _) = x.dims3()?;
        let (groups, each, d) = (self.groups, self.heads / self.groups, self.head_dim);
        if each == 1 {
            return Ok(x.clone());
        }
        let spread = x.reshape((b, l, groups, 1, d))?.broadcast_as((b, l, groups, each, d))?;
        Ok(spread.contiguous()?.reshape((b, l, self.heads * d))?)
    }
}

fn rms_norm(weights: &Tensors, width: usize, eps: f64) -> Result<RmsNorm> {
    Ok(RmsNorm::new(weights.get("weight", &[width])?, eps)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use candle_core::Device;

    use super::*;
    use crate::denoisers::testing::{distance, numbers, view, weights_for};

    const FILE: &str = "text_encoder/config.json";

    fn config() -> Qwen3Config {
        let json = r#"{"model_type": "qwen3", "vocab_size": 20, "hidden_size": 12, "intermediate_size": 16, "head_dim": 6,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 1000000}"#;
        Qwen3Config::from_json(FILE, json).unwrap()
    }

    fn tiny() -> Qwen3 {
        let weights = weights_for(|weights| Qwen3::new(&config(), weights));
        Qwen3::new(&config(), &view(weights)).unwrap()
    }

    fn states(ids: &[u32], mask: Option<&[u8]>) -> Tensor {
        let ids = Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu).unwrap();
        let mask = mask.map(|mask| Tensor::from_slice(mask, (1, mask.len()), &Device::Cpu).unwrap());
        let mask = mask.map(|mask| Qwen3Mask::new(&mask, DType::F32).unwrap());
        tiny().hidden_states(&ids, mask.as_ref(), &[3]).unwrap().remove(0)
    }

    #[test]
    fn padding_on_either_side_changes_nothing() {
        let alone = states(&[3, 1, 4, 1], None);
        let behind = states(&[3, 1, 4, 1, 0, 0], Some(&[1, 1, 1, 1, 0, 0]));
        let before = states(&[0, 0, 3, 1, 4, 1], Some(&[0, 0, 1, 1, 1, 1]));
        assert!(distance(&behind.narrow(1, 0, 4).unwrap(), &alone) < 1e-6);
        // Positions count the padding, too; only how far tokens are apart matters.
        assert!(distance(&before.narrow(1, 2, 4).unwrap(), &alone) < 1e-5);
        assert!(numbers(&before).iter().all(|value| value.is_finite()));
    }

    #[test]
    fn a_token_sees_what_comes_before_it_only() {
        let (whole, start) = (states(&[3, 1, 4, 1, 5], None), states(&[3, 1, 4], None));
        assert!(distance(&whole.narrow(1, 0, 3).unwrap(), &start) < 1e-6);
    }

    #[test]
    fn the_states_of_any_layer_can_be_asked_for() {
        let qwen = tiny();
        let ids = Tensor::new(&[[7_u32, 2, 9]], &Device::Cpu).unwrap();
        let all = qwen.hidden_states(&ids, None, &[0, 1, 2, 3]).unwrap();
        let two = qwen.hidden_states(&ids, None, &[2, 0]).unwrap();
        assert_eq!((numbers(&two[0]), numbers(&two[1])), (numbers(&all[2]), numbers(&all[0])));
        assert!(distance(&all[3], &all[2]) > 0.1);
        let error = qwen.hidden_states(&ids, None, &[4]).unwrap_err().to_string();
        assert_eq!(error, "the hidden state 4 was asked of a text encoder of 3 layers");

        // Without the last layer there is none of its states, and the others are the same.
        let weights = view(weights_for(|weights| Qwen3::new(&config(), weights)));
        let short = Qwen3::up_to(&config(), &weights, 2).unwrap();
        assert_eq!(numbers(&short.hidden_states(&ids, None, &[2]).unwrap()[0]), numbers(&all[2]));
        assert!(short.hidden_states(&ids, None, &[3]).is_err());
    }

    #[test]
    fn the_tensors_that_it_says_it_loads_are_those_that_it_asks_for() {
        let config = config();
        let whole = weights_for(|weights| Qwen3::new(&config, weights));
        for last in 0..=3 {
            let asked = weights_for(|weights| Qwen3::up_to(&config, weights, last));
            let said: BTreeSet<&String> = whole.keys().filter(|key| config.loads(key, last)).collect();
            assert_eq!(said, asked.keys().collect(), "up to layer {last}");
        }
        // The output layer is asked for by none, and either spelling is known.
        assert!(!config.loads("lm_head.weight", 3) && config.loads("layers.1.mlp.up_proj.weight", 2));
    }

    #[test]
    fn what_is_not_supported_is_told_with_file_and_key() {
        let cases = [
            (r#"{"model_type": "qwen2"}"#, "model_type is \"qwen2\""),
            (r#"{"hidden_act": "gelu"}"#, "hidden_act is \"gelu\""),
            (r#"{"use_sliding_window": true}"#, "use_sliding_window: is true"),
            (
                r#"{"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}"#,
                "layer_types: has \"sliding_attention\"",
            ),
            (r#"{"rope_scaling": {"type": "yarn", "factor": 4.0}}"#, "rope_scaling: rope_type is \"yarn\""),
            (r#"{"rope_parameters": {"rope_type": "linear"}}"#, "rope_parameters: rope_type is \"linear\""),
            (r#"{"num_key_value_heads": 5}"#, "num_attention_heads: 32 heads cannot share 5 heads of keys"),
            (r#"{"head_dim": 7}"#, "head_dim: is 7"),
        ];
        for (json, message) in cases {
            let error = Qwen3Config::from_json(FILE, json).unwrap_err().to_string();
            assert!(error.starts_with(FILE) && error.contains(message), "{error}");
        }
        // Windows that begin behind the last layer are none.
        Qwen3Config::from_json(FILE, r#"{"use_sliding_window": true, "max_window_layers": 32}"#).unwrap();
        let newer = r#"{"rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}, "rope_theta": 1.0}"#;
        assert_eq!(Qwen3Config::from_json(FILE, newer).unwrap().theta(), 5000.0);
    }
}
