//! The one trait that the engine knows of a model.

use std::sync::Arc;

use candle_core::Tensor;

use crate::samplers::SamplingSpec;
use crate::{ModelCard, Result, RgbImage, Trajectory};

/// One text, as the text encoders see it. Equal prompts have equal conditionings, so this is a cache key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Prompt {
    /// The text; `None` is an absent negative prompt, which SDXL does not encode as "".
    pub text: Option<String>,
    /// Layers left out at the end of CLIP, as diffusers counts: 1 is the last but one, 0 none.
    /// diffusers encodes the negative prompt without it, so a negative prompt has 0 here.
    pub clip_skip: usize,
}

/// What the denoiser is conditioned on for one prompt; without a batch dimension.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// The text encoder's states, (l, d).
    pub states: Tensor,
    /// The pooled state, (p), of families that have one.
    pub pooled: Option<Tensor>,
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

/// How one picture is to be rendered. Everything is resolved: a family fills in nothing.
#[derive(Debug, Clone)]
pub struct RenderSpec {
    /// Pixels across; a size that the card allows.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// diffusers' `guidance_scale`; at 1 or less there is no classifier-free guidance.
    pub guidance: f64,
    /// diffusers' `guidance_rescale` (Lin et al., 2023, section 3.4); 0 is none.
    pub guidance_rescale: f64,
    /// The seed of this picture's own generator.
    pub seed: u64,
    /// Sampler, schedule and steps.
    pub sampling: SamplingSpec,
    /// Image-to-image; `None` is text-to-image.
    pub init: Option<InitImage>,
}

/// A loaded model of any family.
///
/// `Sync`, because finished latents are decoded on a thread of their own while the step loop goes on.
pub trait Pipeline: Send + Sync {
    /// What the model is and can do.
    fn card(&self) -> &ModelCard;

    /// Runs the text encoders on one prompt.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn encode(&self, prompt: &Prompt) -> Result<Conditioning>;

    /// Draws the first latents and sets up the sampler for one picture.
    ///
    /// `negative` is given exactly when the spec's guidance is above 1.
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
}
