//! A prompt on its way through a CLIP encoder: weighted, or longer than the encoder's context.
//!
//! diffusers truncates a prompt to the context and knows no weights, and so do we unless a request says otherwise. Then
//! we do what the ecosystem agreed on, in the form of diffusers' community pipeline `lpw_stable_diffusion`: the tokens
//! are cut into chunks of the context without its two marks, each chunk is encoded alone, the states follow one another,
//! and are multiplied by their tokens' weights and brought back to the mean that they had before.

use candle_core::Tensor;

use super::clip_tokenizer::{ClipTokenizer, Tokens};
use super::weighting;
use crate::{Prompt, Result};

/// A prompt as chunks of token ids.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipPrompt {
    /// One chunk for a prompt that fits, and for every prompt that may not be long.
    pub chunks: Vec<Tokens>,
    /// A weight for each id of all chunks; `None` where the prompt weighs nothing.
    weights: Option<Vec<f32>>,
}

impl ClipPrompt {
    /// Tokenizes a prompt into chunks of `length` ids. An absent text is "".
    ///
    /// # Errors
    /// When the text cannot be tokenized.
    pub fn new(tokenizer: &ClipTokenizer, prompt: &Prompt, length: usize) -> Result<Self> {
        let text = prompt.text.as_deref().unwrap_or_default();
        if !prompt.weighting && !prompt.long {
            return Ok(Self { chunks: vec![tokenizer.encode(text, length)?], weights: None });
        }
        let pieces = if prompt.weighting {
            weighting::parse(text)
        } else {
            vec![weighting::Weighted { text: text.to_owned(), weight: 1.0 }]
        };
        let (mut ids, mut weights) = (Vec::new(), Vec::new());
        for piece in pieces {
            let words = tokenizer.words(&piece.text)?;
            weights.extend(std::iter::repeat_n(piece.weight as f32, words.len()));
            ids.extend(words);
        }
        let room = length.saturating_sub(2).max(1);
        let most = if prompt.long { ids.len() } else { room };
        let (kept, rest) = ids.split_at(ids.len().min(most));
        let mut chunks: Vec<Tokens> = kept.chunks(room).map(|words| tokenizer.mark(words, length)).collect();
        if chunks.is_empty() {
            chunks.push(tokenizer.mark(&[], length));
        }
        if let Some(first) = chunks.first_mut() {
            first.count = ids.len();
            first.truncated = tokenizer.spell(rest)?;
        }
        let weighted = weights.iter().any(|weight| *weight != 1.0);
        let per_id = |(words, chunk): (&[f32], &Tokens)| {
            let mut weights = vec![1.0];
            weights.extend_from_slice(words);
            weights.resize(chunk.ids.len(), 1.0);
            weights
        };
        let weights = weighted.then(|| weights.chunks(room).zip(&chunks).flat_map(per_id).collect());
        Ok(Self { chunks, weights })
    }

    /// Tokens of the whole prompt, its marks not counted.
    pub fn count(&self) -> usize {
        self.chunks.first().map_or(0, |chunk| chunk.count)
    }

    /// The end of the prompt that did not fit.
    pub fn truncated(&self) -> Option<String> {
        self.chunks.first()?.truncated.clone()
    }

    /// Joins the chunks' states, each (1, length, d), to (chunks · length, d), and weighs them.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn join(&self, states: &[Tensor]) -> Result<Tensor> {
        let states = Tensor::cat(states, 1)?.squeeze(0)?;
        match &self.weights {
            None => Ok(states),
            Some(weights) => weighting::apply(&states, weights),
        }
    }
}

