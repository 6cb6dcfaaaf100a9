//! What can go wrong with the hub, in words that say what to do.

use std::io::ErrorKind;
use std::time::Duration;

use hf_hub::HFError;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::name::HubName;
use crate::Error;

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another attempt may well succeed: the network, or a server that is busy.
    Passing {
        /// What happened.
        message: String,
        /// How long the server wants to be left alone.
        wait: Option<Duration>,
    },
    /// It will fail again.
    Lasting(String),
}

impl Failure {
    /// The failure of a request that got no answer, or whose answer broke off.
    pub(super) fn network(error: &reqwest::Error) -> Self {
        Self::Passing { message: reasons(error), wait: None }
    }

    /// The failure of the disk.
    pub(super) fn disk(error: &std::io::Error, path: &std::path::Path, left: u64) -> Self {
        let path = path.display();
        Self::Lasting(if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
            format!(
                "the disk is full: {} MiB more are needed at {path}; make room, or name another place with HF_HUB_CACHE. \
                 What has arrived is kept, and the next attempt goes on from there",
                left.div_ceil(1 << 20)
            )
        } else {
            format!("{path}: {error}")
        })
    }
}

/// An error with what caused it, the parts of reqwest's that say nothing on their own included.
pub(super) fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// What the hub says beside its status.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// `X-Error-Code`: `GatedRepo`, `RepoNotFound`, `RevisionNotFound`, `EntryNotFound`.
    pub(super) code: Option<String>,
    pub(super) message: Option<String>,
    pub(super) wait: Option<Duration>,
}

impl Answer {
    pub(super) fn new(status: StatusCode, headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let wait = text(RETRY_AFTER.as_str()).and_then(|seconds| seconds.trim().parse().ok()).map(Duration::from_secs);
        Self { status, code: text("x-error-code"), message: text("x-error-message"), wait }
    }

    /// What this answer means for a file, or for the repository where `file` is none.
    pub(super) fn failure(&self, name: &HubName, endpoint: &str, file: Option<&str>) -> Failure {
        let id = name.id();
        let said = self.message.as_deref().map(|message| format!(" ({message})")).unwrap_or_default();
        let status = self.status.as_u16();
        let code = self.code.as_deref().unwrap_or_default();
        let token = "set HF_TOKEN to a token that may read it";
        let message = match (status, code) {
            (_, "GatedRepo") => format!(
                "is gated ({status}): accept its licence at {endpoint}/{id} with your account, and {token}{said}"
            ),
            // Without a token the hub tells of no repository whether it exists.
            (401, "RepoNotFound") => {
                format!("there is no public repository {id} at {endpoint}; if it is private, {token}{said}")
            }
            (401, _) => format!(
                "{endpoint} wants a token (401), or does not know the one it got: if the repository is gated, accept its licence \
                 at {endpoint}/{id}; then {token}{said}"
            ),
            (403, _) => format!(
                "{endpoint} does not let this token read it (403): accept the licence at {endpoint}/{id} if it is gated, and \
                 {token}{said}"
            ),
            (404, "RevisionNotFound") => {
                format!("{id} at {endpoint} has no revision {:?}: no branch, tag or commit of this name", name.revision)
            }
            (404, "RepoNotFound") => format!("there is no repository {id} at {endpoint}; if it is private, {token}"),
            (404, _) => match file {
                Some(file) => format!("{id} has no file {file} at {}", name.revision),
                None => format!("{endpoint} knows no repository {id}, or no revision {} of it", name.revision),
            },
            (408 | 429 | 500..=599, _) => {
                return Failure::Passing {
                    message: format!("{endpoint} answers {}{said}", self.status),
                    wait: self.wait,
                };
            }
            _ => format!("{endpoint} answers {}{said}", self.status),
        };
        Failure::Lasting(message)
    }
}

/// What an error of hf-hub means for the repository.
pub(super) fn of_hub(error: &HFError, name: &HubName, endpoint: &str) -> Failure {
    // hf-hub keeps the type of its contexts to itself, so only their fields can be passed on.
    let answer = |status: StatusCode, code: &Option<String>, message: &Option<String>, wait: Option<Duration>| {
        Answer { status, code: code.clone(), message: message.clone(), wait }.failure(name, endpoint, None)
    };
    match error {
        HFError::AuthRequired { context: at }
        | HFError::Forbidden { context: at }
        | HFError::Http { context: at }
        | HFError::RepoNotFound { context: Some(at), .. }
        | HFError::RevisionNotFound { context: Some(at), .. } => {
            answer(at.status, &at.error_code, &at.server_message, None)
        }
        HFError::RateLimited { retry_after, context: at } => {
            answer(at.status, &at.error_code, &at.server_message, *retry_after)
        }
        HFError::Request { source, .. } => Failure::network(source),
        other => Failure::Lasting(reasons(other)),
    }
}

/// A failure as the error of a repository.
pub(super) fn error(name: &HubName, message: impl std::fmt::Display) -> Error {
    Error::file(name.to_string(), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_how_much_is_missing_and_where() {
        let failure = Failure::disk(&ErrorKind::StorageFull.into(), std::path::Path::new("/cache/blobs/x"), 3 << 30);
        let Failure::Lasting(message) = failure else { panic!("it does not pass by itself") };
        assert!(message.starts_with("the disk is full: 3072 MiB more are needed at /cache/blobs/x"), "{message}");
        assert!(message.contains("HF_HUB_CACHE"), "{message}");
    }
}
