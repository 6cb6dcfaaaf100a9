//! CLIP's text encoder: a causal transformer with learned positions.
//!
//! Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021; the reference is
//! transformers' `CLIPTextModel`, and `CLIPTextModelWithProjection` where the weights have a projection.

use candle_core::{D, DType, Tensor};
use easel_kernels::{LayerNorm, Linear, attention, causal_mask, gelu, gelu_tanh, quick_gelu};
use serde::Deserialize;

use crate::weights::{Tensors, linear, linear_no_bias};
use crate::{Error, Result};

/// The end mark that a mistaken configuration of CLIP's names; it means the largest id of the sequence.
const LEGACY_END: u32 = 2;

/// `text_encoder/config.json`; what is absent is transformers' default.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    /// Ids that have an embedding.
    pub vocab_size: usize,
    /// The width of the states.
    pub hidden_size: usize,
    /// The width inside of the feed-forward layers.
    pub intermediate_size: usize,
    /// The width of the projected pooled state, where there is a projection.
    pub projection_dim: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads; they share `hidden_size` evenly.
    pub num_attention_heads: usize,
    /// The longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// The activation of the feed-forward layers.
    pub hidden_act: ClipActivation,
    /// Added to the variance in layer normalisation.
    pub layer_norm_eps: f64,
    /// The end mark, whose state is the pooled one.
    pub eos_token_id: u32,
    /// Whether diffusers hides the padding from the encoder; it does not by default.
    pub use_attention_mask: bool,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: ClipActivation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
            use_attention_mask: false,
        }
    }
}

impl ClipTextConfig {
    /// Checks what no type can say.
    ///
    /// # Errors
    /// Names `file` and the keys that contradict each other.
    pub fn check(&self, file: &str) -> Result<()> {
        let Self { hidden_size, num_attention_heads: heads, num_hidden_layers: layers, .. } = *self;
        if heads == 0 || hidden_size == 0 || hidden_size % heads != 0 {
            let message = format!("hidden_size {hidden_size} cannot be shared by num_attention_heads {heads}");
            return Err(Error::file(file, message));
        }
        if layers == 0 || self.max_position_embeddings < 2 {
            let message = "num_hidden_layers must be at least 1, and max_position_embeddings 2";
            return Err(Error::file(file, message));
        }
        Ok(())
    }
}

/// The activation of CLIP's feed-forward layers, by transformers' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipActivation {
    /// `x · sigmoid(1.702 x)`.
    QuickGelu,
    /// The exact GELU.
    Gelu,
    /// GELU by its tanh approximation.
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluNew,
}

/// What the encoder knows of a batch of prompts.
#[derive(Debug, Clone)]
pub struct ClipOutput {
    /// The states of the asked layer, (b, l, hidden_size), after the final normalisation where it is asked for.
    pub states: Tensor,
    /// The last layer's normalised state at the end mark, projected where there is a projection:
    /// (b, hidden_size) or (b, projection_dim).
    pub pooled: Tensor,
}

/// CLIP's text encoder.
pub struct ClipText {
    tokens: Tensor,
    positions: Tensor,
    layers: Vec<Layer>,
    norm: LayerNorm,
    projection: Option<Linear>,
    end: u32,
}

