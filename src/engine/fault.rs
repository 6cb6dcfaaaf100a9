//! What can go wrong in a call into a model, panics included.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use easel_models::Error;

use super::WorkError;

/// Why a call into a model gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// The device is full; fewer rows may fit.
    OutOfMemory(String),
    /// Anything else, as the job's caller is told.
    Other(WorkError),
}

impl Fault {
    /// What the caller is told when nothing more can be tried.
    pub(super) fn into_error(self) -> WorkError {
        match self {
            Self::OutOfMemory(message) => WorkError::OutOfMemory(message),
            Self::Other(error) => error,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::OutOfMemory(message) => Self::OutOfMemory(message),
            Error::Request { param, message } => Self::Other(WorkError::Request { param, message }),
            Error::Sampler(error) => {
                Self::Other(WorkError::Request { param: error.param, message: error.message.clone() })
            }
            other => Self::Other(WorkError::Internal(other.to_string())),
        }
    }
}

/// Calls into a model. A panic there must not take the engine, and with it every other job, down: it becomes an
/// internal error of the rows in the call. Unwinding is safe because a model has no state of its own between calls, and
/// a row's state is its sampler's: rows of such a call are tried again alone, and those that panic again are dropped.
pub(super) fn guarded<T>(what: &str, call: impl FnOnce() -> easel_models::Result<T>) -> Result<T, Fault> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => Ok(result?),
        Err(payload) => {
            let message = panic_message(payload.as_ref());
            tracing::error!(call = what, message, "a model panicked");
            Err(Fault::Other(WorkError::Internal(format!("the model panicked in {what}: {message}"))))
        }
    }
}

/// The text of a panic.
pub(super) fn panic_message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use easel_models::samplers::SamplerError;

    use super::*;

    #[test]
    fn a_panic_becomes_an_internal_error_with_its_message() {
        let fault = guarded::<()>("denoise", || panic!("no such layer")).unwrap_err();
        let expected = "the model panicked in denoise: no such layer";
        assert_eq!(fault, Fault::Other(WorkError::Internal(expected.into())));
    }

    #[test]
    fn errors_keep_the_field_that_they_name() {
        let sampler = Error::Sampler(SamplerError { param: "schedule", message: "no such schedule".into() });
        let expected = WorkError::Request { param: "schedule", message: "no such schedule".into() };
        assert_eq!(Fault::from(sampler).into_error(), expected);
        assert_eq!(Fault::from(Error::OutOfMemory("full".into())), Fault::OutOfMemory("full".into()));
    }
}
