//! The one trait that the engine knows of a model.

use std::sync::Arc;

use candle_core::Tensor;
use serde::Serialize;

use crate::samplers::SamplingSpec;
use crate::{GrayImage, ModelCard, Result, RgbImage, Trajectory};

/// One text, as the text encoders see it. Equal prompts have equal conditionings, so this is a cache key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Prompt {
    /// The text; `None` is an absent negative prompt, which SDXL does not encode as "".
    pub text: Option<String>,
    /// Layers left out at the end of CLIP, as diffusers counts: 1 is the last but one, 0 none.
    /// diffusers encodes the negative prompt without it, so a negative prompt has 0 here.
    pub clip_skip: usize,
    /// Whether `(word:1.3)`, `(word)` and `[word]` weigh words instead of being read as they stand.
    pub weighting: bool,
    /// Whether a text longer than CLIP's context is encoded in chunks, instead of being truncated as diffusers does.
    pub long: bool,
}

impl Prompt {
    /// A prompt as diffusers reads it: no layers skipped, nothing weighted, truncated where it is too long.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: Some(text.into()), ..Self::default() }
    }
}

/// What the denoiser is conditioned on for one prompt; without a batch dimension.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// The text encoder's states, (l, d).
    pub states: Tensor,
    /// The pooled state, (p), of families that have one.
    pub pooled: Option<Tensor>,
    /// 1 where a token counts and 0 where it is padding, (l) in u32, of families whose denoiser is told.
    pub mask: Option<Tensor>,
    /// Tokens of the prompt, its marks not counted and before truncation.
    pub tokens: usize,
    /// The end of the prompt that did not fit and was left out, if any; for a warning.
    pub truncated: Option<String>,
}

/// The picture that image-to-image starts from.
#[derive(Debug, Clone)]
pub struct InitImage {
    /// The picture, already of the rendered size.
    pub image: RgbImage,
    /// How much is denoised anew, in 0..=1.
    pub strength: f64,
}

/// Which part of the schedule this model denoises, where two models share one picture (SDXL's base and refiner).
///
/// diffusers' `denoising_end` and `denoising_start`: shares of the schedule's training steps, in 0..1.
#[derive(Debug, Clone, Default)]
pub enum Stage {
    /// All of it.
    #[default]
    Whole,
    /// It up to this share; its latents are not decoded but go on to the second model.
    First {
        /// `denoising_end`.
        until: f64,
    },
    /// It from this share on.
    Second {
        /// `denoising_start`.
        from: f64,
        /// The first model's latents, (c, h, w).
        latents: Tensor,
    },
}

/// How one picture is to be rendered. Everything is resolved: a family fills in nothing.
#[derive(Debug, Clone)]
pub struct RenderSpec {
    /// Pixels across; a size that the card allows.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// diffusers' `guidance_scale`. What it does, and from where on there is a negative prompt, is the family's to say
    /// ([`Pipeline::guided`]): for most, there is no classifier-free guidance at 1 or less.
    pub guidance: f64,
    /// diffusers' `true_cfg_scale`: classifier-free guidance of models that are told `guidance` as a number (FLUX.1
    /// dev). 1 is none.
    pub true_guidance: f64,
    /// diffusers' `guidance_rescale` (Lin et al., 2023, section 3.4); 0 is none.
    pub guidance_rescale: f64,
    /// The seed of this picture's own generator.
    pub seed: u64,
    /// Sampler, schedule and steps.
    pub sampling: SamplingSpec,
    /// Image-to-image; `None` is text-to-image.
    pub init: Option<InitImage>,
    /// Inpainting: white (128 and above) is painted anew, black is kept from `init`. Of the rendered size.
    pub mask: Option<GrayImage>,
    /// Pictures that an editing model looks at; of any size, which the family brings to its own.
    pub references: Vec<RgbImage>,
    /// Which part of the schedule is this model's.
    pub stage: Stage,
}

