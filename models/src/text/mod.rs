//! Text encoders and their tokenizers.

mod clip;
mod clip_tokenizer;
mod clip_vocabulary;

pub use clip::{ClipActivation, ClipOutput, ClipText, ClipTextConfig};
pub use clip_tokenizer::{ClipTokenizer, Tokens};
