//! The files that a T5 tokenizer is kept in, of every age.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use base64::Engine;
use prost::Message;
use serde::Deserialize;
use tokenizers::AddedToken;
use tokenizers::normalizers::Precompiled;

use super::sentencepiece::{Kind, Model, charsmap};
use super::vocabulary::{Mark, NumberedToken, Token};
use crate::weights::Repository;
use crate::{Error, Result};

/// The sentinels of T5's training beyond SentencePiece's vocabulary, where no file says how many there are.
const EXTRA_IDS: usize = 100;

/// SentencePiece's number for the only kind of model that T5 uses.
const UNIGRAM: i32 = 1;

/// A vocabulary, its marks, and how texts are normalised.
pub(super) struct Vocabulary {
    /// The file that the vocabulary was read from.
    pub(super) file: String,
    /// The tokens with the logarithms of their probabilities, in the order of their ids.
    pub(super) words: Vec<(String, f64)>,
    pub(super) normalizer: Option<Precompiled>,
    /// Tokens that are found in a text before it is split, in the order in which they get their ids.
    pub(super) added: Vec<AddedToken>,
    pub(super) end: String,
    pub(super) pad: String,
    /// Whether marks in a text are not taken for marks.
    pub(super) split_special_tokens: bool,
}

/// The keys of `tokenizer_config.json` and `special_tokens_map.json` that have an effect.
#[derive(Default, Deserialize)]
struct Config {
    bos_token: Option<Mark>,
    eos_token: Option<Mark>,
    unk_token: Option<Mark>,
    sep_token: Option<Mark>,
    pad_token: Option<Mark>,
    cls_token: Option<Mark>,
    mask_token: Option<Mark>,
    additional_special_tokens: Option<Vec<Mark>>,
    extra_special_tokens: Option<Marks>,
    extra_ids: Option<usize>,
    padding_side: Option<String>,
    truncation_side: Option<String>,
    added_tokens_decoder: Option<BTreeMap<u32, Token>>,
    #[serde(default)]
    split_special_tokens: bool,
}

/// Marks in a list, or by names that do not matter here.
#[derive(Deserialize)]
#[serde(untagged)]
enum Marks {
    List(Vec<Mark>),
    Named(BTreeMap<String, Mark>),
}

/// The keys of `tokenizer.json` that have an effect; transformers makes the rest of a T5 tokenizer anew, too.
#[derive(Deserialize)]
struct TokenizerFile {
    model: Unigram,
    normalizer: Option<Normalizer>,
    #[serde(default)]
    added_tokens: Vec<NumberedToken>,
}

#[derive(Deserialize)]
struct Unigram {
    vocab: Vec<(String, f64)>,
}

#[derive(Deserialize)]
struct Normalizer {
    precompiled_charsmap: Option<String>,
    #[serde(default)]
    normalizers: Vec<Normalizer>,
}

/// What the vocabulary's own file tells.
struct Words {
    file: String,
    words: Vec<(String, f64)>,
    normalizer: Option<Precompiled>,
    numbered: Vec<NumberedToken>,
    /// Marks that the file itself knows.
    marks: Vec<Mark>,
}

impl Vocabulary {
    /// Reads the tokenizer files in the folder `part`.
    pub(super) fn read(repository: &Repository, part: &str) -> Result<Self> {
        let config_file = format!("{part}/tokenizer_config.json");
        let mut config: Config = repository.try_json(&config_file)?.unwrap_or_default();
        for (key, side) in [("padding_side", &config.padding_side), ("truncation_side", &config.truncation_side)] {
            if side.as_deref().is_some_and(|side| side != "right") {
                return Err(Error::file(config_file, format_args!("{key} is {side:?}; T5's is \"right\"")));
            }
        }
        let extra_ids = config.extra_ids.unwrap_or(EXTRA_IDS);
        let Words { file, words, normalizer, numbered, marks } = read_words(repository, part, extra_ids)?;

        // Where the configuration lists special tokens, those of the vocabulary's file do not count.
        let mut listed = config.extra_special_tokens.take();
        if listed.as_ref().is_none_or(|marks| matches!(marks, Marks::List(list) if list.is_empty())) {
            listed = config.additional_special_tokens.take().map(Marks::List).or(listed);
        }
        let mut own = marks;
        // Newer files say everything in `added_tokens_decoder`; only where it is absent do the older places count.
        let stored = match config.added_tokens_decoder.take() {
            Some(stored) => stored,
            None => {
                let map: Config = repository.try_json(&format!("{part}/special_tokens_map.json"))?.unwrap_or_default();
                if own.is_empty() {
                    own = map.additional_special_tokens.unwrap_or_default();
                }
                listed = map.extra_special_tokens.or(listed);
                config.bos_token = map.bos_token.or(config.bos_token);
                config.eos_token = map.eos_token.or(config.eos_token);
                config.unk_token = map.unk_token.or(config.unk_token);
                config.sep_token = map.sep_token.or(config.sep_token);
                config.pad_token = map.pad_token.or(config.pad_token);
                config.cls_token = map.cls_token.or(config.cls_token);
                config.mask_token = map.mask_token.or(config.mask_token);
                let special = [&config.bos_token, &config.eos_token, &config.unk_token, &config.pad_token];
                let special: BTreeSet<&str> = special.into_iter().flatten().map(Mark::text).collect();
                let mut stored = read_added_tokens(repository, part, &special)?;
                stored.extend(numbered.into_iter().map(|NumberedToken { id, token }| (id, token)));
                stored
            }
        };
        if !own.iter().any(|mark| mark.text().contains("<extra_id_")) {
            own.extend((0..extra_ids).map(|at| Mark::Text(format!("<extra_id_{at}>"))));
        }

        let or = |mark: Option<Mark>, default: &str| mark.unwrap_or_else(|| Mark::Text(default.to_owned()));
        let end = or(config.eos_token, "</s>");
        let unknown = or(config.unk_token, "<unk>");
        let pad = or(config.pad_token, "<pad>");
        let (end_text, pad_text) = (end.text().to_owned(), pad.text().to_owned());
        let named = [config.bos_token, Some(end), Some(unknown), config.sep_token, Some(pad), config.cls_token];
        let mut named: Vec<Mark> = named.into_iter().chain([config.mask_token]).flatten().collect();
        let listed = match listed {
            None => own,
            Some(Marks::List(list)) => list,
            Some(Marks::Named(marks)) => {
                named.extend(marks.into_values());
                own
            }
        };
        let mut added: Vec<AddedToken> = {
            let named: BTreeSet<&str> = named.iter().map(Mark::text).collect();
            let special = |token: &Token| token.special || named.contains(token.content.as_str());
            stored.values().map(|token| token.added(special(token))).collect()
        };
        for mark in named.iter().chain(&listed) {
            if !added.iter().any(|token| token.content == mark.text()) {
                added.push(mark.added());
            }
        }
        let split_special_tokens = config.split_special_tokens;
        Ok(Self { file, words, normalizer, added, end: end_text, pad: pad_text, split_special_tokens })
    }
}

