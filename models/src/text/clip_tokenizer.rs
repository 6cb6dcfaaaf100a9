//! CLIP's tokenizer: lower-cased byte-level BPE with an end-of-word mark.
//!
//! Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021. The behaviour is that
//! of transformers 5's `CLIPTokenizer`, which cleans texts by Unicode's NFC and does not use ftfy.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, NormalizerWrapper, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

use super::vocabulary::{Side, Vocabulary};
use crate::weights::Repository;
use crate::{Error, Result};

/// What a word is: a mark, the end of a contraction, letters, one digit, or other signs.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The start mark where the files name no other.
const START_MARK: &str = "<|startoftext|>";

/// The mark at the end of a word's last token.
const END_OF_WORD: &str = "</w>";

/// One prompt as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// The start mark, the prompt, the end mark, and padding up to the asked length.
    pub ids: Vec<u32>,
    /// 1 where `ids` is not padding, else 0.
    pub mask: Vec<u8>,
    /// Tokens of the prompt before truncation, its marks not counted.
    pub count: usize,
    /// The end of the prompt that did not fit, as the tokenizer spells it; `None` when all of it did.
    pub truncated: Option<String>,
}

/// CLIP's tokenizer, its vocabulary and marks read from a model's files.
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    start: u32,
    end: u32,
    pad: u32,
    max_length: Option<usize>,
    /// The file of the vocabulary, for errors.
    file: String,
}

impl ClipTokenizer {
    /// Reads the tokenizer in the folder `part`: `tokenizer.json`, or `vocab.json` and `merges.txt`.
    ///
    /// # Errors
    /// Names the file and the key when one is missing or contradicts another.
    pub fn open(repository: &Repository, part: &str) -> Result<Self> {
        let vocabulary = Vocabulary::read(repository, part, Some(START_MARK))?;
        let file = vocabulary.file.clone();
        for (key, side) in [("padding_side", vocabulary.padding), ("truncation_side", vocabulary.truncation)] {
            if side != Side::Right {
                let config = format!("{part}/tokenizer_config.json");
                return Err(Error::file(config, format_args!("{key} is \"left\"; CLIP's is \"right\"")));
            }
        }
        build(vocabulary).map_err(|error| Error::file(file, error))
    }

    /// The length that prompts are padded and cut to, marks included; `None` when the files name none.
    pub fn max_length(&self) -> Option<usize> {
        self.max_length
    }

    /// The largest id of the vocabulary and its marks.
    pub fn largest_id(&self) -> u32 {
        self.tokenizer.get_vocab(true).into_values().max().unwrap_or(0)
    }

    /// The file that the vocabulary was read from, relative to the model's root.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Turns a prompt into exactly `length` ids, which must be at least 2.
    ///
    /// A longer prompt loses its end, never its end mark.
    ///
    /// # Errors
    /// When the text cannot be tokenized.
    pub fn encode(&self, text: &str, length: usize) -> Result<Tokens> {
        let words = self.words(text)?;
        let (kept, rest) = words.split_at(words.len().min(length.saturating_sub(2)));
        Ok(Tokens { count: words.len(), truncated: self.spell(rest)?, ..self.mark(kept, length) })
    }

    /// The ids of a text, without marks and padding.
    ///
    /// # Errors
    /// When the text cannot be tokenized.
    pub(super) fn words(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(text, false).map_err(|error| at_text(&error))?.get_ids().to_vec())
    }

    /// Marks the start and the end of `words`, and pads them to `length`; there must be room for both marks.
    pub(super) fn mark(&self, words: &[u32], length: usize) -> Tokens {
        let mut ids: Vec<u32> = [&[self.start], words, &[self.end]].concat();
        let mut mask = vec![1; ids.len()];
        ids.resize(length, self.pad);
        mask.resize(length, 0);
        Tokens { ids, mask, count: words.len(), truncated: None }
    }

    /// Words as the tokenizer spells them; `None` when there are none.
    ///
    /// # Errors
    /// When an id is unknown.
    pub(super) fn spell(&self, words: &[u32]) -> Result<Option<String>> {
        if words.is_empty() {
            return Ok(None);
        }
        let text = self.tokenizer.decode(words, false).map_err(|error| at_text(&error))?;
        Ok(Some(text.replace(END_OF_WORD, " ").trim().to_owned()))
    }
}

/// An error about the prompt.
fn at_text(error: &tokenizers::Error) -> Error {
    Error::Request { param: "prompt", message: error.to_string() }
}

