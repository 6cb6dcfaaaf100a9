//! FLUX.2 klein, which draws pictures and edits those that it is shown.
//!
//! Black Forest Labs, "FLUX.2 [klein]", 2026; the reference is diffusers' `Flux2KleinPipeline` and
//! `Flux2KleinInpaintPipeline`.

mod reference;

use std::sync::Arc;

use candle_core::{D, Device, Tensor};
use serde::Deserialize;

use super::latent_space::{CONFIG as VAE, LatentSpace, latents_become_pictures};
use super::opening::{Opening, check, check_vocabulary};
use super::parts::{AnyPart, Lazy, Turns, parts_come_and_go};
use super::rows::{self, Call, Guided, classifier_free};
use super::schedulers::Schedulers;
use super::unused::{Uses, check_prompt};
use super::{Family, Placement, dit_memory, pixels};
use crate::autoencoders::AutoencoderKlConfig;
use crate::denoisers::{Flux2, Flux2Condition, Flux2Config, FluxHooks};
use crate::samplers::{PlanContext, Repaint, StrengthRule};
use crate::text::{Qwen3, Qwen3Config, Qwen3Mask, QwenTokenizer, Thinking, Tokens};
use crate::weights::{MODEL_INDEX, Repository};
use crate::{
    Abilities, BatchKey, Conditioning, Error, GrayImage, InitImage, ModelCard, Pipeline, Prompt, RenderSpec, Result,
    RgbImage, Size, Sizes, Strengths, Trajectory,
};

/// The family's line in the list of families.
pub(super) const FAMILY: Family = Family { classes: &["Flux2KleinPipeline", "Flux2KleinInpaintPipeline"], open };

/// The files that are checked against each other.
const TRANSFORMER: &str = "transformer/config.json";
const TEXT: &str = "text_encoder/config.json";

/// Tokens of a prompt, its template included; diffusers' `max_sequence_length`.
const CONTEXT: usize = 512;

/// The hidden states of the text encoder that lie beside each other in the conditioning.
const LAYERS: [usize; 3] = [9, 18, 27];

/// The last of them, behind which no layer is computed.
const LAST: usize = LAYERS[LAYERS.len() - 1];

/// The native side of the pictures, which no file names.
const NATIVE: u32 = 1024;

/// diffusers' default steps and guidance of the family, and those of the few-step models, by their model cards.
const STEPS: usize = 50;
const GUIDANCE: f64 = 4.0;
const DISTILLED_STEPS: usize = 4;
const DISTILLED_GUIDANCE: f64 = 1.0;

/// What `model_index.json` says beside the parts.
#[derive(Deserialize)]
struct Index {
    /// Whether the model was taught to need few steps and no guidance.
    #[serde(default)]
    is_distilled: bool,
}

/// A FLUX.2 klein model, ready to render.
struct Flux2Klein {
    name: String,
    card: ModelCard,
    distilled: bool,
    placement: Placement,
    tokenizer: QwenTokenizer,
    config: Flux2Config,
    schedulers: Schedulers,
    turns: Arc<Turns>,
    text: Lazy<Qwen3>,
    transformer: Lazy<Flux2>,
    latents: LatentSpace,
}

