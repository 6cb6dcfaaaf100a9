//! Qwen's tokenizer: byte-level BPE over texts that keep their case, behind a chat template.
//!
//! Bai et al., "Qwen Technical Report", 2023, section 2.2. The behaviour is that of transformers 5's `Qwen2Tokenizer` and
//! its `apply_chat_template`.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{Encoding, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

use super::Tokens;
use super::chat_template::ChatTemplate;
use super::vocabulary::{Side, Vocabulary};
use crate::weights::Repository;
use crate::{Error, Result};

/// What a word is: the end of a contraction, letters with one sign before them, one digit, other signs, or white space.
const WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What the chat template is told of the model's thinking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thinking {
    /// The model may think: the answer begins with nothing (Z-Image).
    Enabled,
    /// The answer begins with an empty thought (FLUX.2 klein).
    Disabled,
}

/// Qwen's tokenizer, its vocabulary, added tokens and chat template read from a model's files.
pub struct QwenTokenizer {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    pad: u32,
    padding: Side,
    truncation: Side,
    /// The file of the vocabulary, for errors.
    file: String,
}

impl QwenTokenizer {
    /// Reads the tokenizer in the folder `part`: `tokenizer.json`, or `vocab.json` and `merges.txt`; added tokens and
    /// sides from `tokenizer_config.json`, which has the chat template, too, unless it is in `chat_template.jinja`.
    ///
    /// # Errors
    /// Names the file and the key when one is missing or contradicts another.
    pub fn open(repository: &Repository, part: &str) -> Result<Self> {
        let template = ChatTemplate::open(repository, part)?;
        let vocabulary = Vocabulary::read(repository, part, None)?;
        let file = vocabulary.file.clone();
        build(vocabulary, template).map_err(|error| Error::file(file, error))
    }

    /// The largest id of the vocabulary and its added tokens.
    pub fn largest_id(&self) -> u32 {
        self.tokenizer.get_vocab(true).into_values().max().unwrap_or(0)
    }

    /// The file that the vocabulary was read from, relative to the model's root.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Turns a prompt, inside of the chat template, into exactly `length` ids.
    ///
    /// A longer text loses one end, with whatever of the template is there, as in diffusers. The count is of the tokens of
    /// the prompt alone.
    ///
    /// # Errors
    /// When the template fails, or the text cannot be tokenized.
    pub fn encode(&self, prompt: &str, thinking: Thinking, length: usize) -> Result<Tokens> {
        let text = self.template.render(prompt, thinking == Thinking::Enabled)?;
        let at_text = |error: tokenizers::Error| Error::Request { param: "prompt", message: error.to_string() };
        let encoding = self.tokenizer.encode(text.as_str(), true).map_err(at_text)?;
        let kept = match self.truncation {
            Side::Right => 0..encoding.len().min(length),
            Side::Left => encoding.len().saturating_sub(length)..encoding.len(),
        };
        let (count, truncated) = self.left_out(prompt, &text, &encoding, &kept);
        let words = &encoding.get_ids()[kept];
        let blank = length - words.len();
        let (before, after) = if self.padding == Side::Left { (blank, 0) } else { (0, blank) };
        let padding = |count| vec![self.pad; count];
        let ids = [padding(before), words.to_vec(), padding(after)].concat();
        let mask = [vec![0; before], vec![1; words.len()], vec![0; after]].concat();
        Ok(Tokens { ids, mask, count, truncated })
    }

    /// The number of tokens of the prompt itself, and what of it is outside of the `kept` tokens.
    fn left_out(
        &self,
        prompt: &str,
        text: &str,
        encoding: &Encoding,
        kept: &std::ops::Range<usize>,
    ) -> (usize, Option<String>) {
        // Templates may trim what they are given.
        let prompt = prompt.trim();
        let Some(start) = text.find(prompt) else { return (encoding.len(), None) };
        let end = start + prompt.len();
        let offsets = encoding.get_offsets();
        let inside = |&(from, to): &(usize, usize)| from >= start && to <= end && from < to;
        let count = offsets.iter().filter(|offsets| inside(offsets)).count();
        let cut = match self.truncation {
            Side::Right => offsets.get(kept.end).map(|&(from, _)| from.max(start)..end),
            Side::Left => kept.start.checked_sub(1).and_then(|at| offsets.get(at)).map(|&(_, to)| start..to.min(end)),
        };
        let lost = cut.and_then(|range| text.get(range)).map(str::trim).filter(|lost| !lost.is_empty());
        (count, lost.map(str::to_owned))
    }
}

