//! Query parameters, with errors that name them.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;

use super::errors::{ApiError, Code};

/// A request's query parameters. Unknown ones are ignored: vendors' clients add their own (`api-version`).
#[derive(Debug)]
pub(crate) struct Params {
    given: HashMap<String, String>,
}

impl Params {
    /// A parameter as it is; an empty one is as good as absent.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.given.get(name).map(String::as_str).filter(|text| !text.is_empty())
    }

    /// A whole number in `range`.
    pub(crate) fn integer(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let message = format!("`{name}` must be a whole number from {} to {}", range.start(), range.end());
                Err(ApiError::field(Code::InvalidRequest, name, message))
            }
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<HashMap<String, String>>::from_request_parts(parts, state).await {
            Ok(Query(given)) => Ok(Self { given }),
            Err(error) => Err(ApiError::new(Code::InvalidRequest, format!("the query cannot be read: {error}"))),
        }
    }
}