impl RenderSpec {
    /// Text-to-image without guidance; the rest is set by struct update.
    pub fn new(width: u32, height: u32, seed: u64, sampling: SamplingSpec) -> Self {
        Self {
            width,
            height,
            guidance: 1.0,
            true_guidance: 1.0,
            guidance_rescale: 0.0,
            seed,
            sampling,
            init: None,
            mask: None,
            references: Vec::new(),
            stage: Stage::Whole,
        }
    }
}

/// One part of a model: what it is made of, known before any weight is read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// Its folder in the diffusers layout, such as `unet`.
    pub name: String,
    /// Fractional values in its weights.
    pub parameters: u64,
    /// The types that the weights are stored in, such as `F16` or `Q4_K`.
    pub stored: Vec<String>,
    /// Bytes that the weights take once they are loaded.
    pub bytes: u64,
}

/// How far a model's weights are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loading {
    /// Bytes done; fetched from the hub or read from the disk.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
    /// Whether they come over the network.
    pub fetching: bool,
}

/// A model of any family, opened: its configuration is read and checked, its weights come and go.
///
/// `Sync`, because finished latents are decoded on a thread of their own while the step loop goes on.
pub trait Pipeline: Send + Sync {
    /// What the model is and can do.
    fn card(&self) -> &ModelCard;

    /// What the model is made of.
    fn parts(&self) -> Vec<Part> {
        Vec::new()
    }

    /// Reads the weights, unless they are there. What needs them reads them at need too; this is how a server keeps
    /// that out of its step loop. Calls `progress` now and then.
    ///
    /// # Errors
    /// When a file is missing, damaged or contradicts the configuration (the error names it), or out of memory.
    fn load(&self, progress: &dyn Fn(Loading)) -> Result<()> {
        let _ = progress;
        Ok(())
    }

    /// Gives the weights' memory back, as soon as no call uses them.
    fn unload(&self) {}

    /// Whether the weights that a picture needs first are in memory.
    fn loaded(&self) -> bool {
        true
    }

    /// Bytes that the weights take while a picture is made: all parts together, or the largest of them where they are
    /// placed in turn.
    fn weight_bytes(&self) -> u64 {
        self.parts().iter().map(|part| part.bytes).sum()
    }

    /// Whether [`Pipeline::begin`] wants the negative prompt's conditioning for this spec.
    fn guided(&self, spec: &RenderSpec) -> bool {
        spec.guidance > 1.0
    }

    /// Runs the text encoders on one prompt.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn encode(&self, prompt: &Prompt) -> Result<Conditioning>;

    /// Draws the first latents and sets up the sampler for one picture.
    ///
    /// `negative` is given exactly when the spec is [guided](Pipeline::guided).
    ///
    /// # Errors
    /// When the spec asks for what the model or the sampler cannot do.
    fn begin(
        &self,
        spec: &RenderSpec,
        positive: Arc<Conditioning>,
        negative: Option<Arc<Conditioning>>,
    ) -> Result<Trajectory>;

    /// Takes every row that is not done one model call further. All rows have equal batch keys.
    ///
    /// # Errors
    /// When the model call fails, or out of memory. Every row is then at a step boundary still, most likely the one where
    /// it was before, so the call may be repeated with fewer rows.
    fn denoise(&self, rows: &mut [&mut Trajectory]) -> Result<()>;

    /// Turns finished latents, each (c, h, w), into pictures.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn decode(&self, latents: &[Tensor]) -> Result<Vec<RgbImage>>;

    /// A small, cheap picture of unfinished latents (c, h, w): one pixel a latent pixel, by a linear projection.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn preview(&self, latents: &Tensor) -> Result<RgbImage>;

    /// Bytes that one denoiser row of this many pixels needs while it is computed, estimated from the shapes.
    fn row_bytes(&self, width: u32, height: u32) -> u64;

    /// Bytes that decoding one picture of this many pixels needs, estimated from the shapes.
    fn decode_bytes(&self, width: u32, height: u32) -> u64 {
        let _ = (width, height);
        0
    }
}
