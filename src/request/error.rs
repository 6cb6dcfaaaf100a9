//! Why a request is refused.

use easel_models::Size;

/// Why a request can never succeed. Each message says what was asked and what is possible.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// A field that has no default is absent.
    #[error("`{param}` is required")]
    Missing {
        /// The field.
        param: String,
    },
    /// A field's value is of another JSON type.
    #[error("`{param}` must be {wanted}; it is {found}")]
    WrongType {
        /// The field.
        param: String,
        /// What it takes.
        wanted: String,
        /// What was sent.
        found: String,
    },
    /// A field's value is of the right type but outside of what is allowed.
    #[error("`{param}` must be {wanted}; {asked} was asked")]
    InvalidValue {
        /// The field.
        param: String,
        /// What it takes.
        wanted: String,
        /// What was sent.
        asked: String,
    },
    /// Two fields that exclude each other were both sent.
    #[error("`{param}` and `{other}` contradict each other: {hint}")]
    Contradiction {
        /// The field that should go.
        param: String,
        /// The other one.
        other: String,
        /// How to solve it.
        hint: String,
    },
    /// A field whose feature this server, or this model, does not have.
    #[error("`{param}` is not supported: {why}")]
    Unsupported {
        /// The field, as the caller spelled it.
        param: String,
        /// What is missing, and what to do instead.
        why: String,
    },
    /// A picture that cannot be decoded, or is too large.
    #[error("{what} is not a picture that can be used: {why}")]
    InvalidImage {
        /// The field, as the caller spelled it.
        param: String,
        /// Which picture.
        what: String,
        /// What is wrong with it, and what is possible.
        why: String,
    },
    /// A picture that cannot be fetched.
    #[error("{what} cannot be fetched: {why}")]
    UnreachableImage {
        /// The field, as the caller spelled it.
        param: String,
        /// Which picture.
        what: String,
        /// What happened.
        why: String,
    },
    /// The sampler cannot be set up as asked.
    #[error("{message}")]
    Sampling {
        /// The field at fault.
        param: String,
        /// What was asked and what is possible.
        message: String,
    },
    /// A size that the model cannot make.
    #[error("size {asked} cannot be made by {model}; the nearest it can make is {nearest}")]
    UnsupportedSize {
        /// The field that named it.
        param: String,
        /// The size.
        asked: Size,
        /// The model.
        model: String,
        /// The nearest size that it can make.
        nearest: Size,
    },
    /// A model that is not served.
    #[error("model {asked:?} is not served here; served are {known}")]
    UnknownModel {
        /// The name.
        asked: String,
        /// The names that are served.
        known: String,
    },
}

impl RequestError {
    /// The error's code on the native routes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. }
            | Self::WrongType { .. }
            | Self::InvalidValue { .. }
            | Self::Contradiction { .. }
            | Self::Sampling { .. } => "invalid_request",
            Self::Unsupported { .. } => "unsupported_parameter",
            Self::InvalidImage { .. } => "invalid_image",
            Self::UnreachableImage { .. } => "image_unreachable",
            Self::UnsupportedSize { .. } => "unsupported_size",
            Self::UnknownModel { .. } => "model_not_found",
        }
    }

    /// The field at fault.
    pub fn param(&self) -> &str {
        match self {
            Self::Missing { param }
            | Self::WrongType { param, .. }
            | Self::InvalidValue { param, .. }
            | Self::Contradiction { param, .. }
            | Self::Unsupported { param, .. }
            | Self::InvalidImage { param, .. }
            | Self::UnreachableImage { param, .. }
            | Self::Sampling { param, .. }
            | Self::UnsupportedSize { param, .. } => param,
            Self::UnknownModel { .. } => "model",
        }
    }

    /// The error with its field named as the caller spelled it, so that both find it.
    #[must_use]
    pub fn respelled(mut self, spelling: &[(&'static str, &'static str)]) -> Self {
        if let Self::Missing { param }
        | Self::WrongType { param, .. }
        | Self::InvalidValue { param, .. }
        | Self::Contradiction { param, .. }
        | Self::Unsupported { param, .. }
        | Self::Sampling { param, .. }
        | Self::UnsupportedSize { param, .. } = &mut self
        {
            let (field, rest) = param.split_at(param.find('.').unwrap_or(param.len()));
            if let Some((_, written)) = spelling.iter().find(|(name, _)| *name == field) {
                *param = format!("{written}{rest}");
            }
        }
        self
    }
}
