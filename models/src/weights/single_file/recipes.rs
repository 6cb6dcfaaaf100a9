//! The families that single files are of: how each is recognised, and what its folder would say.

use serde_json::{Value, json};

use super::roles::{Latents, Role};
use super::tokenizers::{ClipMarks, Tokenizer};
use crate::weights::layouts::{LaidOut, Projection};
use crate::weights::tensors::TensorSource;
use crate::{Error, Result};

/// One part of a model, as its folder would have it.
pub(super) struct Part {
    /// The folder's name.
    pub(super) folder: &'static str,
    /// What the part is.
    pub(super) role: Role,
    /// Values of its configuration that its tensors do not tell.
    pub(super) settings: Value,
    /// The tokenizer's folder, and what is in it, for text encoders.
    pub(super) tokenizer: Option<(&'static str, Tokenizer)>,
    /// Whether the family runs without it.
    pub(super) optional: bool,
}

/// A model, as its folder would have it.
pub(super) struct Recipe {
    /// The pipeline's class.
    pub(super) class: &'static str,
    /// Further keys of `model_index.json`.
    pub(super) index: Value,
    /// The scheduler's file.
    pub(super) scheduler: Value,
    /// The parts, the denoiser first.
    pub(super) parts: Vec<Part>,
}

impl Part {
    fn new(folder: &'static str, role: Role) -> Self {
        Self { folder, role, settings: json!({}), tokenizer: None, optional: false }
    }

    fn with(self, settings: Value) -> Self {
        Self { settings, ..self }
    }