impl ClipText {
    /// Builds the encoder from its weights, with or without the prefix `text_model` in their keys.
    ///
    /// # Errors
    /// Names the file, the key and the shape of a tensor that is missing or does not fit the configuration.
    pub fn new(config: &ClipTextConfig, weights: &Tensors) -> Result<Self> {
        let ClipTextConfig { vocab_size, hidden_size: width, max_position_embeddings: length, .. } = *config;
        // transformers 5 leaves the prefix out where nothing but the text model is saved.
        let model =
            if weights.contains("embeddings.token_embedding.weight") { weights } else { &weights.pp("text_model") };
        let embeddings = model.pp("embeddings");
        let layers = model.pp("encoder.layers");
        let projection = weights.pp("text_projection");
        let projection = projection
            .contains("weight")
            .then(|| linear_no_bias(&projection, width, config.projection_dim))
            .transpose()?;
        Ok(Self {
            tokens: embeddings.pp("token_embedding").get("weight", &[vocab_size, width])?,
            positions: embeddings.pp("position_embedding").get("weight", &[length, width])?,
            layers: (0..config.num_hidden_layers)
                .map(|at| Layer::new(config, &layers.pp(at)))
                .collect::<Result<_>>()?,
            norm: layer_norm(config, &model.pp("final_layer_norm"))?,
            projection,
            end: config.eos_token_id,
        })
    }

    /// The same encoder, whose pooled state is not projected: transformers' `CLIPTextModel`, whatever the weights hold.
    #[must_use]
    pub fn without_projection(self) -> Self {
        Self { projection: None, ..self }
    }

    /// Transformer layers, which bounds how many can be skipped.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Encodes token ids, (b, l) in u32.
    ///
    /// `mask` is (b, l) in u8, 0 where a token must not be seen; it only adds to the causal mask. `skip` layers at the
    /// end do not reach the states, as in diffusers; the pooled state is always the last layer's.
    ///
    /// # Errors
    /// When the sequence is longer than the encoder's positions, or more layers are skipped than there are.
    pub fn forward(&self, ids: &Tensor, mask: Option<&Tensor>, skip: usize) -> Result<ClipOutput> {
        let ClipOutput { states, pooled } = self.forward_unnormed(ids, mask, skip)?;
        Ok(ClipOutput { states: self.norm.forward(&states)?, pooled })
    }

    /// [`Self::forward`] without the states' final normalisation, as SDXL and SD3 take them. The pooled state is
    /// normalised all the same.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_unnormed(&self, ids: &Tensor, mask: Option<&Tensor>, skip: usize) -> Result<ClipOutput> {
        let (rows, length) = ids.dims2()?;
        if skip > self.layers.len() {
            let layers = self.layers.len();
            let message = format!("{skip} is more than the {layers} layers of the text encoder");
            return Err(Error::Request { param: "clip_skip", message });
        }
        let positions = self.positions.narrow(0, 0, length)?;
        let embedded = self.tokens.index_select(&ids.flatten_all()?, 0)?.reshape((rows, length, ()))?;
        let mut hidden = embedded.broadcast_add(&positions)?;

        let mask = self.attention_mask(length, mask)?;
        // State 0 is the embeddings, state i what layer i gave.
        let wanted = self.layers.len() - skip;
        let mut states = hidden.clone();
        for (at, layer) in self.layers.iter().enumerate() {
            hidden = layer.forward(&hidden, &mask)?;
            if at + 1 == wanted {
                states = hidden.clone();
            }
        }
        Ok(ClipOutput { states, pooled: self.pool(ids, &self.norm.forward(&hidden)?)? })
    }

    /// The additive mask: (1, 1, l, l), or (b, 1, l, l) where tokens of a row are hidden.
    fn attention_mask(&self, length: usize, mask: Option<&Tensor>) -> Result<Tensor> {
        let (device, dtype) = (self.tokens.device(), self.tokens.dtype());
        let causal = causal_mask(length, device)?.reshape((1, 1, length, length))?;
        let mask = match mask {
            None => causal,
            Some(mask) => {
                let shape = (mask.dim(0)?, 1, length, length);
                let seen = mask.reshape((shape.0, 1, 1, length))?.broadcast_as(shape)?;
                let hidden = Tensor::new(f32::NEG_INFINITY, device)?.broadcast_as(shape)?;
                seen.where_cond(&causal.broadcast_as(shape)?, &hidden)?
            }
        };
        Ok(mask.to_dtype(dtype)?)
    }

    /// The state at each row's end mark. `last` is (b, l, d).
    fn pool(&self, ids: &Tensor, last: &Tensor) -> Result<Tensor> {
        let at = if self.end == LEGACY_END {
            ids.argmax(D::Minus1)?
        } else {
            // The first one, because the padding may be end marks as well. Torch takes position 0 where there is none.
            ids.eq(self.end)?.to_dtype(DType::U32)?.argmax(D::Minus1)?
        };
        let index = at.reshape(((), 1, 1))?.broadcast_as((ids.dim(0)?, 1, last.dim(2)?))?.contiguous()?;
        let pooled = last.contiguous()?.gather(&index, 1)?.squeeze(1)?;
        match &self.projection {
            Some(projection) => Ok(projection.forward(&pooled)?),
            None => Ok(pooled),
        }
    }
}

