//! FLUX.1: dev and schnell, Fill, which paints into pictures, and Kontext, which edits them.
//!
//! Black Forest Labs, "FLUX.1", 2024, and "FLUX.1 Kontext: Flow Matching for In-Context Image Generation and Editing in
//! Latent Space", 2025; the reference is diffusers' pipelines of these names.

mod card;
mod reference;

use std::sync::Arc;

use candle_core::Tensor;

use self::card::{CLIP, MULTIPLE_OF_LATENTS, T5, TRANSFORMER, Task};
use super::guidance::guide;
use super::latent_space::{CONFIG as VAE, LatentSpace, latents_become_pictures};
use super::opening::Opening;
use super::parts::{AnyPart, Lazy, Turns, parts_come_and_go};
use super::rows::{self, Call, Guided};
use super::schedulers::Schedulers;
use super::unused::{Uses, check_prompt};
use super::{Family, ModelIndex, Placement, dit_memory, pixels};
use crate::autoencoders::AutoencoderKlConfig;
use crate::denoisers::{Adapters, Flux, FluxCondition, FluxConfig, FluxContext, FluxHooks};
use crate::samplers::{Noise, Plan, PlanContext, Repaint};
use crate::text::{ClipText, ClipTextConfig, ClipTokenizer, T5Config, T5Encoder, T5Tokenizer, Tokens};
use crate::weights::{MODEL_INDEX, Repository, Tensors};
use crate::{
    BatchKey, Conditioning, Error, GrayImage, InitImage, ModelCard, Pipeline, Prompt, RenderSpec, Result, RgbImage,
    Size, Trajectory,
};

/// The family's line in the list of families.
pub(super) const FAMILY: Family = Family { classes: Task::CLASSES, open };

/// Tokens of T5: diffusers' `max_sequence_length`.
const CONTEXT: usize = 512;

/// A FLUX.1 model, ready to render.
struct FluxModel {
    name: String,
    task: Task,
    card: ModelCard,
    placement: Placement,
    clip_tokenizer: ClipTokenizer,
    clip_length: usize,
    t5_tokenizer: T5Tokenizer,
    config: FluxConfig,
    schedulers: Schedulers,
    turns: Arc<Turns>,
    clip: Lazy<ClipText>,
    t5: Lazy<T5Encoder>,
    transformer: Lazy<Flux>,
    latents: LatentSpace,
}

/// Opens a model of the family.
fn open(repository: &Repository, placement: &Placement, name: &str) -> Result<Arc<dyn Pipeline>> {
    let ModelIndex { _class_name: class } = repository.json(MODEL_INDEX)?;
    let task = Task::of(&class);
    let config = FluxConfig::from_json(TRANSFORMER, &repository.text(TRANSFORMER)?)?;
    let vae_config = AutoencoderKlConfig::from_json(VAE, &repository.text(VAE)?)?;
    let clip_config: ClipTextConfig = repository.json(CLIP)?;
    clip_config.check(CLIP)?;
    let t5_config: T5Config = repository.json(T5)?;
    t5_config.check(T5)?;
    let schedulers = Schedulers::read_flow(repository)?;
    let clip_tokenizer = ClipTokenizer::open(repository, "tokenizer")?;
    let t5_tokenizer = T5Tokenizer::open(repository, "tokenizer_2")?;
    card::check_channels(task, &config, &vae_config)?;
    card::check_texts(&config, (&clip_config, &clip_tokenizer), (&t5_config, &t5_tokenizer))?;

    let opening = Opening { repository, placement };
    let (clip_part, t5_part) = (opening.part("text_encoder")?, opening.part("text_encoder_2")?);
    let (transformer_part, vae_part) = (opening.part("transformer")?, opening.part("vae")?);
    let parts = [&clip_part, &t5_part, &transformer_part, &vae_part];
    let card = card::card(&class, &config, &vae_config, &schedulers);
    let of_card = |card: &ModelCard| context(card.native, vae_config.factor());
    let card = opening.complete(card, &parts, &schedulers, of_card)?;

    let turns = Turns::new(&parts, placement.memory);
    let latents = LatentSpace::new(opening, vae_config, vae_part, &turns);
    let clip_length = clip_tokenizer.max_length().unwrap_or(clip_config.max_position_embeddings);
    let clip = move |weights: &Tensors| Ok(ClipText::new(&clip_config, weights)?.without_projection());
    let built = config.clone();
    Ok(Arc::new(FluxModel {
        name: name.to_owned(),
        task,
        card,
        placement: placement.clone(),
        clip_tokenizer,
        clip_length,
        t5_tokenizer,
        config,
        schedulers,
        clip: opening.lazy(clip_part, &turns, clip),
        t5: opening.lazy(t5_part, &turns, move |weights| T5Encoder::new(&t5_config, weights)),
        transformer: opening.lazy(transformer_part, &turns, move |weights| Flux::new(&built, weights)),
        latents,
        turns,
    }))
}

