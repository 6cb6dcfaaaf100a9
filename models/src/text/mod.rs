//! Text encoders and their tokenizers.

mod clip;
mod clip_prompt;
mod clip_tokenizer;
mod clip_vocabulary;
mod sentencepiece;
mod t5;
mod t5_tokenizer;
mod t5_vocabulary;
mod weighting;

pub use clip::{ClipActivation, ClipOutput, ClipText, ClipTextConfig};
pub use clip_prompt::{ClipPrompt, equal_lengths};
pub use clip_tokenizer::{ClipTokenizer, Tokens};
pub use t5::{T5Config, T5Encoder};
pub use t5_tokenizer::T5Tokenizer;