/// One transformer layer, normalised before each half.
struct Layer {
    norm1: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    heads: usize,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: ClipActivation,
}

impl Layer {
    fn new(config: &ClipTextConfig, weights: &Tensors) -> Result<Self> {
        let ClipTextConfig { hidden_size: width, intermediate_size: inner, .. } = *config;
        let (attention, mlp) = (weights.pp("self_attn"), weights.pp("mlp"));
        Ok(Self {
            norm1: layer_norm(config, &weights.pp("layer_norm1"))?,
            q: linear(&attention.pp("q_proj"), width, width)?,
            k: linear(&attention.pp("k_proj"), width, width)?,
            v: linear(&attention.pp("v_proj"), width, width)?,
            out: linear(&attention.pp("out_proj"), width, width)?,
            heads: config.num_attention_heads,
            norm2: layer_norm(config, &weights.pp("layer_norm2"))?,
            fc1: linear(&mlp.pp("fc1"), width, inner)?,
            fc2: linear(&mlp.pp("fc2"), inner, width)?,
            activation: config.hidden_act,
        })
    }

    /// `x` is (b, l, d), and so is the result.
    fn forward(&self, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        let (q, k, v) = (self.q.forward(&normed)?, self.k.forward(&normed)?, self.v.forward(&normed)?);
        let x = (x + self.out.forward(&attention(&q, &k, &v, self.heads, Some(mask))?)?)?;
        let inner = self.fc1.forward(&self.norm2.forward(&x)?)?;
        let inner = match self.activation {
            ClipActivation::QuickGelu => quick_gelu(&inner)?,
            ClipActivation::Gelu => gelu(&inner)?,
            ClipActivation::GeluNew => gelu_tanh(&inner)?,
        };
        Ok((x + self.fc2.forward(&inner)?)?)
    }
}

