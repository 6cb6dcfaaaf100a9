//! Which web pages may read the replies, by configuration.

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::request_id::X_REQUEST_ID;
use crate::config::ServerConfig;

/// The layer that answers preflights and marks replies. `None` while no origin is listed: browsers then refuse.
///
/// No cookie is ever read and `Access-Control-Allow-Credentials` is never sent, so any header may be asked for: the
/// clients' own vary with their versions (`x-stainless-*`).
pub(crate) fn layer(server: &ServerConfig) -> Option<CorsLayer> {
    if server.cors_origins.is_empty() {
        return None;
    }
    let any = server.cors_origins.iter().any(|origin| origin == "*");
    let listed =
        server.cors_origins.iter().filter_map(|origin| origin.trim_end_matches('/').parse::<HeaderValue>().ok());
    let origins = if any { AllowOrigin::any() } else { AllowOrigin::list(listed) };
    Some(
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::DELETE])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers([
                X_REQUEST_ID,
                HeaderName::from_static("x-fal-request-id"),
                HeaderName::from_static("x-should-retry"),
                HeaderName::from_static("idempotency-replayed"),
                header::RETRY_AFTER,
                header::LOCATION,
            ])
            .max_age(std::time::Duration::from_secs(600)),
    )
}
