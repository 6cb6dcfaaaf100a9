//! Reading request bodies, with our own errors for everything that can be wrong with one.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::App;
use super::errors::{ApiError, Code};

/// The longest pause between two parts of a body.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest that a whole body may take: 64 MiB at less than a megabit a second.
const PATIENCE_IN_ALL: Duration = Duration::from_secs(600);
/// How much of a body that is too large is read and thrown away. A client that still sends when the connection
/// closes may never see the reply.
const DRAIN: usize = 16 << 20;

/// A JSON object, and the bytes that it was read from.
#[derive(Debug)]
pub(crate) struct JsonBody {
    pub(crate) fields: Map<String, Value>,
    pub(crate) bytes: Bytes,
}

impl FromRequest<App> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        json_type(&parts.headers)?;
        let bytes = read(&parts.headers, body, app.config.limits.max_body_bytes).await?;
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|error| ApiError::new(Code::InvalidRequest, format!("the body is not valid JSON: {error}")))?;
        let Value::Object(fields) = value else {
            return Err(ApiError::new(Code::InvalidRequest, "the body must be a JSON object"));
        };
        Ok(Self { fields, bytes })
    }
}

fn json_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind != "application/json" && !(kind.starts_with("application/") && kind.ends_with("+json")) {
        let sent = if kind.is_empty() { "none was named".to_owned() } else { format!("{kind:?} was sent") };
        let message = format!("the body's content-type must be application/json; {sent}");
        return Err(ApiError::new(Code::UnsupportedMediaType, message));
    }
    match headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("unreadable")) {
        None | Some("" | "identity") => Ok(()),
        Some(_) => Err(ApiError::new(Code::UnsupportedMediaType, "compressed bodies are not taken; send it as it is")),
    }
}

/// Reads a body of at most `limit` bytes.
pub(crate) async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let read = timeout(PATIENCE_IN_ALL, read_parts(headers, body, limit)).await;
    read.unwrap_or_else(|_| Err(ApiError::new(Code::RequestTimeout, "the body came too slowly")))
}

async fn read_parts(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::new(Code::BodyTooLarge, format!("the body is larger than {limit} bytes"));
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    // A client that asks before it sends is told at once.
    if announced.is_some_and(|length| length > limit) && headers.contains_key(header::EXPECT) {
        return Err(too_large());
    }
    // What is announced is not yet sent, so only a little is set aside for it.
    let mut bytes = BytesMut::with_capacity(announced.unwrap_or(0).min(limit).min(64 << 10));
    let mut dropped = 0;
    let mut parts = body.into_data_stream();
    loop {
        match timeout(PATIENCE, parts.next()).await {
            Err(_) | Ok(None) if dropped > 0 => return Err(too_large()),
            Err(_) => return Err(ApiError::new(Code::RequestTimeout, "the body stopped coming")),
            Ok(Some(Err(_))) => return Err(ApiError::new(Code::InvalidRequest, "the body broke off")),
            Ok(Some(Ok(part))) if dropped > 0 || bytes.len() + part.len() > limit => {
                bytes = BytesMut::new();
                dropped += part.len().max(1);
                if dropped > DRAIN {
                    return Err(too_large());
                }
            }
            Ok(Some(Ok(part))) => bytes.extend_from_slice(&part),
            Ok(None) => return Ok(bytes.freeze()),
        }
    }
}
