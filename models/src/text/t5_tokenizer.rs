//! T5's tokenizer: the most probable pieces of each word, after SentencePiece's normalisation.
//!
//! Kudo, "Subword Regularization", 2018, and Kudo and Richardson, "SentencePiece", 2018. The behaviour is that of
//! transformers 5's `T5Tokenizer`.

use tokenizers::models::unigram::Unigram;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::{PreTokenizerWrapper, Tokenizer};

use super::Tokens;
use super::t5_vocabulary::Vocabulary;
use crate::weights::Repository;
use crate::{Error, Result};

/// What stands for the space before a word.
const SPACE: char = '▁';

/// The id of the unknown token, which transformers does not read from any file.
const UNKNOWN: usize = 2;

/// T5's tokenizer, its vocabulary and marks read from a model's files.
pub struct T5Tokenizer {
    tokenizer: Tokenizer,
    end: u32,
    pad: u32,
    /// The file of the vocabulary, for errors.
    file: String,
}

impl T5Tokenizer {
    /// Reads the tokenizer in the folder `part`: `tokenizer.json`, or `spiece.model`.
    ///
    /// # Errors
    /// Names the file and the key when one is missing, damaged or contradicts another.
    pub fn open(repository: &Repository, part: &str) -> Result<Self> {
        let vocabulary = Vocabulary::read(repository, part)?;
        let file = vocabulary.file.clone();
        build(vocabulary).map_err(|error| Error::file(file, error))
    }

    /// The largest id of the vocabulary and its marks.
    pub fn largest_id(&self) -> u32 {
        self.tokenizer.get_vocab(true).into_values().max().unwrap_or(0)
    }

    /// The file that the vocabulary was read from, relative to the model's root.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Turns a prompt into exactly `length` ids, which must be at least 1: the prompt, its end mark, and padding.
    ///
    /// A longer prompt loses its end, never its end mark.
    ///
    /// # Errors
    /// When the text cannot be tokenized.
    pub fn encode(&self, text: &str, length: usize) -> Result<Tokens> {
        self.finish(&self.words(text)?, length)
    }

    /// A text's ids without the end mark.
    ///
    /// # Errors
    /// When the text cannot be tokenized.
    pub(super) fn words(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(text, false).map_err(|error| at_text(&error))?.get_ids().to_vec())
    }

    /// Cuts `words`, marks their end and pads them, to `length` ids.
    ///
    /// # Errors
    /// When an id that is cut off is unknown.
    pub(super) fn finish(&self, words: &[u32], length: usize) -> Result<Tokens> {
        let (kept, rest) = words.split_at(words.len().min(length.saturating_sub(1)));
        let truncated = match rest {
            [] => None,
            _ => Some(self.tokenizer.decode(rest, false).map_err(|error| at_text(&error))?.trim().to_owned()),
        };
        let mut ids: Vec<u32> = [kept, &[self.end]].concat();
        let mut mask = vec![1; ids.len()];
        ids.resize(length, self.pad);
        mask.resize(length, 0);
        Ok(Tokens { ids, mask, count: words.len(), truncated })
    }
}

/// An error about the prompt.
fn at_text(error: &tokenizers::Error) -> Error {
    Error::Request { param: "prompt", message: error.to_string() }
}

/// Puts the tokenizer together as transformers does, whatever `tokenizer.json` says besides the vocabulary.
fn build(vocabulary: Vocabulary) -> tokenizers::Result<T5Tokenizer> {
    let Vocabulary { file, words, normalizer, added, end, pad, split_special_tokens } = vocabulary;
    let mut tokenizer = Tokenizer::new(Unigram::from(words, Some(UNKNOWN), false)?);
    tokenizer.with_normalizer(normalizer)?;
    let space = Metaspace::new(SPACE, PrependScheme::Always, true);
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![
        PreTokenizerWrapper::WhitespaceSplit(WhitespaceSplit),
        PreTokenizerWrapper::Metaspace(space.clone()),
    ])));
    tokenizer.with_decoder(Some(space));
    tokenizer.add_tokens(added)?;
    tokenizer.set_encode_special_tokens(split_special_tokens);
    let id = |name: &str, token: &str| {
        tokenizer.token_to_id(token).ok_or_else(|| format!("does not hold the {name} {token:?}"))
    };
    let (end, pad) = (id("eos_token", &end)?, id("pad_token", &pad)?);
    Ok(T5Tokenizer { tokenizer, end, pad, file })
}
