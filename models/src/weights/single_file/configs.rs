//! The configurations of a file's parts, as the shapes of its tensors tell them.
//!
//! What no shape tells (how many heads a UNet has, what latents are scaled by) is the published models' own.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::roles::Latents;
use crate::weights::tensors::TensorSource;
use crate::{Error, Result};

/// The width of an attention head wherever no tensor shows it.
const HEAD: usize = 64;

/// A part with diffusers' names, of which sizes are asked.
pub(super) struct Shapes<'a>(pub(super) &'a dyn TensorSource);

impl Shapes<'_> {
    /// One side of a tensor.
    fn side(&self, key: &str, at: usize) -> Result<usize> {
        let info = self.0.info(key).ok_or_else(|| {
            Error::file(self.0.file(), format_args!("{key} is missing, which the part's size is read from"))
        })?;
        info.shape.get(at).copied().ok_or_else(|| {
            let shape = info.shape;
            Error::file(self.0.file(), format_args!("{key} has shape {shape:?}; more than {at} sides are expected"))
        })
    }

    /// How many different numbers follow `prefix`.
    fn count(&self, prefix: &str) -> usize {
        let number = |key: String| key.strip_prefix(prefix)?.split('.').next()?.parse::<usize>().ok();
        self.0.keys().into_iter().filter_map(number).collect::<BTreeSet<_>>().len()
    }

    fn has(&self, key: &str) -> bool {
        self.0.contains(key)
    }
}

/// A `UNet2DConditionModel`.
pub(super) fn unet(shapes: &Shapes) -> Result<Value> {
    let levels = shapes.count("down_blocks.");
    let depth = |at: &str| shapes.count(&format!("{at}.transformer_blocks."));
    // The transformer layers of a level's blocks: one number where it is the same for all.
    let depths = |level: &str| -> Option<Value> {
        let all: Vec<usize> = (0..shapes.count(&format!("{level}.attentions.")))
            .map(|at| depth(&format!("{level}.attentions.{at}")))
            .collect();
        let first = *all.first()?;
        Some(if all.iter().all(|&other| other == first) { json!(first) } else { json!(all) })
    };
    let down: Vec<Option<Value>> = (0..levels).map(|level| depths(&format!("down_blocks.{level}"))).collect();
    let up: Vec<Option<Value>> = (0..levels).map(|level| depths(&format!("up_blocks.{level}"))).collect();
    let types = |depths: &[Option<Value>], way: &str| -> Vec<String> {
        let name = |depth: &Option<Value>| format!("{}{way}Block2D", if depth.is_some() { "CrossAttn" } else { "" });
        depths.iter().map(name).collect()
    };
    let middle = depth("mid_block.attentions.0");
    let mut layers: Vec<Value> = down.iter().map(|depth| depth.clone().unwrap_or_else(|| json!(1))).collect();
    if let (Some(last), Some(None)) = (layers.last_mut(), down.last())
        && middle > 0
    {
        *last = json!(middle);
    }
    let channels: Vec<usize> = (0..levels)
        .map(|level| shapes.side(&format!("down_blocks.{level}.resnets.0.conv1.weight"), 0))
        .collect::<Result<_>>()?;
    let resnets: Vec<usize> = (0..levels).map(|level| shapes.count(&format!("down_blocks.{level}.resnets."))).collect();
    let query = shapes.0.keys().into_iter().find(|key| key.ends_with(".attn2.to_k.weight"));
    let projection = shapes.0.keys().into_iter().find(|key| key.ends_with(".proj_in.weight"));
    let linear = projection.and_then(|key| shapes.0.info(&key)).is_some_and(|info| info.shape.len() == 2);
    let mut config = json!({
        "_class_name": "UNet2DConditionModel",
        "in_channels": shapes.side("conv_in.weight", 1)?,
        "out_channels": shapes.side("conv_out.weight", 0)?,
        "block_out_channels": channels,
        "down_block_types": types(&down, "Down"),
        "up_block_types": types(&up, "Up"),
        "mid_block_type": match (middle, shapes.count("mid_block.resnets.")) {
            (0, 0) => Value::Null,
            (0, _) => json!("UNetMidBlock2D"),
            _ => json!("UNetMidBlock2DCrossAttn"),
        },
        "layers_per_block": resnets,
        "transformer_layers_per_block": layers,
        "use_linear_projection": linear,
        // Models with linear projections have heads of 64 channels, those before 8 heads.
        "attention_head_dim": match linear {
            true => json!(channels.iter().map(|channels| (channels / HEAD).max(1)).collect::<Vec<_>>()),
            false => json!(8),
        },
    });
    if let Some(query) = query {
        config["cross_attention_dim"] = json!(shapes.side(&query, 1)?);
    }
    // What a level without transformers on either way would have is nowhere to be seen, and of no effect.
    let mirrored = up.iter().zip(layers.iter().rev()).all(|(up, down)| up.as_ref().is_none_or(|up| up == down));
    if !mirrored {
        let reverse = up.into_iter().map(|depth| depth.unwrap_or_else(|| json!(1)));
        config["reverse_transformer_layers_per_block"] = reverse.collect();
    }
    if shapes.has("add_embedding.linear_1.weight") {
        config["addition_embed_type"] = json!("text_time");
        config["addition_time_embed_dim"] = json!(256);
        config["projection_class_embeddings_input_dim"] = json!(shapes.side("add_embedding.linear_1.weight", 1)?);
    }
    if shapes.has("time_embedding.cond_proj.weight") {
        config["time_cond_proj_dim"] = json!(shapes.side("time_embedding.cond_proj.weight", 1)?);
    }
    Ok(config)
}

