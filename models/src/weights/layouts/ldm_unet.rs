//! The UNet of latent diffusion as its first code names it: Stable Diffusion 1, 2 and XL.

use super::{Layout, block, is_extra, renamed, under};
use crate::weights::tensors::TensorSource;

/// What is outside of the blocks.
const OUTSIDE: &[(&str, &str)] = &[
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
];

/// What is in a residual block.
const RESNET: &[(&str, &str)] = &[
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];

/// Where a `UNet2DConditionModel` is in the tensors under `prefix`.
///
/// Its blocks are numbered through: on the way down the first convolution, then for each level its residual blocks, each
/// with its transformer, and the halving. On the way up each level has one residual block more, the last of them with the
/// doubling.
pub(in crate::weights) fn ldm_unet(source: &dyn TensorSource, prefix: &str) -> Layout {
    let mut layout = Layout::default();
    let keys = under(source, prefix);
    let blocks = |name: &str| keys.iter().filter_map(|(_, key)| Some(block(key, name)?.0)).max().unwrap_or(0);
    // Blocks of a level, with the halving: up to the first halving, or all of them where there is one level.
    let halves = |at: &usize| keys.iter().any(|(_, name)| *name == format!("input_blocks.{at}.0.op.weight"));
    let last = blocks("input_blocks");
    let period = (1..=last).find(halves).unwrap_or(last + 1).max(1);
    for (key, name) in keys.iter().filter(|(_, name)| !is_extra(name)) {
        let wanted = if let Some((number, rest)) = block(name, "input_blocks") {
            match number.checked_sub(1) {
                None => rest.strip_prefix("0.").map(|rest| format!("conv_in.{rest}")),
                Some(at) => inside(rest, &format!("down_blocks.{}", at / period), at % period),
            }
        } else if let Some((number, rest)) = block(name, "output_blocks") {
            inside(rest, &format!("up_blocks.{}", number / period), number % period)
        } else if let Some((number, rest)) = block(name, "middle_block") {
            match number {
                1 => Some(format!("mid_block.attentions.0.{rest}")),
                _ => renamed(rest, RESNET).map(|rest| format!("mid_block.resnets.{}.{rest}", number / 2)),
            }
        } else {
            renamed(name, OUTSIDE)
        };
        if let Some(wanted) = wanted {
            layout.whole(wanted, key);
        }
    }
    layout
}

/// The name of a tensor of the block `at` in a level.
fn inside(name: &str, level: &str, at: usize) -> Option<String> {
    let (number, rest) = name.split_once('.')?;
    if let Some(rest) = rest.strip_prefix("op.") {
        return Some(format!("{level}.downsamplers.0.conv.{rest}"));
    }
    // The doubling follows a transformer, or the residual block itself where there is none.
    if let Some(rest) = rest.strip_prefix("conv.") {
        return Some(format!("{level}.upsamplers.0.conv.{rest}"));
    }
    match number {
        "0" => renamed(rest, RESNET).map(|rest| format!("{level}.resnets.{at}.{rest}")),
        _ => Some(format!("{level}.attentions.{at}.{rest}")),
    }
}
