//! The parts that single files are made of: how each is found among a file's tensors.

use serde_json::Value;

use super::configs::{self, Shapes};
use crate::Result;
use crate::weights::layouts::{self, Layout, Projection};
use crate::weights::tensors::TensorSource;

/// What a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The UNet of Stable Diffusion 1, 2 and XL.
    Unet,
    /// The transformer of Stable Diffusion 3.
    Sd3,
    /// The transformer of FLUX.1.
    Flux,
    /// The transformer of FLUX.2.
    Flux2,
    /// The transformer of Z-Image.
    ZImage,
    /// An autoencoder with a normal posterior, of this family.
    Vae(Latents),
    /// OpenAI's CLIP ViT-L, with what the family makes of its projection.
    ClipL(Projection),
    /// OpenCLIP's ViT-H of Stable Diffusion 2, without its last layer.
    ClipH,
    /// OpenCLIP's ViT-bigG.
    ClipG,
    /// The encoder of T5 1.1 XXL.
    T5,
    /// Qwen3, of the size that has states of this width.
    Qwen3(usize),
}

/// Whose latents an autoencoder makes; what they are scaled by is in no file of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Latents {
    /// Those of Stable Diffusion 1 and 2.
    Sd,
    /// Those of Stable Diffusion XL.
    Sdxl,
    /// Those of Stable Diffusion 3.
    Sd3,
    /// Those of FLUX.1.
    Flux,
    /// Those of FLUX.2.
    Flux2,
}

/// Where the tensors of the denoiser begin: in the files of latent diffusion's code and ComfyUI's, and alone.
const DENOISER: [&str; 2] = ["model.diffusion_model.", ""];

/// Where those of the autoencoder begin: in latent diffusion's files, in ComfyUI's, and alone.
const AUTOENCODER: [&str; 3] = ["first_stage_model.", "vae.", ""];

/// Where those of the text encoders begin.
const CLIP_L: [&str; 4] =
    ["cond_stage_model.transformer.", "conditioner.embedders.0.transformer.", "text_encoders.clip_l.transformer.", ""];
const CLIP_G: [&str; 2] = ["text_encoders.clip_g.transformer.", ""];
const OPEN_CLIP_G: [&str; 3] = ["conditioner.embedders.1.model.", "conditioner.embedders.0.model.", ""];
const OPEN_CLIP_H: [&str; 2] = ["cond_stage_model.model.", ""];
const T5: [&str; 2] = ["text_encoders.t5xxl.transformer.", ""];

const QWEN3: [&str; 3] = ["text_encoders.qwen3_4b.transformer.", "text_encoders.qwen3_8b.transformer.", ""];

/// The width of Qwen3 with eight billion parameters; below it, four are meant.
const QWEN3_8B: usize = 4096;

/// The layer of ViT-H that Stable Diffusion 2 leaves out, and those after it.
const CLIP_H_LAYERS: usize = 23;

impl Role {
    /// Where the part is among these tensors; `None` when they do not have it.
    pub(super) fn find(self, source: &dyn TensorSource) -> Option<Layout> {
        let with = |prefixes: &[&'static str], key: &str| {
            prefixes.iter().copied().find(|prefix| source.contains(&format!("{prefix}{key}")))
        };
        let plain = |prefix| Layout::prefixed(source, prefix);
        let text = "text_model.embeddings.position_embedding.weight";
        match self {
            Self::Unet => with(&DENOISER, "input_blocks.0.0.weight")
                .map(|prefix| layouts::ldm_unet(source, prefix))
                .or_else(|| with(&DENOISER, "down_blocks.0.resnets.0.conv1.weight").map(plain)),
            Self::Sd3 => with(&DENOISER, "joint_blocks.0.context_block.adaLN_modulation.1.weight")
                .map(|prefix| layouts::sd3(source, prefix))
                .or_else(|| with(&DENOISER, "pos_embed.pos_embed").map(plain)),
            Self::Flux => with(&DENOISER, "double_blocks.0.img_attn.norm.key_norm.scale")
                .map(|prefix| layouts::flux(source, prefix))
                .or_else(|| with(&DENOISER, "single_transformer_blocks.0.proj_mlp.weight").map(plain)),
            Self::Flux2 => with(&DENOISER, "single_stream_modulation.lin.weight")
                .map(|prefix| layouts::flux2(source, prefix))
                .or_else(|| with(&DENOISER, "single_stream_modulation.linear.weight").map(plain)),
            Self::ZImage => with(&DENOISER, "layers.0.attention.qkv.weight")
                .map(|prefix| layouts::z_image(source, prefix))
                .or_else(|| with(&DENOISER, "all_x_embedder.2-1.weight").map(plain)),
            Self::Vae(_) => with(&AUTOENCODER, "decoder.mid.block_1.norm1.weight")
                .map(|prefix| layouts::ldm_vae(source, prefix))
                .or_else(|| with(&AUTOENCODER, "decoder.mid_block.resnets.0.norm1.weight").map(plain)),
            Self::ClipL(projection) => with(&CLIP_L, text).map(|prefix| layouts::clip(source, prefix, projection)),
            Self::ClipG => with(&OPEN_CLIP_G, "transformer.resblocks.0.ln_1.weight")
                .map(|prefix| layouts::open_clip(source, prefix, Projection::Stored, None))
                .or_else(|| with(&CLIP_G, text).map(|prefix| layouts::clip(source, prefix, Projection::Stored))),
            Self::ClipH => with(&OPEN_CLIP_H, "transformer.resblocks.0.ln_1.weight")
                .map(|prefix| layouts::open_clip(source, prefix, Projection::None, Some(CLIP_H_LAYERS)))
                .or_else(|| with(&CLIP_L, text).map(|prefix| layouts::clip(source, prefix, Projection::None))),
            Self::T5 => with(&T5, "encoder.block.0.layer.0.SelfAttention.q.weight").map(plain),
            Self::Qwen3(_) => with(&QWEN3, "model.layers.0.self_attn.q_norm.weight").map(plain),
        }
    }

