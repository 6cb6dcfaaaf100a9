//! The files that a byte-level BPE tokenizer (CLIP's, Qwen's) is kept in, of every age.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Deserialize;
use tokenizers::AddedToken;

use crate::weights::Repository;
use crate::{Error, Result};

/// Lengths from here on in `model_max_length` are transformers' way to say that none is known.
const NO_LENGTH: f64 = 1e9;

/// The end mark, which is the padding and the unknown token, too, where the files name no other.
const END_MARK: &str = "<|endoftext|>";

/// A vocabulary, its merges and its marks.
pub(super) struct Vocabulary {
    /// The file that the vocabulary was read from.
    pub(super) file: String,
    pub(super) ids: HashMap<String, u32>,
    pub(super) merges: Vec<(String, String)>,
    /// Tokens that are found in a text before it is split, in the order in which they get their ids.
    pub(super) added: Vec<AddedToken>,
    /// The start mark; `None` of a tokenizer that has none.
    pub(super) start: Option<String>,
    pub(super) end: String,
    pub(super) pad: String,
    pub(super) unknown: String,
    pub(super) max_length: Option<usize>,
    /// Where padding goes.
    pub(super) padding: Side,
    /// Where a text that is too long loses tokens.
    pub(super) truncation: Side,
}

/// An end of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Side {
    /// Its beginning.
    Left,
    /// Its end.
    #[default]
    Right,
}

/// A mark: its text, or an object that has it.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Mark {
    Text(String),
    Token(Token),
}

/// An added token as `tokenizers` writes it.
#[derive(Clone, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "the file's own form")]
pub(super) struct Token {
    pub(super) content: String,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    single_word: bool,
    normalized: Option<bool>,
    #[serde(default)]
    pub(super) special: bool,
}

impl Token {
    /// A token of which only the text is known.
    pub(super) fn new(content: String, special: bool) -> Self {
        Self { content, lstrip: false, rstrip: false, single_word: false, normalized: Some(!special), special }
    }

    /// A token that is looked for in the text as it was written.
    pub(super) fn unsplit(content: String, special: bool) -> Self {
        Self { normalized: Some(false), ..Self::new(content, special) }
    }

    pub(super) fn added(&self, special: bool) -> AddedToken {
        AddedToken::from(self.content.clone(), special)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .single_word(self.single_word)
            // A special token is looked for in the text as it was written, another one after normalisation.
            .normalized(self.normalized.unwrap_or(!special))
    }
}

impl Mark {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Token(token) => &token.content,
        }
    }

    pub(super) fn added(&self) -> AddedToken {
        match self {
            Self::Text(text) => AddedToken::from(text.clone(), true),
            Self::Token(token) => token.added(true),
        }
    }
}

/// The keys of `tokenizer_config.json` and `special_tokens_map.json` that have an effect.
#[derive(Default, Deserialize)]
struct Config {
    bos_token: Option<Mark>,
    eos_token: Option<Mark>,
    unk_token: Option<Mark>,
    pad_token: Option<Mark>,
    model_max_length: Option<f64>,
    padding_side: Option<Side>,
    truncation_side: Option<Side>,
    added_tokens_decoder: Option<BTreeMap<u32, Token>>,
}

/// The keys of `tokenizer.json` that have an effect; transformers makes the rest of these tokenizers anew, too.
#[derive(Deserialize)]
struct TokenizerFile {
    model: Bpe,
    #[serde(default)]
    added_tokens: Vec<NumberedToken>,
    padding: Option<Directed>,
    truncation: Option<Directed>,
}

/// Padding or truncation that was switched on when `tokenizer.json` was written.
#[derive(Deserialize)]
struct Directed {
    direction: DirectedSide,
}

/// [`Side`] as `tokenizers` spells it.
#[derive(Deserialize)]
enum DirectedSide {
    Left,
    Right,
}

impl Directed {
    fn side(&self) -> Side {
        match self.direction {
            DirectedSide::Left => Side::Left,
            DirectedSide::Right => Side::Right,
        }
    }
}

/// An added token with its id, as `tokenizer.json` lists them.
#[derive(Deserialize)]
pub(super) struct NumberedToken {
    pub(super) id: u32,
    #[serde(flatten)]
    pub(super) token: Token,
}

#[derive(Deserialize)]
struct Bpe {
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

/// A merge in `tokenizer.json`: "a b" in older files, ["a", "b"] in newer ones.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Line(String),
    Pair(String, String),
}