/// An `AutoencoderKL`.
pub(super) fn vae(shapes: &Shapes, latents: Latents) -> Result<Value> {
    let (size, scale, shift) = match latents {
        Latents::Sd => (512, 0.18215, None),
        Latents::Sdxl => (1024, 0.13025, None),
        Latents::Sd3 => (1024, 1.5305, Some(0.0609)),
        Latents::Flux => (1024, 0.3611, Some(0.1159)),
        Latents::Flux2 => return flux2_vae(shapes),
    };
    let levels = shapes.count("encoder.down_blocks.");
    let channels: Vec<usize> = (0..levels)
        .map(|level| shapes.side(&format!("encoder.down_blocks.{level}.resnets.0.conv1.weight"), 0))
        .collect::<Result<_>>()?;
    Ok(json!({
        "_class_name": "AutoencoderKL",
        "in_channels": shapes.side("encoder.conv_in.weight", 1)?,
        "out_channels": shapes.side("decoder.conv_out.weight", 0)?,
        "latent_channels": shapes.side("decoder.conv_in.weight", 1)?,
        "block_out_channels": channels,
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
        "layers_per_block": shapes.count("encoder.down_blocks.0.resnets."),
        "norm_num_groups": 32,
        "sample_size": size,
        "scaling_factor": scale,
        "shift_factor": shift,
        "force_upcast": true,
        "use_quant_conv": shapes.has("quant_conv.weight"),
        "use_post_quant_conv": shapes.has("post_quant_conv.weight"),
        "mid_block_add_attention": shapes.has("decoder.mid_block.attentions.0.to_q.weight")
            || shapes.has("decoder.mid_block.attentions.0.query.weight"),
    }))
}

/// An `AutoencoderKLFlux2`, whose latents are normalised by numbers that are among its weights.
fn flux2_vae(shapes: &Shapes) -> Result<Value> {
    let mut config = vae(shapes, Latents::Flux)?;
    let levels = shapes.count("decoder.up_blocks.");
    // Counted from the picture on, as the encoder's.
    let decoder: Vec<usize> = (0..levels)
        .rev()
        .map(|level| shapes.side(&format!("decoder.up_blocks.{level}.resnets.0.conv1.weight"), 0))
        .collect::<Result<_>>()?;
    if let Some(keys) = config.as_object_mut() {
        keys.retain(|key, _| !["scaling_factor", "shift_factor", "force_upcast"].contains(&key.as_str()));
    }
    config["_class_name"] = json!("AutoencoderKLFlux2");
    config["batch_norm_eps"] = json!(1e-4);
    config["patch_size"] = json!([2, 2]);
    if json!(decoder) != config["block_out_channels"] {
        config["decoder_block_out_channels"] = json!(decoder);
    }
    Ok(config)
}

