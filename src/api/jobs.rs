//! `/v1/jobs`: every generation as a job.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use super::App;
use super::body::JsonBody;
use super::doc::{Content, Doc};
use super::errors::{ApiError, Code};
use super::params::Params;
use super::routes::{Access, Routes};
use super::submit::{self, Call};
use super::urls::Urls;
use super::wire::{self, JobList, JobReply};
use crate::config::Role;
use crate::jobs::{JobsError, ListQuery, Status, StoreError};
use crate::policy::Caller;
use crate::request::{self, Delivery, ResponseFormat};

/// The longest that `?wait=` holds a reply. Proxies and clients give up not much later.
const MAX_WAIT: u64 = 600;

pub(crate) fn routes() -> Routes {
    let job = "The job's id.";
    Routes::new(ApiError::native)
        .schema::<JobReply>()
        .schema::<JobList>()
        .schema::<wire::Error>()
        .post(
            "/v1/jobs",
            Access::Needs(Role::Generate),
            Doc::new("Jobs", "Create a job")
                .about("Takes what `/v1/images/generations` takes and answers at once.")
                .body(Content::Json("GenerationRequest"))
                .reply(StatusCode::ACCEPTED, Content::Json("Job"), "The job; `Location` is its address.")
                .creates(),
            create,
        )
        .get(
            "/v1/jobs",
            Access::Needs(Role::Read),
            Doc::new("Jobs", "List jobs, newest first")
                .query("limit", "integer", "1 to 100; 20.")
                .query("after", "string", "Only jobs older than this one.")
                .query("status", "string", "queued, running, succeeded, failed or canceled.")
                .query("model", "string", "Only jobs of this model.")
                .ok("JobList")
                .errors(&[Code::InvalidRequest]),
            list,
        )
        .get(
            "/v1/jobs/{id}",
            Access::Needs(Role::Read),
            Doc::new("Jobs", "Get a job")
                .path("id", "string", job)
                .query("wait", "integer", "Seconds, at most 600, to hold the reply until the job ends.")
                .ok("Job")
                .errors(&[Code::JobNotFound, Code::InvalidRequest]),
            show,
        )
        .post(
            "/v1/jobs/{id}/cancel",
            Access::Needs(Role::Generate),
            Doc::new("Jobs", "Cancel a job")
                .about("Takes effect at the next step boundary. A job that has ended is given back as it is.")
                .path("id", "string", job)
                .ok("Job")
                .errors(&[Code::JobNotFound]),
            cancel,
        )
        .delete(
            "/v1/jobs/{id}",
            Access::Needs(Role::Generate),
            Doc::new("Jobs", "Delete a job and its pictures")
                .about("A job that has not ended is canceled first.")
                .path("id", "string", job)
                .reply(StatusCode::NO_CONTENT, Content::Empty, "It is gone.")
                .errors(&[Code::JobNotFound]),
            delete,
        )
}

/// What a failed call on a job is to the caller who made it.
pub(crate) fn lookup(error: JobsError) -> ApiError {
    match error {
        JobsError::NotFound(id) => {
            let message = format!("there is no job {:?}", id.chars().take(64).collect::<String>());
            ApiError::field(Code::JobNotFound, "id", message)
        }
        JobsError::Busy(_) => ApiError::new(Code::JobBusy, error.to_string()),
        JobsError::Unavailable(StoreError::Closed) => submit::shutting_down(),
        JobsError::Unavailable(StoreError::Full) => ApiError::new(Code::StorageFull, error.to_string()),
        other => ApiError::internal(other),
    }
}

async fn create(
    State(app): State<App>,
    caller: Caller,
    urls: Urls,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let (mut request, delivery) = request::parse(body.fields)?;
    warn_of(delivery, &mut request.warnings);
    let call = Call { headers, body: body.bytes, urls };
    let (job, replayed) = submit::submit(&app, &caller, request, &call).await?.keep();
    Ok(accepted(&app, &call.urls, &job, replayed))
}

/// The 202 of an asynchronous call.
pub(crate) fn accepted(app: &App, urls: &Urls, job: &crate::jobs::Job, replayed: bool) -> Response {
    let reply = (StatusCode::ACCEPTED, Json(JobReply::new(app, urls, job))).into_response();
    submit::located(submit::mark(reply, replayed), &urls.at(&format!("/v1/jobs/{}", job.id)))
}

/// Wishes for the reply that a job cannot fulfil.
pub(crate) fn warn_of(delivery: Delivery, warnings: &mut Vec<String>) {
    if delivery.stream {
        warnings.push("`stream` has no effect on a job: watch it at /v1/jobs/{id}/events".into());
    }
    if delivery.response_format == Some(ResponseFormat::B64Json) {
        warnings.push("`response_format` has no effect on a job: its outputs have addresses".into());
    }
}

async fn list(State(app): State<App>, caller: Caller, urls: Urls, params: Params) -> Result<Json<JobList>, ApiError> {
    let status = params.text("status").map(status).transpose()?;
    let query = ListQuery {
        limit: params.integer("limit", 1..=100)?.map_or(20, |limit| usize::try_from(limit).unwrap_or(100)),
        after: params.text("after").map(ToOwned::to_owned),
        status,
        model: params.text("model").map(ToOwned::to_owned),
    };
    let page = app.jobs.list(&caller, query).await.map_err(|error| match lookup(error) {
        error if error.code == Code::JobNotFound => {
            ApiError::field(Code::InvalidRequest, "after", format!("`after` must be a job's id; {}", error.message))
        }
        error => error,
    })?;
    let data = page.jobs.iter().map(|job| JobReply::new(&app, &urls, job)).collect();
    Ok(Json(JobList { object: "list", data, has_more: page.has_more }))
}

fn status(name: &str) -> Result<Status, ApiError> {
    Status::ALL.into_iter().find(|status| status.name() == name).ok_or_else(|| {
        let known = Status::ALL.map(Status::name).join(", ");
        ApiError::field(Code::InvalidRequest, "status", format!("`status` must be one of {known}"))
    })
}

async fn show(
    State(app): State<App>,
    caller: Caller,
    urls: Urls,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<JobReply>, ApiError> {
    let wait = params.integer("wait", 0..=MAX_WAIT)?;
    let found = match wait {
        Some(seconds) if seconds > 0 => tokio::select! {
            job = app.jobs.wait(&caller, &id, Duration::from_secs(seconds)) => job,
            // What it is like now, rather than an error.
            () = app.closing.cancelled() => app.jobs.get(&caller, &id).await,
        },
        _ => app.jobs.get(&caller, &id).await,
    };
    let job = found.map_err(lookup)?;
    Ok(Json(JobReply::new(&app, &urls, &job)))
}

async fn cancel(
    State(app): State<App>,
    caller: Caller,
    urls: Urls,
    Path(id): Path<String>,
) -> Result<Json<JobReply>, ApiError> {
    let job = app.jobs.cancel(&caller, &id).await.map_err(lookup)?;
    Ok(Json(JobReply::new(&app, &urls, &job)))
}

async fn delete(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    app.jobs.delete(&caller, &id).await.map_err(lookup)?;
    Ok(StatusCode::NO_CONTENT)
}
