//! Stable Diffusion 1.x, and 2.x, which differs in its configuration only.
//!
//! Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022; the reference is diffusers'
//! `StableDiffusionPipeline` and `StableDiffusionImg2ImgPipeline`.

use std::sync::Arc;

use candle_core::Tensor;

use super::guidance::distilled_guidance;
use super::latent_space::{CONFIG as VAE, LatentSpace};
use super::parts::{self, AnyPart, Lazy, Turns};
use super::rows::{self, Call, Guided, classifier_free};
use super::schedulers::Schedulers;
use super::{Family, Placement, card_file, pixels, unet_memory};
use crate::autoencoders::AutoencoderKlConfig;
use crate::denoisers::{Adapters, Condition, Context, Hooks, SampleSize, UNet, UNetConfig};
use crate::samplers::{PlanContext, StrengthRule};
use crate::text::{ClipPrompt, ClipText, ClipTextConfig, ClipTokenizer, Tokens, equal_lengths};
use crate::weights::Repository;
use crate::{
    Abilities, BatchKey, Conditioning, Error, Fit, InitImage, Loading, ModelCard, Part, Pipeline, Prompt, RenderSpec,
    Result, RgbImage, Size, Sizes, Trajectory,
};

/// The family's line in the list of families.
pub(super) const FAMILY: Family = Family {
    classes: &["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"],
    open,
};

/// The files that are checked against each other.
const UNET: &str = "unet/config.json";
const TEXT: &str = "text_encoder/config.json";

/// diffusers' default steps and guidance of the family.
const STEPS: usize = 50;
const GUIDANCE: f64 = 7.5;

/// A Stable Diffusion model, ready to render.
struct StableDiffusion {
    name: String,
    card: ModelCard,
    placement: Placement,
    tokenizer: ClipTokenizer,
    text_config: ClipTextConfig,
    unet_config: UNetConfig,
    schedulers: Schedulers,
    turns: Arc<Turns>,
    text: Lazy<ClipText>,
    unet: Lazy<UNet>,
    latents: LatentSpace,
}

/// Opens a model of the family.
fn open(repository: &Repository, placement: &Placement, name: &str) -> Result<Arc<dyn Pipeline>> {
    let unet_config = UNetConfig::from_json(UNET, &repository.text(UNET)?)?;
    let vae_config = AutoencoderKlConfig::from_json(VAE, &repository.text(VAE)?)?;
    let text_config: ClipTextConfig = repository.json(TEXT)?;
    text_config.check(TEXT)?;
    let schedulers = Schedulers::read_corrected(repository)?;
    let tokenizer = ClipTokenizer::open(repository, "tokenizer")?;
    check_parts(&unet_config, &vae_config, &text_config, &tokenizer)?;

    let parts = ["text_encoder", "unet", "vae"];
    let [text_part, unet_part, vae_part] = parts.map(|part| repository.part(part, placement.value_bytes()));
    let (text_part, unet_part, vae_part) = (text_part?, unet_part?, vae_part?);
    let mut card = card(&unet_config, &vae_config, &schedulers)?;
    card.context_tokens = tokenizer.max_length().unwrap_or(text_config.max_position_embeddings);
    card.clip_layers = text_config.num_hidden_layers;
    card.parameters = text_part.parameters + unet_part.parameters + vae_part.parameters;
    placement.dtype.as_str().clone_into(&mut card.dtype);
    card_file::apply(repository, &mut card)?;
    schedulers.check(&card.sampler, card.steps, PlanContext::default())?;

    let turns = Turns::new(&[&text_part, &unet_part, &vae_part], placement.memory);
    let latents = LatentSpace::new(repository, vae_config, vae_part, &turns, placement);
    let text = {
        let (repository, config, placement) = (repository.clone(), text_config.clone(), placement.clone());
        move || ClipText::new(&config, &repository.tensors("text_encoder", placement.dtype, &placement.device)?)
    };
    let unet = {
        let (repository, config, placement) = (repository.clone(), unet_config.clone(), placement.clone());
        move || UNet::new(&config, &repository.tensors("unet", placement.dtype, &placement.device)?)
    };
    Ok(Arc::new(StableDiffusion {
        name: name.to_owned(),
        card,
        placement: placement.clone(),
        tokenizer,
        text_config,
        unet_config,
        schedulers,
        text: Lazy::new(text_part, &turns, text),
        unet: Lazy::new(unet_part, &turns, unet),
        latents,
        turns,
    }))
}

