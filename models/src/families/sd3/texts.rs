//! The three text encoders of Stable Diffusion 3, the last of which a model may go without.

use std::sync::Arc;

use candle_core::Tensor;
use serde::Deserialize;

use crate::families::Placement;
use crate::families::clip::{ClipEncoder, ClipFiles, Encoded, Layer};
use crate::families::opening::{Opening, check_vocabulary};
use crate::families::parts::{AnyPart, Lazy, Turns};
use crate::text::{T5Config, T5Encoder, T5Prompt, T5Tokenizer, equal_lengths};
use crate::weights::{MODEL_INDEX, Repository};
use crate::{Conditioning, Error, Part, Prompt, Result};

/// Tokens of T5: diffusers' `max_sequence_length`.
const T5_TOKENS: usize = 256;

/// The encoders' folders, and their tokenizers'.
const CLIPS: [(&str, &str); 2] = [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")];
const T5: (&str, &str) = ("text_encoder_3", "tokenizer_3");

/// The configuration of T5.
const T5_CONFIG: &str = "text_encoder_3/config.json";

/// The encoders' files, read and checked, without their weights.
pub(super) struct TextFiles {
    clips: [ClipFiles; 2],
    t5: Option<(T5Config, T5Tokenizer)>,
    /// The width of the states that the denoiser takes.
    width: usize,
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
        let read = |(encoder, tokenizer)| Ok::<_, Error>(ClipFiles::read(repository, encoder, tokenizer)?.projected());
        let first = read(CLIPS[0])?;
        // diffusers takes the first tokenizer's length for both.
        let second = read(CLIPS[1])?.at_context(first.context())?;
        let Index { text_encoder_3 } = repository.json(MODEL_INDEX)?;
        let named = text_encoder_3.is_none_or(|classes| classes.iter().any(Option::is_some));
        // A model may be kept without T5, which is the largest of its parts by far.
        let t5_config: Option<T5Config> = if named { repository.try_json(T5_CONFIG)? } else { None };
        let t5 = match t5_config {
            None => None,
            Some(config) => {
                config.check(T5_CONFIG)?;
                Some((config, T5Tokenizer::open(repository, T5.1)?))
            }
        };
        let files = Self { clips: [first, second], t5, width };
        files.check(denoiser, pooled)?;
        Ok(files)
    }

    /// Refuses encoders that are not made for the denoiser.
    fn check(&self, denoiser: &str, pooled: usize) -> Result<()> {
        let refuse = |file: &str, message: String| Err(Error::file(file, message));
        let [first, second] = self.clips.each_ref().map(ClipFiles::config);
        for (config, (folder, _)) in [first, second].into_iter().zip(CLIPS) {
            if config.num_hidden_layers < 2 {
                let message = "num_hidden_layers is 1; the states of the last layer but one are needed";
                return refuse(&format!("{folder}/config.json"), message.to_owned());
            }
        }
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
        let Some((config, tokenizer)) = &self.t5 else { return Ok(()) };
        if config.d_model != width {
            let message = format!("d_model is {}, but {denoiser} has joint_attention_dim {width}", config.d_model);
            return refuse(T5_CONFIG, message);
        }
        check_vocabulary((tokenizer.file(), tokenizer.largest_id()), T5_CONFIG, config.vocab_size)
    }

    /// What each encoder is made of.
    ///
    /// # Errors
    /// When weights are missing or damaged.
    pub(super) fn parts(&self, opening: Opening) -> Result<Vec<Part>> {
        let t5 = self.t5.iter().map(|_| T5.0);
        let folders = CLIPS.iter().map(|(folder, _)| *folder).chain(t5);
        folders.map(|folder| opening.part(folder)).collect()
    }

    /// The encoders, whose weights come when they are needed; `parts` are [`Self::parts`].
    pub(super) fn open(self, opening: Opening, parts: Vec<Part>, turns: &Arc<Turns>) -> Texts {
        let clip_tokens = self.clips[0].context();
        let Self { clips, t5, width } = self;
        let mut parts = parts.into_iter();
        let clips = clips.into_iter().zip(parts.by_ref());
        let clips = clips.map(|(files, part)| files.encoder(opening, part, turns)).collect();
        let t5 = t5.zip(parts.next()).map(|((config, tokenizer), part)| {
            (tokenizer, opening.lazy(part, turns, move |weights| T5Encoder::new(&config, weights)))
        });
        Texts { clips, t5, width, clip_tokens, placement: opening.placement.clone() }
    }

    /// Tokens that a prompt has where it is read furthest.
    pub(super) fn context_tokens(&self) -> usize {
        if self.t5.is_some() { T5_TOKENS } else { self.clips[0].context() }
    }

    /// Tokens that the denoiser sees of a prompt that is not long.
    pub(super) fn joint_tokens(&self) -> usize {
        self.clips[0].context() + T5_TOKENS
    }

    /// Layers of CLIP that `clip_skip` may leave out: the states are those of the last layer but one, and further up
    /// there must still be some.
    pub(super) fn clip_layers(&self) -> usize {
        let layers = self.clips.iter().map(|clip| clip.config().num_hidden_layers);
        layers.min().unwrap_or(0).saturating_sub(1)
    }
}

