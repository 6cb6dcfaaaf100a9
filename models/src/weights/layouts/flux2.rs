//! The transformer of FLUX.2 as Black Forest Labs write it; ComfyUI's files have the same names under a prefix.

use super::flux::FUSED;
use super::{Layout, block, is_extra, renamed, row_count, under};
use crate::weights::tensors::TensorSource;

/// What is outside of the blocks.
const OUTSIDE: &[(&str, &str)] = &[
    ("img_in", "x_embedder"),
    ("txt_in", "context_embedder"),
    ("time_in.in_layer", "time_guidance_embed.timestep_embedder.linear_1"),
    ("time_in.out_layer", "time_guidance_embed.timestep_embedder.linear_2"),
    ("guidance_in.in_layer", "time_guidance_embed.guidance_embedder.linear_1"),
    ("guidance_in.out_layer", "time_guidance_embed.guidance_embedder.linear_2"),
    ("double_stream_modulation_img.lin", "double_stream_modulation_img.linear"),
    ("double_stream_modulation_txt.lin", "double_stream_modulation_txt.linear"),
    ("single_stream_modulation.lin", "single_stream_modulation.linear"),
    ("final_layer.linear", "proj_out"),
];

/// What is in a block with two streams, except for the fused query, key and value.
const DOUBLE: &[(&str, &str)] = &[
    ("img_attn.norm.query_norm.scale", "attn.norm_q.weight"),
    ("img_attn.norm.key_norm.scale", "attn.norm_k.weight"),
    ("txt_attn.norm.query_norm.scale", "attn.norm_added_q.weight"),
    ("txt_attn.norm.key_norm.scale", "attn.norm_added_k.weight"),
    ("img_attn.proj", "attn.to_out.0"),
    ("txt_attn.proj", "attn.to_add_out"),
    ("img_mlp.0", "ff.linear_in"),
    ("img_mlp.2", "ff.linear_out"),
    ("txt_mlp.0", "ff_context.linear_in"),
    ("txt_mlp.2", "ff_context.linear_out"),
];

/// What is in a block with one stream; diffusers keeps its first projection fused, too.
const SINGLE: &[(&str, &str)] = &[
    ("norm.query_norm.scale", "attn.norm_q.weight"),
    ("norm.key_norm.scale", "attn.norm_k.weight"),
    ("linear1", "attn.to_qkv_mlp_proj"),
    ("linear2", "attn.to_out"),
];

/// Where a `Flux2Transformer2DModel` is in the tensors under `prefix`.
pub(in crate::weights) fn flux2(source: &dyn TensorSource, prefix: &str) -> Layout {
    let mut layout = Layout::default();
    for (key, name) in under(source, prefix).iter().filter(|(_, name)| !is_extra(name)) {
        let rows = row_count(source, key);
        if let Some((number, rest)) = block(name, "double_blocks") {
            let at = format!("transformer_blocks.{number}");
            if let Some(rest) = renamed(rest, DOUBLE) {
                layout.whole(format!("{at}.{rest}"), key);
            }
            for (fused, names) in FUSED {
                if let Some(end) = rest.strip_prefix(fused) {
                    layout.split(names.map(|name| format!("{at}.attn.{name}.{end}")), key, rows);
                }
            }
        } else if let Some((number, rest)) = block(name, "single_blocks") {
            if let Some(rest) = renamed(rest, SINGLE) {
                layout.whole(format!("single_transformer_blocks.{number}.{rest}"), key);
            }
        } else if let Some(end) = name.strip_prefix("final_layer.adaLN_modulation.1.") {
            layout.swapped(format!("norm_out.linear.{end}"), key, rows);
        } else if let Some(wanted) = renamed(name, OUTSIDE) {
            layout.whole(wanted, key);
        }
    }
    layout
}
