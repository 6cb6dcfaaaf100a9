//! The transformer of FLUX.1 as Black Forest Labs write it; ComfyUI's files have the same names under a prefix.

use super::{Layout, block, is_extra, renamed, row_count, under};
use crate::weights::tensors::TensorSource;

/// What is outside of the blocks.
const OUTSIDE: &[(&str, &str)] = &[
    ("img_in", "x_embedder"),
    ("txt_in", "context_embedder"),
    ("time_in.in_layer", "time_text_embed.timestep_embedder.linear_1"),
    ("time_in.out_layer", "time_text_embed.timestep_embedder.linear_2"),
    ("vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
    ("vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
    ("guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1"),
    ("guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2"),
    ("final_layer.linear", "proj_out"),
];

/// What is in a block with two streams, except for the fused query, key and value.
const DOUBLE: &[(&str, &str)] = &[
    ("img_mod.lin", "norm1.linear"),
    ("txt_mod.lin", "norm1_context.linear"),
    ("img_attn.norm.query_norm.scale", "attn.norm_q.weight"),
    ("img_attn.norm.key_norm.scale", "attn.norm_k.weight"),
    ("txt_attn.norm.query_norm.scale", "attn.norm_added_q.weight"),
    ("txt_attn.norm.key_norm.scale", "attn.norm_added_k.weight"),
    ("img_attn.proj", "attn.to_out.0"),
    ("txt_attn.proj", "attn.to_add_out"),
    ("img_mlp.0", "ff.net.0.proj"),
    ("img_mlp.2", "ff.net.2"),
    ("txt_mlp.0", "ff_context.net.0.proj"),
    ("txt_mlp.2", "ff_context.net.2"),
];

/// What is in a block with one stream, except for what `linear1` has fused.
const SINGLE: &[(&str, &str)] = &[
    ("modulation.lin", "norm.linear"),
    ("norm.query_norm.scale", "attn.norm_q.weight"),
    ("norm.key_norm.scale", "attn.norm_k.weight"),
    ("linear2", "proj_out"),
];

/// The projections that each stream of a block has fused in its `qkv`.
pub(super) const FUSED: [(&str, [&str; 3]); 2] =
    [("img_attn.qkv.", ["to_q", "to_k", "to_v"]), ("txt_attn.qkv.", ["add_q_proj", "add_k_proj", "add_v_proj"])];

/// Where a `FluxTransformer2DModel` is in the tensors under `prefix`.
pub(in crate::weights) fn flux(source: &dyn TensorSource, prefix: &str) -> Layout {
    let mut layout = Layout::default();
    let width = row_count(source, &format!("{prefix}img_in.weight"));
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
            let at = format!("single_transformer_blocks.{number}");
            if let Some(rest) = renamed(rest, SINGLE) {
                layout.whole(format!("{at}.{rest}"), key);
            } else if let Some(end) = rest.strip_prefix("linear1.") {
                let names = ["to_q", "to_k", "to_v"].map(|name| format!("{at}.attn.{name}.{end}"));
                layout.split(names, key, (3 * width).min(rows));
                layout.rows(format!("{at}.proj_mlp.{end}"), key, (3 * width).min(rows)..rows);
            }
        } else if let Some(end) = name.strip_prefix("final_layer.adaLN_modulation.1.") {
            layout.swapped(format!("norm_out.linear.{end}"), key, rows);
        } else if let Some(wanted) = renamed(name, OUTSIDE) {
            layout.whole(wanted, key);
        }
    }
    layout
}