    fn tokens(self, folder: &'static str, tokenizer: Tokenizer) -> Self {
        Self { tokenizer: Some((folder, tokenizer)), ..self }
    }
}

/// The recipe of the model that these tensors are of; `name` is the file's, which tells what no tensor does.
///
/// # Errors
/// When they are none of a model that easel knows.
pub(super) fn recognise(source: &std::sync::Arc<dyn TensorSource>, name: &str) -> Result<Recipe> {
    for (role, recipe) in [
        (Role::Unet, unet as Make),
        (Role::Sd3, sd3),
        // FLUX.2's blocks have the names of FLUX.1's.
        (Role::Flux2, flux2),
        (Role::Flux, flux),
        (Role::ZImage, z_image),
    ] {
        if let Some(layout) = role.find(&**source) {
            return recipe(&**source, &LaidOut::new(std::sync::Arc::clone(source), layout), name);
        }
    }
    Err(stranger(&**source))
}

/// Makes a recipe from the file's tensors, those of the denoiser and the file's name.
type Make = fn(&dyn TensorSource, &LaidOut, &str) -> Result<Recipe>;

/// The noise schedule that all families before SD3 were trained with.
fn scheduler(class: &str, keys: Value) -> Value {
    let trained = json!({
        "_class_name": class, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000, "trained_betas": null, "clip_sample": false, "set_alpha_to_one": false,
        "steps_offset": 1,
    });
    merged(trained, keys)
}

/// `base` with the keys of `other`.
pub(super) fn merged(mut base: Value, other: Value) -> Value {
    if let (Value::Object(base), Value::Object(other)) = (&mut base, other) {
        base.extend(other);
    }
    base
}

/// Whether the file holds this whole number, which is how some trainers tell what they made.
fn number(source: &dyn TensorSource, key: &str) -> Option<i64> {
    let tensor = source.tensor(key).ok()??;
    tensor.flatten_all().ok()?.to_dtype(candle_core::DType::I64).ok()?.get(0).ok()?.to_scalar().ok()
}

/// The step that Stable Diffusion 2 was trained to at 512 pixels, where it still predicted noise.
const SD2_BASE_STEP: i64 = 875_000;

/// Stable Diffusion 1, 2 and XL, and their inpainting models.
fn unet(source: &dyn TensorSource, unet: &LaidOut, _name: &str) -> Result<Recipe> {
    let side = |key: &str, at: usize| unet.info(key).and_then(|info| info.shape.get(at).copied());
    let (inputs, outputs) = (side("conv_in.weight", 1).unwrap_or(0), side("conv_out.weight", 0).unwrap_or(0));
    let inpaints = inputs == 2 * outputs + 1;
    if inputs != outputs && !inpaints {
        let message = format_args!(
            "its UNet takes {inputs} channels and gives {outputs}; easel runs those that take {outputs}, or {} to inpaint",
            2 * outputs + 1
        );
        return Err(Error::file(source.file(), message));
    }
    let query = unet.keys().into_iter().find(|key| key.ends_with(".attn2.to_k.weight"));
    let context = query.and_then(|key| side(&key, 1)).unwrap_or(0);
    if unet.contains("add_embedding.linear_1.weight") {
        let has = |role: Role| role.find(source).is_some();
        // The refiner has the larger text encoder alone.
        let refiner = match (has(Role::ClipL(Projection::None)), has(Role::ClipG)) {
            (false, true) => true,
            (true, true) => false,
            _ => context == 1280,
        };
        return Ok(sdxl(source, refiner, inpaints));
    }
    let second = Role::ClipH.find(source).is_some_and(|_| Role::ClipL(Projection::None).find(source).is_none());
    let class = if inpaints { "StableDiffusionInpaintPipeline" } else { "StableDiffusionPipeline" };
    let vae = Part::new("vae", Role::Vae(Latents::Sd));
    if second || context == 1024 {
        let noise = inpaints || number(source, "global_step") == Some(SD2_BASE_STEP);
        let scheduler = match noise {
            true => scheduler("PNDMScheduler", json!({"skip_prk_steps": true, "prediction_type": "epsilon"})),
            false => scheduler("DDIMScheduler", json!({"skip_prk_steps": true, "prediction_type": "v_prediction"})),
        };
        let unet = json!({"sample_size": if noise { 64 } else { 96 }, "upcast_attention": true});
        let text = Part::new("text_encoder", Role::ClipH).tokens("tokenizer", Tokenizer::Clip("!", ClipMarks::Early));
        let parts = vec![Part::new("unet", Role::Unet).with(unet), text, vae.with(json!({"sample_size": 768}))];
        return Ok(Recipe { class, index: json!({}), scheduler, parts });
    }
    let scheduler = scheduler("PNDMScheduler", json!({"skip_prk_steps": true}));
    let text = Part::new("text_encoder", Role::ClipL(Projection::None))
        .tokens("tokenizer", Tokenizer::Clip("<|endoftext|>", ClipMarks::Early));
    let parts = vec![Part::new("unet", Role::Unet).with(json!({"sample_size": 64})), text, vae];
    Ok(Recipe { class, index: json!({}), scheduler, parts })
}

/// Stable Diffusion XL, its refiner and its inpainting model.
fn sdxl(source: &dyn TensorSource, refiner: bool, inpaints: bool) -> Recipe {
    let mut keys = json!({
        "interpolation_type": "linear", "prediction_type": "epsilon", "sample_max_value": 1.0, "skip_prk_steps": true,
        "timestep_spacing": "leading", "use_karras_sigmas": false,
    });
    // Fine-tunes that predict velocity carry these two marks, the second for a schedule that ends in pure noise.
    if source.contains("v_pred") {
        keys = merged(keys, json!({"prediction_type": "v_prediction"}));
        keys = merged(keys, json!({"rescale_betas_zero_snr": source.contains("ztsnr")}));
    }
    let mut parts = vec![Part::new("unet", Role::Unet).with(json!({"sample_size": 128}))];
    if !refiner {
        let tokens = Tokenizer::Clip("<|endoftext|>", ClipMarks::Early);
        parts.push(Part::new("text_encoder", Role::ClipL(Projection::None)).tokens("tokenizer", tokens));
    }
    parts.push(Part::new("text_encoder_2", Role::ClipG).tokens("tokenizer_2", Tokenizer::Clip("!", ClipMarks::Early)));
    parts.push(Part::new("vae", Role::Vae(Latents::Sdxl)));
    let (class, index) = match (refiner, inpaints) {
        (true, _) => (
            "StableDiffusionXLImg2ImgPipeline",
            json!({
                "force_zeros_for_empty_prompt": false, "requires_aesthetics_score": true,
                "text_encoder": [null, null], "tokenizer": [null, null],
            }),
        ),
        (false, true) => ("StableDiffusionXLInpaintPipeline", json!({"force_zeros_for_empty_prompt": true})),
        (false, false) => ("StableDiffusionXLPipeline", json!({"force_zeros_for_empty_prompt": true})),
    };
    Recipe { class, index, scheduler: scheduler("EulerDiscreteScheduler", keys), parts }
}

/// Stable Diffusion 3 and 3.5.
fn sd3(_source: &dyn TensorSource, _transformer: &LaidOut, _name: &str) -> Result<Recipe> {
    let scheduler =
        json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0});
    let t5 = Part::new("text_encoder_3", Role::T5).tokens("tokenizer_3", Tokenizer::T5(256));
    let parts = vec![
        Part::new("transformer", Role::Sd3),
        Part::new("text_encoder", Role::ClipL(Projection::Identity))
            .tokens("tokenizer", Tokenizer::Clip("<|endoftext|>", ClipMarks::Late)),
        Part::new("text_encoder_2", Role::ClipG).tokens("tokenizer_2", Tokenizer::Clip("!", ClipMarks::Late)),
        Part { optional: true, ..t5 },
        Part::new("vae", Role::Vae(Latents::Sd3)),
    ];
    Ok(Recipe { class: "StableDiffusion3Pipeline", index: json!({}), scheduler, parts })
}

