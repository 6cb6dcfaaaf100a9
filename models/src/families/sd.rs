//! Stable Diffusion 1.x, and 2.x, which differs in its configuration only.
//!
//! Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022; the reference is diffusers'
//! `StableDiffusionPipeline` and `StableDiffusionImg2ImgPipeline`.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::guidance::{distilled_guidance, guide};
use super::sd_schedulers::Schedulers;
use super::{Family, Placement, card_file, pixels, unet_memory};
use crate::autoencoders::{AutoencoderKl, AutoencoderKlConfig, Tiling};
use crate::denoisers::{Adapters, Condition, Context, Hooks, SampleSize, UNet, UNetConfig};
use crate::samplers::{ModelKind, Noise, SamplerInfo, SchedulerConfig, StrengthRule, catalogue};
use crate::text::{ClipText, ClipTextConfig, ClipTokenizer, Tokens};
use crate::weights::Repository;
use crate::{
    Abilities, BatchKey, Conditioning, Error, Fit, InitImage, ModelCard, Pipeline, Prompt, RenderSpec, Result,
    RgbImage, Size, Sizes, Trajectory,
};

/// The family's line in the list of families.
pub(super) const FAMILY: Family = Family {
    classes: &["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"],
    open,
};

/// The files that are checked against each other.
const UNET: &str = "unet/config.json";
const VAE: &str = "vae/config.json";
const TEXT: &str = "text_encoder/config.json";

/// diffusers' default steps and guidance of the family.
const STEPS: usize = 50;
const GUIDANCE: f64 = 7.5;

/// The sampler for models whose own is not available.
const OTHERWISE: &str = "ddim";

/// Pictures of more pixels than this are encoded and decoded in tiles.
const WHOLE_PIXELS: usize = 1 << 20;

/// The least side of a tile in pixels, for models that were trained on small pictures.
const LEAST_TILE: usize = 512;

/// A Stable Diffusion model, ready to render.
struct StableDiffusion {
    name: String,
    card: ModelCard,
    placement: Placement,
    tokenizer: ClipTokenizer,
    text: ClipText,
    text_config: ClipTextConfig,
    unet: UNet,
    vae: AutoencoderKl,
    schedulers: Schedulers,
}

/// A row's prompts as the denoiser projects them, once a picture.
struct Conditions {
    /// There exactly when the row is guided.
    negative: Option<Condition>,
    positive: Condition,
}

/// Opens a model of the family.
fn open(repository: &Repository, placement: &Placement, name: &str) -> Result<Arc<dyn Pipeline>> {
    let Placement { device, dtype } = placement;
    let unet_config = UNetConfig::from_json(UNET, &repository.text(UNET)?)?;
    let vae_config = AutoencoderKlConfig::from_json(VAE, &repository.text(VAE)?)?;
    let text_config: ClipTextConfig = repository.json(TEXT)?;
    text_config.check(TEXT)?;
    let schedulers = Schedulers::read(repository)?;
    let tokenizer = ClipTokenizer::open(repository, "tokenizer")?;
    check_parts(&unet_config, &vae_config, &text_config, &tokenizer)?;

    // Autoencoders that say so overflow in f16.
    let vae_dtype = if vae_config.force_upcast && *dtype == DType::F16 { DType::F32 } else { *dtype };
    let text = ClipText::new(&text_config, &repository.tensors("text_encoder", *dtype, device)?)?;
    let unet = UNet::new(&unet_config, &repository.tensors("unet", *dtype, device)?)?;
    let vae = AutoencoderKl::new(&vae_config, &repository.tensors("vae", vae_dtype, device)?)?;

    let parts = ["text_encoder", "unet", "vae"].map(|part| repository.parameters(part));
    let parameters = parts.into_iter().sum::<Result<u64>>()?;
    let context = tokenizer.max_length().unwrap_or(text_config.max_position_embeddings);
    let mut card = card(&unet_config, &vae_config, schedulers.own())?;
    card.context_tokens = context;
    card.clip_layers = text.layers();
    card.parameters = parameters;
    card.dtype = dtype.as_str().to_owned();
    card_file::apply(repository, &mut card)?;
    schedulers.check(&card.sampler, card.steps)?;
    let placement = placement.clone();
    let name = name.to_owned();
    Ok(Arc::new(StableDiffusion { name, card, placement, tokenizer, text, text_config, unet, vae, schedulers }))
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
fn card(unet: &UNetConfig, vae: &AutoencoderKlConfig, scheduler: &SchedulerConfig) -> Result<ModelCard> {
    let factor = vae.factor() as u32;
    let (high, wide) = unet.sample_size.map_or((0, 0), SampleSize::sides);
    if high == 0 || wide == 0 {
        return Err(Error::file(UNET, "sample_size is missing; the native side of the latents is expected"));
    }
    let native = Size { width: wide as u32 * factor, height: high as u32 * factor };
    // A scheduler that is not written yet is no reason to refuse a model that any sampler can draw with.
    let (sampler, description) = match SamplerInfo::of_model(scheduler) {
        Ok(info) => (info.name, String::new()),
        Err(_) => {
            let class = scheduler.class_name.as_deref().unwrap_or_default();
            (
                OTHERWISE,
                format!(
                    "Its own scheduler, {class}, is not available here; {OTHERWISE} is used unless a request names another."
                ),
            )
        }
    };
    let kind = if scheduler.is_flow() { ModelKind::Flow } else { ModelKind::Diffusion };
    let fits = |info: &&SamplerInfo| info.kind == ModelKind::Any || info.kind == kind;
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
        sampler: sampler.to_owned(),
        samplers: catalogue().iter().filter(fits).map(|info| info.name.to_owned()).collect(),
        abilities: Abilities {
            // A distilled model is told its guidance, and has no second prompt to be guided from.
            negative_prompt: unet.time_cond_proj_dim.is_none(),
            clip_skip: true,
            image_to_image: true,
            inpaint: false,
        },
        context_tokens: 0,
        clip_layers: 0,
        parameters: 0,
        dtype: String::new(),
        scheduler: scheduler.clone(),
    })
}

