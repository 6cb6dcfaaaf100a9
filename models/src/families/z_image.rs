//! Z-Image and Z-Image-Turbo.
//!
//! Cai et al., "Z-Image: An Efficient Image Generation Foundation Model with Single-Stream Diffusion Transformer", 2025;
//! the reference is diffusers' `ZImagePipeline`, `ZImageImg2ImgPipeline` and `ZImageInpaintPipeline`.

use std::sync::Arc;

use candle_core::Tensor;

use super::latent_space::{CONFIG as VAE, LatentSpace, latents_become_pictures};
use super::opening::{Opening, check, check_vocabulary};
use super::parts::{AnyPart, Lazy, Turns, parts_come_and_go};
use super::rows::{self, Call, Guided};
use super::schedulers::Schedulers;
use super::unused::{Uses, check_prompt};
use super::{Family, Placement, dit_memory, pixels};
use crate::autoencoders::AutoencoderKlConfig;
use crate::denoisers::{Adapters, ZImage, ZImageCondition, ZImageConfig, ZImageHooks};
use crate::samplers::{PlanContext, Repaint, StrengthRule};
use crate::text::{Qwen3, Qwen3Config, QwenTokenizer, Thinking, Tokens};
use crate::weights::Repository;
use crate::{
    Abilities, BatchKey, Conditioning, Error, InitImage, ModelCard, Pipeline, Prompt, RenderSpec, Result, Size, Sizes,
    Strengths, Trajectory,
};

/// The family's line in the list of families.
pub(super) const FAMILY: Family =
    Family { classes: &["ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline"], open };

/// The files that are checked against each other.
const TRANSFORMER: &str = "transformer/config.json";
const TEXT: &str = "text_encoder/config.json";

/// Tokens of a prompt, its template included; diffusers' `max_sequence_length`.
const CONTEXT: usize = 512;

/// The native side of the pictures, which no file names.
const NATIVE: u32 = 1024;

/// diffusers' default steps and guidance of the family, and those of the few-step model, by its model card.
const STEPS: usize = 50;
const GUIDANCE: f64 = 5.0;
const TURBO_STEPS: usize = 9;
const TURBO_GUIDANCE: f64 = 0.0;

/// The shift of the schedule that tells the published few-step model from the base model, whose shift is 6.
const TURBO_SHIFT: f64 = 3.0;

/// A Z-Image model, ready to render.
struct ZImageModel {
    name: String,
    card: ModelCard,
    placement: Placement,
    tokenizer: QwenTokenizer,
    /// The hidden state of the text encoder that conditions the transformer.
    state: usize,
    config: ZImageConfig,
    schedulers: Schedulers,
    turns: Arc<Turns>,
    text: Lazy<Qwen3>,
    transformer: Lazy<ZImage>,
    latents: LatentSpace,
}

/// Opens a model of the family.
fn open(repository: &Repository, placement: &Placement, name: &str) -> Result<Arc<dyn Pipeline>> {
    let config = ZImageConfig::from_json(TRANSFORMER, &repository.text(TRANSFORMER)?)?;
    let vae_config = AutoencoderKlConfig::from_json(VAE, &repository.text(VAE)?)?;
    let text_config = Qwen3Config::from_json(TEXT, &repository.text(TEXT)?)?;
    let schedulers = Schedulers::read_flow(repository)?;
    let tokenizer = QwenTokenizer::open(repository, "tokenizer")?;
    check_parts(&config, &vae_config, &text_config, &tokenizer)?;

    let opening = Opening { repository, placement };
    let state = last_state(&text_config);
    let text_part = opening.part_of("text_encoder", |key| text_config.loads(key, state))?;
    let (transformer_part, vae_part) = (opening.part("transformer")?, opening.part("vae")?);
    let parts = [&text_part, &transformer_part, &vae_part];
    let card = card(&config, &vae_config, &schedulers);
    let of_card = |card: &ModelCard| context(card.native, vae_config.factor());
    let card = opening.complete(card, &parts, &schedulers, of_card)?;

    let turns = Turns::new(&parts, placement.memory);
    let latents = LatentSpace::new(opening, vae_config, vae_part, &turns);
    let text = opening.lazy(text_part, &turns, move |weights| Qwen3::up_to(&text_config, weights, state));
    let built = config.clone();
    let transformer = opening.lazy(transformer_part, &turns, move |weights| ZImage::new(&built, weights));
    Ok(Arc::new(ZImageModel {
        name: name.to_owned(),
        card,
        placement: placement.clone(),
        tokenizer,
        state,
        config,
        schedulers,
        text,
        transformer,
        latents,
        turns,
    }))
}

