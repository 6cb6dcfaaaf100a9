//! The pictures that a request brings: how a caller names them, and what is kept of them with the job.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A picture as a request names it.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// The field, as the caller wrote it.
    pub field: &'static str,
    /// Which of the field's pictures, from 1, where there are several.
    pub number: Option<usize>,
    /// Where it is.
    pub source: Source,
}

/// Where a picture that a request names is.
#[derive(Clone, PartialEq)]
pub enum Source {
    /// Behind an address, which may be one of this server's own.
    Url(String),
    /// In the request, as base64.
    Base64(String),
    /// In the request, as a file.
    File(Bytes),
}

impl std::fmt::Debug for Source {
    /// The contents are large, and nobody's business in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Url(url) => f.debug_tuple("Url").field(url).finish(),
            Self::Base64(text) => write!(f, "Base64({} characters)", text.len()),
            Self::File(bytes) => write!(f, "File({} bytes)", bytes.len()),
        }
    }
}

impl std::fmt::Display for Picture {
    /// The picture's name in a message.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.number {
            None => write!(f, "`{}`", self.field),
            Some(number) => write!(f, "picture {number} of `{}`", self.field),
        }
    }
}

/// A picture that is kept with its job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Input {
    /// The file's SHA-256 in hex, which is also where it is kept.
    pub sha256: String,
    /// Pixels across, the file's orientation applied.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// The file's length in bytes.
    pub bytes: u64,
}

/// A mask that is kept with its job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MaskInput {
    /// The file.
    #[serde(flatten)]
    pub file: Input,
    /// Which part of it is painted anew.
    pub painted: Painted,
}

/// Which part of a mask is painted anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Painted {
    /// What is white, as in every dialect but OpenAI's.
    #[default]
    White,
    /// What is transparent, as OpenAI's clients send masks.
    Transparent,
}

/// A request's pictures, found and looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inputs {
    /// What the picture starts from, or what an editing model looks at.
    pub images: Vec<Input>,
    /// The mask.
    pub mask: Option<MaskInput>,
}

/// What happens to a prompt that is longer than the text encoder's context.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LongPrompt {
    /// Its end is left out, as diffusers does.
    #[default]
    Truncate,
    /// It is encoded in chunks, as other tools do.
    Chunk,
}