impl StableDiffusion {
    /// The latents' shape, (c, h, w), of a picture; an error when the model cannot make it.
    fn latent_shape(&self, width: u32, height: u32) -> Result<[usize; 3]> {
        let size = Size { width, height };
        if !self.card.sizes.contains(size) {
            let message = format!("{size} cannot be made; the nearest size is {}", self.card.sizes.nearest(size));
            return Err(Error::Request { param: "size", message });
        }
        let config = self.vae.config();
        let factor = config.factor();
        Ok([config.latent_channels, height as usize / factor, width as usize / factor])
    }

    /// The latents of the picture that image-to-image starts from, (1, c, h, w) in f32.
    fn encode_image(&self, init: &InitImage, shape: [usize; 3], noise: &mut dyn Noise) -> Result<Tensor> {
        let device = &self.placement.device;
        let [c, h, w] = shape;
        let (width, height) = (init.image.width as usize, init.image.height as usize);
        if (height / self.vae.config().factor(), width / self.vae.config().factor()) != (h, w) {
            let message = format!("the image is {width}x{height}; it must have the size of the picture to be made");
            return Err(Error::Request { param: "image", message });
        }
        let posterior = self.vae.encode(&pixels::to_tensor(&init.image, device)?, self.tiling(h, w).as_ref())?;
        self.vae.scale(&posterior.sample(&noise.normal(&[1, c, h, w], device)?)?)
    }

    /// Tiles for the autoencoder, where a whole picture with latents of this height and width would need too much memory.
    ///
    /// diffusers decodes whole pictures unless told otherwise, and a tile knows nothing of the colours of those far from
    /// it; so pictures are decoded whole up to the size where memory is several GiB.
    fn tiling(&self, height: usize, width: usize) -> Option<Tiling> {
        let factor = self.vae.config().factor();
        let native = self.vae.config().sample_size.sides();
        let tile = native.0.min(native.1).max(LEAST_TILE).div_ceil(factor);
        (height * width * factor * factor > WHOLE_PIXELS).then(|| Tiling::new(tile))
    }

    /// A prompt as the denoiser projects it.
    fn project(&self, conditioning: &Conditioning, guidance: Option<&Tensor>) -> Result<Condition> {
        let states = conditioning.states.unsqueeze(0)?;
        self.unet.condition(&Context { states: &states, added: None, guidance }, &Adapters::default())
    }
}

impl Pipeline for StableDiffusion {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn encode(&self, prompt: &Prompt) -> Result<Conditioning> {
        let text = prompt.text.as_deref().unwrap_or_default();
        let device = &self.placement.device;
        let Tokens { ids, mask, count, truncated } = self.tokenizer.encode(text, self.card.context_tokens)?;
        let length = ids.len();
        let ids = Tensor::from_vec(ids, (1, length), device)?;
        let mask = Tensor::from_vec(mask, (1, length), device)?;
        let mask = self.text_config.use_attention_mask.then_some(&mask);
        let output = self.text.forward(&ids, mask, prompt.clip_skip)?;
        Ok(Conditioning { states: output.states.squeeze(0)?, pooled: None, tokens: count, truncated })
    }

