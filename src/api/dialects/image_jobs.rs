//! `/v1/images/jobs`: the plain job shape `{id, state, output: [{url}], error}`.

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
        .schema::<ImageJob>()
        .post(
            "/v1/images/jobs",
            Access::Needs(Role::Generate),
            Doc::new("Plain jobs", "Create a job")
                .body(Content::Json("GenerationRequest"))
                .reply(StatusCode::ACCEPTED, Content::Json("ImageJob"), "The job; `Location` is its address.")
                .creates(),
            create,
        )
        .get(
            "/v1/images/jobs/{id}",
            Access::Needs(Role::Read),
            Doc::new("Plain jobs", "Get a job")
                .path("id", "string", "The job's id.")
                .ok("ImageJob")
                .errors(&[Code::JobNotFound]),
            show,
        )
}

/// A job in the plain shape.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ImageJob {
    id: String,
    /// `queued`, `running`, `succeeded`, `failed` or `canceled`.
    #[schema(value_type = String)]
    state: Status,
    /// Empty until it has succeeded.
    output: Vec<Image>,
    /// Why it failed.
    error: Option<Failure>,
}

/// A picture.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Image {
    url: String,
}

/// Why a job failed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Failure {
    code: String,
    message: String,
}

impl ImageJob {
    fn new(app: &App, urls: &Urls, job: &Job) -> Self {
        Self {
            id: job.id.clone(),
            state: job.status,
            output: wire::outputs(app, urls, job).into_iter().map(|output| Image { url: output.url }).collect(),
            error: job.error.as_ref().map(|e| Failure { code: e.code.clone(), message: e.message.clone() }),
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
    let reply = (StatusCode::ACCEPTED, Json(ImageJob::new(&app, &call.urls, &job))).into_response();
    Ok(submit::located(submit::mark(reply, replayed), &call.urls.at(&format!("/v1/images/jobs/{}", job.id))))
}

async fn show(
    State(app): State<App>,
    caller: Caller,
    urls: Urls,
    Path(id): Path<String>,
) -> Result<Json<ImageJob>, ApiError> {
    let job = app.jobs.get(&caller, &id).await.map_err(lookup)?;
    Ok(Json(ImageJob::new(&app, &urls, &job)))
}
