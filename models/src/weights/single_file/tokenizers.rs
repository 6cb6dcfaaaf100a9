//! The tokenizers of models that come without one.

use std::sync::Arc;

use serde_json::json;

use crate::weights::repository::Bytes;

/// CLIP's merges, in their order: two ids of two bytes each, the lower byte first.
///
/// Made by `scripts/clip_merges.py` from the vocabulary that OpenAI published with CLIP under the MIT licence.
const CLIP_MERGES: &[u8] = include_bytes!("clip_merges.bin");

/// The pieces of T5's vocabulary, as Google published them under the Apache licence 2.0.
const T5_PIECES: &[u8] = include_bytes!("t5_spiece.model");

/// The mark that CLIP's vocabulary ends words with.
const END_OF_WORD: &str = "</w>";

/// The tokenizer of a text encoder.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tokenizer {
    /// CLIP's, which pads with this token.
    Clip(&'static str, ClipMarks),
    /// T5's, for prompts of this many tokens.
    T5(usize),
}

/// How the files of a family describe CLIP's marks.
#[derive(Debug, Clone, Copy)]
pub(super) enum ClipMarks {
    /// Both are looked for in the normalised text: Stable Diffusion 1, 2 and XL.
    Early,
    /// The end mark is looked for in the text as it stands: Stable Diffusion 3 and FLUX.
    Late,
}

impl Tokenizer {
    /// The class that `model_index.json` names.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Clip(..) => "CLIPTokenizer",
            Self::T5(_) => "T5TokenizerFast",
        }
    }

    /// Its files by their names.
    pub(super) fn files(self) -> Vec<(&'static str, Bytes)> {
        let made = |text: String| Bytes::Owned(Arc::from(text.into_bytes()));
        match self {
            Self::Clip(pad, marks) => {
                let (vocabulary, merges) = clip();
                let mark = |content: &str, normalized: bool| {
                    let rules = json!({
                        "content": content, "lstrip": false, "rstrip": false, "single_word": false,
                        "normalized": normalized,
                    });
                    if content == "!" { json!(content) } else { rules }
                };
                let end = mark("<|endoftext|>", matches!(marks, ClipMarks::Early));
                // The early files have the padding as plain text, which takes the rules from the end mark.
                let padding = match marks {
                    ClipMarks::Early => json!(pad),
                    ClipMarks::Late => mark(pad, false),
                };
                let config = json!({
                    "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": true,
                    "bos_token": mark("<|startoftext|>", true), "eos_token": end, "unk_token": end,
                    "pad_token": padding,
                });
                vec![
                    ("vocab.json", made(vocabulary)),
                    ("merges.txt", made(merges)),
                    ("tokenizer_config.json", made(config.to_string())),
                ]
            }
            Self::T5(length) => {
                let config = json!({
                    "tokenizer_class": "T5Tokenizer", "model_max_length": length, "extra_ids": 100,
                    "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
                });
                vec![("spiece.model", Bytes::Static(T5_PIECES)), ("tokenizer_config.json", made(config.to_string()))]
            }
        }
    }
}

/// CLIP's vocabulary as JSON, and its merges as text.
///
/// A token's id is its place: the 256 bytes, the same at the end of a word, what each merge makes, and the two marks.
fn clip() -> (String, String) {
    let bytes: Vec<String> = byte_letters().into_iter().map(String::from).collect();
    let ends = bytes.iter().map(|byte| format!("{byte}{END_OF_WORD}"));
    let mut tokens: Vec<String> = bytes.iter().cloned().chain(ends).collect();
    let mut merges = String::from("#version: 0.2\n");
    for pair in CLIP_MERGES.chunks_exact(4) {
        let [left, right] = [[pair[0], pair[1]], [pair[2], pair[3]]].map(|id| usize::from(u16::from_le_bytes(id)));
        // The table was made from the vocabulary, and a test holds it to that.
        let (Some(left), Some(right)) = (tokens.get(left), tokens.get(right)) else { break };
        let merged = format!("{left}{right}");
        merges.extend([left, " ", right, "\n"]);
        tokens.push(merged);
    }
    tokens.extend(["<|startoftext|>", "<|endoftext|>"].map(str::to_owned));
    let ids: serde_json::Map<_, _> = tokens.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    (json!(ids).to_string(), merges)
}

/// The letters that stand for bytes: printable ones for themselves, the others from U+0100 on.
fn byte_letters() -> Vec<char> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..);
    let others = (0..=u8::MAX).filter(|byte| !printable(byte)).zip('\u{100}'..).map(|(_, letter)| letter);
    (0..=u8::MAX).filter(printable).map(char::from).chain(others).collect()
}