/// A `CLIPTextModel`, or one with a projection; OpenAI's own compute with another activation than OpenCLIP's.
pub(super) fn clip(shapes: &Shapes, activation: &str) -> Result<Value> {
    let embeddings = "text_model.embeddings";
    let width = shapes.side("text_model.final_layer_norm.weight", 0)?;
    let projection = "text_projection.weight";
    Ok(json!({
        "architectures": [if shapes.has(projection) { "CLIPTextModelWithProjection" } else { "CLIPTextModel" }],
        "vocab_size": shapes.side(&format!("{embeddings}.token_embedding.weight"), 0)?,
        "hidden_size": width,
        "intermediate_size": shapes.side("text_model.encoder.layers.0.mlp.fc1.weight", 0)?,
        "projection_dim": if shapes.has(projection) { shapes.side(projection, 0)? } else { width },
        "num_hidden_layers": shapes.count("text_model.encoder.layers."),
        "num_attention_heads": (width / HEAD).max(1),
        "max_position_embeddings": shapes.side(&format!("{embeddings}.position_embedding.weight"), 0)?,
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }))
}

/// A `T5EncoderModel` of version 1.1.
pub(super) fn t5(shapes: &Shapes) -> Result<Value> {
    let block = "encoder.block.0.layer";
    let embeddings = ["shared.weight", "encoder.embed_tokens.weight"].into_iter().find(|key| shapes.has(key));
    let bias = format!("{block}.0.SelfAttention.relative_attention_bias.weight");
    let heads = shapes.side(&bias, 1)?;
    Ok(json!({
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": shapes.side(embeddings.unwrap_or("shared.weight"), 0)?,
        "d_model": shapes.side("encoder.final_layer_norm.weight", 0)?,
        "d_kv": shapes.side(&format!("{block}.0.SelfAttention.q.weight"), 0)? / heads.max(1),
        "d_ff": shapes.side(&format!("{block}.1.DenseReluDense.wi_0.weight"), 0)?,
        "num_layers": shapes.count("encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": shapes.side(&bias, 0)?,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
        "is_gated_act": true,
        "dense_act_fn": "gelu_new",
    }))
}

/// An `SD3Transformer2DModel`.
pub(super) fn sd3(shapes: &Shapes) -> Result<Value> {
    let layers = shapes.count("transformer_blocks.");
    let width = shapes.side("pos_embed.proj.weight", 0)?;
    let patch = shapes.side("pos_embed.proj.weight", 2)?;
    let dual = |at: &usize| shapes.has(&format!("transformer_blocks.{at}.attn2.to_q.weight"));
    let norm = "transformer_blocks.0.attn.norm_q.weight";
    let head = if shapes.has(norm) { shapes.side(norm, 0)? } else { HEAD };
    Ok(json!({
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": shapes.side("pos_embed.proj.weight", 1)?,
        "out_channels": shapes.side("proj_out.weight", 0)? / (patch * patch).max(1),
        "num_layers": layers,
        "attention_head_dim": head,
        "num_attention_heads": width / head.max(1),
        "joint_attention_dim": shapes.side("context_embedder.weight", 1)?,
        "caption_projection_dim": shapes.side("context_embedder.weight", 0)?,
        "pooled_projection_dim": shapes.side("time_text_embed.text_embedder.linear_1.weight", 1)?,
        "pos_embed_max_size": shapes.side("pos_embed.pos_embed", 1)?.isqrt(),
        "dual_attention_layers": (0..layers).filter(dual).collect::<Vec<_>>(),
        "qk_norm": if shapes.has(norm) { json!("rms_norm") } else { Value::Null },
    }))
}

/// A `FluxTransformer2DModel`.
pub(super) fn flux(shapes: &Shapes) -> Result<Value> {
    let inputs = shapes.side("x_embedder.weight", 1)?;
    let outputs = shapes.side("proj_out.weight", 0)?;
    let head = shapes.side("transformer_blocks.0.attn.norm_q.weight", 0)?;
    Ok(json!({
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": inputs,
        "out_channels": if outputs == inputs { Value::Null } else { json!(outputs) },
        "num_layers": shapes.count("transformer_blocks."),
        "num_single_layers": shapes.count("single_transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": shapes.side("x_embedder.weight", 0)? / head.max(1),
        "joint_attention_dim": shapes.side("context_embedder.weight", 1)?,
        "pooled_projection_dim": shapes.side("time_text_embed.text_embedder.linear_1.weight", 1)?,
        "guidance_embeds": shapes.has("time_text_embed.guidance_embedder.linear_1.weight"),
    }))
}

/// A `Flux2Transformer2DModel`.
pub(super) fn flux2(shapes: &Shapes) -> Result<Value> {
    let (inputs, width) = (shapes.side("x_embedder.weight", 1)?, shapes.side("x_embedder.weight", 0)?);
    let outputs = shapes.side("proj_out.weight", 0)?;
    let head = shapes.side("transformer_blocks.0.attn.norm_q.weight", 0)?;
    // The first projection of the feed-forward layer has a gate beside it.
    let inner = shapes.side("transformer_blocks.0.ff.linear_in.weight", 0)? / 2;
    Ok(json!({
        "_class_name": "Flux2Transformer2DModel",
        "patch_size": 1,
        "in_channels": inputs,
        "out_channels": if outputs == inputs { Value::Null } else { json!(outputs) },
        "num_layers": shapes.count("transformer_blocks."),
        "num_single_layers": shapes.count("single_transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width / head.max(1),
        "joint_attention_dim": shapes.side("context_embedder.weight", 1)?,
        "timestep_guidance_channels": shapes.side("time_guidance_embed.timestep_embedder.linear_1.weight", 1)?,
        "mlp_ratio": inner as f64 / width.max(1) as f64,
        "guidance_embeds": shapes.has("time_guidance_embed.guidance_embedder.linear_1.weight"),
    }))
}

/// A `ZImageTransformer2DModel`.
pub(super) fn z_image(shapes: &Shapes) -> Result<Value> {
    let width = shapes.side("all_x_embedder.2-1.weight", 0)?;
    let norm = "layers.0.attention.norm_q.weight";
    let head = if shapes.has(norm) { shapes.side(norm, 0)? } else { 2 * HEAD };
    Ok(json!({
        "_class_name": "ZImageTransformer2DModel",
        "all_patch_size": [2],
        "all_f_patch_size": [1],
        "in_channels": shapes.side("all_x_embedder.2-1.weight", 1)? / 4,
        "dim": width,
        "n_layers": shapes.count("layers."),
        "n_refiner_layers": shapes.count("noise_refiner."),
        "n_heads": width / head.max(1),
        "n_kv_heads": shapes.side("layers.0.attention.to_k.weight", 0)? / head.max(1),
        "qk_norm": shapes.has(norm),
        "cap_feat_dim": shapes.side("cap_embedder.1.weight", 1)?,
        "axes_lens": [1536, 512, 512],
    }))
}

/// A `Qwen3ForCausalLM`.
pub(super) fn qwen3(shapes: &Shapes) -> Result<Value> {
    let attention = "model.layers.0.self_attn";
    let head = shapes.side(&format!("{attention}.q_norm.weight"), 0)?;
    Ok(json!({
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": shapes.side("model.embed_tokens.weight", 0)?,
        "hidden_size": shapes.side("model.embed_tokens.weight", 1)?,
        "intermediate_size": shapes.side("model.layers.0.mlp.gate_proj.weight", 0)?,
        "num_hidden_layers": shapes.count("model.layers."),
        "num_attention_heads": shapes.side(&format!("{attention}.q_proj.weight"), 0)? / head.max(1),
        "num_key_value_heads": shapes.side(&format!("{attention}.k_proj.weight"), 0)? / head.max(1),
        "head_dim": head,
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "attention_bias": shapes.has(&format!("{attention}.q_proj.bias")),
        "hidden_act": "silu",
    }))
}
