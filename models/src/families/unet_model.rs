//! What the families with a UNet share: one UNet, one KL autoencoder, one scheduler file, and the ways a picture begins.
//!
//! The reference is diffusers' text-to-image, image-to-image and inpainting pipelines of Stable Diffusion and SDXL, which
//! draw their noise in one order.

use std::sync::Arc;

use candle_core::Tensor;

use super::guidance::distilled_guidance;
use super::latent_space::LatentSpace;
use super::opening::Opening;
use super::parts::{Lazy, Turns};
use super::rows::{self, Call, classifier_free};
use super::schedulers::Schedulers;
use super::unet_files::Files;
use super::{Placement, pixels, unet_memory};
use crate::denoisers::{Adapters, AddedContext, Condition, Context, Hooks, UNet, UNetConfig};
use crate::samplers::{Noise, Plan, PlanContext, Repaint, Sampler};
use crate::{
    BatchKey, Conditioning, Error, GrayImage, InitImage, ModelCard, Part, RenderSpec, Result, Stage, Trajectory,
};

/// The UNet and the autoencoder of an opened model.
pub(super) struct UNetModel {
    pub(super) card: ModelCard,
    pub(super) placement: Placement,
    pub(super) unet: Lazy<UNet>,
    pub(super) latents: LatentSpace,
    name: String,
    config: UNetConfig,
    schedulers: Schedulers,
}

/// A picture's row before it has a prompt.
pub(super) struct Start {
    sampler: Box<dyn Sampler>,
    shape: [usize; 3],
    /// What the UNet sees beside the latents, (c, h, w).
    beside: Option<Tensor>,
}

/// What the denoiser is told of a prompt, in one place of a model call.
pub(super) struct Told {
    condition: Condition,
    beside: Option<Tensor>,
}

/// SDXL's added conditioning of one prompt.
pub(super) struct Added<'a> {
    /// The pooled state, (p).
    pub(super) pooled: &'a Tensor,
    /// The picture's sizes as numbers.
    pub(super) time_ids: Vec<f64>,
}

impl UNetModel {
    /// The model `name` of these files, whose UNet's and autoencoder's weights are those of `parts`.
    pub(super) fn new(
        opening: Opening,
        (name, card): (&str, ModelCard),
        files: Files,
        [unet, vae]: [Part; 2],
        turns: &Arc<Turns>,
    ) -> Self {
        let config = files.unet.clone();
        Self {
            card,
            placement: opening.placement.clone(),
            unet: opening.lazy(unet, turns, move |weights| UNet::new(&config, weights)),
            latents: LatentSpace::new(opening, files.vae, vae, turns),
            name: name.to_owned(),
            config: files.unet,
            schedulers: files.schedulers,
        }
    }

    /// Whether a request has a negative prompt: a distilled model is told its guidance instead.
    pub(super) fn guided(&self, spec: &RenderSpec) -> bool {
        spec.guidance > 1.0 && self.config.time_cond_proj_dim.is_none()
    }

    /// Encodes the given picture, draws the noise and sets the sampler up, in the order in which diffusers' pipelines do.
    ///
    /// # Errors
    /// When the spec asks for what the model or the sampler cannot do.
    pub(super) fn start(&self, spec: &RenderSpec) -> Result<Start> {
        let shape = self.latents.shape(&self.card, spec.width, spec.height)?;
        let mut sampling = spec.sampling.clone();
        sampling.sampler.get_or_insert_with(|| self.card.sampler.clone());
        let mut plan = self.schedulers.plan(&sampling, PlanContext::default())?;
        let mut noise = plan.noise().open(spec.seed);
        if let Some(InitImage { image, strength }) = &spec.init {
            pixels::check_size("image", (image.width, image.height), spec)?;
            if !matches!(spec.stage, Stage::Second { .. }) {
                plan.skip_to_strength(*strength, self.card.abilities.strengths.rule(spec.mask.is_some()))?;
            }
        }
        match &spec.stage {
            Stage::Whole => {}
            Stage::First { until } => plan.end_at(*until)?,
            Stage::Second { from, latents } => {
                if latents.dims() != shape {
                    let message = format!("latents of {:?} cannot become a picture of {shape:?}", latents.dims());
                    return Err(Error::Request { param: "stage", message });
                }
                plan.start_at(*from)?;
            }
        }
        if let Some(mask) = &spec.mask {
            return self.start_inpainting(spec, mask, plan, noise, shape);
        }
        if self.card.abilities.needs_mask {
            let message = "this model paints into pictures only; image and mask are needed".to_owned();
            return Err(Error::Request { param: "mask", message });
        }
        let latents = match (&spec.stage, &spec.init) {
            (Stage::Second { latents, .. }, _) => latents.clone(),
            (_, Some(InitImage { image, .. })) => {
                // diffusers samples the posterior, and draws for it, before it draws the latents' noise.
                let clean = self.latents.sample(image, noise.as_mut())?.squeeze(0)?;
                plan.add_noise(&clean, &self.draw(noise.as_mut(), shape)?)?
            }
            (_, None) if self.card.abilities.needs_image => {
                let message = "this model refines pictures; image is needed".to_owned();
                return Err(Error::Request { param: "image", message });
            }
            (_, None) => (self.draw(noise.as_mut(), shape)? * plan.init_noise_sigma())?,
        };
        Ok(Start { sampler: plan.start(latents, noise)?, shape, beside: None })
    }

