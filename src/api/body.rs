//! Reading request bodies, with our own errors for everything that can be wrong with one.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use serde_json::{Map, Value};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::App;
use super::errors::{ApiError, Code};

/// The longest pause between two parts of a body.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest that a whole body may take: 64 MiB at less than a megabit a second.
const PATIENCE_IN_ALL: Duration = Duration::from_secs(600);
/// How much of a body that a reply did not wait for is read and thrown away. A client that still sends when the
/// connection closes may never see the reply.
const DRAIN: usize = 16 << 20;
/// The longest that this may take, and the longest pause in it.
const DRAIN_TIME: Duration = Duration::from_secs(20);
const DRAIN_PAUSE: Duration = Duration::from_secs(3);

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
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    // What is announced is not yet sent, so only a little is set aside for it.
    let mut bytes = BytesMut::with_capacity(announced.unwrap_or(0).min(limit).min(64 << 10));
    let mut parts = body.into_data_stream();
    loop {
        match timeout(PATIENCE, parts.next()).await {
            Err(_) => return Err(ApiError::new(Code::RequestTimeout, "the body stopped coming")),
            Ok(Some(Err(_))) => return Err(ApiError::new(Code::InvalidRequest, "the body broke off")),
            Ok(Some(Ok(part))) if bytes.len() + part.len() > limit => return Err(too_large()),
            Ok(Some(Ok(part))) => bytes.extend_from_slice(&part),
            Ok(None) => return Ok(bytes.freeze()),
        }
    }
}

/// Holds back replies that came before the body was read, until its sender is done or has had its time: a client that
/// is still sending when the connection closes sees a broken pipe in place of the reply.
pub(crate) async fn drain(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    if axum::body::HttpBody::is_end_stream(&body) {
        return next.run(Request::from_parts(parts, body)).await;
    }
    // Such a client sends only once it is asked to, which reading does.
    let expects = parts.headers.contains_key(header::EXPECT);
    let (give, mut given) = oneshot::channel();
    let lent = Lent { parts: Some(body.into_data_stream()), begun: !expects, give: Some(give) };
    let response = next.run(Request::from_parts(parts, Body::from_stream(lent))).await;
    // A body that stopped coming has been waited for.
    if response.status() != StatusCode::REQUEST_TIMEOUT
        && let Ok(left) = given.try_recv()
    {
        // Out of time is as good as done.
        let _ = timeout(DRAIN_TIME, throw_away(left)).await;
    }
    response
}

async fn throw_away(mut left: BodyDataStream) {
    let mut dropped = 0;
    while dropped <= DRAIN
        && let Ok(Some(Ok(part))) = timeout(DRAIN_PAUSE, left.next()).await
    {
        dropped += part.len().max(1);
    }
}

/// A body that gives back what was not read of it.
struct Lent {
    /// `None` once it has been read to its end.
    parts: Option<BodyDataStream>,
    /// Whether its sender has begun, or will.
    begun: bool,
    give: Option<oneshot::Sender<BodyDataStream>>,
}

impl Stream for Lent {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.begun = true;
        let Some(parts) = &mut self.parts else { return Poll::Ready(None) };
        let polled = parts.poll_next_unpin(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.parts = None;
        }
        polled
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (true, Some(parts), Some(give)) = (self.begun, self.parts.take(), self.give.take()) {
            // Nobody takes it when the connection is gone.
            let _ = give.send(parts);
        }
    }
}
