//! `/files/…`: pictures under unguessable addresses, which work without a key and in a browser.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;

use super::App;
use super::doc::{Content, Doc};
use super::errors::{ApiError, Code};
use super::routes::{Access, Routes};
use crate::artifacts::{ArtifactError, LinkError, Picture};
use crate::jobs::{Job, Output};

/// Seconds for which caches may keep a picture.
const KEPT: i64 = 3600;

pub(crate) fn routes() -> Routes {
    Routes::new(ApiError::native).get(
        "/files/{token}/{job}/{file}",
        Access::Open,
        Doc::new("Pictures", "Fetch a picture by the address that a reply gave")
            .about("The address is the permission: it needs no key, cannot be guessed, and expires.")
            .path("token", "string", "Until when the address holds, and the proof that this server made it.")
            .path("job", "string", "The job's id.")
            .path("file", "string", "The picture's number and format.")
            .reply(StatusCode::OK, Content::Media("image/*"), "The file.")
            .errors(&[Code::NotFound]),
        fetch,
    )
}

/// The path under which anyone who is given it can fetch a job's picture for a while.
pub(crate) fn path(app: &App, job: &Job, output: &Output) -> String {
    app.artifacts.public_path(&job.id, output.index, job.request.output_format, Timestamp::now())
}

async fn fetch(
    State(app): State<App>,
    Path((token, job, file)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let verified = app.artifacts.verify(&token, &job, &file, Timestamp::now());
    let (index, expires) = verified.map_err(|error: LinkError| ApiError::new(Code::NotFound, error.to_string()))?;
    let picture = app.artifacts.open_picture(&job, index).await.map_err(|error| missing(error, index))?;
    // Whoever has the address may keep the file, as long as it opens: it never comes to mean another one.
    let left = expires.as_second().saturating_sub(Timestamp::now().as_second()).clamp(0, KEPT);
    let cache = format!("public, max-age={left}, immutable");
    picture_reply(&headers, picture, &format!("easel-{job}-{file}"), &cache).await
}

/// What a picture that cannot be read is to the caller.
pub(crate) fn missing(error: ArtifactError, index: usize) -> ApiError {
    match error {
        ArtifactError::NotFound { .. } => {
            ApiError::new(Code::NotFound, format!("there is no picture {index} of this job"))
        }
        other => ApiError::internal(other),
    }
}

/// A picture as a reply: shown in the browser, saved under `name`.
///
/// # Errors
/// When the thread that hashes the file is lost.
pub(crate) async fn picture_reply(
    asked: &HeaderMap,
    picture: Picture,
    name: &str,
    cache: &str,
) -> Result<Response, ApiError> {
    // A large file takes milliseconds, which are not the async thread's to spend.
    let file = picture.clone();
    let sha256 = tokio::task::spawn_blocking(move || file.sha256()).await.map_err(ApiError::internal)?;
    let etag = format!("\"{sha256}\"");
    let known = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let known = known.flat_map(|list| list.split(',')).any(|tag| tag.trim().trim_start_matches("W/") == etag);
    let mut reply = if known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let kind = HeaderValue::from_static(picture.format.content_type());
        ([(header::CONTENT_TYPE, kind)], Body::from(picture.bytes)).into_response()
    };
    let headers = reply.headers_mut();
    for (header, value) in [
        (header::CACHE_CONTROL, cache.to_owned()),
        (header::ETAG, etag),
        (header::CONTENT_DISPOSITION, format!("inline; filename=\"{name}\"")),
    ] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(header, value);
        }
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Pages elsewhere may show it: that is what the address is given out for.
    const POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
    headers.insert(POLICY, HeaderValue::from_static("cross-origin"));
    Ok(reply)
}
