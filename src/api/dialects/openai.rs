//! OpenAI's images API, Together's superset of it, and the native fields, on one route: nothing in a request says
//! which client sent it, so the request is the union of the three and so is the reply.

mod asked;
mod reply;
mod stream;

pub(crate) use asked::OWN_FIELDS;
pub(crate) use reply::ImagesResponse;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use crate::api::App;
use crate::api::body::{self, JsonBody};
use crate::api::doc::{Content, Doc};
use crate::api::errors::{ApiError, Code};
use crate::api::jobs;
use crate::api::request_id::RequestId;
use crate::api::routes::{Access, Routes};
use crate::api::submit;
use crate::api::urls::Urls;
use crate::config::Role;
use crate::policy::Caller;
use crate::request::fields;
use asked::Asked;

pub(crate) fn routes() -> Routes {
    let unsupported = "Image to image is not built yet: answered with 400 `unsupported_parameter`.";
    let generations = Doc::new("Images", "Make pictures from a prompt")
        .about(
            "Answers when they are done. `async` or `Prefer: respond-async` answers with a job at once, and `stream` \
             with events. A caller who hangs up cancels the job, unless it has an Idempotency-Key.",
        )
        .header("Prefer", "`respond-async` answers with a job at once.")
        .body(Content::Json("GenerationRequest"))
        .reply(StatusCode::OK, Content::JsonOrEvents("ImagesResponse"), "The pictures.")
        .reply(StatusCode::ACCEPTED, Content::Json("Job"), "The job, where the reply was not to be waited for.")
        .creates()
        .errors(&[Code::JobCanceled, Code::OutOfMemory, Code::Internal]);
    let doubled = Doc { summary: "The same, for clients that add /v1 to a base that has it", ..generations.clone() };
    Routes::new(shape)
        .schema::<ImagesResponse>()
        .post("/v1/images/generations", Access::Needs(Role::Generate), generations, create)
        // Together's clients of some versions want the base with /v1, those of others without.
        .post("/v1/v1/images/generations", Access::Needs(Role::Generate), doubled, create)
        .post(
            "/v1/images/edits",
            Access::Needs(Role::Generate),
            Doc::new("Images", "Edit pictures")
                .about(unsupported)
                .body(Content::Form)
                .errors(&[Code::UnsupportedParameter]),
            refuse,
        )
        .post(
            "/v1/images/variations",
            Access::Needs(Role::Generate),
            Doc::new("Images", "Vary a picture")
                .about(unsupported)
                .body(Content::Form)
                .errors(&[Code::UnsupportedParameter]),
            refuse,
        )
}

/// OpenAI's error body: ours, with its names for two codes.
pub(crate) fn shape(error: &ApiError, request_id: &str) -> Value {
    let code = match error.code {
        Code::InvalidRequest if error.param.is_some() => "invalid_value",
        Code::MissingParameter => "missing_required_parameter",
        other => other.name(),
    };
    error.body(code, request_id)
}

async fn create(
    State(app): State<App>,
    axum::Extension(id): axum::Extension<RequestId>,
    caller: Caller,
    urls: Urls,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let mut asked = Asked::read(body.fields)?;
    let asynchronous = asked.delivery.asynchronous || submit::prefers_async(&headers);
    if asynchronous && asked.delivery.stream {
        let message = "`stream` and an asynchronous reply contradict each other; watch the job's events instead";
        return Err(ApiError::field(Code::InvalidRequest, fields::STREAM.name, message));
    }
    let mut request = std::mem::take(&mut asked.request);
    if asynchronous {
        jobs::warn_of(asked.delivery, &mut request.warnings);
        let (job, replayed) = submit::submit(&app, &caller, request, &headers, &body.bytes).await?.keep();
        let mut reply = jobs::accepted(&app, &urls, &job, replayed);
        if submit::prefers_async(&headers) {
            reply.headers_mut().insert("preference-applied", HeaderValue::from_static("respond-async"));
        }
        return Ok(reply);
    }
    let accepted = submit::submit(&app, &caller, request, &headers, &body.bytes).await?;
    if asked.delivery.stream {
        return stream::reply(app, caller, asked, accepted, id).await;
    }
    let (job, replayed) = accepted.finish(&app).await?;
    let reply = ImagesResponse::of(&app, &urls, &asked, &job).await?;
    Ok(submit::mark(Json(reply).into_response(), replayed))
}

/// Edits and variations start from a picture, which no model here can do yet.
async fn refuse(State(app): State<App>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    // Read to the end: a client that is still sending a picture would not see the answer.
    body::read(&headers, body, app.config.limits.max_body_bytes).await?;
    let message =
        "`image` is not supported: image to image is not built yet; POST /v1/images/generations takes a prompt";
    Err(ApiError::field(Code::UnsupportedParameter, "image", message))
}
