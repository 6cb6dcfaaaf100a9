//! What can go wrong below the server.

use crate::samplers::SamplerError;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while a model is opened or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the model is missing, damaged or contradicts another.
    #[error("{file}: {message}")]
    File {
        /// The file, relative to the model's root where there is one.
        file: String,
        /// What is wrong, naming the key where one is at fault.
        message: String,
    },
    /// The model is of a kind that easel does not run.
    #[error("{0}")]
    Unsupported(String),
    /// The asked sampler, schedule or step count cannot be combined.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// A request asks of the model what it cannot do; the server validates first, so this is its second line.
    #[error("{param}: {message}")]
    Request {
        /// The request field at fault, in the native vocabulary.
        param: &'static str,
        /// What was asked and what is possible.
        message: String,
    },
    /// The device ran out of memory; the caller may retry with fewer rows.
    #[error("out of memory on the device: {0}")]
    OutOfMemory(String),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(candle_core::Error),
}

impl Error {
    /// An error in `file`, which should be named relative to the model's root.
    pub fn file(file: impl Into<String>, message: impl std::fmt::Display) -> Self {
        Self::File { file: file.into(), message: message.to_string() }
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        // candle reports a full device as a driver error; the text is all there is to tell it by.
        let text = error.to_string();
        if text.contains("OUT_OF_MEMORY") || text.contains("out of memory") {
            Self::OutOfMemory(text)
        } else {
            Self::Tensor(error)
        }
    }
}