/// The encoders of an open model.
pub(super) struct Texts {
    clips: Vec<ClipEncoder>,
    t5: Option<(T5Tokenizer, Lazy<T5Encoder>)>,
    width: usize,
    clip_tokens: usize,
    placement: Placement,
}

impl Texts {
    /// The encoders as parts, in the order in which a prompt needs them.
    pub(super) fn all(&self) -> Vec<&dyn AnyPart> {
        let clips = self.clips.iter().map(|clip| clip.part() as &dyn AnyPart);
        clips.chain(self.t5.iter().map(|(_, t5)| t5 as &dyn AnyPart)).collect()
    }

    /// Encodes a prompt: both CLIPs' states side by side and filled up with zeros, then T5's, or zeros in their place,
    /// (clip + t5, width); and both CLIPs' projected pooled states.
    ///
    /// # Errors
    /// When the prompt asks for more than these encoders do, or a tensor operation fails.
    pub(super) fn encode(&self, prompt: &Prompt) -> Result<Conditioning> {
        let (device, dtype) = (&self.placement.device, self.placement.dtype);
        let encode = |clip: &ClipEncoder| clip.encode(prompt, Layer::Penultimate);
        let mut encoded = self.clips.iter().map(encode).collect::<Result<Vec<_>>>()?;
        let (Some(second), Some(first)) = (encoded.pop(), encoded.pop()) else {
            return Err(Error::Unsupported("Stable Diffusion 3 has two CLIPs".to_owned()));
        };
        let clip = self.side_by_side(&first, &second)?.to_dtype(dtype)?;
        // T5 reads the most of a prompt, so a warning is due only where it has not read all; without it, CLIP does.
        let (t5, tokens, truncated) = match &self.t5 {
            None => (Tensor::zeros((T5_TOKENS, self.width), dtype, device)?, first.tokens, first.truncated),
            Some((tokenizer, t5)) => {
                let prompt = T5Prompt::new(tokenizer, prompt, T5_TOKENS)?;
                let ids = Tensor::from_slice(&prompt.tokens.ids, (1, T5_TOKENS), device)?;
                // The padding is seen, as diffusers has it.
                let states = prompt.weigh(&t5.with(|t5| t5.forward(&ids, None))?.squeeze(0)?)?;
                (states.to_dtype(dtype)?, prompt.tokens.count, prompt.tokens.truncated)
            }
        };
        Ok(Conditioning {
            states: Tensor::cat(&[clip, t5], 0)?,
            pooled: Some(Tensor::cat(&[first.pooled, second.pooled], 0)?),
            mask: None,
            tokens,
            truncated,
        })
    }

    /// CLIP's states of the empty prompt, which a prompt is filled up with to the length of a longer one, (clip, width).
    ///
    /// The denoiser knows no places of the text's tokens, so it does not matter that they follow T5's.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub(super) fn filling(&self) -> Result<Tensor> {
        Ok(self.encode(&Prompt::new(""))?.states.narrow(0, 0, self.clip_tokens)?)
    }

    /// Both CLIPs' states in one row a token, (clip, width).
    fn side_by_side(&self, first: &Encoded, second: &Encoded) -> Result<Tensor> {
        let shorter = usize::from(second.states.dim(0)? < first.states.dim(0)?);
        let empty = || Ok(self.clips[shorter].encode(&Prompt::new(""), Layer::Penultimate)?.states);
        let (first, second) = equal_lengths(&first.states, &second.states, empty)?;
        let both = Tensor::cat(&[first, second], 1)?;
        Ok(both.pad_with_zeros(1, 0, self.width - both.dim(1)?)?)
    }
}
