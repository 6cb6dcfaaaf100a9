//! The three text encoders of Stable Diffusion 3, the last of which a model may go without.

use std::sync::Arc;

use candle_core::Tensor;
use serde::Deserialize;

use crate::families::parts::{AnyPart, Lazy, Turns};
use crate::families::{Placement, unused};
use crate::text::{ClipText, ClipTextConfig, ClipTokenizer, T5Config, T5Encoder, T5Tokenizer, Tokens};
use crate::weights::{MODEL_INDEX, Repository};
use crate::{Conditioning, Error, Part, Prompt, Result};

/// Tokens of T5: diffusers' `max_sequence_length`.
const T5_TOKENS: usize = 256;

/// Tokens of CLIP where no tokenizer names a number.
const CLIP_TOKENS: usize = 77;

/// The encoders' folders, and their tokenizers'.
const CLIPS: [(&str, &str); 2] = [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")];
const T5: (&str, &str) = ("text_encoder_3", "tokenizer_3");

/// The configuration of the part in `folder`.
fn config_file(folder: &str) -> String {
    format!("{folder}/config.json")
}

/// The encoders' files, read and checked, without their weights.
pub(super) struct TextFiles {
    clips: [(ClipTextConfig, ClipTokenizer); 2],
    t5: Option<(T5Config, T5Tokenizer)>,
    /// The width of the states that the denoiser takes.
    width: usize,
    clip_tokens: usize,
}

/// The part of `model_index.json` that says whether there is a T5.
#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    text_encoder_3: Option<Vec<Option<String>>>,
}

impl TextFiles {
    /// Reads the files; `width` and `pooled` are the denoiser's `joint_attention_dim` and `pooled_projection_dim`, which
    /// the `denoiser`'s configuration file has.
    ///
    /// # Errors
    /// Names the file and the key of what is missing or does not fit.
    pub(super) fn read(repository: &Repository, denoiser: &str, width: usize, pooled: usize) -> Result<Self> {
        let clip = |(encoder, tokenizer): (&str, &str)| -> Result<(ClipTextConfig, ClipTokenizer)> {
            let config: ClipTextConfig = repository.json(&config_file(encoder))?;
            config.check(&config_file(encoder))?;
            Ok((config, ClipTokenizer::open(repository, tokenizer)?))
        };
        let clips = [clip(CLIPS[0])?, clip(CLIPS[1])?];
        let Index { text_encoder_3 } = repository.json(MODEL_INDEX)?;
        let named = text_encoder_3.is_none_or(|classes| classes.iter().any(Option::is_some));
        // A model may be kept without T5, which is the largest of its parts by far.
        let t5_config: Option<T5Config> = if named { repository.try_json(&config_file(T5.0))? } else { None };
        let t5 = match t5_config {
            Some(config) => {
                config.check(&config_file(T5.0))?;
                Some((config, T5Tokenizer::open(repository, T5.1)?))
            }
            None => None,
        };
        // diffusers takes the first tokenizer's length for both.
        let clip_tokens = clips[0].1.max_length().unwrap_or(CLIP_TOKENS);
        let files = Self { clips, t5, width, clip_tokens };
        files.check(denoiser, pooled)?;
        Ok(files)
    }

    /// Refuses encoders that are not made for the denoiser.
    fn check(&self, denoiser: &str, pooled: usize) -> Result<()> {
        let refuse = |file: &str, message: String| Err(Error::file(file, message));
        for ((config, tokenizer), (folder, _)) in self.clips.iter().zip(CLIPS) {
            let file = config_file(folder);
            let (positions, length) = (config.max_position_embeddings, self.clip_tokens);
            if length > positions {
                let message = format!("max_position_embeddings is {positions}, but prompts have {length} tokens");
                return refuse(&file, message);
            }
            fits(tokenizer.file(), tokenizer.largest_id(), &file, config.vocab_size)?;
            if config.num_hidden_layers < 2 {
                return refuse(&file, "num_hidden_layers is 1; the states of the last layer but one are needed".into());
            }
        }
        let [first, second] = [&self.clips[0].0, &self.clips[1].0];
        let (both, width) = (first.hidden_size + second.hidden_size, self.width);
        if both > width {
            let message = format!("joint_attention_dim is {width}, but the two CLIPs' hidden_size add up to {both}");
            return refuse(denoiser, message);
        }
        let projected = first.projection_dim + second.projection_dim;
        if projected != pooled {
            let message =
                format!("pooled_projection_dim is {pooled}, but the two CLIPs' projection_dim add up to {projected}");
            return refuse(denoiser, message);
        }
        if let Some((config, tokenizer)) = &self.t5 {
            let file = config_file(T5.0);
            if config.d_model != width {
                let message = format!("d_model is {}, but {denoiser} has joint_attention_dim {width}", config.d_model);
                return refuse(&file, message);
            }
            fits(tokenizer.file(), tokenizer.largest_id(), &file, config.vocab_size)?;
        }
        Ok(())
    }

    /// What each encoder is made of.
    ///
    /// # Errors
    /// When weights are missing or damaged.
    pub(super) fn parts(&self, repository: &Repository, placement: &Placement) -> Result<Vec<Part>> {
        let t5 = self.t5.iter().map(|_| T5.0);
        let folders = CLIPS.iter().map(|(folder, _)| *folder).chain(t5);
        folders.map(|folder| repository.part(folder, placement.value_bytes())).collect()
    }