/// Refuses parts that are not made for each other.
fn check_parts(
    config: &ZImageConfig,
    vae: &AutoencoderKlConfig,
    text: &Qwen3Config,
    tokenizer: &QwenTokenizer,
) -> Result<()> {
    let (channels, latents) = (config.in_channels, vae.latent_channels);
    let message = format!("in_channels is {channels}, but {VAE} has latent_channels {latents}");
    check(channels == latents, TRANSFORMER, message)?;
    let (context, hidden) = (config.cap_feat_dim, text.hidden_size);
    let message = format!("cap_feat_dim is {context}, but {TEXT} has hidden_size {hidden}");
    check(context == hidden, TRANSFORMER, message)?;
    check_vocabulary((tokenizer.file(), tokenizer.largest_id()), TEXT, text.vocab_size)
}

/// The hidden state that conditions the transformer: the last but one.
fn last_state(text: &Qwen3Config) -> usize {
    text.num_hidden_layers - 1
}

/// What the schedule of a picture depends on.
fn context(size: Size, factor: usize) -> PlanContext {
    let side = |pixels: u32| pixels as usize / (factor * ZImageConfig::PATCH);
    PlanContext { image_tokens: Some(side(size.width) * side(size.height)), mu: None, unit_sigmas: true }
}

/// The card that the configurations alone give.
fn card(config: &ZImageConfig, vae: &AutoencoderKlConfig, schedulers: &Schedulers) -> ModelCard {
    let multiple = (vae.factor() * ZImageConfig::PATCH) as u32;
    let side = NATIVE.next_multiple_of(multiple);
    let longest = (config.longest_side() * vae.factor()) as u32;
    let native = Size { width: side.min(longest), height: side.min(longest) };
    // Far beyond the native size, pictures repeat themselves.
    let sizes = Sizes::Any { multiple, min: multiple, max: (4 * side).min(longest) };
    let turbo = schedulers.own().shift.is_some_and(|shift| shift <= TURBO_SHIFT);
    ModelCard {
        steps: if turbo { TURBO_STEPS } else { STEPS },
        guidance: if turbo { TURBO_GUIDANCE } else { GUIDANCE },
        abilities: Abilities {
            negative_prompt: true,
            guided_from_zero: true,
            image_to_image: true,
            inpaint: true,
            strengths: Strengths { rule: StrengthRule::Fraction, ..Strengths::default() },
            ..Abilities::default()
        },
        context_tokens: CONTEXT,
        ..schedulers.card("z-image", native, sizes)
    }
}

/// Guidance as the pipeline has it: the positive prediction, moved away from the negative one.
///
/// At 0 there is none, and 1 is what other families call 2. diffusers' `cfg_normalization` and `cfg_truncation` are off by
/// default, and are not asked for here.
fn beyond(negative: &Tensor, positive: &Tensor, row: &Trajectory) -> Result<Tensor> {
    Ok((positive + ((positive - negative)? * row.guidance())?)?)
}

/// One answer a place. Places whose texts are of one length share a call of the network; a prompt and its negative
/// prompt often are not, and padding one of them would change it.
fn predict(network: &ZImage, call: &Call<'_, ZImageCondition>) -> Result<Tensor> {
    let mut lengths = Vec::with_capacity(call.inputs.len());
    for condition in &call.conditions {
        lengths.push(condition.tokens()?);
    }
    let mut answers = vec![None; lengths.len()];
    for at in 0..lengths.len() {
        if answers[at].is_some() {
            continue;
        }
        let group: Vec<usize> = (at..lengths.len()).filter(|&other| lengths[other] == lengths[at]).collect();
        let inputs: Vec<&Tensor> = group.iter().map(|&place| &call.inputs[place]).collect();
        // The network's time runs from noise at 0 to the picture at 1; diffusers works it out in f32.
        let time = |timestep: f64| f64::from((1000.0 - timestep as f32) / 1000.0);
        let times: Vec<f64> = group.iter().map(|&place| time(call.timesteps[place])).collect();
        let conditions: Vec<&ZImageCondition> = group.iter().map(|&place| call.conditions[place]).collect();
        let flow = network.forward(&Tensor::stack(&inputs, 0)?, &times, &conditions, &ZImageHooks::default())?;
        // It points from noise to picture; samplers go the other way.
        let velocity = flow.neg()?;
        for (row, &place) in group.iter().enumerate() {
            answers[place] = Some(velocity.get(row)?);
        }
    }
    let answers: Vec<Tensor> = answers.into_iter().flatten().collect();
    Ok(Tensor::stack(&answers, 0)?)
}

