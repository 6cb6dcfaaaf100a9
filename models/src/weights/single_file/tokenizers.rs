//! The tokenizers of models that come without one.

use std::sync::Arc;

use serde_json::json;

use crate::weights::files::Bytes;

/// CLIP's merges in their order: two ids of two bytes each, the lower byte first.
///
/// Made by `scripts/tokenizer_merges.py` from the vocabulary that OpenAI published with CLIP under the MIT licence.
const CLIP_MERGES: &[u8] = include_bytes!("clip_merges.bin");

/// Qwen's merges, with ids of three bytes.
///
/// Made by the same script from the vocabulary that Alibaba Cloud publishes under the Apache licence 2.0.
const QWEN_MERGES: &[u8] = include_bytes!("qwen_merges.bin");

/// Qwen3's marks, whose ids follow the vocabulary's, and whether they are left out where text is decoded.
const QWEN3_MARKS: [(&str, bool); 26] = [
    ("<|endoftext|>", true),
    ("<|im_start|>", true),
    ("<|im_end|>", true),
    ("<|object_ref_start|>", true),
    ("<|object_ref_end|>", true),
    ("<|box_start|>", true),
    ("<|box_end|>", true),
    ("<|quad_start|>", true),
    ("<|quad_end|>", true),
    ("<|vision_start|>", true),
    ("<|vision_end|>", true),
    ("<|vision_pad|>", true),
    ("<|image_pad|>", true),
    ("<|video_pad|>", true),
    ("<tool_call>", false),
    ("</tool_call>", false),
    ("<|fim_prefix|>", false),
    ("<|fim_middle|>", false),
    ("<|fim_suffix|>", false),
    ("<|fim_pad|>", false),
    ("<|repo_name|>", false),
    ("<|file_sep|>", false),
    ("<tool_response>", false),
    ("</tool_response>", false),
    ("<think>", false),
    ("</think>", false),
];

/// What Qwen3's chat template makes of messages without tools.
const QWEN3_TEMPLATE: &str = "{%- for message in messages -%}\
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' -}}\
    {%- endfor -%}\
    {%- if add_generation_prompt -%}\
    {{- '<|im_start|>assistant\\n' -}}\
    {%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}\
    {%- endif -%}";

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
    /// Qwen3's.
    Qwen3,
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
            Self::Qwen3 => "Qwen2TokenizerFast",
        }
    }

    /// Its files by their names.
    pub(super) fn files(self) -> Vec<(&'static str, Bytes)> {
        match self {
            Self::Clip(pad, marks) => clip(pad, marks),
            Self::T5(length) => t5(length),
            Self::Qwen3 => qwen3(),
        }
    }
}

/// A file that was made up.
fn made(text: String) -> Bytes {
    Bytes::Owned(Arc::from(text.into_bytes()))
}

/// The files of CLIP's tokenizer.
fn clip(pad: &str, marks: ClipMarks) -> Vec<(&'static str, Bytes)> {
    let bytes: Vec<String> = byte_letters().into_iter().map(String::from).collect();
    let ends = bytes.iter().map(|byte| format!("{byte}{END_OF_WORD}"));
    let (mut tokens, merges) = merged(bytes.iter().cloned().chain(ends).collect(), CLIP_MERGES, 2);
    tokens.extend(["<|startoftext|>", "<|endoftext|>"].map(str::to_owned));
    let mark = |content: &str, normalized: bool| {
        json!({
            "content": content, "lstrip": false, "rstrip": false, "single_word": false, "normalized": normalized,
        })
    };
    let end = mark("<|endoftext|>", matches!(marks, ClipMarks::Early));
    // The early files have the padding as plain text.
    let padding = match marks {
        ClipMarks::Early => json!(pad),
        ClipMarks::Late => mark(pad, false),
    };
    let config = json!({
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": true,
        "bos_token": mark("<|startoftext|>", true), "eos_token": end, "unk_token": end, "pad_token": padding,
    });
    vec![
        ("vocab.json", made(ids(tokens))),
        ("merges.txt", made(merges)),
        ("tokenizer_config.json", made(config.to_string())),
    ]
}

/// The files of T5's tokenizer.
fn t5(length: usize) -> Vec<(&'static str, Bytes)> {
    let config = json!({
        "tokenizer_class": "T5Tokenizer", "model_max_length": length, "extra_ids": 100,
        "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
    });
    vec![("spiece.model", Bytes::Static(T5_PIECES)), ("tokenizer_config.json", made(config.to_string()))]
}

/// The files of Qwen3's tokenizer.
fn qwen3() -> Vec<(&'static str, Bytes)> {
    let (tokens, merges) = merged(byte_letters().into_iter().map(String::from).collect(), QWEN_MERGES, 3);
    let marks = QWEN3_MARKS.iter().zip(tokens.len()..).map(|(&(content, special), id)| {
        let mark = json!({
            "content": content, "lstrip": false, "rstrip": false, "single_word": false, "normalized": false,
            "special": special,
        });
        (id.to_string(), mark)
    });
    let config = json!({
        "tokenizer_class": "Qwen2Tokenizer", "model_max_length": 131_072, "chat_template": QWEN3_TEMPLATE,
        "added_tokens_decoder": marks.collect::<serde_json::Map<_, _>>(),
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": null, "unk_token": null,
        "add_bos_token": false, "add_prefix_space": false, "split_special_tokens": false, "errors": "replace",
    });
    vec![
        ("vocab.json", made(ids(tokens))),
        ("merges.txt", made(merges)),
        ("tokenizer_config.json", made(config.to_string())),
    ]
}

/// All tokens of a vocabulary that begins with `tokens`, and its merges as text: a token's id is its place.
fn merged(mut tokens: Vec<String>, table: &[u8], size: usize) -> (Vec<String>, String) {
    let id = |bytes: &[u8]| bytes.iter().rev().fold(0, |id, &byte| id << 8 | usize::from(byte));
    let mut merges = String::from("#version: 0.2\n");
    for pair in table.chunks_exact(2 * size) {
        let (left, right) = pair.split_at(size);
        // The table was made from the vocabulary, and a test holds it to that.
        let (Some(left), Some(right)) = (tokens.get(id(left)), tokens.get(id(right))) else { break };
        let token = format!("{left}{right}");
        merges.extend([left, " ", right, "\n"]);
        tokens.push(token);
    }
    (tokens, merges)
}

/// `vocab.json` of these tokens.
fn ids(tokens: Vec<String>) -> String {
    let ids: serde_json::Map<_, _> = tokens.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    json!(ids).to_string()
}

/// The letters that stand for bytes: printable ones for themselves, the others from U+0100 on.
fn byte_letters() -> Vec<char> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..);
    let others = (0..=u8::MAX).filter(|byte| !printable(byte)).zip('\u{100}'..).map(|(_, letter)| letter);
    (0..=u8::MAX).filter(printable).map(char::from).chain(others).collect()
}