/// Opens a model of the family.
fn open(repository: &Repository, placement: &Placement, name: &str) -> Result<Arc<dyn Pipeline>> {
    let Index { is_distilled: distilled } = repository.json(MODEL_INDEX)?;
    let config = Flux2Config::from_json(TRANSFORMER, &repository.text(TRANSFORMER)?)?;
    let vae_config = AutoencoderKlConfig::from_json(VAE, &repository.text(VAE)?)?;
    let text_config = Qwen3Config::from_json(TEXT, &repository.text(TEXT)?)?;
    let schedulers = Schedulers::read_flow(repository)?;
    let tokenizer = QwenTokenizer::open(repository, "tokenizer")?;
    check_parts(&config, &vae_config, &text_config, &tokenizer)?;

    let opening = Opening { repository, placement };
    let text_part = opening.part_of("text_encoder", |key| text_config.loads(key, LAST))?;
    let (transformer_part, vae_part) = (opening.part("transformer")?, opening.part("vae")?);
    let parts = [&text_part, &transformer_part, &vae_part];
    let factor = vae_config.factor() * vae_config.patch();
    let card = card(distilled, factor as u32, &schedulers);
    let of_card = |card: &ModelCard| context(tokens(card.native, factor), card.steps);
    let card = opening.complete(card, &parts, &schedulers, of_card)?;

    let turns = Turns::new(&parts, placement.memory);
    let latents = LatentSpace::new(opening, vae_config, vae_part, &turns);
    let text = opening.lazy(text_part, &turns, move |weights| Qwen3::up_to(&text_config, weights, LAST));
    let built = config.clone();
    let transformer = opening.lazy(transformer_part, &turns, move |weights| Flux2::new(&built, weights));
    Ok(Arc::new(Flux2Klein {
        name: name.to_owned(),
        card,
        distilled,
        placement: placement.clone(),
        tokenizer,
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
    config: &Flux2Config,
    vae: &AutoencoderKlConfig,
    text: &Qwen3Config,
    tokenizer: &QwenTokenizer,
) -> Result<()> {
    let message = "batch_norm_eps is missing; an AutoencoderKLFlux2 is expected".to_owned();
    check(vae.batch_norm_eps.is_some(), VAE, message)?;
    let latents = vae.latent_channels * vae.patch() * vae.patch();
    for (key, channels) in [("in_channels", config.in_channels), ("out_channels", config.outputs())] {
        let message = format!("{key} is {channels}, but {VAE} makes latents of {latents} channels");
        check(channels == latents, TRANSFORMER, message)?;
    }
    let layers = text.num_hidden_layers;
    check(layers >= LAST, TEXT, format!("num_hidden_layers is {layers}; at least {LAST} are needed"))?;
    let (context, hidden) = (config.joint_attention_dim, LAYERS.len() * text.hidden_size);
    let message = format!("joint_attention_dim is {context}, but three states of {TEXT} have {hidden} channels");
    check(context == hidden, TRANSFORMER, message)?;
    check_vocabulary((tokenizer.file(), tokenizer.largest_id()), TEXT, text.vocab_size)
}

/// Tokens of a picture.
fn tokens(size: Size, factor: usize) -> usize {
    (size.width as usize / factor) * (size.height as usize / factor)
}

/// What the schedule of a picture depends on: a shift that was fitted to the number of tokens and of steps.
fn context(tokens: usize, steps: usize) -> PlanContext {
    let (tokens, steps) = (tokens as f64, steps as f64);
    let at_200 = 0.000_169_27 * tokens + 0.456_666_66;
    let at_10 = 8.738_095_24e-05 * tokens + 1.898_333_33;
    let slope = (at_200 - at_10) / 190.0;
    let mu = if tokens > 4300.0 { at_200 } else { slope * steps + (at_200 - 200.0 * slope) };
    PlanContext { image_tokens: None, mu: Some(mu), unit_sigmas: true }
}

/// Pictures that a request may have it look at: diffusers sets no bound, the model's authors offer four.
const MOST_REFERENCES: usize = 4;

/// The card that the configurations alone give.
fn card(distilled: bool, multiple: u32, schedulers: &Schedulers) -> ModelCard {
    let side = NATIVE.next_multiple_of(multiple);
    let native = Size { width: side, height: side };
    // The network takes any size; far beyond the native one, pictures repeat themselves.
    let sizes = Sizes::Any { multiple, min: multiple, max: 4 * side };
    ModelCard {
        steps: if distilled { DISTILLED_STEPS } else { STEPS },
        guidance: if distilled { DISTILLED_GUIDANCE } else { GUIDANCE },
        abilities: Abilities {
            // A distilled model has no second prompt to be guided from.
            negative_prompt: !distilled,
            fixed_guidance: distilled,
            inpaint: true,
            edit: true,
            references: MOST_REFERENCES,
            reference_sides: reference::SIDES,
            strengths: Strengths { rule: StrengthRule::Fraction, ..Strengths::default() },
            ..Abilities::default()
        },
        context_tokens: CONTEXT,
        ..schedulers.card("flux2-klein", native, sizes)
    }
}

/// A mask at the latents' size, (1, h, w) in f32 from 0 to 1: bilinear, as the reference has it here, which for an even
/// number of pixels a latent pixel is the mean of the four in its middle.
fn soft_mask(mask: &GrayImage, (h, w): (usize, usize), device: &Device) -> Result<Tensor> {
    let pixels = pixels::mask_to_tensor(mask, device)?; // (1, 1, H, W)
    let (_, _, height, width) = pixels.dims4()?;
    let (rows, columns) = (height / h, width / w);
    let squares = pixels.reshape((h, rows, w, columns))?;
    let middle = squares.narrow(1, rows / 2 - 1, 2)?.narrow(3, columns / 2 - 1, 2)?;
    Ok(middle.mean(D::Minus1)?.mean(1)?.unsqueeze(0)?)
}

impl Flux2Klein {
    /// Its parts, in the order in which a picture needs them.
    fn all(&self) -> [&dyn AnyPart; 3] {
        [&self.text, &self.transformer, self.latents.part()]
    }

    /// The latents of pictures that are looked at, (1, c, h, w) each.
    fn references(&self, images: &[RgbImage]) -> Result<Vec<Tensor>> {
        let encode = |image: &RgbImage| {
            let image = reference::prepare(image, self.latents.factor() as u32)?;
            self.latents.mode(&pixels::to_tensor(&image, &self.placement.device)?)
        };
        images.iter().map(encode).collect()
    }
}

impl Pipeline for Flux2Klein {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    parts_come_and_go!();

    latents_become_pictures!(latents);

    fn guided(&self, spec: &RenderSpec) -> bool {
        spec.guidance > 1.0 && !self.distilled
    }

    fn encode(&self, prompt: &Prompt) -> Result<Conditioning> {
        check_prompt(prompt)?;
        let text = prompt.text.as_deref().unwrap_or_default();
        let Tokens { ids, mask, count, truncated } = self.tokenizer.encode(text, Thinking::Disabled, CONTEXT)?;
        let device = &self.placement.device;
        let ids = Tensor::from_vec(ids, (1, CONTEXT), device)?;
        let mask = Tensor::from_vec(mask, (1, CONTEXT), device)?;
        // The transformer sees what the padding became, too.
        let states = self.text.with(|text| {
            let mask = Qwen3Mask::new(&mask, self.placement.dtype)?;
            text.hidden_states(&ids, Some(&mask), &LAYERS)
        })?;
        let states = Tensor::cat(&states, 2)?.squeeze(0)?; // (l, 3d)
        Ok(Conditioning { states, pooled: None, mask: None, tokens: count, truncated })
    }

    fn begin(
        &self,
        spec: &RenderSpec,
        positive: Arc<Conditioning>,
        negative: Option<Arc<Conditioning>>,
    ) -> Result<Trajectory> {
        Uses { image: spec.mask.is_some(), mask: true, references: true, ..Uses::default() }.check(spec)?;
        let shape = self.latents.shape(&self.card, spec.width, spec.height)?;
        let device = &self.placement.device;
        let mut sampling = spec.sampling.clone();
        sampling.sampler.get_or_insert_with(|| self.card.sampler.clone());
        let [c, h, w] = shape;
        let mut plan = self.schedulers.plan(&sampling, context(h * w, sampling.steps))?;

        let mut references = self.references(&spec.references)?;
        let mut noise = plan.noise().open(spec.seed);
        let drawn = noise.normal(&[1, c, h, w], device)?;
        let sampler = match (&spec.init, &spec.mask) {
            (None, None) => {
                let latents = (drawn * plan.init_noise_sigma())?;
                plan.start(latents.squeeze(0)?, noise)?
            }
            (Some(InitImage { image, strength }), Some(mask)) => {
                pixels::check_size("image", (image.width, image.height), spec)?;
                pixels::check_size("mask", (mask.width, mask.height), spec)?;
                plan.skip_to_strength(*strength, self.card.abilities.strengths.rule(spec.mask.is_some()))?;
                let clean = self.latents.mode(&pixels::to_tensor(image, device)?)?;
                let latents = plan.add_noise(&clean, &drawn)?.squeeze(0)?;
                let mask = soft_mask(mask, (h, w), device)?;
                let repaint = Repaint { clean: clean.squeeze(0)?, noise: drawn.squeeze(0)?, mask };
                // The model looks at the picture that it paints into, before all others.
                references.insert(0, clean);
                plan.start_repainting(latents, noise, repaint)?
            }
            _ => {
                let message = "it is missing; a mask needs the picture that it is of".to_owned();
                return Err(Error::Request { param: "image", message });
            }
        };

        let condition = |text: &Conditioning| {
            let states = text.states.unsqueeze(0)?;
            self.transformer.with(|network| network.condition(&states, &references, (h, w)))
        };
        let conditions =
            Guided { negative: negative.as_deref().map(condition).transpose()?, positive: condition(&positive)? };
        let mut shapes = Vec::with_capacity(references.len());
        for reference in &references {
            let (_, c, h, w) = reference.dims4()?;
            shapes.push([c, h, w]);
        }
        let key = BatchKey { model: self.name.clone(), latent: shape, context: CONTEXT, references: shapes };
        let row = Trajectory::new(sampler, positive, negative, spec.guidance, spec.guidance_rescale, key);
        Ok(row.with_state(conditions))
    }

    fn denoise(&self, rows: &mut [&mut Trajectory]) -> Result<()> {
        self.transformer.with(|network| {
            rows::step(rows, classifier_free, |call: &Call<'_, Flux2Condition>| {
                let inputs = Tensor::stack(&call.inputs, 0)?;
                network.forward(&inputs, &call.timesteps, &call.conditions, &FluxHooks::default())
            })
        })
    }

    fn row_bytes(&self, width: u32, height: u32) -> u64 {
        let tokens = tokens(Size { width, height }, self.latents.factor()) + CONTEXT;
        let size = self.placement.dtype.size_in_bytes();
        dit_memory::row_bytes(tokens, self.config.width(), self.config.hidden(), self.config.num_attention_heads, size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shift_is_the_references() {
        // compute_empirical_mu of diffusers 0.42.
        for (tokens, steps, mu) in [(4096, 4, 2.291_179_894), (1024, 50, 1.701_956_207), (5000, 4, 1.303_016_66)] {
            let found = context(tokens, steps).mu.unwrap();
            assert!((found - mu).abs() < 1e-6, "{tokens} tokens in {steps} steps: {found}");
        }
    }

    #[test]
    fn a_mask_is_softened_where_a_latent_pixel_straddles_its_edge() {
        // The edge of the white part lies between the two middle columns of the first square.
        let pixels = (0..4).flat_map(|_| [0, 0, 255, 255, 255, 255, 255, 255]).collect();
        let mask = GrayImage::new(8, 4, pixels).unwrap();
        let soft = soft_mask(&mask, (1, 2), &Device::Cpu).unwrap();
        assert_eq!(soft.to_vec3::<f32>().unwrap(), [[[0.5, 1.0]]]);
    }
}
