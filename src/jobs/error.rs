//! Why a call on jobs fails.

use std::io::ErrorKind;
use std::time::Duration;

use super::StoreError;
use crate::artifacts::ArtifactError;

/// Why a job was not taken. Nothing has been stored then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// As many jobs wait as may.
    #[error("{max_queue} jobs are waiting already; try again in {} s", retry_after.as_secs())]
    QueueFull {
        /// `limits.max_queue`.
        max_queue: usize,
        /// When there should be room, from the pace of the last jobs; whole seconds.
        retry_after: Duration,
    },
    /// The idempotency key was used for another request.
    #[error("the idempotency key {0:?} was used with another request body; use a new key for a new request")]
    IdempotencyMismatch(String),
    /// The store cannot take it now.
    #[error("the job cannot be stored now: {0}")]
    Unavailable(StoreError),
    /// The server is about to end.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// Why a job cannot be shown or changed.
#[derive(Debug, thiserror::Error)]
pub enum JobsError {
    /// There is none of this id in the caller's workspace.
    #[error("there is no job {0:?}")]
    NotFound(String),
    /// The store cannot answer now.
    #[error(transparent)]
    Unavailable(#[from] StoreError),
    /// The job's pictures cannot be removed now.
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    /// The job was called off and has not ended yet, because the disk is full or the device is stuck.
    #[error("{0} is being canceled and has not ended yet; try again")]
    Busy(String),
}

impl From<ArtifactError> for StoreError {
    /// What a caller is told of a file that cannot be kept with its job.
    fn from(error: ArtifactError) -> Self {
        match error {
            ArtifactError::Io { source, .. } if full(source.kind()) => Self::Full,
            other => Self::Failed(other.to_string()),
        }
    }
}

fn full(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}
