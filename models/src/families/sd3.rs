//! Stable Diffusion 3, and 3.5, which differs in its configuration only.
//!
//! Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024; the reference is
//! diffusers' `StableDiffusion3Pipeline`, `StableDiffusion3Img2ImgPipeline` and `StableDiffusion3InpaintPipeline`.

mod texts;
mod unshifted;

use std::sync::Arc;

use candle_core::Tensor;

use self::texts::{TextFiles, Texts};
use self::unshifted::Unshifted;
use super::latent_space::{CONFIG as VAE, LatentSpace, latents_become_pictures};
use super::opening::Opening;
use super::parts::{AnyPart, Lazy, Turns, parts_come_and_go};
use super::rows::{self, Call, Guided, classifier_free};
use super::schedulers::Schedulers;
use super::unused::Uses;
use super::{Family, Placement, dit_memory, few_steps, pixels};
use crate::autoencoders::AutoencoderKlConfig;
use crate::denoisers::{Sd3, Sd3Condition, Sd3Config, Sd3Hooks};
use crate::samplers::{Noise, Plan, PlanContext, Repaint, StrengthRule};
use crate::text::equal_lengths;
use crate::weights::Repository;
use crate::{
    Abilities, BatchKey, Conditioning, Error, InitImage, ModelCard, Part, Pipeline, Prompt, RenderSpec, Result, Size,
    Sizes, Strengths, Trajectory,
};

/// The family's line in the list of families.
pub(super) const FAMILY: Family = Family {
    classes: &["StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"],
    open,
};

/// The files that are checked against each other.
const TRANSFORMER: &str = "transformer/config.json";

/// diffusers' default steps, guidance and strength of the family.
const STEPS: usize = 28;
const GUIDANCE: f64 = 7.0;
const STRENGTH: f64 = 0.6;

/// A Stable Diffusion 3 model, ready to render.
struct StableDiffusion3 {
    name: String,
    card: ModelCard,
    placement: Placement,
    config: Sd3Config,
    schedulers: Schedulers,
    turns: Arc<Turns>,
    texts: Texts,
    joint_tokens: usize,
    transformer: Lazy<Sd3>,
    latents: LatentSpace,
}

/// What a place in a model call is conditioned on.
struct Condition {
    text: Sd3Condition,
    /// Channels that an inpainting model sees beside the latents': the mask and what is kept, (c, h, w).
    kept: Option<Tensor>,
}

/// Opens a model of the family.
fn open(repository: &Repository, placement: &Placement, name: &str) -> Result<Arc<dyn Pipeline>> {
    let config = Sd3Config::from_json(TRANSFORMER, &repository.text(TRANSFORMER)?)?;
    let vae_config = AutoencoderKlConfig::from_json(VAE, &repository.text(VAE)?)?;
    let schedulers = Schedulers::read_flow(repository)?;
    let (width, pooled) = (config.joint_attention_dim, config.pooled_projection_dim);
    let texts = TextFiles::read(repository, TRANSFORMER, width, pooled)?;
    check_parts(&config, &vae_config)?;

    let opening = Opening { repository, placement };
    let (text_parts, transformer_part, vae_part) =
        (texts.parts(opening)?, opening.part("transformer")?, opening.part("vae")?);
    let parts: Vec<&Part> = text_parts.iter().chain([&transformer_part, &vae_part]).collect();
    let mut card = card(&config, &vae_config, &schedulers, &texts)?;
    few_steps::apply(repository, false, &mut card)?;
    let of_card = |card: &ModelCard| context(card.native, vae_config.factor() * config.patch_size);
    let card = opening.complete(card, &parts, &schedulers, of_card)?;

    let turns = Turns::new(&parts, placement.memory);
    let latents = LatentSpace::new(opening, vae_config, vae_part, &turns);
    let joint_tokens = texts.joint_tokens();
    let built = config.clone();
    Ok(Arc::new(StableDiffusion3 {
        name: name.to_owned(),
        card,
        placement: placement.clone(),
        config,
        schedulers,
        texts: texts.open(opening, text_parts, &turns),
        joint_tokens,
        transformer: opening.lazy(transformer_part, &turns, move |weights| Sd3::new(&built, weights)),
        latents,
        turns,
    }))
}

/// What the schedule of a picture depends on; a token is `side` pixels wide and high.
fn context(size: Size, side: usize) -> PlanContext {
    let tokens = |pixels: u32| pixels as usize / side;
    PlanContext { image_tokens: Some(tokens(size.width) * tokens(size.height)), ..PlanContext::default() }
}

/// Channels that an inpainting model takes: the latents, the mask, and the latents of what is kept.
fn inpainting_channels(latents: usize) -> usize {
    2 * latents + 1
}

