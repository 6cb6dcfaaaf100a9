//! CLIP as all families but FLUX.1 use it: a tokenizer, a text encoder, and prompts in chunks.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::opening::{Opening, check_vocabulary};
use super::parts::{Lazy, Turns};
use crate::text::{ClipPrompt, ClipText, ClipTextConfig, ClipTokenizer, Tokens};
use crate::weights::Repository;
use crate::{Error, Part, Prompt, Result};

/// The projection of the pooled state.
const PROJECTION: &str = "text_projection.weight";

/// The files of one text encoder and its tokenizer, read and checked against each other.
pub(super) struct ClipFiles {
    part: &'static str,
    config: ClipTextConfig,
    tokenizer: ClipTokenizer,
    context: usize,
    projected: bool,
}

impl ClipFiles {
    /// Reads the folders of a text encoder and of its tokenizer.
    ///
    /// # Errors
    /// Names the file and the key that are missing, wrong, or contradict the other folder's.
    pub(super) fn read(repository: &Repository, part: &'static str, tokenizer_part: &str) -> Result<Self> {
        let file = format!("{part}/config.json");
        let config: ClipTextConfig = repository.json(&file)?;
        config.check(&file)?;
        let tokenizer = ClipTokenizer::open(repository, tokenizer_part)?;
        let (length, positions) = (tokenizer.max_length(), config.max_position_embeddings);
        if let Some(length) = length.filter(|&length| length > positions) {
            let message = format!("model_max_length is {length}, but {file} has max_position_embeddings {positions}");
            return Err(Error::file(format!("{tokenizer_part}/tokenizer_config.json"), message));
        }
        check_vocabulary((tokenizer.file(), tokenizer.largest_id()), &file, config.vocab_size)?;
        let context = length.unwrap_or(positions);
        Ok(Self { part, config, tokenizer, context, projected: false })
    }

    /// The same encoder of a model that needs the projected pooled state, and does not do without the projection.
    #[must_use]
    pub(super) fn projected(self) -> Self {
        Self { projected: true, ..self }
    }

    /// The same encoder with chunks of another encoder's length.
    ///
    /// # Errors
    /// Names the file and the key when the encoder has not as many positions.
    pub(super) fn at_context(self, context: usize) -> Result<Self> {
        let positions = self.config.max_position_embeddings;
        if context > positions {
            let message = format!("max_position_embeddings is {positions}, but prompts have {context} tokens");
            return Err(Error::file(format!("{}/config.json", self.part), message));
        }
        Ok(Self { context, ..self })
    }

    /// The encoder's configuration.
    pub(super) fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// Tokens of one chunk, its marks included.
    pub(super) fn context(&self) -> usize {
        self.context
    }

    /// The encoder, whose weights are those of `part`.
    pub(super) fn encoder(self, opening: Opening, part: Part, turns: &Arc<Turns>) -> ClipEncoder {
        let Self { config, tokenizer, context, projected, .. } = self;
        let built = config.clone();
        let text = opening.lazy(part, turns, move |weights| {
            if projected && !weights.contains(PROJECTION) {
                return Err(weights.error(PROJECTION, "is missing; this model takes the projected pooled state"));
            }
            ClipText::new(&built, weights)
        });
        ClipEncoder { tokenizer, config, context, text, device: opening.placement.device.clone() }
    }
}

/// Which of the encoder's states the denoiser is conditioned on, where no layer is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    /// The last layer's after the final normalisation: Stable Diffusion 1 and 2.
    Last,
    /// The last but one layer's as they are: SDXL and SD3.
    Penultimate,
}

/// A prompt as one encoder sees it.
pub(super) struct Encoded {
    /// The states of all chunks, (l, `hidden_size`).
    pub(super) states: Tensor,
    /// The pooled state of the first chunk, (p).
    pub(super) pooled: Tensor,
    /// Tokens of the prompt, its marks not counted and before truncation.
    pub(super) tokens: usize,
    /// The end of the prompt that did not fit.
    pub(super) truncated: Option<String>,
}

/// A text encoder and its tokenizer.
pub(super) struct ClipEncoder {
    tokenizer: ClipTokenizer,
    config: ClipTextConfig,
    context: usize,
    text: Lazy<ClipText>,
    device: Device,
}

impl ClipEncoder {
    /// The encoder itself, for [`super::parts::load`] and its like.
    pub(super) fn part(&self) -> &Lazy<ClipText> {
        &self.text
    }

    /// Encodes a prompt. An absent text is "".
    ///
    /// # Errors
    /// When more layers are skipped than there are, or the text cannot be encoded.
    pub(super) fn encode(&self, prompt: &Prompt, layer: Layer) -> Result<Encoded> {
        let prompted = ClipPrompt::new(&self.tokenizer, prompt, self.context)?;
        let outputs = self.text.with(|text| {
            let encode = |chunk: &Tokens| {
                let length = chunk.ids.len();
                let ids = Tensor::from_slice(&chunk.ids, (1, length), &self.device)?;
                match layer {
                    Layer::Last => {
                        let mask = Tensor::from_slice(&chunk.mask, (1, length), &self.device)?;
                        let mask = self.config.use_attention_mask.then_some(&mask);
                        text.forward(&ids, mask, prompt.clip_skip)
                    }
                    Layer::Penultimate => text.forward_unnormed(&ids, None, prompt.clip_skip + 1),
                }
            };
            prompted.chunks.iter().map(encode).collect::<Result<Vec<_>>>()
        })?;
        let pooled = outputs.first().map(|output| output.pooled.squeeze(0)).transpose()?;
        let pooled = pooled.ok_or_else(|| Error::Unsupported("a prompt has at least one chunk".to_owned()))?;
        let states: Vec<Tensor> = outputs.into_iter().map(|output| output.states).collect();
        let states = prompted.join(&states)?;
        Ok(Encoded { states, pooled, tokens: prompted.count(), truncated: prompted.truncated() })
    }
}
