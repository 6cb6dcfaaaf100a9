//! A name for every request: on every reply and in every log line.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

/// The header that carries it.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A request's id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RequestId(pub(crate) String);

impl RequestId {
    /// The caller's, if it can stand in a log line, else a new one.
    fn of(request: &Request) -> Self {
        let given = request.headers().get(&X_REQUEST_ID).and_then(|value| value.to_str().ok());
        let sane = |id: &&str| {
            (1..=128).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte))
        };
        Self(given.filter(sane).map_or_else(|| format!("req_{}", ulid::Ulid::generate()), ToOwned::to_owned))
    }
}

/// Names the request, logs it, counts it, and gives the name back.
pub(crate) async fn assign(mut request: Request, next: Next) -> Response {
    let id = RequestId::of(&request);
    // The route as written, not the path: paths hold job ids, and would make a metric each.
    let route =
        request.extensions().get::<MatchedPath>().map_or_else(|| "none".to_owned(), |path| path.as_str().into());
    let method = method(request.method());
    request.extensions_mut().insert(id.clone());

    let span = tracing::info_span!("http", request_id = %id.0, %method, %route);
    let start = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    let took = start.elapsed();

    let status = response.status().as_u16();
    span.in_scope(|| tracing::info!(status, ms = took.as_secs_f64() * 1e3, "answered"));
    metrics::counter!(
        "easel_http_requests_total", "method" => method, "route" => route.clone(), "status" => status.to_string()
    )
    .increment(1);
    metrics::histogram!("easel_http_request_seconds", "route" => route).record(took.as_secs_f64());
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
    response
}

/// The method's name for a metric: callers can make up methods, and each would be a time series.
fn method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}
