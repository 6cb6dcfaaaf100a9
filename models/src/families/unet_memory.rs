//! What a row of a UNet needs while it is computed, estimated.

use crate::denoisers::{DownBlockType, UNetConfig};

/// Features of the widest image that are alive at once inside of a block: input, normalised input, two
/// convolutions' results, the residual, and the concatenation with a skip, which counts twice.
const LIVE: usize = 7;

/// Bytes that one row of latents (height, width) needs in a model call, with `size` bytes a value.
///
/// The skips that wait for the way up, what is alive inside of the largest block, and the scores of the largest
/// attention, which are f32 and there twice, before and after the softmax. Weights are not counted.
pub(super) fn row_bytes(config: &UNetConfig, height: usize, width: usize, context: usize, size: usize) -> u64 {
    let (mut skips, mut widest, mut scores) = (0, 0, 0);
    for (level, &channels) in config.block_out_channels.iter().enumerate() {
        let shrunk = |side: usize| side.div_ceil(1 << level);
        let pixels = shrunk(height) * shrunk(width);
        let layers = config.layers_per_block.at(level).unwrap_or(1);
        skips += (layers + 1) * channels * pixels;
        widest = widest.max(channels * pixels);
        if config.down_block_types.get(level) == Some(&DownBlockType::CrossAttnDownBlock2D) {
            let heads =
                config.num_attention_heads.as_ref().unwrap_or(&config.attention_head_dim).at(level).unwrap_or(1);
            scores = scores.max(heads * pixels * pixels.max(context));
        }
    }
    ((skips + LIVE * widest) * size + 2 * scores * size_of::<f32>()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scores_are_most_of_what_a_large_picture_needs() {
        // Stable Diffusion 1.5 at 512x512: the scores of 8 heads over 4096 pixels are 1 GiB of it.
        let config = UNetConfig::default();
        let bytes = row_bytes(&config, 64, 64, 77, 4);
        let scores = 2 * 8 * 4096 * 4096 * 4;
        assert!(bytes > scores && bytes < scores + (100 << 20), "{bytes}");
    }

    #[test]
    fn a_larger_picture_never_needs_less() {
        let config = UNetConfig::default();
        let bytes = |height, width| row_bytes(&config, height, width, 77, 2);
        assert!(bytes(8, 8) < bytes(9, 11) && bytes(9, 11) < bytes(64, 64) && bytes(64, 64) < bytes(64, 96));
    }
}
