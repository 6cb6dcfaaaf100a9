//! What a UNet is conditioned on, projected once for all steps.

use candle_core::Tensor;
use easel_kernels::Parts;

use super::adapters::Adapters;
use super::image_prompt::ImagePrompts;
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
}

impl Parts for KeyValue {
    fn rebuild<E>(
        &self,
        each: &mut impl FnMut(&Tensor) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Self, E> {
        Ok(Self { keys: each(&self.keys)?, values: each(&self.values)? })
    }
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

    /// Puts conditions under each other, in this order.
    ///
    /// # Errors
    /// When there is none, or they are not of one network and one context length.
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
        let alike = |other: &&Self| {
            other.context.len() == layers
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
    pub(crate) pictures: &'a ImagePrompts,
    pub(crate) adapters: &'a Adapters,
}
