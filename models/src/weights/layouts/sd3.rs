//! The transformer of Stable Diffusion 3 and 3.5 as Stability AI write it.

use super::{Layout, block, is_extra, renamed, row_count, under};
use crate::weights::tensors::TensorSource;

/// What is outside of the blocks.
const OUTSIDE: &[(&str, &str)] = &[
    ("pos_embed", "pos_embed.pos_embed"),
    ("x_embedder.proj", "pos_embed.proj"),
    ("t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1"),
    ("t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2"),
    ("y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1"),
    ("y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2"),
    ("context_embedder", "context_embedder"),
    ("final_layer.linear", "proj_out"),
];

/// What is in a block, except for the fused query, key and value.
const BLOCK: &[(&str, &str)] = &[
    ("x_block.attn.ln_q", "attn.norm_q"),
    ("x_block.attn.ln_k", "attn.norm_k"),
    ("x_block.attn.proj", "attn.to_out.0"),
    ("x_block.attn2.ln_q", "attn2.norm_q"),
    ("x_block.attn2.ln_k", "attn2.norm_k"),
    ("x_block.attn2.proj", "attn2.to_out.0"),
    ("x_block.adaLN_modulation.1", "norm1.linear"),
    ("x_block.mlp.fc1", "ff.net.0.proj"),
    ("x_block.mlp.fc2", "ff.net.2"),
    ("context_block.attn.ln_q", "attn.norm_added_q"),
    ("context_block.attn.ln_k", "attn.norm_added_k"),
    ("context_block.attn.proj", "attn.to_add_out"),
    ("context_block.mlp.fc1", "ff_context.net.0.proj"),
    ("context_block.mlp.fc2", "ff_context.net.2"),
];

/// The projections that are fused in a `qkv`.
const FUSED: [(&str, [&str; 3]); 3] = [
    ("x_block.attn.qkv.", ["attn.to_q", "attn.to_k", "attn.to_v"]),
    ("x_block.attn2.qkv.", ["attn2.to_q", "attn2.to_k", "attn2.to_v"]),
    ("context_block.attn.qkv.", ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]),
];

/// Where an `SD3Transformer2DModel` is in the tensors under `prefix`.
pub(in crate::weights) fn sd3(source: &dyn TensorSource, prefix: &str) -> Layout {
    let mut layout = Layout::default();
    let keys = under(source, prefix);
    let last = keys.iter().filter_map(|(_, name)| Some(block(name, "joint_blocks")?.0)).max();
    for (key, name) in keys.iter().filter(|(_, name)| !is_extra(name)) {
        let rows = row_count(source, key);
        if let Some((number, rest)) = block(name, "joint_blocks") {
            let at = format!("transformer_blocks.{number}");
            if let Some(rest) = renamed(rest, BLOCK) {
                layout.whole(format!("{at}.{rest}"), key);
            } else if let Some(end) = rest.strip_prefix("context_block.adaLN_modulation.1.") {
                let wanted = format!("{at}.norm1_context.linear.{end}");
                // The last block only reads the text, so its norm is one of those with shift and scale alone.
                if Some(number) == last { layout.swapped(wanted, key, rows) } else { layout.whole(wanted, key) }
            }
            for (fused, names) in FUSED {
                if let Some(end) = rest.strip_prefix(fused) {
                    layout.split(names.map(|name| format!("{at}.{name}.{end}")), key, rows);
                }
            }
        } else if let Some(end) = name.strip_prefix("final_layer.adaLN_modulation.1.") {
            layout.swapped(format!("norm_out.linear.{end}"), key, rows);
        } else if let Some(wanted) = renamed(name, OUTSIDE) {
            layout.whole(wanted, key);
        }
    }
    layout
}
