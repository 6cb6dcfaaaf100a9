//! Stable Diffusion XL: base, refiner, inpainting, and what was distilled from them (Turbo, Lightning, LCM).
//!
//! Podell et al., "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis", 2023; the reference is
//! diffusers' `StableDiffusionXL…Pipeline`.

use std::sync::Arc;

use candle_core::Tensor;
use serde::Deserialize;
use serde_json::Value;

use super::clip::{ClipEncoder, ClipFiles, Encoded, Layer};
use super::latent_space::latents_become_pictures;
use super::opening::Opening;
use super::parts::{AnyPart, Turns, parts_come_and_go};
use super::rows::Guided;
use super::schedulers::Schedulers;
use super::unet_files::{Defaults, Files, LARGE, UNET};
use super::unet_model::{Added, UNetModel};
use super::unused::Uses;
use super::{Family, Placement};
use crate::denoisers::AdditionEmbedType;
use crate::text::equal_lengths;
use crate::weights::{MODEL_INDEX, Repository};
use crate::{Conditioning, Error, ModelCard, Part, Pipeline, Prompt, RenderSpec, Result, Strengths, Trajectory};

/// The family's line in the list of families.
pub(super) const FAMILY: Family = Family {
    classes: &["StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"],
    open,
};

/// The text encoders with their tokenizers.
const ENCODERS: [(&str, &str); 2] = [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")];

/// The aesthetic scores that diffusers tells the refiner, of the picture that is wanted and of the one that is not.
const AESTHETIC_SCORES: (f64, f64) = (6.0, 2.5);

/// What `model_index.json` says beside the classes of the parts.
#[derive(Deserialize)]
struct Index {
    /// Absent or a pair of nulls in a refiner's.
    #[serde(default)]
    text_encoder: Value,
    /// Whether an absent negative prompt is zeros instead of the encoding of "".
    #[serde(default = "yes")]
    force_zeros_for_empty_prompt: bool,
    /// Whether the time ids end with an aesthetic score instead of the target size: a refiner.
    #[serde(default)]
    requires_aesthetics_score: bool,
}

/// diffusers' default of `force_zeros_for_empty_prompt`.
fn yes() -> bool {
    true
}

/// A model of the family, ready to render.
struct StableDiffusionXl {
    model: UNetModel,
    /// CLIP and OpenCLIP, or the second alone; its pooled state is the model's.
    texts: Vec<ClipEncoder>,
    zeros: bool,
    aesthetics: bool,
    turns: Arc<Turns>,
}

/// Opens a model of the family.
fn open(repository: &Repository, placement: &Placement, name: &str) -> Result<Arc<dyn Pipeline>> {
    let Index { text_encoder, force_zeros_for_empty_prompt: zeros, requires_aesthetics_score: aesthetics } =
        repository.json(MODEL_INDEX)?;
    let files = Files::read(repository, Schedulers::read(repository)?)?;
    let both = text_encoder.as_array().is_some_and(|class| class.iter().any(|name| !name.is_null()));
    let encoders = if both { &ENCODERS[..] } else { &ENCODERS[1..] };
    let read = |&(part, tokenizer): &(&'static str, &str)| ClipFiles::read(repository, part, tokenizer);
    let texts = encoders.iter().map(read).collect::<Result<Vec<_>>>()?;
    check_parts(&files, &texts, aesthetics)?;

    let opening = Opening { repository, placement };
    let text_parts = encoders.iter().map(|(part, _)| opening.part(part)).collect::<Result<Vec<_>>>()?;
    let (unet_part, vae_part) = (opening.part("unet")?, opening.part("vae")?);
    let parts: Vec<&Part> = text_parts.iter().chain([&unet_part, &vae_part]).collect();
    let mut card = files.card(Defaults {
        family: if aesthetics { "sdxl_refiner" } else { "sdxl" },
        steps: 50,
        guidance: 5.0,
        strengths: Strengths { image_to_image: 0.3, inpaint: 0.9999, ..Strengths::default() },
        side: Some(LARGE),
    })?;
    card.abilities.needs_image |= aesthetics;
    card.context_tokens = texts.iter().map(ClipFiles::context).min().unwrap_or_default();
    // The states are the last but one layer's, and `clip_skip` counts from there.
    let layers = texts.iter().map(|text| text.config().num_hidden_layers).min();
    card.clip_layers = layers.unwrap_or_default().saturating_sub(1);
    let card = files.complete(card, opening, &parts)?;

    let turns = Turns::new(&parts, placement.memory);
    let model = UNetModel::new(opening, (name, card), files, [unet_part, vae_part], &turns);
    let encoder = |(text, part): (ClipFiles, Part)| text.encoder(opening, part, &turns);
    let texts = texts.into_iter().zip(text_parts).map(encoder).collect();
    Ok(Arc::new(StableDiffusionXl { model, texts, zeros, aesthetics, turns }))
}

/// Refuses parts that are not made for each other.
fn check_parts(files: &Files, texts: &[ClipFiles], aesthetics: bool) -> Result<()> {
    let widths: Vec<String> = texts.iter().map(|text| text.config().hidden_size.to_string()).collect();
    let width = texts.iter().map(|text| text.config().hidden_size).sum();
    files.check_context(width, &format!("the text encoders' hidden_size {} are together", widths.join(" + ")))?;
    if let [first, second] = texts
        && first.context() != second.context()
    {
        let message = format!("model_max_length is {}, but tokenizer has {}", second.context(), first.context());
        return Err(Error::file("tokenizer_2/tokenizer_config.json", message));
    }
    if files.unet.addition_embed_type != Some(AdditionEmbedType::TextTime) {
        return Err(Error::file(UNET, "addition_embed_type is missing; SDXL's is \"text_time\""));
    }
    let pooled = texts.last().map_or(0, |text| text.config().projection_dim);
    let (ids, each) = (time_ids(1024, 1024, aesthetics.then_some(0.0)).len(), files.unet.addition_time_embed_dim);
    let (each, found) =
        (each.unwrap_or_default(), files.unet.projection_class_embeddings_input_dim.unwrap_or_default());
    let expected = pooled + ids * each;
    if found != expected {
        let message = format!(
            "projection_class_embeddings_input_dim is {found}; {expected} is expected: text_encoder_2's projection_dim \
             {pooled} and {ids} time ids (requires_aesthetics_score is {aesthetics}) of addition_time_embed_dim {each}"
        );
        return Err(Error::file(UNET, message));
    }
    Ok(())
}

/// Original size, crop and target size, or the aesthetic score instead of the last.
fn time_ids(width: u32, height: u32, aesthetic_score: Option<f64>) -> Vec<f64> {
    let (width, height) = (f64::from(width), f64::from(height));
    let mut ids = vec![height, width, 0.0, 0.0];
    match aesthetic_score {
        None => ids.extend([height, width]),
        Some(score) => ids.push(score),
    }
    ids
}

impl StableDiffusionXl {
    /// Its parts, in the order in which a picture needs them.
    fn all(&self) -> Vec<&dyn AnyPart> {
        let texts = self.texts.iter().map(|text| text.part() as &dyn AnyPart);
        texts.chain([&self.model.unet as &dyn AnyPart, self.model.latents.part()]).collect()
    }

    /// The states of a guided row's prompts, at one length.
    fn states(&self, positive: &Conditioning, negative: Option<&Conditioning>) -> Result<(Tensor, Option<Tensor>)> {
        let Some(negative) = negative else { return Ok((positive.states.clone(), None)) };
        let empty = || {
            // An absent negative prompt is zeros at any length.
            let shorter = negative.states.dim(0)? < positive.states.dim(0)?;
            let prompt = if shorter && is_zero(&negative.states)? { Prompt::default() } else { Prompt::new("") };
            Ok(self.encode(&prompt)?.states)
        };
        let (positive, negative) = equal_lengths(&positive.states, &negative.states, empty)?;
        Ok((positive, Some(negative)))
    }
}

/// Whether all values are 0.
fn is_zero(tensor: &Tensor) -> Result<bool> {
    Ok(tensor.to_dtype(candle_core::DType::F32)?.abs()?.max_all()?.to_scalar::<f32>()? == 0.0)
}

impl Pipeline for StableDiffusionXl {
    fn card(&self) -> &ModelCard {
        &self.model.card
    }

    parts_come_and_go!();

    latents_become_pictures!(model.latents);

    fn guided(&self, spec: &RenderSpec) -> bool {
        self.model.guided(spec)
    }

    fn encode(&self, prompt: &Prompt) -> Result<Conditioning> {
        let encode = |text: &ClipEncoder| text.encode(prompt, Layer::Penultimate);
        let mut encoded = self.texts.iter().map(encode).collect::<Result<Vec<_>>>()?;
        let states: Vec<Tensor> = encoded.iter().map(|encoded| encoded.states.clone()).collect();
        let mut states = Tensor::cat(&states, 1)?; // (l, all widths)
        let Some(Encoded { mut pooled, tokens, truncated, .. }) = encoded.pop() else {
            return Err(Error::Unsupported("a model without text encoders cannot read a prompt".to_owned()));
        };
        if prompt.text.is_none() && self.zeros {
            (states, pooled) = (states.zeros_like()?, pooled.zeros_like()?);
        }
        Ok(Conditioning { states, pooled: Some(pooled), mask: None, tokens, truncated })
    }

    fn begin(
        &self,
        spec: &RenderSpec,
        positive: Arc<Conditioning>,
        negative: Option<Arc<Conditioning>>,
    ) -> Result<Trajectory> {
        Uses { image: true, mask: true, guidance_rescale: true, stage: true, ..Uses::default() }.check(spec)?;
        let start = self.model.start(spec)?;
        let (states, negative_states) = self.states(&positive, negative.as_deref())?;
        let tell = |states: &Tensor, conditioning: &Conditioning, score: f64, guidance| {
            let Some(pooled) = &conditioning.pooled else {
                return Err(Error::Unsupported("a prompt of another model has no pooled state".to_owned()));
            };
            let time_ids = time_ids(spec.width, spec.height, self.aesthetics.then_some(score));
            self.model.tell(&start, states, Some(Added { pooled, time_ids }), guidance)
        };
        let (good, bad) = AESTHETIC_SCORES;
        let negatives = negative_states.as_ref().zip(negative.as_deref());
        let told = Guided {
            negative: negatives.map(|(states, negative)| tell(states, negative, bad, None)).transpose()?,
            positive: tell(&states, &positive, good, Some(spec.guidance))?,
        };
        Ok(self.model.row(spec, start, (positive, negative), told, states.dim(0)?))
    }

    fn denoise(&self, rows: &mut [&mut Trajectory]) -> Result<()> {
        self.model.denoise(rows)
    }

    fn row_bytes(&self, width: u32, height: u32) -> u64 {
        self.model.row_bytes(width, height)
    }
}