/// What the schedule of a picture depends on.
fn context(size: Size, factor: usize) -> PlanContext {
    let tokens = |pixels: u32| pixels as usize / (factor * MULTIPLE_OF_LATENTS);
    PlanContext { image_tokens: Some(tokens(size.width) * tokens(size.height)), mu: None, unit_sigmas: true }
}

/// diffusers' true classifier-free guidance, beside the guidance that the model is told.
fn true_guidance(negative: &Tensor, positive: &Tensor, row: &Trajectory) -> Result<Tensor> {
    guide(negative, positive, row.guidance(), 0.0)
}

/// What a picture starts from.
struct Start {
    /// The first latents, (1, c, h, w).
    latents: Tensor,
    /// What stays of a given picture, where that is blended in.
    repaint: Option<Repaint>,
    /// Channels that the model sees beside the latents', (1, c, h, w).
    channels: Option<Tensor>,
}

impl FluxModel {
    /// Its parts, in the order in which a picture needs them.
    fn all(&self) -> [&dyn AnyPart; 4] {
        [&self.clip, &self.t5, &self.transformer, self.latents.part()]
    }

    /// Refuses what this model has no use for, or cannot do without.
    fn check(&self, spec: &RenderSpec) -> Result<()> {
        let abilities = &self.card.abilities;
        Uses {
            image: abilities.image_to_image || abilities.inpaint,
            mask: abilities.inpaint,
            references: abilities.edit,
            guidance_rescale: false,
            stage: false,
            true_guidance: abilities.true_guidance,
        }
        .check(spec)?;
        let refuse = |param, message: &str| Err(Error::Request { param, message: message.to_owned() });
        if spec.mask.is_some() && spec.init.is_none() {
            return refuse("image", "it is missing; a mask needs the picture that it is of");
        }
        if self.task == Task::Fill && spec.init.is_none() {
            return refuse("image", "it is missing; this model paints into pictures only");
        }
        if self.task == Task::Fill && spec.mask.is_none() {
            return refuse("mask", "it is missing; this model paints into pictures only, and only where it is white");
        }
        if spec.references.len() > reference::MOST {
            return refuse("image", "this model looks at one picture only");
        }
        if let Some(init) = &spec.init {
            pixels::check_size("image", (init.image.width, init.image.height), spec)?;
        }
        if let Some(mask) = &spec.mask {
            pixels::check_size("mask", (mask.width, mask.height), spec)?;
        }
        Ok(())
    }

    /// The channels of FLUX.1 Fill: the latents of what is kept, and the mask's pixels, as many to each latent pixel as
    /// it stands for.
    fn fill_channels(&self, image: &RgbImage, mask: &GrayImage, noise: &mut dyn Noise) -> Result<Tensor> {
        let device = &self.placement.device;
        let kept = self.latents.sample_tensor(&pixels::to_masked_tensor(image, mask, device)?, noise)?;
        let (_, _, h, w) = kept.dims4()?;
        let factor = self.latents.factor();
        let squares = pixels::mask_to_tensor(mask, device)?.reshape((h, factor, w, factor))?;
        let squares = squares.permute((1, 3, 0, 2))?.reshape((1, factor * factor, h, w))?;
        Ok(Tensor::cat(&[kept, squares], 1)?)
    }

    /// Draws the first latents, in the order in which diffusers draws.
    fn start(&self, spec: &RenderSpec, [c, h, w]: [usize; 3], plan: &Plan, noise: &mut dyn Noise) -> Result<Start> {
        let device = &self.placement.device;
        let normal = |noise: &mut dyn Noise| noise.normal(&[1, c, h, w], device);
        let Some(InitImage { image, .. }) = &spec.init else {
            let latents = (normal(noise)? * plan.init_noise_sigma())?;
            return Ok(Start { latents, repaint: None, channels: None });
        };
        // The posterior is sampled, and drawn for, before the latents' noise.
        let clean = self.latents.sample(image, noise)?;
        let drawn = normal(noise)?;
        let latents = plan.add_noise(&clean, &drawn)?;
        let (mut repaint, mut channels) = (None, None);
        match &spec.mask {
            None => {}
            Some(mask) if self.task == Task::Fill => channels = Some(self.fill_channels(image, mask, noise)?),
            Some(mask) => {
                let mask = pixels::mask_to_latents(mask, h, w, device)?;
                repaint = Some(Repaint { clean: clean.squeeze(0)?, noise: drawn.squeeze(0)?, mask });
            }
        }
        Ok(Start { latents, repaint, channels })
    }
}

impl Pipeline for FluxModel {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    parts_come_and_go!();

    latents_become_pictures!(latents);