/// Refuses parts that are not made for each other.
fn check_parts(config: &Sd3Config, vae: &AutoencoderKlConfig) -> Result<()> {
    let refuse = |file: &str, message: String| Err(Error::file(file, message));
    let (inputs, outputs, latents) = (config.in_channels, config.out_channels(), vae.latent_channels);
    let inpainting = inpainting_channels(latents);
    if inputs != latents && inputs != inpainting {
        let message = format!(
            "in_channels is {inputs}, but {VAE} has latent_channels {latents}; as many are expected, or {inpainting} of a \
             model for inpainting"
        );
        return refuse(TRANSFORMER, message);
    }
    if outputs != latents {
        return refuse(TRANSFORMER, format!("out_channels is {outputs}, but {VAE} has latent_channels {latents}"));
    }
    let (native, patch) = (config.sample_size, config.patch_size);
    let most = config.pos_embed_max_size * patch;
    if native % patch != 0 || native > most {
        let message = format!(
            "sample_size is {native}; a multiple of patch_size {patch} up to {most}, as \
            pos_embed_max_size has it, is expected"
        );
        return refuse(TRANSFORMER, message);
    }
    Ok(())
}

/// The card that the configurations alone give.
fn card(
    config: &Sd3Config,
    vae: &AutoencoderKlConfig,
    schedulers: &Schedulers,
    texts: &TextFiles,
) -> Result<ModelCard> {
    let pixels = |side: usize| {
        let side = u32::try_from(side * vae.factor());
        side.map_err(|_| Error::file(TRANSFORMER, "sample_size and pos_embed_max_size are too large for pictures"))
    };
    let (multiple, side) = (pixels(config.patch_size)?, pixels(config.sample_size)?);
    let native = Size { width: side, height: side };
    let sizes = Sizes::Any { multiple, min: multiple, max: pixels(config.pos_embed_max_size * config.patch_size)? };
    // 3.5 is told by its normalised queries and keys.
    let family = if config.qk_norm.is_some() { "sd3.5" } else { "sd3" };
    let paints_only = config.in_channels != vae.latent_channels;
    Ok(ModelCard {
        steps: STEPS,
        guidance: GUIDANCE,
        abilities: Abilities {
            negative_prompt: true,
            clip_skip: true,
            image_to_image: !paints_only,
            inpaint: true,
            needs_mask: paints_only,
            prompt_weighting: true,
            strengths: Strengths { image_to_image: STRENGTH, inpaint: STRENGTH, rule: StrengthRule::Fraction },
            ..Abilities::default()
        },
        context_tokens: texts.context_tokens(),
        clip_layers: texts.clip_layers(),
        ..schedulers.card(family, native, sizes)
    })
}

/// What a picture starts from.
struct Start {
    /// The first latents, (1, c, h, w).
    latents: Tensor,
    /// What stays of a given picture, where that is blended in.
    repaint: Option<Repaint>,
    /// [`Condition::kept`].
    kept: Option<Tensor>,
}

impl StableDiffusion3 {
    /// Its parts, in the order in which a picture needs them.
    fn all(&self) -> Vec<&dyn AnyPart> {
        let mut all = self.texts.all();
        all.extend([&self.transformer as &dyn AnyPart, self.latents.part()]);
        all
    }

    /// Pixels a side of one token.
    fn token_side(&self) -> usize {
        self.latents.factor() * self.config.patch_size
    }

    /// Refuses what this model has no use for, or cannot do without.
    fn check(&self, spec: &RenderSpec) -> Result<()> {
        Uses { image: true, mask: true, ..Uses::default() }.check(spec)?;
        let missing = |param, what: &str| Err(Error::Request { param, message: format!("it is missing; {what}") });
        let paints_only = self.card.abilities.needs_mask;
        match (&spec.init, &spec.mask) {
            (None, Some(_)) => return missing("image", "a mask needs the picture that it is of"),
            (None, None) if paints_only => return missing("image", "this model paints into pictures only"),
            (Some(_), None) if paints_only => return missing("mask", "this model paints only where one is white"),
            _ => {}
        }
        if let Some(init) = &spec.init {
            pixels::check_size("image", (init.image.width, init.image.height), spec)?;
        }
        if let Some(mask) = &spec.mask {
            pixels::check_size("mask", (mask.width, mask.height), spec)?;
        }
        Ok(())
    }