    /// The part's configuration, as its tensors tell it.
    pub(super) fn config(self, part: &dyn TensorSource) -> Result<Value> {
        let shapes = Shapes(part);
        match self {
            Self::Unet => configs::unet(&shapes),
            Self::Sd3 => configs::sd3(&shapes),
            Self::Flux => configs::flux(&shapes),
            Self::Vae(latents) => configs::vae(&shapes, latents),
            Self::ClipL(_) => configs::clip(&shapes, "quick_gelu"),
            Self::ClipH | Self::ClipG => configs::clip(&shapes, "gelu"),
            Self::T5 => configs::t5(&shapes),
            Self::Flux2 => configs::flux2(&shapes),
            Self::ZImage => configs::z_image(&shapes),
            Self::Qwen3(_) => configs::qwen3(&shapes),
        }
    }

    /// What errors call it.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Unet => "UNet",
            Self::Sd3 | Self::Flux | Self::Flux2 | Self::ZImage => "transformer",
            Self::Vae(_) => "autoencoder",
            Self::ClipL(_) => "CLIP ViT-L text encoder",
            Self::ClipH => "OpenCLIP ViT-H text encoder",
            Self::ClipG => "OpenCLIP ViT-bigG text encoder",
            Self::T5 => "T5 XXL text encoder",
            Self::Qwen3(width) if width >= QWEN3_8B => "Qwen3 8B text encoder",
            Self::Qwen3(_) => "Qwen3 4B text encoder",
        }
    }

    /// The library and class that `model_index.json` names.
    pub(super) fn class(self) -> [&'static str; 2] {
        match self {
            Self::Unet => ["diffusers", "UNet2DConditionModel"],
            Self::Sd3 => ["diffusers", "SD3Transformer2DModel"],
            Self::Flux => ["diffusers", "FluxTransformer2DModel"],
            Self::Flux2 => ["diffusers", "Flux2Transformer2DModel"],
            Self::ZImage => ["diffusers", "ZImageTransformer2DModel"],
            Self::Vae(Latents::Flux2) => ["diffusers", "AutoencoderKLFlux2"],
            Self::Vae(_) => ["diffusers", "AutoencoderKL"],
            Self::ClipL(Projection::None) | Self::ClipH => ["transformers", "CLIPTextModel"],
            Self::ClipL(_) | Self::ClipG => ["transformers", "CLIPTextModelWithProjection"],
            Self::T5 => ["transformers", "T5EncoderModel"],
            Self::Qwen3(_) => ["transformers", "Qwen3ForCausalLM"],
        }
    }

    /// Whether it is an autoencoder, which is kept in other folders than text encoders are.
    pub(super) fn is_autoencoder(self) -> bool {
        matches!(self, Self::Vae(_))
    }

    /// The names that files of this part alone go by, the preferred first. A star stands for anything.
    pub(super) fn file_names(self) -> &'static [&'static str] {
        match self {
            Self::Vae(Latents::Sd) => &["vae.safetensors", "vae-ft-mse-*.safetensors", "vae-ft-ema-*.safetensors"],
            Self::Vae(Latents::Sdxl) => &["vae.safetensors", "sdxl_vae.safetensors", "sdxl*vae*.safetensors"],
            Self::Vae(Latents::Sd3) => &["vae.safetensors", "sd3_vae.safetensors", "sd3*vae.safetensors"],
            Self::Vae(Latents::Flux) => &["ae.safetensors", "vae.safetensors", "flux*vae*.safetensors"],
            Self::Vae(Latents::Flux2) => {
                &["flux2-vae.safetensors", "flux2*vae*.safetensors", "ae.safetensors", "vae.safetensors"]
            }
            Self::ClipL(_) => &["clip_l.safetensors", "clip_l*.safetensors"],
            Self::ClipG => &["clip_g.safetensors", "clip_g*.safetensors"],
            Self::ClipH => &["clip_h.safetensors", "clip_h*.safetensors"],
            Self::T5 => &[
                "t5xxl.safetensors",
                "t5xxl_fp16.safetensors",
                "t5xxl*.safetensors",
                "t5-v1_1-xxl*.safetensors",
                "t5xxl*.gguf",
                "t5-v1_1-xxl*.gguf",
            ],
            Self::Qwen3(width) if width >= QWEN3_8B => {
                &["qwen_3_8b*.safetensors", "qwen3_8b*.safetensors", "qwen3-8b*.safetensors"]
            }
            Self::Qwen3(_) => &["qwen_3_4b*.safetensors", "qwen3_4b*.safetensors", "qwen3-4b*.safetensors"],
            Self::Unet | Self::Sd3 | Self::Flux | Self::Flux2 | Self::ZImage => &[],
        }
    }
}
