//! What a browser shows: the playground, and the API document with its page. All of it is inside the binary.

use axum::extract::Extension;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::doc::{Content, Doc};
use super::errors::ApiError;
use super::openapi::Spec;
use super::routes::{Access, Routes};

/// Scripts and styles come from this server only, and nobody may put the page into a frame of theirs. Pictures may
/// come from elsewhere, where `public_url` points there.
const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src * data: blob:; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// (path, what it is, its type, its text)
const FILES: [(&str, &str, &str, &str); 7] = [
    ("/", "The playground", HTML, include_str!("page/index.html")),
    ("/page/page.css", "Its style", CSS, include_str!("page/page.css")),
    ("/page/page.js", "Its script", SCRIPT, include_str!("page/page.js")),
    ("/page/picture.js", "Its script for pictures and masks", SCRIPT, include_str!("page/picture.js")),
    ("/docs", "This document, to read and to try", HTML, include_str!("page/docs.html")),
    ("/page/docs.css", "Its style", CSS, include_str!("page/docs.css")),
    ("/page/docs.js", "Its script", SCRIPT, include_str!("page/docs.js")),
];

pub(crate) fn routes() -> Routes {
    let spec = Routes::new(ApiError::native).get(
        "/openapi.json",
        Access::Open,
        Doc::new("Pages", "This document").reply(StatusCode::OK, Content::Media("application/json"), "OpenAPI 3.1."),
        |Extension(spec): Extension<Spec>| async move { ([(header::CONTENT_TYPE, "application/json")], spec.text()) },
    );
    FILES.iter().fold(spec, |routes, (path, about, kind, text)| {
        let media = kind.split(';').next().unwrap_or(kind);
        let doc = Doc::new("Pages", about).reply(StatusCode::OK, Content::Media(media), "");
        routes.get(path, Access::Open, doc, move || async move { file(kind, text) })
    })
}

fn file(kind: &'static str, text: &'static str) -> Response {
    const OPENER: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
        (OPENER, HeaderValue::from_static("same-origin")),
    ];
    (headers, text).into_response()
}