impl ZImageModel {
    /// Its parts, in the order in which a picture needs them.
    fn all(&self) -> [&dyn AnyPart; 3] {
        [&self.text, &self.transformer, self.latents.part()]
    }
}

impl Pipeline for ZImageModel {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    parts_come_and_go!();

    latents_become_pictures!(latents);

    fn guided(&self, spec: &RenderSpec) -> bool {
        spec.guidance > 0.0
    }

    fn encode(&self, prompt: &Prompt) -> Result<Conditioning> {
        check_prompt(prompt)?;
        let text = prompt.text.as_deref().unwrap_or_default();
        let Tokens { ids, mask, count, truncated } = self.tokenizer.encode(text, Thinking::Enabled, CONTEXT)?;
        // diffusers drops what the padding became. Attention is causal and its positions are relative, so it need not be
        // computed at all.
        let ids: Vec<u32> = ids.into_iter().zip(mask).filter(|(_, shown)| *shown != 0).map(|(id, _)| id).collect();
        let length = ids.len();
        let ids = Tensor::from_vec(ids, (1, length), &self.placement.device)?;
        let states = self.text.with(|text| text.hidden_states(&ids, None, &[self.state]))?;
        let states = Tensor::cat(&states, 2)?.squeeze(0)?;
        Ok(Conditioning { states, pooled: None, mask: None, tokens: count, truncated })
    }

    fn begin(
        &self,
        spec: &RenderSpec,
        positive: Arc<Conditioning>,
        negative: Option<Arc<Conditioning>>,
    ) -> Result<Trajectory> {
        Uses { image: true, mask: true, ..Uses::default() }.check(spec)?;
        let shape = self.latents.shape(&self.card, spec.width, spec.height)?;
        let device = &self.placement.device;
        let mut sampling = spec.sampling.clone();
        sampling.sampler.get_or_insert_with(|| self.card.sampler.clone());
        let size = Size { width: spec.width, height: spec.height };
        let mut plan = self.schedulers.plan(&sampling, context(size, self.latents.factor()))?;

        let mut noise = plan.noise().open(spec.seed);
        let [c, h, w] = shape;
        let sampler = match &spec.init {
            None if spec.mask.is_some() => {
                let message = "it is missing; a mask needs the picture that it is of".to_owned();
                return Err(Error::Request { param: "image", message });
            }
            None => {
                let latents = (noise.normal(&[1, c, h, w], device)? * plan.init_noise_sigma())?;
                plan.start(latents.squeeze(0)?, noise)?
            }
            Some(InitImage { image, strength }) => {
                pixels::check_size("image", (image.width, image.height), spec)?;
                plan.skip_to_strength(*strength, self.card.abilities.strengths.rule(spec.mask.is_some()))?;
                // diffusers samples the posterior, and draws for it, before it draws the latents' noise.
                let clean = self.latents.sample(image, noise.as_mut())?;
                let drawn = noise.normal(&[1, c, h, w], device)?;
                let latents = plan.add_noise(&clean, &drawn)?.squeeze(0)?;
                match &spec.mask {
                    None => plan.start(latents, noise)?,
                    Some(mask) => {
                        pixels::check_size("mask", (mask.width, mask.height), spec)?;
                        let mask = pixels::mask_to_latents(mask, h, w, device)?;
                        let repaint = Repaint { clean: clean.squeeze(0)?, noise: drawn.squeeze(0)?, mask };
                        plan.start_repainting(latents, noise, repaint)?
                    }
                }
            }
        };

        let condition = |text: &Conditioning| {
            let states = text.states.unsqueeze(0)?;
            self.transformer.with(|network| network.condition(&states, (h, w), &Adapters::default()))
        };
        let conditions =
            Guided { negative: negative.as_deref().map(condition).transpose()?, positive: condition(&positive)? };
        let context = conditions.positive.tokens()?;
        let key = BatchKey { model: self.name.clone(), latent: shape, context, references: Vec::new() };
        let row = Trajectory::new(sampler, positive, negative, spec.guidance, spec.guidance_rescale, key);
        Ok(row.with_state(conditions))
    }

    fn denoise(&self, rows: &mut [&mut Trajectory]) -> Result<()> {
        self.transformer
            .with(|network| rows::step(rows, beyond, |call: &Call<'_, ZImageCondition>| predict(network, call)))
    }

    fn row_bytes(&self, width: u32, height: u32) -> u64 {
        let side = self.latents.factor() * ZImageConfig::PATCH;
        let tokens = (width as usize / side) * (height as usize / side) + CONTEXT;
        let size = self.placement.dtype.size_in_bytes();
        dit_memory::row_bytes(tokens, self.config.dim, self.config.hidden(), self.config.n_heads, size)
    }
}