/// FLUX.1 dev, schnell, Fill and Kontext, and the models that are told a picture by their channels.
fn flux(_source: &dyn TensorSource, transformer: &LaidOut, name: &str) -> Result<Recipe> {
    let side = |key: &str, at: usize| transformer.info(key).and_then(|info| info.shape.get(at).copied()).unwrap_or(0);
    let (inputs, outputs) = (side("x_embedder.weight", 1), side("proj_out.weight", 0));
    let guided = transformer.contains("time_text_embed.guidance_embedder.linear_1.weight");
    // Fill sees the picture's latents and a mask of 8 by 8 pixels for each of the latents' four, Kontext more tokens, so
    // that nothing but its name tells it from dev.
    let class = match (inputs, outputs) {
        _ if inputs == 6 * outputs => "FluxFillPipeline",
        _ if inputs == 2 * outputs => "FluxControlPipeline",
        _ if name.to_lowercase().contains("kontext") => "FluxKontextPipeline",
        _ => "FluxPipeline",
    };
    let scheduler = json!({
        "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "base_image_seq_len": 256,
        "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15,
        "shift": if guided { 3.0 } else { 1.0 }, "use_dynamic_shifting": guided,
    });
    let parts = vec![
        Part::new("transformer", Role::Flux),
        Part::new("text_encoder", Role::ClipL(Projection::None))
            .tokens("tokenizer", Tokenizer::Clip("<|endoftext|>", ClipMarks::Late)),
        Part::new("text_encoder_2", Role::T5).tokens("tokenizer_2", Tokenizer::T5(512)),
        Part::new("vae", Role::Vae(Latents::Flux)),
    ];
    Ok(Recipe { class, index: json!({}), scheduler, parts })
}

/// FLUX.2 klein.
fn flux2(_source: &dyn TensorSource, transformer: &LaidOut, name: &str) -> Result<Recipe> {
    let guided = transformer.contains("time_guidance_embed.guidance_embedder.linear_1.weight");
    let context = transformer.info("context_embedder.weight").and_then(|info| info.shape.get(1).copied()).unwrap_or(0);
    let scheduler = json!({
        "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "base_image_seq_len": 256,
        "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0, "use_dynamic_shifting": true,
        "time_shift_type": "exponential",
    });
    // The states of three layers are put together.
    let text = Part::new("text_encoder", Role::Qwen3(context / 3)).tokens("tokenizer", Tokenizer::Qwen3);
    let parts = vec![Part::new("transformer", Role::Flux2), text, Part::new("vae", Role::Vae(Latents::Flux2))];
    // Only its name tells a base model from the one that was distilled from it.
    let index = json!({"is_distilled": !name.to_lowercase().contains("base")});
    let class = if guided { "Flux2Pipeline" } else { "Flux2KleinPipeline" };
    Ok(Recipe { class, index, scheduler, parts })
}

/// Z-Image.
fn z_image(_source: &dyn TensorSource, transformer: &LaidOut, _name: &str) -> Result<Recipe> {
    let width = transformer.info("cap_embedder.1.weight").and_then(|info| info.shape.get(1).copied()).unwrap_or(0);
    let scheduler = json!({
        "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0,
        "use_dynamic_shifting": false,
    });
    let text = Part::new("text_encoder", Role::Qwen3(width)).tokens("tokenizer", Tokenizer::Qwen3);
    let parts = vec![Part::new("transformer", Role::ZImage), text, Part::new("vae", Role::Vae(Latents::Flux))];
    Ok(Recipe { class: "ZImagePipeline", index: json!({}), scheduler, parts })
}

/// What a file is by which key, if it is no model that easel runs.
const STRANGERS: &[(&str, &str)] = &[
    ("lora_unet_", "is a LoRA, which is used with a model, not as one"),
    ("lora_down", "is a LoRA, which is used with a model, not as one"),
    ("lora_A.", "is a LoRA, which is used with a model, not as one"),
    ("control_model.", "is a ControlNet, which is used with a model, not as one"),
    ("controlnet_", "is a ControlNet, which is used with a model, not as one"),
    ("distilled_guidance_layer.", "is a Chroma model, which easel does not run"),
];

/// The error about a file that holds no model that easel knows.
fn stranger(source: &dyn TensorSource) -> Error {
    let keys = source.keys();
    let known = STRANGERS.iter().find(|(part, _)| keys.iter().any(|key| key.contains(part)));
    let alone = [Role::Vae(Latents::Sd), Role::ClipL(Projection::None), Role::ClipG, Role::T5, Role::Qwen3(0)]
        .into_iter()
        .find(|role| role.find(source).is_some());
    match (known, alone) {
        (Some((_, what)), _) => Error::file(source.file(), what),
        (None, Some(role)) => {
            let what = role.what();
            Error::file(source.file(), format_args!("is the {what} of a model alone; its denoiser's file is expected"))
        }
        (None, None) => {
            let count = keys.len();
            let some = keys.into_iter().min().unwrap_or_default();
            let message = format_args!(
                "is no model that easel knows: none of its {count} tensors ({some}, …) is one of Stable Diffusion 1, 2, \
                 XL or 3, of FLUX.1 or FLUX.2, or of Z-Image"
            );
            Error::file(source.file(), message)
        }
    }
}