/// Brings the shorter of two prompts' states, (l, d), to the longer one's length with chunks of the empty prompt, as a
/// guided row needs them.
///
/// # Errors
/// When `empty` fails, or a tensor operation does.
pub fn equal_lengths(a: &Tensor, b: &Tensor, empty: impl FnOnce() -> Result<Tensor>) -> Result<(Tensor, Tensor)> {
    let (short, long) = (a.dim(0)?.min(b.dim(0)?), a.dim(0)?.max(b.dim(0)?));
    if short == long {
        return Ok((a.clone(), b.clone()));
    }
    let empty = empty()?;
    let pad = |states: &Tensor| -> Result<Tensor> {
        let mut parts = vec![states.clone()];
        let mut length = states.dim(0)?;
        while length < long {
            parts.push(empty.clone());
            length += empty.dim(0)?;
        }
        Ok(Tensor::cat(&parts, 0)?.narrow(0, 0, long)?.contiguous()?)
    };
    Ok((pad(a)?, pad(b)?))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::weights::Repository;

    fn tokenizer() -> ClipTokenizer {
        ClipTokenizer::open(&Repository::builtin(), "tokenizer").unwrap()
    }

    fn prompt(text: &str, weighting: bool, long: bool) -> ClipPrompt {
        ClipPrompt::new(&tokenizer(), &Prompt { weighting, long, ..Prompt::new(text) }, 6).unwrap()
    }

    #[test]
    fn a_prompt_without_weights_that_fits_is_what_it_was() {
        let plain = prompt("a red circle", false, false);
        assert_eq!(plain.chunks, [tokenizer().encode("a red circle", 6).unwrap()]);
        for (weighting, long) in [(true, false), (false, true), (true, true)] {
            assert_eq!(prompt("a red circle", weighting, long), plain);
        }
        assert_eq!(prompt("", true, true), prompt("", false, false));
    }

    #[test]
    fn a_long_prompt_is_cut_into_marked_chunks() {
        let text = "a red circle on a blue background";
        let long = prompt(text, false, true);
        let words: Vec<u32> = tokenizer().encode(text, 77).unwrap().ids[1..=7].to_vec();
        let ids: Vec<&[u32]> = long.chunks.iter().map(|chunk| chunk.ids.as_slice()).collect();
        assert_eq!(
            ids,
            [&[&[1849], &words[..4], &[1850]].concat()[..], &[&[1849], &words[4..], &[1850, 1850]].concat()]
        );
        assert_eq!((long.count(), long.truncated()), (7, None));
        let short = prompt(text, true, false);
        assert_eq!(
            (short.chunks.len(), short.count(), short.truncated().as_deref()),
            (1, 7, Some("a blue background"))
        );
    }

    #[test]
    fn weights_keep_the_mean_and_move_the_words() {
        let weighted = prompt("a (red:2) circle", true, false);
        assert_eq!(weighted.weights.as_deref(), Some(&[1.0, 1.0, 2.0, 1.0, 1.0, 1.0][..]));
        let states = Tensor::arange(1_f32, 13.0, &Device::Cpu).unwrap().reshape((1, 6, 2)).unwrap();
        let joined = weighted.join(std::slice::from_ref(&states)).unwrap();
        let values: Vec<f32> = joined.flatten_all().unwrap().to_vec1().unwrap();
        // The sum is 78 before and 89 after the third token's 5 and 6 are doubled.
        let expected: Vec<f32> =
            (1..=12).map(|v| v as f32 * if v == 5 || v == 6 { 2.0 } else { 1.0 } * 78.0 / 89.0).collect();
        assert!(values.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{values:?}");
    }

    #[test]
    fn the_shorter_prompt_is_filled_up_with_empty_chunks() {
        let rows = |n: usize, value: f32| Tensor::full(value, (n, 2), &Device::Cpu).unwrap();
        let (a, b) = equal_lengths(&rows(6, 1.0), &rows(18, 2.0), || Ok(rows(6, 3.0))).unwrap();
        assert_eq!((a.dims(), b.dims()), (&[18, 2][..], &[18, 2][..]));
        assert_eq!(a.get(17).unwrap().to_vec1::<f32>().unwrap(), [3.0, 3.0]);
        assert_eq!(a.get(5).unwrap().to_vec1::<f32>().unwrap(), [1.0, 1.0]);
    }
}
