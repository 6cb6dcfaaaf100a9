//! What a UNet is conditioned on, projected once for all steps.

use candle_core::Tensor;
use easel_kernels::Linear;

use super::adapters::Adapters;
use crate::{Error, Result};

/// What the rows are conditioned on, as the text encoders and the request give it.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The text encoder's states, (b, l, `cross_attention_dim`).
    pub states: &'a Tensor,
    /// SDXL's size conditioning; given exactly when the configuration's `addition_embed_type` is `text_time`.
    pub added: Option<AddedContext<'a>>,
    /// The embedding of the guidance scale of distilled models, (b, `time_cond_proj_dim`).
    pub guidance: Option<&'a Tensor>,
}

/// SDXL's added conditioning (Podell et al., 2023, section 2.2).
#[derive(Clone, Copy)]
pub struct AddedContext<'a> {
    /// The pooled text state, (b, p).
    pub pooled: &'a Tensor,
    /// Original size, crop and target size of each row, as numbers; as many in every row.
    pub time_ids: &'a [Vec<f64>],
}

/// Keys and values of one cross-attention layer, each (b, l, c).
#[derive(Debug, Clone)]
pub(crate) struct KeyValue {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
    /// Those of image prompts, (b, tokens, c) each, which are looked at beside the text's.
    pub(crate) pictures: Vec<(Tensor, Tensor)>,
}

/// What an image prompt adapter hangs on one cross-attention layer (Ye et al., "IP-Adapter", 2023): its own keys and
/// values of a picture's tokens.
#[derive(Debug, Clone)]
pub struct ImageProjection {
    /// Tokens to keys.
    pub to_k: Linear,
    /// Tokens to values.
    pub to_v: Linear,
}

/// A context after everything in the network that does not depend on the step: the keys and values of
/// each cross-attention layer and what is added to the time embedding.
///
/// Made by [`super::UNet::condition`] once a prompt; [`Condition::stack`] puts the rows of a batch together.
#[derive(Debug, Clone)]
pub struct Condition {
    /// One for each cross-attention layer, in the order of their numbers.
    pub(crate) context: Vec<KeyValue>,
    /// Added to the time embedding, (b, time).
    pub(crate) added: Option<Tensor>,
    /// Added to the sinusoidal embedding, (b, first width).
    pub(crate) guidance: Option<Tensor>,
    pub(crate) rows: usize,
}

impl Condition {
    /// Rows of the batch that this conditions.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The same condition with a picture to look at: `tokens` (b, t, d) of an image prompt adapter, and its projections
    /// for each cross-attention layer in the order of their numbers. `scale` is how much the picture counts; several
    /// pictures add up.
    ///
    /// # Errors
    /// When there are not as many projections as layers or not as many rows as in the condition, or a size does not fit.
    pub fn with_picture(mut self, tokens: &Tensor, layers: &[ImageProjection], scale: f64) -> Result<Self> {
        let (rows, found) = (tokens.dim(0)?, layers.len());
        if found != self.context.len() || rows != self.rows {
            return Err(Error::Unsupported(format!(
                "an image prompt of {rows} rows and {found} layers does not fit a condition of {} rows and {} layers",
                self.rows,
                self.context.len()
            )));
        }
        for (text, layer) in self.context.iter_mut().zip(layers) {
            let tokens = tokens.to_dtype(text.keys.dtype())?;
            // What attention gives is linear in the values, so the scale may be theirs, and rows of any scale share a call.
            text.pictures.push((layer.to_k.forward(&tokens)?, (layer.to_v.forward(&tokens)? * scale)?));
        }
        Ok(self)
    }

    /// Puts conditions under each other, in this order.
    ///
    /// # Errors
    /// When there is none, or they are not of one network, one context length and as many pictures.
    pub fn stack(conditions: &[&Self]) -> Result<Self> {
        let [first, rest @ ..] = conditions else {
            return Err(Error::Unsupported("a model call needs at least one condition".to_owned()));
        };
        if rest.is_empty() {
            return Ok((*first).clone());
        }
        let cat = |part: &dyn Fn(&Self) -> Tensor| {
            Tensor::cat(&conditions.iter().map(|condition| part(condition)).collect::<Vec<_>>(), 0)
        };
        let layers = first.context.len();
        let pictures = |condition: &Self| condition.context.first().map_or(0, |layer| layer.pictures.len());
        let alike = |other: &&Self| {
            other.context.len() == layers
                && pictures(other) == pictures(first)
                && other.added.is_some() == first.added.is_some()
                && other.guidance.is_some() == first.guidance.is_some()
        };
        if !rest.iter().all(alike) {
            return Err(Error::Unsupported("conditions of different networks cannot share a model call".to_owned()));
        }
        let context = (0..layers)
            .map(|layer| {
                Ok(KeyValue {
                    keys: cat(&|condition| condition.context[layer].keys.clone())?,
                    values: cat(&|condition| condition.context[layer].values.clone())?,
                    pictures: (0..pictures(first))
                        .map(|at| {
                            let keys = cat(&|condition| condition.context[layer].pictures[at].0.clone())?;
                            Ok((keys, cat(&|condition| condition.context[layer].pictures[at].1.clone())?))
                        })
                        .collect::<Result<_>>()?,
                })
            })
            .collect::<Result<_>>()?;
        let optional = |part: fn(&Self) -> &Option<Tensor>| -> Result<Option<Tensor>> {
            let parts: Vec<&Tensor> = conditions.iter().filter_map(|condition| part(condition).as_ref()).collect();
            if parts.is_empty() { Ok(None) } else { Ok(Some(Tensor::cat(&parts, 0)?)) }
        };
        Ok(Self {
            context,
            added: optional(|condition| &condition.added)?,
            guidance: optional(|condition| &condition.guidance)?,
            rows: conditions.iter().map(|condition| condition.rows).sum(),
        })
    }
}

/// What every block of one model call sees beside the features.
pub(crate) struct Step<'a> {
    /// The activated time embedding, (b, time).
    pub(crate) emb: &'a Tensor,
    pub(crate) context: &'a [KeyValue],
    pub(crate) adapters: &'a Adapters,
}