    fn begin(
        &self,
        spec: &RenderSpec,
        positive: Arc<Conditioning>,
        negative: Option<Arc<Conditioning>>,
    ) -> Result<Trajectory> {
        let shape = self.latent_shape(spec.width, spec.height)?;
        let device = &self.placement.device;
        let mut sampling = spec.sampling.clone();
        sampling.sampler.get_or_insert_with(|| self.card.sampler.clone());
        let mut plan = self.schedulers.plan(&sampling)?;

        let mut noise = plan.noise().open(spec.seed);
        let [c, h, w] = shape;
        let latents = match &spec.init {
            None => (noise.normal(&[1, c, h, w], device)? * plan.init_noise_sigma())?,
            Some(init) => {
                plan.skip_to_strength(init.strength, StrengthRule::Truncate)?;
                // diffusers samples the posterior, and draws for it, before it draws the latents' noise.
                let clean = self.encode_image(init, shape, noise.as_mut())?;
                plan.add_noise(&clean, &noise.normal(&[1, c, h, w], device)?)?
            }
        };
        let sampler = plan.start(latents.squeeze(0)?, noise)?;

        let dim = self.unet.config().time_cond_proj_dim;
        let distilled = dim.map(|dim| distilled_guidance(spec.guidance, dim, device)).transpose()?;
        let negative = negative.filter(|_| distilled.is_none());
        let conditions = Conditions {
            negative: negative.as_deref().map(|negative| self.project(negative, None)).transpose()?,
            positive: self.project(&positive, distilled.as_ref())?,
        };
        let key = BatchKey { model: self.name.clone(), latent: shape, context: positive.states.dim(0)? };
        let row = Trajectory::new(sampler, positive, negative, spec.guidance, spec.guidance_rescale, key);
        Ok(row.with_state(conditions))
    }

    fn denoise(&self, rows: &mut [&mut Trajectory]) -> Result<()> {
        let (mut inputs, mut timesteps, mut conditions) = (Vec::new(), Vec::new(), Vec::new());
        let mut asked = Vec::with_capacity(rows.len());
        for row in rows.iter() {
            let query = row.query()?;
            asked.push(query.is_some());
            let Some(query) = query else { continue };
            let Some(Conditions { negative, positive }) = row.state() else {
                return Err(Error::Unsupported("a row of another model cannot be denoised by this one".to_owned()));
            };
            for condition in negative.iter().chain([positive]) {
                inputs.push(query.input.clone());
                timesteps.push(query.timestep);
                conditions.push(condition);
            }
        }
        if inputs.is_empty() {
            return Ok(());
        }
        let condition = Condition::stack(&conditions)?;
        let outputs = self.unet.forward(&Tensor::stack(&inputs, 0)?, &timesteps, &condition, &Hooks::default())?;

        // All that can run out of memory is done before the first row moves on.
        let mut at = 0;
        let mut guided = Vec::with_capacity(rows.len());
        for (row, asked) in rows.iter().zip(&asked) {
            guided.push(match (asked, row.negative()) {
                (false, _) => None,
                (true, None) => Some(outputs.get(at)?),
                (true, Some(_)) => {
                    Some(guide(&outputs.get(at)?, &outputs.get(at + 1)?, row.guidance(), row.guidance_rescale())?)
                }
            });
            at += if *asked { row.rows() } else { 0 };
        }
        for (row, output) in rows.iter_mut().zip(&guided) {
            if let Some(output) = output {
                row.advance(output)?;
            }
        }
        Ok(())
    }

    fn decode(&self, latents: &[Tensor]) -> Result<Vec<RgbImage>> {
        // One after the other: decoding needs several times the memory of a denoiser's row, and gains nothing in a batch.
        let decode = |latents: &Tensor| {
            let (_, height, width) = latents.dims3()?;
            let latents = self.vae.unscale(&latents.unsqueeze(0)?)?;
            pixels::to_image(&self.vae.decode(&latents, self.tiling(height, width).as_ref())?)
        };
        latents.iter().map(decode).collect()
    }

    fn preview(&self, latents: &Tensor) -> Result<RgbImage> {
        self.vae.preview()?.rgb(latents)
    }

    fn row_bytes(&self, width: u32, height: u32) -> u64 {
        let factor = self.vae.config().factor();
        let (height, width) = (height as usize / factor, width as usize / factor);
        let size = self.placement.dtype.size_in_bytes();
        unet_memory::row_bytes(self.unet.config(), height, width, self.card.context_tokens, size)
    }
}

#[cfg(test)]
mod tests;