impl Vocabulary {
    /// Reads the tokenizer files in the folder `part`; `start` is the start mark where the files name none.
    pub(super) fn read(repository: &Repository, part: &str, start: Option<&str>) -> Result<Self> {
        let config_file = format!("{part}/tokenizer_config.json");
        let mut config: Config = repository.try_json(&config_file)?.unwrap_or_default();
        let Words { file, ids, merges, numbered, padding, truncation } = read_words(repository, part)?;
        let sides = (config.padding_side.or(padding), config.truncation_side.or(truncation));

        // Newer files say everything in `added_tokens_decoder`; only where it is absent do the older places count.
        let added = match config.added_tokens_decoder.take() {
            Some(added) => added,
            None => {
                let map: Config = repository.try_json(&format!("{part}/special_tokens_map.json"))?.unwrap_or_default();
                config.bos_token = map.bos_token.or(config.bos_token);
                config.eos_token = map.eos_token.or(config.eos_token);
                config.unk_token = map.unk_token.or(config.unk_token);
                config.pad_token = map.pad_token.or(config.pad_token);
                let mut added = read_added_tokens(repository, part, &config)?;
                added.extend(numbered.into_iter().map(|NumberedToken { id, token }| (id, token)));
                added
            }
        };

        let or = |mark: Option<Mark>, default: &str| mark.unwrap_or_else(|| Mark::Text(default.to_owned()));
        let start = config.bos_token.or_else(|| Some(Mark::Text(start?.to_owned())));
        let end = or(config.eos_token, END_MARK);
        let unknown = or(config.unk_token, END_MARK);
        let pad = or(config.pad_token, END_MARK);
        let marks: Vec<&Mark> = start.iter().chain([&end, &unknown, &pad]).collect();
        let named: BTreeSet<&str> = marks.iter().map(|mark| mark.text()).collect();

        let mut tokens: Vec<AddedToken> =
            added.values().map(|token| token.added(token.special || named.contains(token.content.as_str()))).collect();
        // transformers adds the marks one after the other: of two with one text, the later one's rules count. Stable
        // Diffusion's end mark is looked for before normalisation, because its padding is the same text without rules.
        let stored = tokens.len();
        for &mark in &marks {
            match tokens.iter().position(|token| token.content == mark.text()) {
                Some(at) if at < stored => {}
                Some(at) => tokens[at] = mark.added(),
                None => tokens.push(mark.added()),
            }
        }
        let max_length = match config.model_max_length {
            Some(length) if length < 2.0 || length.fract() != 0.0 => {
                let expected = "a whole number from 2 on is expected";
                return Err(Error::file(config_file, format_args!("model_max_length is {length}; {expected}")));
            }
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and in range, see above")]
            Some(length) if length < NO_LENGTH => Some(length as usize),
            _ => None,
        };
        let start = start.as_ref().map(|mark| mark.text().to_owned());
        let [end, unknown, pad] = [end, unknown, pad].map(|mark| mark.text().to_owned());
        let (padding, truncation) = (sides.0.unwrap_or_default(), sides.1.unwrap_or_default());
        Ok(Self { file, ids, merges, added: tokens, start, end, pad, unknown, max_length, padding, truncation })
    }
}

/// What the vocabulary's file itself says.
struct Words {
    file: String,
    ids: HashMap<String, u32>,
    merges: Vec<(String, String)>,
    numbered: Vec<NumberedToken>,
    padding: Option<Side>,
    truncation: Option<Side>,
}

/// Reads vocabulary and merges from `tokenizer.json`, else from `vocab.json` and `merges.txt`.
fn read_words(repository: &Repository, part: &str) -> Result<Words> {
    let file = format!("{part}/tokenizer.json");
    if let Some(TokenizerFile { model, added_tokens, padding, truncation }) = repository.try_json(&file)? {
        let merges = model.merges.into_iter().enumerate().map(|(at, merge)| match merge {
            Merge::Pair(left, right) => Ok((left, right)),
            Merge::Line(line) => split_merge(&line).ok_or_else(|| {
                Error::file(file.as_str(), format_args!("model.merges[{at}] is {line:?}, not two tokens"))
            }),
        });
        let merges = merges.collect::<Result<_>>()?;
        return Ok(Words {
            file,
            ids: model.vocab,
            merges,
            numbered: added_tokens,
            padding: padding.as_ref().map(Directed::side),
            truncation: truncation.as_ref().map(Directed::side),
        });
    }
    let file = format!("{part}/vocab.json");
    let Some(ids) = repository.try_json(&file)? else {
        return Err(Error::file(file, "is missing; vocab.json with merges.txt, or tokenizer.json, is expected"));
    };
    let merges_file = format!("{part}/merges.txt");
    let text = repository.text(&merges_file)?;
    let merges = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.starts_with("#version") && !line.is_empty())
        .map(|(at, line)| {
            let number = at + 1;
            split_merge(line).ok_or_else(|| {
                Error::file(merges_file.as_str(), format_args!("line {number} is {line:?}, not two tokens"))
            })
        })
        .collect::<Result<_>>()?;
    Ok(Words { file, ids, merges, numbered: Vec::new(), padding: None, truncation: None })
}

/// The two tokens of a merge's line.
fn split_merge(line: &str) -> Option<(String, String)> {
    let (left, right) = line.split_once(' ')?;
    (!left.is_empty() && !right.is_empty() && !right.contains(' ')).then(|| (left.to_owned(), right.to_owned()))
}

/// Reads the oldest place of tokens beyond the vocabulary: `added_tokens.json`, which has nothing but their ids.
fn read_added_tokens(repository: &Repository, part: &str, config: &Config) -> Result<BTreeMap<u32, Token>> {
    let ids: HashMap<String, u32> = repository.try_json(&format!("{part}/added_tokens.json"))?.unwrap_or_default();
    let named = [&config.bos_token, &config.eos_token, &config.unk_token, &config.pad_token];
    let token = |content: String| {
        let special = named.iter().any(|mark| mark.as_ref().is_some_and(|mark| mark.text() == content));
        Token::new(content, special)
    };
    Ok(ids.into_iter().map(|(content, id)| (id, token(content))).collect())
}