    /// Draws the first latents, in the order in which diffusers draws.
    fn start(&self, spec: &RenderSpec, [c, h, w]: [usize; 3], plan: &Plan, noise: &mut dyn Noise) -> Result<Start> {
        let device = &self.placement.device;
        let Some(InitImage { image, strength }) = &spec.init else {
            let latents = (noise.normal(&[1, c, h, w], device)? * plan.init_noise_sigma())?;
            return Ok(Start { latents, repaint: None, kept: None });
        };
        let Some(mask) = &spec.mask else {
            // The posterior is sampled, and drawn for, before the latents' noise.
            let clean = self.latents.sample(image, noise)?;
            let latents = plan.add_noise(&clean, &noise.normal(&[1, c, h, w], device)?)?;
            return Ok(Start { latents, repaint: None, kept: None });
        };
        // A model that is told what to keep does not need the picture's latents where all is painted anew.
        let whole = *strength >= 1.0;
        let told = self.card.abilities.needs_mask;
        let clean = (!told || !whole).then(|| self.latents.sample(image, noise)).transpose()?;
        let drawn = noise.normal(&[1, c, h, w], device)?;
        let latents = match &clean {
            Some(clean) if !whole => plan.add_noise(clean, &drawn)?,
            _ => drawn.clone(),
        };
        let small = pixels::mask_to_latents(mask, h, w, device)?;
        if told {
            let kept = self.latents.sample_tensor(&pixels::to_masked_tensor(image, mask, device)?, noise)?;
            let kept = Some(Tensor::cat(&[small, kept.squeeze(0)?], 0)?);
            return Ok(Start { latents, repaint: None, kept });
        }
        let repaint = clean.map(|clean| -> Result<Repaint> {
            Ok(Repaint { clean: clean.squeeze(0)?, noise: drawn.squeeze(0)?, mask: small })
        });
        Ok(Start { latents, repaint: repaint.transpose()?, kept: None })
    }
}

impl Pipeline for StableDiffusion3 {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    parts_come_and_go!();

    latents_become_pictures!(latents);

    fn encode(&self, prompt: &Prompt) -> Result<Conditioning> {
        self.texts.encode(prompt)
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
        let mut plan = self.schedulers.plan(&sampling, context(size, self.token_side()))?;
        if let Some(InitImage { strength, .. }) = &spec.init {
            plan.skip_to_strength(*strength, self.card.abilities.strengths.rule(spec.mask.is_some()))?;
        }

        let mut noise = plan.noise().open(spec.seed);
        let Start { latents, repaint, kept } = self.start(spec, shape, &plan, noise.as_mut())?;
        let latents = latents.squeeze(0)?;
        let sampler = match repaint {
            None => plan.start(latents, noise)?,
            Some(repaint) => plan.start_repainting(latents, noise, repaint)?,
        };
        let sampler = match &spec.mask {
            None => sampler,
            Some(_) => Box::new(Unshifted::new(sampler, self.latents.config())),
        };

        let (states, negative_states) = match negative.as_deref() {
            None => (positive.states.clone(), None),
            Some(negative) => {
                let both = equal_lengths(&positive.states, &negative.states, || self.texts.filling())?;
                (both.0, Some((both.1, negative)))
            }
        };
        let context = states.dim(0)?;
        let condition = |states: &Tensor, text: &Conditioning| {
            let Some(pooled) = &text.pooled else {
                return Err(Error::Unsupported("Stable Diffusion 3 needs CLIP's pooled states".to_owned()));
            };
            let (states, pooled) = (states.unsqueeze(0)?, pooled.unsqueeze(0)?);
            let text = self.transformer.with(|transformer| transformer.condition(&states, &pooled))?;
            Ok(Condition { text, kept: kept.clone() })
        };
        let negatives = negative_states.as_ref();
        let conditions = Guided {
            negative: negatives.map(|(states, text)| condition(states, text)).transpose()?,
            positive: condition(&states, &positive)?,
        };
        let key = BatchKey { model: self.name.clone(), latent: shape, context, references: Vec::new() };
        Ok(Trajectory::new(sampler, positive, negative, spec.guidance, 0.0, key).with_state(conditions))
    }

    fn denoise(&self, rows: &mut [&mut Trajectory]) -> Result<()> {
        self.transformer.with(|transformer| {
            rows::step(rows, classifier_free, |call: &Call<'_, Condition>| {
                let mut latents = Tensor::stack(&call.inputs, 0)?;
                let kept: Vec<&Tensor> =
                    call.conditions.iter().filter_map(|condition| condition.kept.as_ref()).collect();
                if !kept.is_empty() {
                    latents = Tensor::cat(&[latents, Tensor::stack(&kept, 0)?], 1)?;
                }
                let texts: Vec<&Sd3Condition> = call.conditions.iter().map(|condition| &condition.text).collect();
                transformer.forward(&latents, &call.timesteps, &Sd3Condition::stack(&texts)?, &Sd3Hooks::default())
            })
        })
    }

    fn row_bytes(&self, width: u32, height: u32) -> u64 {
        let side = self.token_side() as u32;
        let tokens = self.joint_tokens + (width / side * (height / side)) as usize;
        let (width, heads) = (self.config.width(), self.config.num_attention_heads);
        dit_memory::row_bytes(tokens, width, 4 * width, heads, self.placement.dtype.size_in_bytes())
    }
}
