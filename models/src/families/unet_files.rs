//! The files that every family with a UNet has, and the card that they give.

use super::few_steps;
use super::latent_space::CONFIG as VAE;
use super::opening::Opening;
use super::schedulers::Schedulers;
use crate::autoencoders::AutoencoderKlConfig;
use crate::denoisers::{SampleSize, UNetConfig};
use crate::samplers::PlanContext;
use crate::weights::Repository;
use crate::{Abilities, Error, ModelCard, Part, Result, Size, Sizes, Strengths};

/// The file that errors about the UNet name.
pub(super) const UNET: &str = "unet/config.json";

/// The side of the latents of a model whose configuration does not say it, as diffusers' SDXL pipelines have it.
pub(super) const LARGE: usize = 128;

/// A model's files but for the text encoders', read and checked against each other.
pub(super) struct Files {
    pub(super) unet: UNetConfig,
    pub(super) vae: AutoencoderKlConfig,
    pub(super) schedulers: Schedulers,
}

/// What a family says of its models.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    /// The family's short name.
    pub(super) family: &'static str,
    /// Steps of the pipeline's call.
    pub(super) steps: usize,
    /// Guidance of the pipeline's call.
    pub(super) guidance: f64,
    /// Strengths of the pipelines' calls.
    pub(super) strengths: Strengths,
    /// The native side of the latents where the configuration does not say it.
    pub(super) side: Option<usize>,
}

impl Files {
    /// Reads the configurations of the UNet and the autoencoder; `schedulers` is the scheduler file.
    ///
    /// # Errors
    /// Names the file and the key that are missing, wrong, or contradict the other file.
    pub(super) fn read(repository: &Repository, schedulers: Schedulers) -> Result<Self> {
        let unet = UNetConfig::from_json(UNET, &repository.text(UNET)?)?;
        let vae = AutoencoderKlConfig::from_json(VAE, &repository.text(VAE)?)?;
        let (inputs, outputs, latents) = (unet.in_channels, unet.out_channels, vae.latent_channels);
        if inputs != latents && inputs != 2 * latents + 1 {
            let message = format!(
                "in_channels is {inputs}, but {VAE} has latent_channels {latents}: {latents} are possible, and {} for \
                 inpainting",
                2 * latents + 1
            );
            return Err(Error::file(UNET, message));
        }
        if outputs != latents {
            let message = format!("out_channels is {outputs}, but {VAE} has latent_channels {latents}");
            return Err(Error::file(UNET, message));
        }
        Ok(Self { unet, vae, schedulers })
    }

    /// Refuses text encoders, described by `whose`, whose states of this width the UNet was not made for.
    ///
    /// # Errors
    /// Names the file and the key.
    pub(super) fn check_context(&self, width: usize, whose: &str) -> Result<()> {
        match self.unet.context_channels() {
            Some(context) if context != width => {
                Err(Error::file(UNET, format!("cross_attention_dim is {context}, but {whose} {width}")))
            }
            _ => Ok(()),
        }
    }

    /// Whether the UNet sees the mask and what is left of the picture, beside the latents.
    pub(super) fn sees_masks(&self) -> bool {
        self.unet.in_channels != self.vae.latent_channels
    }

    /// The card that the configurations alone give.
    ///
    /// # Errors
    /// When the native size is not known.
    pub(super) fn card(&self, defaults: Defaults) -> Result<ModelCard> {
        let Defaults { family, steps, guidance, strengths, side } = defaults;
        let factor = self.vae.factor() as u32;
        let sides = self.unet.sample_size.map(SampleSize::sides).or(side.map(|side| (side, side)));
        let (high, wide) = sides.unwrap_or_default();
        if high == 0 || wide == 0 {
            return Err(Error::file(UNET, "sample_size is missing; the native side of the latents is expected"));
        }
        let native = Size { width: wide as u32 * factor, height: high as u32 * factor };
        // The network takes any size; far beyond the native one, pictures repeat themselves.
        let max = (4 * native.width.max(native.height)).max(1024);
        let sizes = Sizes::Any { multiple: factor, min: factor, max };
        Ok(ModelCard {
            steps,
            guidance,
            abilities: Abilities {
                // A distilled model is told its guidance, and has no second prompt to be guided from.
                negative_prompt: self.unet.time_cond_proj_dim.is_none(),
                clip_skip: true,
                guidance_rescale: true,
                image_to_image: !self.sees_masks(),
                inpaint: true,
                prompt_weighting: true,
                needs_image: self.sees_masks(),
                needs_mask: self.sees_masks(),
                strengths,
                ..Abilities::default()
            },
            ..self.schedulers.card(family, native, sizes)
        })
    }

    /// Completes the card by what the parts and the model's own card file say.
    ///
    /// # Errors
    /// Names the file and the key where the card file or the scheduler's cannot be.
    pub(super) fn complete(&self, mut card: ModelCard, opening: Opening, parts: &[&Part]) -> Result<ModelCard> {
        few_steps::apply(opening.repository, self.unet.time_cond_proj_dim.is_some(), &mut card)?;
        opening.complete(card, parts, &self.schedulers, |_| PlanContext::default())
    }
}