    fn guided(&self, spec: &RenderSpec) -> bool {
        spec.true_guidance > 1.0 && self.card.abilities.true_guidance
    }

    fn encode(&self, prompt: &Prompt) -> Result<Conditioning> {
        check_prompt(prompt)?;
        let text = prompt.text.as_deref().unwrap_or_default();
        let device = &self.placement.device;
        let tensor = |tokens: &Tokens| Tensor::from_slice(&tokens.ids, (1, tokens.ids.len()), device);
        // CLIP gives the picture's tone only, so it is not worth a warning that it has not read a long prompt to its end.
        let ids = tensor(&self.clip_tokenizer.encode(text, self.clip_length)?)?;
        let pooled = self.clip.with(|clip| Ok(clip.forward(&ids, None, 0)?.pooled))?;
        let tokens = self.t5_tokenizer.encode(text, CONTEXT)?;
        let ids = tensor(&tokens)?;
        // The padding is seen, in T5 and in the transformer, as diffusers has it.
        let states = self.t5.with(|t5| t5.forward(&ids, None))?;
        let Tokens { count, truncated, .. } = tokens;
        let pooled = Some(pooled.squeeze(0)?);
        Ok(Conditioning { states: states.squeeze(0)?, pooled, mask: None, tokens: count, truncated })
    }

    fn begin(
        &self,
        spec: &RenderSpec,
        positive: Arc<Conditioning>,
        negative: Option<Arc<Conditioning>>,
    ) -> Result<Trajectory> {
        let shape = self.latents.shape(&self.card, spec.width, spec.height)?;
        self.check(spec)?;
        let mut sampling = spec.sampling.clone();
        sampling.sampler.get_or_insert_with(|| self.card.sampler.clone());
        let size = Size { width: spec.width, height: spec.height };
        let mut plan = self.schedulers.plan(&sampling, context(size, self.latents.factor()))?;
        if let Some(InitImage { strength, .. }) = &spec.init {
            plan.skip_to_strength(*strength, self.card.abilities.strengths.rule(spec.mask.is_some()))?;
        }

        let reference = spec.references.first().map(|image| reference::latents(image, &self.latents)).transpose()?;
        let mut noise = plan.noise().open(spec.seed);
        let Start { latents, repaint, channels } = self.start(spec, shape, &plan, noise.as_mut())?;
        let latents = latents.squeeze(0)?;
        let sampler = match repaint {
            None => plan.start(latents, noise)?,
            Some(repaint) => plan.start_repainting(latents, noise, repaint)?,
        };

        let [_, h, w] = shape;
        let condition = |text: &Conditioning| {
            let Some(pooled) = &text.pooled else {
                return Err(Error::Unsupported("FLUX.1 needs CLIP's pooled state beside T5's".to_owned()));
            };
            let (states, pooled) = (text.states.unsqueeze(0)?, pooled.unsqueeze(0)?);
            let (channels, reference) = (channels.as_ref(), reference.as_ref());
            let context = FluxContext {
                states: &states,
                pooled: &pooled,
                guidance: spec.guidance,
                size: (h, w),
                channels,
                reference,
            };
            self.transformer.with(|flux| flux.condition(&context, &Adapters::default()))
        };
        let conditions =
            Guided { negative: negative.as_deref().map(condition).transpose()?, positive: condition(&positive)? };
        let references = reference.iter().map(Tensor::dims4).collect::<candle_core::Result<Vec<_>>>()?;
        let key = BatchKey {
            model: self.name.clone(),
            latent: shape,
            context: positive.states.dim(0)?,
            references: references.into_iter().map(|(_, c, h, w)| [c, h, w]).collect(),
        };
        let row = Trajectory::new(sampler, positive, negative, spec.true_guidance, 0.0, key);
        Ok(row.with_state(conditions))
    }

    fn denoise(&self, rows: &mut [&mut Trajectory]) -> Result<()> {
        self.transformer.with(|flux| {
            rows::step(rows, true_guidance, |call: &Call<'_, FluxCondition>| {
                let condition = FluxCondition::stack(&call.conditions)?;
                flux.forward(&Tensor::stack(&call.inputs, 0)?, &call.timesteps, &condition, &FluxHooks::default())
            })
        })
    }

    fn row_bytes(&self, width: u32, height: u32) -> u64 {
        let side = (self.latents.factor() * MULTIPLE_OF_LATENTS) as u32;
        let mut tokens = CONTEXT + (width / side * (height / side)) as usize;
        if self.task == Task::Edit {
            // Every edited picture is looked at in about the same number of pixels.
            tokens += reference::AREA / (side * side) as usize;
        }
        let width = self.config.width();
        dit_memory::row_bytes(
            tokens,
            width,
            4 * width,
            self.config.num_attention_heads,
            self.placement.dtype.size_in_bytes(),
        )
    }
}