    /// The encoders, whose weights come when they are needed; `parts` are [`Self::parts`].
    pub(super) fn open(
        self,
        repository: &Repository,
        placement: &Placement,
        parts: Vec<Part>,
        turns: &Arc<Turns>,
    ) -> Texts {
        let Self { clips, t5, width, clip_tokens } = self;
        let tensors = {
            let (repository, placement) = (repository.clone(), placement.clone());
            move |folder: &str| repository.tensors(folder, placement.dtype, &placement.device)
        };
        let mut parts = parts.into_iter();
        let clips =
            clips.into_iter().zip(CLIPS).zip(parts.by_ref()).map(|(((config, tokenizer), (folder, _)), part)| {
                let tensors = tensors.clone();
                let build = move || {
                    let weights = tensors(folder)?;
                    if !weights.contains("text_projection.weight") {
                        let message = "is missing; Stable Diffusion 3 takes the projected pooled state";
                        return Err(weights.error("text_projection.weight", message));
                    }
                    ClipText::new(&config, &weights)
                };
                (tokenizer, Lazy::new(part, turns, build))
            });
        let clips = clips.collect();
        let t5 = t5.zip(parts.next()).map(|((config, tokenizer), part)| {
            (tokenizer, Lazy::new(part, turns, move || T5Encoder::new(&config, &tensors(T5.0)?)))
        });
        Texts { clips, t5, width, clip_tokens, placement: placement.clone() }
    }

    /// Tokens that a prompt has where it is read furthest.
    pub(super) fn context_tokens(&self) -> usize {
        if self.t5.is_some() { T5_TOKENS } else { self.clip_tokens }
    }

    /// Tokens that the denoiser sees.
    pub(super) fn joint_tokens(&self) -> usize {
        self.clip_tokens + T5_TOKENS
    }

    /// Layers of CLIP that `clip_skip` may leave out: the states are those of the last layer but one, and further up
    /// there must still be some.
    pub(super) fn clip_layers(&self) -> usize {
        let layers = self.clips.iter().map(|(config, _)| config.num_hidden_layers);
        layers.min().unwrap_or(0).saturating_sub(1)
    }
}

/// Refuses a tokenizer whose ids the encoder has no embeddings for.
fn fits(tokenizer: &str, largest: u32, file: &str, vocabulary: usize) -> Result<()> {
    if (largest as usize) < vocabulary {
        return Ok(());
    }
    Err(Error::file(tokenizer, format_args!("has ids up to {largest}, but {file} has vocab_size {vocabulary}")))
}

/// The encoders of an open model.
pub(super) struct Texts {
    clips: Vec<(ClipTokenizer, Lazy<ClipText>)>,
    t5: Option<(T5Tokenizer, Lazy<T5Encoder>)>,
    width: usize,
    clip_tokens: usize,
    placement: Placement,
}

impl Texts {
    /// The encoders as parts, in the order in which a prompt needs them.
    pub(super) fn all(&self) -> Vec<&dyn AnyPart> {
        let mut all: Vec<&dyn AnyPart> = Vec::new();
        all.extend(self.clips.iter().map(|(_, clip)| clip as &dyn AnyPart));
        all.extend(self.t5.iter().map(|(_, t5)| t5 as &dyn AnyPart));
        all
    }

    /// Encodes a prompt: both CLIPs' states side by side and filled up with zeros, then T5's, or zeros in their place,
    /// (clip + t5, width); and both CLIPs' projected pooled states.
    ///
    /// # Errors
    /// When the prompt asks for more than these encoders do, or a tensor operation fails.
    pub(super) fn encode(&self, prompt: &Prompt) -> Result<Conditioning> {
        unused::check_prompt(&Prompt { clip_skip: 0, ..prompt.clone() })?;
        let text = prompt.text.as_deref().unwrap_or_default();
        let (device, dtype) = (&self.placement.device, self.placement.dtype);
        let tensor = |tokens: &Tokens| Tensor::from_slice(&tokens.ids, (1, tokens.ids.len()), device);

        let (mut states, mut pooled, mut seen) = (Vec::new(), Vec::new(), Vec::new());
        for (tokenizer, clip) in &self.clips {
            let tokens = tokenizer.encode(text, self.clip_tokens)?;
            let ids = tensor(&tokens)?;
            // The states of the last layer but one, and as many layers before it as are asked for.
            let output = clip.with(|clip| clip.forward_unnormed(&ids, None, prompt.clip_skip + 1))?;
            states.push(output.states);
            pooled.push(output.pooled);
            seen.push(tokens);
        }
        let clip = Tensor::cat(&states, 2)?;
        let missing = self.width - clip.dim(2)?;
        let clip = clip.pad_with_zeros(2, 0, missing)?.to_dtype(dtype)?; // (1, clip, width)
        let t5 = match &self.t5 {
            None => Tensor::zeros((1, T5_TOKENS, self.width), dtype, device)?,
            Some((tokenizer, t5)) => {
                let tokens = tokenizer.encode(text, T5_TOKENS)?;
                let ids = tensor(&tokens)?;
                seen.push(tokens);
                // The padding is seen, as diffusers has it.
                t5.with(|t5| t5.forward(&ids, None))?.to_dtype(dtype)?
            }
        };
        // T5 reads the most of a prompt, so a warning is due only where it has not read all; without it, CLIP does.
        let (tokens, truncated) = seen.pop().map_or((0, None), |tokens| (tokens.count, tokens.truncated));
        Ok(Conditioning {
            states: Tensor::cat(&[clip, t5], 1)?.squeeze(0)?,
            pooled: Some(Tensor::cat(&pooled, 1)?.squeeze(0)?),
            mask: None,
            tokens,
            truncated,
        })
    }
}