/// Puts the tokenizer together as transformers does, whatever `tokenizer.json` says besides vocabulary and merges.
fn build(vocabulary: Vocabulary, template: ChatTemplate) -> tokenizers::Result<QwenTokenizer> {
    let Vocabulary { file, ids, merges, added, pad, padding, truncation, .. } = vocabulary;
    let model = BPE::builder().vocab_and_merges(ids.into_iter().collect::<Vocab>(), merges).build()?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(NFC))?;
    let words = Split::new(SplitPattern::Regex(WORDS.to_owned()), SplitDelimiterBehavior::Isolated, false)?;
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![
        PreTokenizerWrapper::Split(words),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false)),
    ])));
    tokenizer.add_tokens(added)?;
    let pad = tokenizer.token_to_id(&pad).ok_or_else(|| format!("does not hold the pad_token {pad:?}"))?;
    Ok(QwenTokenizer { tokenizer, template, pad, padding, truncation, file })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Qwen3's added tokens, in the order of their ids, which begin behind a vocabulary of 151643.
    const ADDED: [(u32, &str); 6] = [
        (151_643, "<|endoftext|>"),
        (151_644, "<|im_start|>"),
        (151_645, "<|im_end|>"),
        (151_646, "<|object_ref_start|>"),
        (151_647, "<think>"),
        (151_648, "</think>"),
    ];

    /// A tokenizer of this many words: bytes, three merges, and fillers that no text makes.
    fn folder(config: &str, size: u32) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model_index.json"), "{}").unwrap();
        let tokenizer = dir.path().join("tokenizer");
        std::fs::create_dir(&tokenizer).unwrap();
        let plain = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let others = (0..256_u32).filter(|byte| !plain(byte)).enumerate().map(|(at, _)| 256 + at as u32);
        let symbols = (0..256_u32).filter(plain).chain(others).map(|code| char::from_u32(code).unwrap().to_string());
        let mut vocabulary: BTreeMap<String, u32> = symbols.enumerate().map(|(id, word)| (word, id as u32)).collect();
        for word in ["ca", "cat", "\u{120}cat"] {
            vocabulary.insert(word.to_owned(), vocabulary.len() as u32);
        }
        for id in vocabulary.len() as u32..size {
            vocabulary.insert(format!("\u{10FFFF}{id}"), id);
        }
        std::fs::write(tokenizer.join("vocab.json"), serde_json::to_vec(&vocabulary).unwrap()).unwrap();
        std::fs::write(tokenizer.join("merges.txt"), "#version: 0.2\nc a\nca t\n\u{120} cat\n").unwrap();
        let added: BTreeMap<u32, serde_json::Value> = ADDED
            .iter()
            .map(|(id, text)| {
                (id - 151_643 + size, serde_json::json!({"content": text, "special": !text.contains("think")}))
            })
            .collect();
        let template = "{{ '<|im_start|>' + messages[0].content + '<|im_end|>' }}\
            {% if not enable_thinking %}{{ '<think>\\n</think>' }}{% endif %}";
        let mut whole = serde_json::json!({
            "added_tokens_decoder": added, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": null,
            "chat_template": template,
        });
        let more: BTreeMap<String, serde_json::Value> = serde_json::from_str(config).unwrap();
        whole.as_object_mut().unwrap().extend(more);
        std::fs::write(tokenizer.join("tokenizer_config.json"), whole.to_string()).unwrap();
        dir
    }

    fn open(config: &str, size: u32) -> QwenTokenizer {
        QwenTokenizer::open(&Repository::folder(folder(config, size).path()).unwrap(), "tokenizer").unwrap()
    }

    #[test]
    fn prompts_get_the_real_special_ids_and_their_padding() {
        let tokenizer = open("{}", 151_643);
        assert_eq!(tokenizer.largest_id(), 151_648);
        let tokens = tokenizer.encode("cat cat", Thinking::Enabled, 6).unwrap();
        assert_eq!(tokens.ids, [151_644, 257, 258, 151_645, 151_643, 151_643]);
        assert_eq!(tokens.mask, [1, 1, 1, 1, 0, 0]);
        assert_eq!((tokens.count, tokens.truncated), (2, None));
        let tokens = tokenizer.encode("<|im_end|>", Thinking::Disabled, 6).unwrap();
        assert_eq!(tokens.ids, [151_644, 151_645, 151_645, 151_647, 198, 151_648]);
    }

    #[test]
    fn a_prompt_that_is_too_long_loses_its_end_or_its_beginning() {
        let tokens = open("{}", 300).encode("cat cat cat cat", Thinking::Enabled, 3).unwrap();
        assert_eq!(tokens.ids, [301, 257, 258]);
        assert_eq!((tokens.count, tokens.truncated.as_deref()), (4, Some("cat cat")));
        let left = open(r#"{"truncation_side": "left", "padding_side": "left"}"#, 300);
        let tokens = left.encode("cat cat cat cat", Thinking::Enabled, 3).unwrap();
        assert_eq!(tokens.ids, [258, 258, 302]);
        assert_eq!(tokens.truncated.as_deref(), Some("cat cat"));
        let tokens = left.encode("cat", Thinking::Enabled, 5).unwrap();
        assert_eq!((tokens.ids[..3].to_vec(), tokens.mask), (vec![300, 300, 301], vec![0, 0, 1, 1, 1]));
    }
}
