//! OpenAI's images API, Together's superset of it, and the native fields, on one route: nothing in a request says
//! which client sent it, so the request is the union of the three and so is the reply.

mod asked;
mod reply;
mod stream;

pub(crate) use asked::OWN_FIELDS;
pub(crate) use reply::ImagesResponse;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::Value;

use crate::api::App;
use crate::api::body::JsonBody;
use crate::api::doc::{Content, Doc};
use crate::api::errors::{ApiError, Code};
use crate::api::form::Form;
use crate::api::jobs;
use crate::api::request_id::RequestId;
use crate::api::routes::{Access, Routes};
use crate::api::submit::{self, Call};
use crate::api::urls::Urls;
use crate::config::Role;
use crate::policy::Caller;
use crate::request::{Painted, RequestError, fields};
use asked::{Asked, Task};

pub(crate) fn routes() -> Routes {
    let edits = "A form, as OpenAI's clients send it, or JSON with addresses. With `mask`, its transparent part is painted \
                 anew; without, the whole picture is, by `strength`, or an editing model looks at it.";
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
        // Together's clients of some versions want the base with /v1, those of others without.
        .post("/v1/v1/images/generations", Access::Needs(Role::Generate), doubled, create)
        .post(
            "/v1/images/edits",
            Access::Needs(Role::Generate),
            Doc {
                summary: "Change a picture as a prompt says",
                about: edits,
                body: Some(Content::Form("EditRequest")),
                ..generations.clone()
            },
            edit,
        )
        .post(
            "/v1/images/variations",
            Access::Needs(Role::Generate),
            Doc {
                summary: "Vary a picture",
                about: "As an edit, but without a prompt.",
                body: Some(Content::Form("VariationRequest")),
                ..generations.clone()
            },
            vary,
        )
        .post("/v1/images/generations", Access::Needs(Role::Generate), generations, create)
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
    let asked = Asked::read(body.fields, Task::Generation)?;
    answer(app, caller, asked, Call { headers, body: body.bytes, urls }, id).await
}

async fn edit(
    State(app): State<App>,
    axum::Extension(id): axum::Extension<RequestId>,
    caller: Caller,
    urls: Urls,
    headers: HeaderMap,
    form: Form,
) -> Result<Response, ApiError> {
    change(app, caller, form, Call { headers, body: Bytes::new(), urls }, id, Task::Edit).await
}

async fn vary(
    State(app): State<App>,
    axum::Extension(id): axum::Extension<RequestId>,
    caller: Caller,
    urls: Urls,
    headers: HeaderMap,
    form: Form,
) -> Result<Response, ApiError> {
    change(app, caller, form, Call { headers, body: Bytes::new(), urls }, id, Task::Variation).await
}

/// Both routes that start from a picture.
async fn change(
    app: App,
    caller: Caller,
    form: Form,
    mut call: Call,
    id: RequestId,
    task: Task,
) -> Result<Response, ApiError> {
    let (fields, files, canonical) = form.split();
    call.body = canonical;
    let mut asked = Asked::read(fields, task)?;
    files.attach(&mut asked.request)?;
    if asked.request.images.is_empty() {
        return Err(RequestError::Missing { param: fields::IMAGE.name.into() }.into());
    }
    asked.request.painted = Painted::Transparent;
    if task == Task::Variation && asked.request.mask.is_some() {
        let message =
            "`mask` is not supported: a variation is of the whole picture; POST /v1/images/edits takes a mask";
        return Err(ApiError::field(Code::UnsupportedParameter, fields::MASK.name, message));
    }
    answer(app, caller, asked, call, id).await
}

async fn answer(app: App, caller: Caller, mut asked: Asked, call: Call, id: RequestId) -> Result<Response, ApiError> {
    let asynchronous = asked.delivery.asynchronous || submit::prefers_async(&call.headers);
    if asynchronous && asked.delivery.stream {
        let message = "`stream` and an asynchronous reply contradict each other; watch the job's events instead";
        return Err(ApiError::field(Code::InvalidRequest, fields::STREAM.name, message));
    }
    let mut request = std::mem::take(&mut asked.request);
    if asynchronous {
        jobs::warn_of(asked.delivery, &mut request.warnings);
        let (job, replayed) = submit::submit(&app, &caller, request, &call).await?.keep();
        let mut reply = jobs::accepted(&app, &call.urls, &job, replayed);
        if submit::prefers_async(&call.headers) {
            reply.headers_mut().insert("preference-applied", HeaderValue::from_static("respond-async"));
        }
        return Ok(reply);
    }
    let accepted = submit::submit(&app, &caller, request, &call).await?;
    if asked.delivery.stream {
        return stream::reply(app, caller, asked, accepted, id).await;
    }
    let (job, replayed) = accepted.finish(&app).await?;
    let reply = ImagesResponse::of(&app, &call.urls, &asked, &job).await?;
    Ok(submit::mark(Json(reply).into_response(), replayed))
}