/// Refuses parts that are not made for each other.
fn check_parts(
    unet: &UNetConfig,
    vae: &AutoencoderKlConfig,
    text: &ClipTextConfig,
    tokenizer: &ClipTokenizer,
) -> Result<()> {
    let check = |right: bool, file: &str, message: String| {
        if right { Ok(()) } else { Err(Error::file(file, message)) }
    };
    let (inputs, outputs, latents) = (unet.in_channels, unet.out_channels, vae.latent_channels);
    if inputs == 2 * latents + 1 {
        let message =
            format!("{UNET}: in_channels is {inputs}: this is an inpainting UNet, which easel does not run yet");
        return Err(Error::Unsupported(message));
    }
    let expected = format!("{VAE} has latent_channels {latents}");
    check(inputs == latents, UNET, format!("in_channels is {inputs}, but {expected}"))?;
    check(outputs == latents, UNET, format!("out_channels is {outputs}, but {expected}"))?;
    let (context, hidden) = (unet.context_channels(), text.hidden_size);
    check(
        context.is_none_or(|context| context == hidden),
        UNET,
        format!("cross_attention_dim is {}, but {TEXT} has hidden_size {hidden}", context.unwrap_or_default()),
    )?;
    let (length, positions) = (tokenizer.max_length(), text.max_position_embeddings);
    check(
        length.is_none_or(|length| length <= positions),
        "tokenizer/tokenizer_config.json",
        format!(
            "model_max_length is {}, but {TEXT} has max_position_embeddings {positions}",
            length.unwrap_or_default()
        ),
    )?;
    let (largest, vocabulary) = (tokenizer.largest_id(), text.vocab_size);
    let message = format!("has ids up to {largest}, but {TEXT} has vocab_size {vocabulary}");
    check((largest as usize) < vocabulary, tokenizer.file(), message)
}

/// The card that the configurations alone give.
fn card(unet: &UNetConfig, vae: &AutoencoderKlConfig, schedulers: &Schedulers) -> Result<ModelCard> {
    let factor = vae.factor() as u32;
    let (high, wide) = unet.sample_size.map_or((0, 0), SampleSize::sides);
    if high == 0 || wide == 0 {
        return Err(Error::file(UNET, "sample_size is missing; the native side of the latents is expected"));
    }
    let native = Size { width: wide as u32 * factor, height: high as u32 * factor };
    let (sampler, samplers, description) = schedulers.describe();
    Ok(ModelCard {
        // 2.x is told by the linear layers that replaced the 1x1 convolutions around its transformers.
        family: if unet.use_linear_projection { "sd2" } else { "sd1" }.to_owned(),
        description,
        subjects: Vec::new(),
        native,
        // The network takes any size; far beyond the native one, pictures repeat themselves.
        sizes: Sizes::Any { multiple: factor, min: factor, max: (4 * native.width.max(native.height)).max(1024) },
        fit: Fit::Exact,
        steps: STEPS,
        guidance: GUIDANCE,
        sampler,
        samplers,
        abilities: Abilities {
            // A distilled model is told its guidance, and has no second prompt to be guided from.
            negative_prompt: unet.time_cond_proj_dim.is_none(),
            clip_skip: true,
            image_to_image: true,
            prompt_weighting: true,
            ..Abilities::default()
        },
        context_tokens: 0,
        clip_layers: 0,
        parameters: 0,
        dtype: String::new(),
        scheduler: schedulers.own().clone(),
    })
}

impl StableDiffusion {
    /// A prompt as the denoiser projects it, once a picture.
    fn project(&self, states: &Tensor, guidance: Option<&Tensor>) -> Result<Condition> {
        let states = states.unsqueeze(0)?;
        let context = Context { states: &states, added: None, guidance };
        self.unet.with(|unet| unet.condition(&context, &Adapters::default()))
    }

    /// Its parts, in the order in which a picture needs them.
    fn all(&self) -> [&dyn AnyPart; 3] {
        [&self.text, &self.unet, self.latents.part()]
    }
}

impl Pipeline for StableDiffusion {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn parts(&self) -> Vec<Part> {
        parts::infos(&self.all())
    }

    fn load(&self, progress: &dyn Fn(Loading)) -> Result<()> {
        parts::load(&self.all(), progress)
    }

    fn unload(&self) {
        self.all().iter().for_each(|part| part.unload());
    }

    fn loaded(&self) -> bool {
        parts::loaded(&self.all())
    }

    fn weight_bytes(&self) -> u64 {
        self.turns.bytes(&self.parts())
    }