    /// A picture of which only a part is painted: a UNet that was made for that sees the mask and the rest of the picture,
    /// any other has the rest put back after each call.
    fn start_inpainting(
        &self,
        spec: &RenderSpec,
        mask: &GrayImage,
        plan: Plan,
        mut noise: Box<dyn Noise>,
        shape: [usize; 3],
    ) -> Result<Start> {
        let Some(InitImage { image, strength }) = &spec.init else {
            let message = "a mask says which part of a picture is painted; image is needed".to_owned();
            return Err(Error::Request { param: "image", message });
        };
        pixels::check_size("mask", (mask.width, mask.height), spec)?;
        let (device, sees_mask) = (&self.placement.device, self.card.abilities.needs_mask);
        // diffusers' inpainting pipeline of SDXL leaves `latents_mean` and `latents_std` out where it encodes, though not where
        // it decodes, which changes the colours of all that is kept. There we do not follow it.
        //
        // At a strength of 1 diffusers begins with noise alone, whatever the first step's noise level is.
        let begins_with_noise = *strength == 1.0;
        let clean = match begins_with_noise && sees_mask {
            true => None,
            false => Some(self.latents.sample(image, noise.as_mut())?.squeeze(0)?),
        };
        let drawn = self.draw(noise.as_mut(), shape)?;
        let latents = match (&spec.stage, &clean) {
            (Stage::Second { latents, .. }, _) => latents.clone(),
            (_, Some(clean)) if !begins_with_noise => plan.add_noise(clean, &drawn)?,
            _ => (&drawn * plan.init_noise_sigma())?,
        };
        let [_, height, width] = shape;
        let mask_latents = pixels::mask_to_latents(mask, height, width, device)?;
        if sees_mask {
            let masked = pixels::to_masked_tensor(image, mask, device)?;
            let masked = self.latents.sample_tensor(&masked, noise.as_mut())?.squeeze(0)?;
            let beside = Some(Tensor::cat(&[mask_latents, masked], 0)?);
            return Ok(Start { sampler: plan.start(latents, noise)?, shape, beside });
        }
        // diffusers encodes the masked picture for every UNet, and draws for it.
        self.draw(noise.as_mut(), shape)?;
        let Some(clean) = clean else { return Err(Error::Unsupported("a picture to keep is missing".to_owned())) };
        let repaint = Repaint { clean, noise: drawn, mask: mask_latents };
        Ok(Start { sampler: plan.start_repainting(latents, noise, repaint)?, shape, beside: None })
    }

    /// Standard normal noise, (c, h, w).
    fn draw(&self, noise: &mut dyn Noise, [c, h, w]: [usize; 3]) -> Result<Tensor> {
        Ok(noise.normal(&[1, c, h, w], &self.placement.device)?.squeeze(0)?)
    }

    /// What the denoiser is told of a prompt with these states, (l, d), which it projects once a picture.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub(super) fn tell(
        &self,
        start: &Start,
        states: &Tensor,
        added: Option<Added>,
        guidance: Option<f64>,
    ) -> Result<Told> {
        let states = states.unsqueeze(0)?;
        let dim = self.config.time_cond_proj_dim;
        let guidance = guidance.zip(dim).map(|(scale, dim)| distilled_guidance(scale, dim, &self.placement.device));
        let guidance = guidance.transpose()?;
        let pooled = added.as_ref().map(|added| added.pooled.unsqueeze(0)).transpose()?;
        let time_ids: Vec<Vec<f64>> = added.into_iter().map(|added| added.time_ids).collect();
        let added = pooled.as_ref().map(|pooled| AddedContext { pooled, time_ids: &time_ids });
        let context = Context { states: &states, added, guidance: guidance.as_ref() };
        let condition = self.unet.with(|unet| unet.condition(&context, &Adapters::default()))?;
        Ok(Told { condition, beside: start.beside.clone() })
    }

    /// The row of a picture that began as `start`.
    pub(super) fn row(
        &self,
        spec: &RenderSpec,
        start: Start,
        (positive, negative): (Arc<Conditioning>, Option<Arc<Conditioning>>),
        told: rows::Guided<Told>,
        context: usize,
    ) -> Trajectory {
        let key = BatchKey { model: self.name.clone(), latent: start.shape, context, references: Vec::new() };
        let (guidance, rescale) = (spec.guidance, spec.guidance_rescale);
        Trajectory::new(start.sampler, positive, negative, guidance, rescale, key).with_state(told)
    }

    /// Takes every row that is not done one model call further.
    ///
    /// # Errors
    /// When the call or a sampler fails.
    pub(super) fn denoise(&self, rows: &mut [&mut Trajectory]) -> Result<()> {
        self.unet.with(|unet| {
            rows::step(rows, classifier_free, |call: &Call<'_, Told>| {
                let conditions: Vec<&Condition> = call.conditions.iter().map(|told| &told.condition).collect();
                let input = |(latents, told): (&Tensor, &&Told)| match &told.beside {
                    None => Ok(latents.clone()),
                    Some(beside) => Tensor::cat(&[latents, beside], 0),
                };
                let inputs =
                    call.inputs.iter().zip(&call.conditions).map(input).collect::<candle_core::Result<Vec<_>>>()?;
                let condition = Condition::stack(&conditions)?;
                unet.forward(&Tensor::stack(&inputs, 0)?, &call.timesteps, &condition, &Hooks::default())
            })
        })
    }

    /// Bytes that one denoiser row of this many pixels needs.
    pub(super) fn row_bytes(&self, width: u32, height: u32) -> u64 {
        let factor = self.latents.factor();
        let (height, width) = (height as usize / factor, width as usize / factor);
        let size = self.placement.dtype.size_in_bytes();
        unet_memory::row_bytes(&self.config, height, width, self.card.context_tokens, size)
    }
}