fn layer_norm(config: &ClipTextConfig, weights: &Tensors) -> Result<LayerNorm> {
    let shape = [config.hidden_size];
    let (weight, bias) = (weights.get("weight", &shape)?, weights.get("bias", &shape)?);
    Ok(LayerNorm::new(Some(weight), Some(bias), config.layer_norm_eps)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::weights::Repository;

    fn builtin() -> (ClipTextConfig, ClipText) {
        let repository = Repository::builtin();
        let config: ClipTextConfig = repository.json("text_encoder/config.json").unwrap();
        let weights = repository.tensors("text_encoder", DType::F32, &Device::Cpu).unwrap();
        let clip = ClipText::new(&config, &weights).unwrap();
        (config, clip)
    }

    fn ids(rows: &[&[u32]]) -> Tensor {
        Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    const PROMPT: [u32; 5] = [1849, 320, 549, 584, 1850];
    const OTHER: [u32; 5] = [1849, 1004, 1850, 1850, 1850];

    #[test]
    fn a_prompt_is_encoded_alike_alone_and_in_a_batch() {
        let (_, clip) = builtin();
        let alone = clip.forward(&ids(&[&PROMPT]), None, 0).unwrap();
        let batch = clip.forward(&ids(&[&OTHER, &PROMPT, &OTHER]), None, 0).unwrap();
        assert_eq!(values(&alone.states), values(&batch.states.narrow(0, 1, 1).unwrap()));
        assert_eq!(values(&alone.pooled), values(&batch.pooled.narrow(0, 1, 1).unwrap()));
    }

    #[test]
    fn a_token_sees_what_comes_before_it_only() {
        let (_, clip) = builtin();
        let whole = clip.forward(&ids(&[&PROMPT]), None, 0).unwrap().states;
        let start = clip.forward(&ids(&[&PROMPT[..3]]), None, 0).unwrap().states;
        let (whole, start) = (values(&whole.narrow(1, 0, 3).unwrap()), values(&start));
        assert!(whole.iter().zip(start).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn a_hidden_token_changes_nothing() {
        let (_, clip) = builtin();
        let mask = Tensor::new(&[[1_u8, 1, 0, 1, 1]], &Device::Cpu).unwrap();
        let encode = |hidden: u32| {
            let row = [1849, 320, hidden, 584, 1850];
            let states = clip.forward(&ids(&[&row]), Some(&mask), 0).unwrap().states;
            values(&states.narrow(1, 3, 2).unwrap())
        };
        assert_eq!(encode(549), encode(343));
    }

    #[test]
    fn the_pooled_state_is_that_of_the_first_end_mark() {
        let (config, clip) = builtin();
        let output = clip.forward(&ids(&[&PROMPT, &OTHER]), None, 0).unwrap();
        assert_eq!(values(&output.pooled.get(0).unwrap()), values(&output.states.get(0).unwrap().get(4).unwrap()));
        assert_eq!(values(&output.pooled.get(1).unwrap()), values(&output.states.get(1).unwrap().get(2).unwrap()));

        // Configurations with the mistaken end mark mean the largest id, wherever it stands first.
        let weights = Repository::builtin().tensors("text_encoder", DType::F32, &Device::Cpu).unwrap();
        let legacy = ClipText::new(&ClipTextConfig { eos_token_id: 2, ..config }, &weights).unwrap();
        let output = legacy.forward(&ids(&[&[1849, 1004, 320, 2, 2]]), None, 0).unwrap();
        assert_eq!(values(&output.pooled), values(&output.states.get(0).unwrap().get(0).unwrap()));
    }

    #[test]
    fn layers_are_skipped_from_the_end_down_to_the_embeddings() {
        let (config, clip) = builtin();
        let at = |skip| clip.forward(&ids(&[&PROMPT]), None, skip).map(|output| values(&output.states));
        let shorter = ClipTextConfig { num_hidden_layers: 1, ..config };
        let weights = Repository::builtin().tensors("text_encoder", DType::F32, &Device::Cpu).unwrap();
        let first = ClipText::new(&shorter, &weights).unwrap().forward(&ids(&[&PROMPT]), None, 0).unwrap().states;
        assert_eq!(at(1).unwrap(), values(&first));
        assert_ne!(at(2).unwrap(), values(&first));
        assert!(at(3).unwrap_err().to_string().starts_with("clip_skip: 3 is more than the 2 layers"));
    }

    #[test]
    fn a_configuration_that_contradicts_itself_or_the_weights_is_told() {
        let (config, _) = builtin();
        let odd = ClipTextConfig { num_attention_heads: 3, ..config.clone() }.check("text_encoder/config.json");
        let told = "text_encoder/config.json: hidden_size 128 cannot be shared by num_attention_heads 3";
        assert_eq!(odd.unwrap_err().to_string(), told);
        let wide = ClipTextConfig { hidden_size: 256, ..config };
        let weights = Repository::builtin().tensors("text_encoder", DType::F32, &Device::Cpu).unwrap();
        let error = ClipText::new(&wide, &weights).err().unwrap().to_string();
        assert!(
            error
                .starts_with("text_encoder/model.safetensors: embeddings.token_embedding.weight has shape [1851, 128]")
        );
    }
}