/// Puts the tokenizer together as transformers does, whatever `tokenizer.json` says besides vocabulary and merges.
fn build(vocabulary: Vocabulary) -> tokenizers::Result<ClipTokenizer> {
    let Vocabulary { file, ids, merges, added, start, end, pad, unknown, max_length, .. } = vocabulary;
    let start = start.unwrap_or_else(|| START_MARK.to_owned());
    let model = BPE::builder()
        .vocab_and_merges(ids.into_iter().collect::<Vocab>(), merges)
        .unk_token(unknown)
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix(END_OF_WORD.to_owned())
        .build()?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(Normalizers::new(vec![
        NormalizerWrapper::NFC(NFC),
        NormalizerWrapper::Replace(Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ")?),
        NormalizerWrapper::Lowercase(Lowercase),
    ])))?;
    let words = Split::new(SplitPattern::Regex(WORDS.to_owned()), SplitDelimiterBehavior::Removed, true)?;
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![
        PreTokenizerWrapper::Split(words),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
    ])));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.add_tokens(added)?;
    let id = |name: &str, token: &str| {
        tokenizer.token_to_id(token).ok_or_else(|| format!("does not hold the {name} {token:?}"))
    };
    let (start, end, pad) = (id("bos_token", &start)?, id("eos_token", &end)?, id("pad_token", &pad)?);
    Ok(ClipTokenizer { tokenizer, start, end, pad, max_length, file })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builtin() -> ClipTokenizer {
        ClipTokenizer::open(&Repository::builtin(), "tokenizer").unwrap()
    }

    /// A folder with the built-in vocabulary and these tokenizer files besides, or instead.
    fn with_files(files: &[(&str, String)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model_index.json"), "{}").unwrap();
        std::fs::create_dir(dir.path().join("tokenizer")).unwrap();
        let builtin = Repository::builtin();
        for name in ["vocab.json", "merges.txt"] {
            let bytes = builtin.bytes(&format!("tokenizer/{name}")).unwrap();
            std::fs::write(dir.path().join("tokenizer").join(name), &*bytes).unwrap();
        }
        for (name, text) in files {
            std::fs::write(dir.path().join("tokenizer").join(name), text).unwrap();
        }
        dir
    }

    fn open(files: &[(&str, String)]) -> Result<ClipTokenizer> {
        ClipTokenizer::open(&Repository::folder(with_files(files).path()).unwrap(), "tokenizer")
    }

    fn words(tokenizer: &ClipTokenizer, text: &str) -> Vec<u32> {
        let Tokens { ids, count, .. } = tokenizer.encode(text, 77).unwrap();
        ids[1..=count].to_vec()
    }

    #[test]
    fn texts_get_the_ids_that_transformers_gives_them() {
        // transformers 5.23, CLIPTokenizer on the built-in vocabulary.
        let tokenizer = builtin();
        let ids: [(&str, &[u32]); 6] = [
            ("", &[]),
            ("A  Red\tcircle", &[320, 549, 584]),
            ("<|endoftext|> x", &[1850, 343]),
            ("<|EndOfText|>", &[27, 347, 601, 631, 69, 1342, 91, 285]),
            ("it's!!'s 12", &[1004, 894, 0, 0, 262, 338, 272, 273]),
            (
                "é É 日本 🎉 \0 a\u{200b}b",
                &[127, 358, 127, 358, 162, 245, 98, 162, 250, 361, 172, 253, 236, 487, 444, 320, 158, 222, 489, 321],
            ),
        ];
        for (text, expected) in ids {
            assert_eq!(words(&tokenizer, text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_prompt_is_marked_and_padded() {
        let tokens = builtin().encode("a red circle", 8).unwrap();
        assert_eq!(tokens.ids, [1849, 320, 549, 584, 1850, 1850, 1850, 1850]);
        assert_eq!(tokens.mask, [1, 1, 1, 1, 1, 0, 0, 0]);
        assert_eq!((tokens.count, tokens.truncated), (3, None));
    }

    #[test]
    fn a_prompt_that_is_too_long_loses_its_end_and_tells_it() {
        let tokens = builtin().encode("a red circle on a blue background", 6).unwrap();
        assert_eq!((tokens.ids[0], tokens.ids[5], tokens.ids.len()), (1849, 1850, 6));
        assert_eq!((tokens.count, tokens.truncated.as_deref()), (7, Some("a blue background")));
        let fits = builtin().encode("a red circle on", 6).unwrap();
        assert_eq!((fits.mask.as_slice(), fits.truncated), (&[1; 6][..], None));
    }

    #[test]
    fn tokenizer_json_says_the_same_as_vocabulary_and_merges() {
        let builtin_files = Repository::builtin();
        let vocab: serde_json::Value = builtin_files.json("tokenizer/vocab.json").unwrap();
        let merges = builtin_files.bytes("tokenizer/merges.txt").unwrap();
        let lines = std::str::from_utf8(&merges).unwrap().lines().filter(|line| !line.starts_with("#version"));
        let as_lines: Vec<_> = lines.clone().collect();
        let as_pairs: Vec<Vec<_>> = lines.map(|line| line.split(' ').collect()).collect();
        let added = serde_json::json!([{"id": 1850, "content": "<|endoftext|>", "special": true, "normalized": false}]);
        for merges in [serde_json::json!(as_lines), serde_json::json!(as_pairs)] {
            let file = serde_json::json!({"model": {"vocab": vocab, "merges": merges}, "added_tokens": added});
            let dir = with_files(&[("tokenizer.json", file.to_string())]);
            std::fs::remove_file(dir.path().join("tokenizer/vocab.json")).unwrap();
            let tokenizer = ClipTokenizer::open(&Repository::folder(dir.path()).unwrap(), "tokenizer").unwrap();
            let text = "It's a <|endoftext|> RED circle, 12 é";
            assert_eq!(words(&tokenizer, text), words(&builtin(), text));
            assert_eq!(tokenizer.file(), "tokenizer/tokenizer.json");
        }
    }

    #[test]
    fn marks_of_every_age_are_read() {
        // Stable Diffusion 1.5 says that its marks are looked for after lower-casing. Its padding is its end mark
        // without that rule, and counts.
        let mark = |text: &str| format!(r#"{{"__type": "AddedToken", "content": "<|{text}|>", "normalized": true}}"#);
        let (start, end) = (mark("startoftext"), mark("endoftext"));
        let config = format!(r#"{{"bos_token": {start}, "eos_token": {end}, "model_max_length": 77}}"#);
        let normalized = open(&[("tokenizer_config.json", config)]).unwrap();
        assert_eq!(words(&normalized, "<|StartOfText|>"), [1849]);
        assert_eq!(words(&normalized, "<|EndOfText|>"), [27, 347, 601, 631, 69, 1342, 91, 285]);
        assert_eq!(normalized.max_length(), Some(77));

        // Stable Diffusion 2 pads with "!", which is then a mark wherever it stands.
        let pads = open(&[("special_tokens_map.json", r#"{"pad_token": "!"}"#.to_owned())]).unwrap();
        assert_eq!(pads.encode("a!", 6).unwrap().ids, [1849, 320, 0, 1850, 0, 0]);
        assert_eq!(pads.max_length(), None);

        // A textual inversion's tokens follow the vocabulary.
        let added = r#"{"added_tokens_decoder": {"1851": {"content": "<toy>", "special": false}}}"#.to_owned();
        let added = open(&[("tokenizer_config.json", added)]).unwrap();
        assert_eq!((words(&added, "a <Toy>"), added.largest_id()), (vec![320, 1851], 1851));
        let oldest = open(&[("added_tokens.json", r#"{"<toy>": 1851}"#.to_owned())]).unwrap();
        assert_eq!(words(&oldest, "a <toy>"), [320, 1851]);
    }

    #[test]
    fn a_fault_in_the_files_is_told_by_file_and_key() {
        let told = |files: &[(&str, String)]| open(files).err().expect("an error is expected").to_string();
        let config = |text: &str| told(&[("tokenizer_config.json", text.to_owned())]);
        assert!(config(r#"{"padding_side": "left"}"#).starts_with("tokenizer/tokenizer_config.json: padding_side is"));
        assert!(config(r#"{"model_max_length": 1}"#).contains("model_max_length is 1"));
        assert!(told(&[("merges.txt", "a b c".to_owned())]).starts_with("tokenizer/merges.txt: line 1 is \"a b c\""));
        assert!(told(&[("merges.txt", "nota word".to_owned())]).contains("nota"));
        assert!(told(&[("vocab.json", "[]".to_owned())]).starts_with("tokenizer/vocab.json: "));
        let json = r#"{"model": {"vocab": {}, "merges": ["x"]}}"#.to_owned();
        assert!(told(&[("tokenizer.json", json)]).starts_with("tokenizer/tokenizer.json: model.merges[0] is \"x\""));
        let dir = with_files(&[]);
        std::fs::remove_file(dir.path().join("tokenizer/vocab.json")).unwrap();
        let missing = ClipTokenizer::open(&Repository::folder(dir.path()).unwrap(), "tokenizer").err().unwrap();
        assert!(missing.to_string().starts_with("tokenizer/vocab.json: is missing; vocab.json with merges.txt"));
    }
}
