//! What a row of a diffusion transformer needs while it is computed, estimated.

/// Sequences of the stream's width that are alive at once inside of a layer: input, normalised input, queries, keys,
/// values, what attention gives, and the result.
const LIVE: usize = 7;

/// Bytes that one row of this many tokens needs in a model call, with `size` bytes a value.
///
/// What is alive inside of a layer, with two sequences of the feed-forward layer's `hidden` width, and attention's scores,
/// which are f32 and there twice, before and after the softmax. Weights are not counted.
pub(super) fn row_bytes(tokens: usize, width: usize, hidden: usize, heads: usize, size: usize) -> u64 {
    let stream = tokens * (LIVE * width + 2 * hidden);
    let scores = heads * tokens * tokens;
    (stream * size + 2 * scores * size_of::<f32>()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scores_grow_with_the_square_of_the_tokens() {
        let bytes = |tokens| row_bytes(tokens, 3072, 9216, 24, 2);
        assert!(bytes(4608) > 2 * 24 * 4608 * 4608 * 4);
        assert!(bytes(2048) > 2 * bytes(1024) && bytes(2048) < 4 * bytes(1024));
    }
}
