//! A prompt on its way through T5: weighted, where the request wants it so.

use candle_core::Tensor;

use super::t5_tokenizer::T5Tokenizer;
use super::{Tokens, weighting};
use crate::{Prompt, Result};

/// A prompt as token ids and their weights.
///
/// Weights do to T5's states what they do to CLIP's ([`ClipPrompt`](super::ClipPrompt)). There are no chunks: T5 reads
/// more of a prompt than CLIP does, and positions that are no more than distances let nothing follow its end.
#[derive(Debug, Clone, PartialEq)]
pub struct T5Prompt {
    /// The prompt, its end mark and padding.
    pub tokens: Tokens,
    /// A weight for each id; `None` where the prompt weighs nothing.
    weights: Option<Vec<f32>>,
}

impl T5Prompt {
    /// Tokenizes a prompt into `length` ids. An absent text is "".
    ///
    /// # Errors
    /// When the text cannot be tokenized.
    pub fn new(tokenizer: &T5Tokenizer, prompt: &Prompt, length: usize) -> Result<Self> {
        let text = prompt.text.as_deref().unwrap_or_default();
        if !prompt.weighting {
            return Ok(Self { tokens: tokenizer.encode(text, length)?, weights: None });
        }
        let (mut ids, mut weights) = (Vec::new(), Vec::new());
        for piece in weighting::parse(text) {
            let words = tokenizer.words(&piece.text)?;
            weights.extend(std::iter::repeat_n(piece.weight as f32, words.len()));
            ids.extend(words);
        }
        weights.truncate(length.saturating_sub(1));
        let weighted = weights.iter().any(|weight| *weight != 1.0);
        weights.resize(length, 1.0);
        Ok(Self { tokens: tokenizer.finish(&ids, length)?, weights: weighted.then_some(weights) })
    }

    /// Weighs the prompt's states, (length, d).
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn weigh(&self, states: &Tensor) -> Result<Tensor> {
        match &self.weights {
            None => Ok(states.clone()),
            Some(weights) => weighting::apply(states, weights),
        }
    }
}