/// Reads the vocabulary from `tokenizer.json`, else from `spiece.model`.
fn read_words(repository: &Repository, part: &str, extra_ids: usize) -> Result<Words> {
    let file = format!("{part}/tokenizer.json");
    if let Some(TokenizerFile { model, normalizer, added_tokens }) = repository.try_json(&file)? {
        let fault = |message: String| Error::file(file.as_str(), format_args!("precompiled_charsmap {message}"));
        let table = normalizer.and_then(|Normalizer { precompiled_charsmap, normalizers }| {
            precompiled_charsmap.or_else(|| normalizers.into_iter().find_map(|one| one.precompiled_charsmap))
        });
        let table = table.map(|text| base64::prelude::BASE64_STANDARD.decode(text)).transpose();
        let table = table.map_err(|error| fault(format!("is no base64: {error}")))?;
        let normalizer = table.map(|table| charsmap(&table)).transpose().map_err(fault)?;
        return Ok(Words { file, words: model.vocab, normalizer, numbered: added_tokens, marks: Vec::new() });
    }
    let file = format!("{part}/spiece.model");
    let Some(bytes) = repository.try_bytes(&file)? else {
        return Err(Error::file(file, "is missing; spiece.model or tokenizer.json is expected"));
    };
    let model = Model::decode(&*bytes).map_err(|error| Error::file(file.as_str(), error))?;
    let kind = model.trainer_spec.and_then(|spec| spec.model_type).unwrap_or(UNIGRAM);
    if kind != UNIGRAM {
        let message = format_args!("trainer_spec.model_type is {kind}; a unigram model, {UNIGRAM}, is expected");
        return Err(Error::file(file, message));
    }
    let table = model.normalizer_spec.and_then(|spec| spec.precompiled_charsmap).filter(|table| !table.is_empty());
    let normalizer = table.map(|table| charsmap(&table)).transpose();
    let normalizer =
        normalizer.map_err(|message| Error::file(file.as_str(), format!("precompiled_charsmap {message}")))?;
    let mark = |kind: Option<i32>, text: &str| {
        let special = kind == Some(Kind::Control as i32);
        (special || kind == Some(Kind::UserDefined as i32))
            .then(|| Mark::Token(Token::unsplit(text.to_owned(), special)))
    };
    let marks = model.pieces.iter().filter_map(|piece| mark(piece.kind, &piece.piece)).collect();
    let pieces = model.pieces.into_iter().map(|piece| (piece.piece, f64::from(piece.score)));
    let sentinels = (0..extra_ids).rev().map(|at| (format!("<extra_id_{at}>"), 0.0));
    Ok(Words { words: pieces.chain(sentinels).collect(), file, normalizer, numbered: Vec::new(), marks })
}

/// Reads the oldest place of tokens beyond the vocabulary: `added_tokens.json`, which has nothing but their ids.
fn read_added_tokens(repository: &Repository, part: &str, special: &BTreeSet<&str>) -> Result<BTreeMap<u32, Token>> {
    let ids: HashMap<String, u32> = repository.try_json(&format!("{part}/added_tokens.json"))?.unwrap_or_default();
    let token = |content: String| {
        let special = special.contains(content.as_str());
        Token::new(content, special)
    };
    Ok(ids.into_iter().map(|(content, id)| (id, token(content))).collect())
}
