//! `/api/v1/images/generations` and `/api/v1/tasks`: the plain job shape `{id, status, output: {image_url, image_urls}}`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::App;
use crate::api::body::JsonBody;
use crate::api::doc::{Content, Doc};
use crate::api::errors::{ApiError, Code};
use crate::api::jobs::{lookup, warn_of};
use crate::api::routes::{Access, Routes};
use crate::api::submit::{self, Call};
use crate::api::urls::Urls;
use crate::api::wire;
use crate::config::Role;
use crate::jobs::{Job, Status};
use crate::policy::Caller;
use crate::request;

pub(crate) fn routes() -> Routes {
    Routes::new(ApiError::native)
        .schema::<Task>()
        .post(
            "/api/v1/images/generations",
            Access::Needs(Role::Generate),
            Doc::new("Tasks", "Create a task")
                .body(Content::Json("GenerationRequest"))
                .reply(StatusCode::ACCEPTED, Content::Json("Task"), "The task; `Location` is its address.")
                .creates(),
            create,
        )
        .get(
            "/api/v1/tasks/{id}",
            Access::Needs(Role::Read),
            Doc::new("Tasks", "Get a task")
                .path("id", "string", "The task's id, which is its job's.")
                .ok("Task")
                .errors(&[Code::JobNotFound]),
            show,
        )
}

/// A job in the shape of a task.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Task {
    id: String,
    /// `PENDING`, `PROCESSING`, `SUCCESS` or `FAILED`.
    status: &'static str,
    /// `null` until it has succeeded.
    output: Option<TaskOutput>,
    /// Why it failed.
    error: Option<String>,
}

/// A task's pictures.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TaskOutput {
    /// The first one.
    image_url: String,
    image_urls: Vec<String>,
}

impl Task {
    fn new(app: &App, urls: &Urls, job: &Job) -> Self {
        let succeeded = job.status == Status::Succeeded;
        let image_urls: Vec<String> = wire::outputs(app, urls, job).into_iter().map(|output| output.url).collect();
        let first = image_urls.first().filter(|_| succeeded).cloned();
        Self {
            id: job.id.clone(),
            status: match job.status {
                Status::Queued => "PENDING",
                Status::Running => "PROCESSING",
                Status::Succeeded => "SUCCESS",
                // The shape has no word for a canceled one; the error says it.
                Status::Failed | Status::Canceled => "FAILED",
            },
            output: first.map(|image_url| TaskOutput { image_url, image_urls }),
            error: match (job.status, &job.error) {
                (Status::Canceled, _) => Some("the task was canceled".into()),
                (_, error) => error.as_ref().map(|error| error.message.clone()),
            },
        }
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
    let reply = (StatusCode::ACCEPTED, Json(Task::new(&app, &call.urls, &job))).into_response();
    Ok(submit::located(submit::mark(reply, replayed), &call.urls.at(&format!("/api/v1/tasks/{}", job.id))))
}

async fn show(
    State(app): State<App>,
    caller: Caller,
    urls: Urls,
    Path(id): Path<String>,
) -> Result<Json<Task>, ApiError> {
    let job = app.jobs.get(&caller, &id).await.map_err(lookup)?;
    Ok(Json(Task::new(&app, &urls, &job)))
}
