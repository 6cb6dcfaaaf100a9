//! Text encoders and their tokenizers.

mod chat_template;
mod clip;
mod clip_prompt;
mod clip_tokenizer;
mod qwen3;
mod qwen_tokenizer;
mod sentencepiece;
mod t5;
mod t5_prompt;
mod t5_tokenizer;
mod t5_vocabulary;
mod vocabulary;
mod weighting;

pub use clip::{ClipActivation, ClipOutput, ClipText, ClipTextConfig};
pub use clip_prompt::{ClipPrompt, equal_lengths};
pub use clip_tokenizer::{ClipTokenizer, Tokens};
pub use qwen_tokenizer::{QwenTokenizer, Thinking};
pub use qwen3::{Qwen3, Qwen3Config, Qwen3Mask};
pub use t5::{T5Config, T5Encoder};
pub use t5_prompt::T5Prompt;
pub use t5_tokenizer::T5Tokenizer;