    fn guided(&self, spec: &RenderSpec) -> bool {
        // A distilled model is told its guidance instead.
        spec.guidance > 1.0 && self.unet_config.time_cond_proj_dim.is_none()
    }

    fn encode(&self, prompt: &Prompt) -> Result<Conditioning> {
        let device = &self.placement.device;
        let clip = ClipPrompt::new(&self.tokenizer, prompt, self.card.context_tokens)?;
        let states = self.text.with(|text| {
            let encode = |chunk: &Tokens| -> Result<Tensor> {
                let length = chunk.ids.len();
                let ids = Tensor::from_slice(&chunk.ids, (1, length), device)?;
                let mask = Tensor::from_slice(&chunk.mask, (1, length), device)?;
                let mask = self.text_config.use_attention_mask.then_some(&mask);
                Ok(text.forward(&ids, mask, prompt.clip_skip)?.states)
            };
            clip.chunks.iter().map(encode).collect::<Result<Vec<_>>>()
        })?;
        let (states, tokens, truncated) = (clip.join(&states)?, clip.count(), clip.truncated());
        Ok(Conditioning { states, pooled: None, mask: None, tokens, truncated })
    }

    fn begin(
        &self,
        spec: &RenderSpec,
        positive: Arc<Conditioning>,
        negative: Option<Arc<Conditioning>>,
    ) -> Result<Trajectory> {
        let shape = self.latents.shape(&self.card, spec.width, spec.height)?;
        let device = &self.placement.device;
        let mut sampling = spec.sampling.clone();
        sampling.sampler.get_or_insert_with(|| self.card.sampler.clone());
        let mut plan = self.schedulers.plan(&sampling, PlanContext::default())?;

        let mut noise = plan.noise().open(spec.seed);
        let [c, h, w] = shape;
        let latents = match &spec.init {
            None => (noise.normal(&[1, c, h, w], device)? * plan.init_noise_sigma())?,
            Some(InitImage { image, strength }) => {
                pixels::check_size("image", (image.width, image.height), spec)?;
                plan.skip_to_strength(*strength, StrengthRule::Truncate)?;
                // diffusers samples the posterior, and draws for it, before it draws the latents' noise.
                let clean = self.latents.sample(image, noise.as_mut())?;
                plan.add_noise(&clean, &noise.normal(&[1, c, h, w], device)?)?
            }
        };
        let sampler = plan.start(latents.squeeze(0)?, noise)?;

        let dim = self.unet_config.time_cond_proj_dim;
        let distilled = dim.map(|dim| distilled_guidance(spec.guidance, dim, device)).transpose()?;
        let (states, negative_states) = match negative.as_deref() {
            Some(negative) => {
                let empty = || Ok(self.encode(&Prompt::new(""))?.states);
                let (positive, negative) = equal_lengths(&positive.states, &negative.states, empty)?;
                (positive, Some(negative))
            }
            None => (positive.states.clone(), None),
        };
        let context = states.dim(0)?;
        let conditions = Guided {
            negative: negative_states.map(|states| self.project(&states, None)).transpose()?,
            positive: self.project(&states, distilled.as_ref())?,
        };
        let key = BatchKey { model: self.name.clone(), latent: shape, context, references: Vec::new() };
        let row = Trajectory::new(sampler, positive, negative, spec.guidance, spec.guidance_rescale, key);
        Ok(row.with_state(conditions))
    }

    fn denoise(&self, rows: &mut [&mut Trajectory]) -> Result<()> {
        self.unet.with(|unet| {
            rows::step(rows, classifier_free, |call: &Call<'_, Condition>| {
                let condition = Condition::stack(&call.conditions)?;
                unet.forward(&Tensor::stack(&call.inputs, 0)?, &call.timesteps, &condition, &Hooks::default())
            })
        })
    }

    fn decode(&self, latents: &[Tensor]) -> Result<Vec<RgbImage>> {
        self.latents.decode(latents)
    }

    fn preview(&self, latents: &Tensor) -> Result<RgbImage> {
        self.latents.preview(latents)
    }

    fn row_bytes(&self, width: u32, height: u32) -> u64 {
        let factor = self.latents.factor();
        let (height, width) = (height as usize / factor, width as usize / factor);
        let size = self.placement.dtype.size_in_bytes();
        unet_memory::row_bytes(&self.unet_config, height, width, self.card.context_tokens, size)
    }

    fn decode_bytes(&self, width: u32, height: u32) -> u64 {
        self.latents.decode_bytes(width, height)
    }
}

#[cfg(test)]
mod tests;
