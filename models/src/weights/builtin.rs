//! The model that ships inside the program, so that a fresh machine without a network can draw.
//!
//! `scripts/default-model/README.md` tells what it is and how it was trained.

/// The name that the built-in model is served under.
pub const BUILTIN_MODEL: &str = "easel-mini";

/// Names the files of `scripts/default-model/weights` and embeds them.
macro_rules! embed {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../../scripts/default-model/weights/", $name)))),*]
    };
}

/// The built-in model's files by their names in the diffusers layout; weights are f16.
pub(super) const FILES: &[(&str, &[u8])] = embed![
    "model_index.json",
    "easel.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];
