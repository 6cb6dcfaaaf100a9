//! `/v1/jobs/{id}/outputs/{i}`: a job's pictures, in the size and format that the caller wants.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;

use super::App;
use super::doc::{Content, Doc};
use super::errors::{ApiError, Code};
use super::files;
use super::jobs::lookup;
use super::params::Params;
use super::routes::{Access, Routes};
use crate::artifacts::negotiate;
use crate::config::Role;
use crate::policy::Caller;

pub(crate) fn routes() -> Routes {
    Routes::new(ApiError::native).get(
        "/v1/jobs/{id}/outputs/{index}",
        Access::Needs(Role::Read),
        Doc::new("Pictures", "Fetch one of a job's pictures")
            .path("id", "string", "The job's id.")
            .path("index", "integer", "Which of its pictures, from 0.")
            .query("w", "integer", "Pixels across of a smaller copy.")
            .header(
                "Accept",
                "image/png, image/jpeg or image/webp; the format that was asked for, if it is among them.",
            )
            .reply(StatusCode::OK, Content::Media("image/*"), "The picture.")
            .errors(&[Code::JobNotFound, Code::NotFound, Code::InvalidRequest]),
        fetch,
    )
}

async fn fetch(
    State(app): State<App>,
    caller: Caller,
    Path((id, index)): Path<(String, String)>,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let job = app.jobs.get(&caller, &id).await.map_err(lookup)?;
    let found = index.parse().ok().filter(|index| job.outputs.iter().any(|output| output.index == *index));
    let index: usize = found.ok_or_else(|| {
        let pictures = job.outputs.len();
        ApiError::new(Code::NotFound, format!("the job is {} and has {pictures} pictures, from 0", job.status.name()))
    })?;
    let width = params.integer("w", 1..=u64::from(u32::MAX))?.and_then(|width| u32::try_from(width).ok());
    let own = job.request.output_format;
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
    let copy = app.artifacts.copy(&job.id, index, width, Some(negotiate(accept, own))).await;
    let picture = copy.map_err(|error| files::missing(error, index))?;
    let name = format!("easel-{}-{index}.{}", job.id, picture.format.name());
    let mut reply = files::picture_reply(&headers, picture, &name, "private, max-age=3600").await?;
    reply.headers_mut().insert(header::VARY, HeaderValue::from_static("accept, authorization"));
    Ok(reply)
}
