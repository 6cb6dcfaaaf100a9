//! The autoencoder of latent diffusion as its first code names it, which all later families kept.

use super::{Form, Layout, block, is_extra, renamed, under};
use crate::weights::tensors::TensorSource;

/// What is outside of the levels, in the encoder as in the decoder.
const OUTSIDE: &[(&str, &str)] = &[
    ("conv_in", "conv_in"),
    ("conv_out", "conv_out"),
    ("norm_out", "conv_norm_out"),
    ("mid.block_1", "mid_block.resnets.0"),
    ("mid.block_2", "mid_block.resnets.1"),
];

/// What is outside of encoder and decoder; FLUX.2's has the convolutions inside of them.
const AROUND: &[(&str, &str)] = &[
    ("quant_conv", "quant_conv"),
    ("post_quant_conv", "post_quant_conv"),
    ("encoder.quant_conv", "quant_conv"),
    ("decoder.post_quant_conv", "post_quant_conv"),
    ("bn", "bn"),
];

/// The attention of the middle.
const ATTENTION: &[(&str, &str)] =
    &[("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")];

/// Where an `AutoencoderKL`, or FLUX.2's, is in the tensors under `prefix`.
pub(in crate::weights) fn ldm_vae(source: &dyn TensorSource, prefix: &str) -> Layout {
    let mut layout = Layout::default();
    let keys = under(source, prefix);
    let ups = keys.iter().filter_map(|(_, name)| Some(block(name, "decoder.up")?.0 + 1)).max().unwrap_or(0);
    for (key, name) in keys.iter().filter(|(_, name)| !is_extra(name)) {
        if let Some(wanted) = renamed(name, AROUND) {
            layout.whole(wanted, key);
            continue;
        }
        let Some((half, rest)) = name.split_once('.').filter(|(half, _)| ["encoder", "decoder"].contains(half)) else {
            continue;
        };
        if let Some(rest) = rest.strip_prefix("mid.attn_1.").and_then(|rest| renamed(rest, ATTENTION)) {
            // The projections were convolutions at first.
            let form = if rest.ends_with(".weight") { Form::Window } else { Form::Same };
            layout.put(format!("{half}.mid_block.attentions.0.{rest}"), key, Vec::new(), form);
        } else if let Some((level, rest)) = block(rest, "down") {
            if let Some(rest) = level_name(rest, "downsample", "downsamplers") {
                layout.whole(format!("{half}.down_blocks.{level}.{rest}"), key);
            }
        } else if let Some((level, rest)) = block(rest, "up") {
            // diffusers counts these from the latents on.
            if let Some(rest) = level_name(rest, "upsample", "upsamplers") {
                layout.whole(format!("{half}.up_blocks.{}.{rest}", ups - 1 - level), key);
            }
        } else if let Some(rest) = renamed(rest, OUTSIDE) {
            layout.whole(format!("{half}.{}", resnet(&rest)), key);
        }
    }
    layout
}

/// The name of a tensor inside of a level.
fn level_name(name: &str, sampler: &str, wanted: &str) -> Option<String> {
    if let Some((number, rest)) = block(name, "block") {
        return Some(format!("resnets.{number}.{}", resnet(rest)));
    }
    Some(format!("{wanted}.0.{}", name.strip_prefix(sampler)?.strip_prefix('.')?))
}

/// The name of a tensor inside of a residual block.
fn resnet(name: &str) -> String {
    name.replace("nin_shortcut", "conv_shortcut")
}
