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
    let (index, _) = verified.map_err(|error: LinkError| ApiError::new(Code::NotFound, error.to_string()))?;
    let picture = app.artifacts.open_picture(&job, index).await.map_err(|error| missing(error, index))?;
    // Whoever has the address may keep the file: an address never comes to mean another one.
    Ok(picture_reply(&headers, picture, &format!("easel-{job}-{file}"), "public, max-age=3600, immutable"))
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
pub(crate) fn picture_reply(asked: &HeaderMap, picture: Picture, name: &str, cache: &'static str) -> Response {
    let etag = format!("\"{}\"", picture.sha256());
    let known = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let known = known.flat_map(|list| list.split(',')).any(|tag| tag.trim().trim_start_matches("W/") == etag);
    let mut reply = if known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let kind = HeaderValue::from_static(picture.format.content_type());
        ([(header::CONTENT_TYPE, kind)], Body::from(picture.bytes)).into_response()
    };
    let headers = reply.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    for (header, value) in [(header::ETAG, etag), (header::CONTENT_DISPOSITION, format!("inline; filename=\"{name}\""))]
    {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(header, value);
        }
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Pages elsewhere may show it: that is what the address is given out for.
    const POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
    headers.insert(POLICY, HeaderValue::from_static("cross-origin"));
    reply
}
