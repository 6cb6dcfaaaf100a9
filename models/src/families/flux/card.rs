//! What a FLUX.1 model's files say of it.

use super::super::latent_space::CONFIG as VAE;
use super::super::opening::{check, check_vocabulary};
use super::super::schedulers::Schedulers;
use super::{CONTEXT, reference};
use crate::autoencoders::AutoencoderKlConfig;
use crate::card::Strengths;
use crate::denoisers::FluxConfig;
use crate::samplers::StrengthRule;
use crate::text::{ClipTextConfig, ClipTokenizer, T5Config, T5Tokenizer};
use crate::{Abilities, ModelCard, Result, Size, Sizes};

/// The files that are checked against each other.
pub(super) const TRANSFORMER: &str = "transformer/config.json";
pub(super) const CLIP: &str = "text_encoder/config.json";
pub(super) const T5: &str = "text_encoder_2/config.json";

/// Latent pixels a side of a token.
pub(super) const MULTIPLE_OF_LATENTS: usize = 2;

/// Latent pixels a side of a native picture, which no file names: diffusers' `default_sample_size`.
const NATIVE: u32 = 128;

/// Steps of a model without guidance, which was distilled to need a few only (FLUX.1 schnell, by its model card).
const FEW_STEPS: usize = 4;

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Pictures from a prompt, from nothing or from a picture (dev, schnell).
    Draw,
    /// What a mask leaves open of a picture (Fill).
    Fill,
    /// A picture, changed as a prompt says (Kontext).
    Edit,
}

impl Task {
    /// The classes of `model_index.json` that are of this family.
    pub(super) const CLASSES: &'static [&'static str] =
        &["FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxFillPipeline", "FluxKontextPipeline"];

    /// The task of a class.
    pub(super) fn of(class: &str) -> Self {
        match class {
            "FluxFillPipeline" => Self::Fill,
            "FluxKontextPipeline" => Self::Edit,
            _ => Self::Draw,
        }
    }
}

/// diffusers' default steps and guidance of a class, for a model that is told its guidance.
fn defaults(class: &str) -> (usize, f64) {
    match class {
        "FluxFillPipeline" => (50, 30.0),
        "FluxImg2ImgPipeline" | "FluxInpaintPipeline" => (28, 7.0),
        _ => (28, 3.5),
    }
}

/// Refuses a transformer and an autoencoder that are not made for each other, or for the task.
pub(super) fn check_channels(task: Task, config: &FluxConfig, vae: &AutoencoderKlConfig) -> Result<()> {
    let (factor, latents) = (vae.factor(), vae.latent_channels);
    let token = latents * MULTIPLE_OF_LATENTS.pow(2);
    let (inputs, because) = match task {
        Task::Draw | Task::Edit => (token, "2x2 of them".to_owned()),
        Task::Fill => {
            let mask = (factor * MULTIPLE_OF_LATENTS).pow(2);
            (2 * token + mask, format!("2x2 of them twice, and {mask} pixels of a mask"))
        }
    };
    let found = config.in_channels;
    let expected = format!("{VAE} has latent_channels {latents}");
    let message = format!("in_channels is {found}, but {expected}; {inputs}, {because}, are expected");
    check(found == inputs, TRANSFORMER, message)?;
    let found = config.outputs();
    let message = format!("out_channels is {found}, but {expected}; {token}, 2x2 of them, are expected");
    check(found == token, TRANSFORMER, message)
}

/// Refuses a transformer, text encoders and tokenizers that are not made for each other.
pub(super) fn check_texts(
    config: &FluxConfig,
    (clip, clip_tokenizer): (&ClipTextConfig, &ClipTokenizer),
    (t5, t5_tokenizer): (&T5Config, &T5Tokenizer),
) -> Result<()> {
    let (pooled, hidden) = (config.pooled_projection_dim, clip.hidden_size);
    let message = format!("pooled_projection_dim is {pooled}, but {CLIP} has hidden_size {hidden}");
    check(pooled == hidden, TRANSFORMER, message)?;
    let (joint, width) = (config.joint_attention_dim, t5.d_model);
    let message = format!("joint_attention_dim is {joint}, but {T5} has d_model {width}");
    check(joint == width, TRANSFORMER, message)?;
    let (length, positions) = (clip_tokenizer.max_length(), clip.max_position_embeddings);
    let message = format!(
        "model_max_length is {}, but {CLIP} has max_position_embeddings {positions}",
        length.unwrap_or_default()
    );
    check(length.is_none_or(|length| length <= positions), "tokenizer/tokenizer_config.json", message)?;
    check_vocabulary((clip_tokenizer.file(), clip_tokenizer.largest_id()), CLIP, clip.vocab_size)?;
    check_vocabulary((t5_tokenizer.file(), t5_tokenizer.largest_id()), T5, t5.vocab_size)
}

/// The card that the configurations alone give.
pub(super) fn card(class: &str, config: &FluxConfig, vae: &AutoencoderKlConfig, schedulers: &Schedulers) -> ModelCard {
    let task = Task::of(class);
    let multiple = (vae.factor() * MULTIPLE_OF_LATENTS) as u32;
    let side = NATIVE * vae.factor() as u32;
    let native = Size { width: side, height: side };
    // The network takes any size; far beyond the native one, pictures fall apart.
    let sizes = Sizes::Any { multiple, min: multiple, max: 4 * side };
    let family = match task {
        Task::Draw => "flux",
        Task::Fill => "flux-fill",
        Task::Edit => "flux-kontext",
    };
    // A model that is told no guidance has none to be set: it was distilled to need neither that nor many steps.
    let (steps, guidance) = if config.guidance_embeds { defaults(class) } else { (FEW_STEPS, 0.0) };
    ModelCard {
        steps,
        guidance,
        abilities: Abilities {
            negative_prompt: task != Task::Fill,
            fixed_guidance: !config.guidance_embeds,
            true_guidance: task != Task::Fill,
            image_to_image: task == Task::Draw,
            inpaint: task != Task::Edit,
            needs_image: task == Task::Fill,
            needs_mask: task == Task::Fill,
            edit: task == Task::Edit,
            references: if task == Task::Edit { reference::MOST } else { 0 },
            reference_sides: reference::sides(multiple),
            strengths: Strengths {
                image_to_image: 0.6,
                inpaint: if task == Task::Fill { 1.0 } else { 0.6 },
                rule: StrengthRule::Fraction,
            },
            ..Abilities::default()
        },
        context_tokens: CONTEXT,
        ..schedulers.card(family, native, sizes)
    }
}
