//! Every error that the API answers with, and its one way to the wire.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::request_id::RequestId;
use super::routes::Table;
use crate::jobs::JobError;
use crate::request::RequestError;

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// What went wrong, as clients tell errors apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// A value of the wrong type or outside of its range, or a body that is no JSON object.
    InvalidRequest,
    /// A field without a default is absent.
    MissingParameter,
    /// A size that the model cannot make.
    UnsupportedSize,
    /// A field whose feature is not there.
    UnsupportedParameter,
    /// A picture that cannot be decoded, or is too large.
    InvalidImage,
    /// A picture that cannot be fetched.
    ImageUnreachable,
    /// No key, or a wrong one.
    InvalidApiKey,
    /// The key may not do this.
    InsufficientRole,
    /// A browser's page of an origin that is not allowed.
    OriginNotAllowed,
    /// A `Host` that is not this server's.
    HostNotAllowed,
    /// No such model.
    ModelNotFound,
    /// No such job in the caller's workspace.
    JobNotFound,
    /// No such picture, file or path.
    NotFound,
    /// The path has no such method.
    MethodNotAllowed,
    /// The body did not arrive in time.
    RequestTimeout,
    /// The idempotency key was used with another body.
    IdempotencyMismatch,
    /// The job was canceled while its caller waited.
    JobCanceled,
    /// The job is being canceled and has not ended yet.
    JobBusy,
    /// The body is larger than the limit.
    BodyTooLarge,
    /// The body is not what the route takes.
    UnsupportedMediaType,
    /// As many jobs wait as may.
    QueueFull,
    /// A fault of ours.
    Internal,
    /// No model is loaded yet.
    ModelLoading,
    /// The model's weights cannot be loaded.
    ModelFailed,
    /// The model is pinned, so it is not unloaded.
    ModelPinned,
    /// The server is going down.
    ShuttingDown,
    /// The request does not fit the device's memory.
    OutOfMemory,
    /// The disk is full.
    StorageFull,
}

impl Code {
    /// Every code, for the API document.
    pub const ALL: &'static [Self] = &[
        Self::InvalidRequest,
        Self::MissingParameter,
        Self::UnsupportedSize,
        Self::UnsupportedParameter,
        Self::InvalidImage,
        Self::ImageUnreachable,
        Self::InvalidApiKey,
        Self::InsufficientRole,
        Self::OriginNotAllowed,
        Self::HostNotAllowed,
        Self::ModelNotFound,
        Self::JobNotFound,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::IdempotencyMismatch,
        Self::JobCanceled,
        Self::JobBusy,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::QueueFull,
        Self::Internal,
        Self::ModelLoading,
        Self::ModelFailed,
        Self::ModelPinned,
        Self::ShuttingDown,
        Self::OutOfMemory,
        Self::StorageFull,
    ];

    /// The code on the native routes.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidRequest | Self::MissingParameter => "invalid_request",
            Self::UnsupportedSize => "unsupported_size",
            Self::UnsupportedParameter => "unsupported_parameter",
            Self::InvalidImage => "invalid_image",
            Self::ImageUnreachable => "image_unreachable",
            Self::InvalidApiKey => "invalid_api_key",
            Self::InsufficientRole => "insufficient_role",
            Self::OriginNotAllowed => "origin_not_allowed",
            Self::HostNotAllowed => "host_not_allowed",
            Self::ModelNotFound => "model_not_found",
            Self::JobNotFound => "job_not_found",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RequestTimeout => "request_timeout",
            Self::IdempotencyMismatch => "idempotency_mismatch",
            Self::JobCanceled => "job_canceled",
            Self::JobBusy => "job_busy",
            Self::BodyTooLarge => "body_too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::QueueFull => "queue_full",
            Self::Internal => "internal",
            Self::ModelLoading => "model_loading",
            Self::ModelFailed => "model_failed",
            Self::ModelPinned => "model_pinned",
            Self::ShuttingDown => "shutting_down",
            Self::OutOfMemory => "out_of_memory",
            Self::StorageFull => "storage_full",
        }
    }

    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        match self {
            Self::InvalidRequest
            | Self::MissingParameter
            | Self::UnsupportedSize
            | Self::UnsupportedParameter
            | Self::InvalidImage
            | Self::ImageUnreachable => StatusCode::BAD_REQUEST,
            Self::InvalidApiKey => StatusCode::UNAUTHORIZED,
            Self::InsufficientRole | Self::OriginNotAllowed | Self::HostNotAllowed => StatusCode::FORBIDDEN,
            Self::ModelNotFound | Self::JobNotFound | Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::IdempotencyMismatch | Self::JobCanceled | Self::JobBusy | Self::ModelPinned => StatusCode::CONFLICT,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::QueueFull => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::ModelLoading | Self::ModelFailed | Self::ShuttingDown | Self::OutOfMemory => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::StorageFull => StatusCode::INSUFFICIENT_STORAGE,
        }
    }

    /// The error's class in OpenAI's vocabulary.
    pub fn kind(self) -> &'static str {
        match self.status() {
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// Whether the same request may succeed later, where clients that go by the status alone would guess wrong or
    /// where it matters that they try again. They retry 408, 409, 429 and everything from 500 by themselves.
    fn retry(self) -> Option<bool> {
        match self {
            Self::IdempotencyMismatch
            | Self::JobCanceled
            | Self::ModelFailed
            | Self::ModelPinned
            | Self::OutOfMemory
            | Self::StorageFull => Some(false),
            Self::QueueFull | Self::ModelLoading | Self::ShuttingDown | Self::RequestTimeout | Self::JobBusy => {
                Some(true)
            }
            _ => None,
        }
    }

    /// Seconds after which a retry is worth it, where the error itself knows no better.
    fn pause(self) -> Option<u64> {
        match self {
            Self::QueueFull => Some(2),
            Self::ModelLoading | Self::ShuttingDown => Some(5),
            // Only a larger machine or mended files help, but every 503 says when to look again.
            Self::OutOfMemory | Self::ModelFailed => Some(60),
            _ => None,
        }
    }
}

/// An error on its way to the wire. As a response it is empty: [`render`] writes the body, in the shape of the route.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What went wrong.
    pub code: Code,
    /// A sentence for people: what was asked, what is possible.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// Seconds until a retry is worth it.
    pub retry_after: Option<u64>,
}

impl ApiError {
    /// An error that no single field is to blame for.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: None, retry_after: code.pause() }
    }

    /// An error of one field.
    pub fn field(code: Code, param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(code, message) }
    }

    /// The same with another pause before a retry.
    #[must_use]
    pub fn after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds.max(1)), ..self }
    }

    /// A fault of ours. What happened goes to the log, not to the caller.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, "request failed");
        Self::new(Code::Internal, "something went wrong inside the server; its log has the request's id")
    }

    /// The native body.
    pub fn native(&self, request_id: &str) -> Value {
        self.body(self.code.name(), request_id)
    }

    /// The native body with a code that a dialect spells otherwise.
    pub fn body(&self, code: &str, request_id: &str) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.code.kind(),
            "code": code,
            "param": self.param,
            "request_id": request_id,
        }})
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let code = match &error {
            RequestError::Missing { .. } => Code::MissingParameter,
            RequestError::WrongType { .. }
            | RequestError::InvalidValue { .. }
            | RequestError::Contradiction { .. }
            | RequestError::Sampling { .. } => Code::InvalidRequest,
            RequestError::Unsupported { .. } => Code::UnsupportedParameter,
            RequestError::UnsupportedSize { .. } => Code::UnsupportedSize,
            RequestError::InvalidImage { .. } => Code::InvalidImage,
            RequestError::UnreachableImage { .. } => Code::ImageUnreachable,
            RequestError::UnknownModel { .. } => Code::ModelNotFound,
        };
        Self::field(code, error.param(), error.to_string())
    }
}

/// Why a job failed, for the caller who waited for it.
impl From<&JobError> for ApiError {
    fn from(error: &JobError) -> Self {
        let known = Code::ALL.iter().copied().find(|code| code.name() == error.code);
        Self { param: error.param.clone(), ..Self::new(known.unwrap_or(Code::Internal), error.message.clone()) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        // A client that sleeps as long as it is told should not be told to sleep for minutes.
        let long = self.retry_after.is_some_and(|seconds| seconds > 60);
        match if long { Some(false) } else { self.code.retry() } {
            Some(true) => drop(headers.insert(SHOULD_RETRY, HeaderValue::from_static("true"))),
            Some(false) => drop(headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"))),
            None => {}
        }
        if self.code == Code::InvalidApiKey {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes the bodies of errors in the shape of the route they come from. Errors of axum's own, which no handler of
/// ours has seen, get ours too.
pub(crate) async fn render(State(table): State<Table>, request: Request, next: Next) -> Response {
    let shape = table.shape(&request);
    let head = request.method() == Method::HEAD;
    let id = request.extensions().get::<RequestId>().cloned().unwrap_or_default();
    let mut response = next.run(request).await;
    let status = response.status();
    let error = match response.extensions_mut().remove::<ApiError>() {
        Some(error) => error,
        None if status.is_client_error() || status.is_server_error() => foreign(status),
        None => return response,
    };
    let allow = response.headers_mut().remove(ALLOW);
    let body = shape(&error, &id.0).to_string();
    *response.body_mut() = if head { Body::empty() } else { Body::from(body) };
    let headers = response.headers_mut();
    headers.remove(axum::http::header::CONTENT_LENGTH);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(allow) = allow {
        headers.insert(ALLOW, allow);
    }
    response
}

/// An error that came from below our handlers.
fn foreign(status: StatusCode) -> ApiError {
    let code = Code::ALL.iter().copied().find(|code| code.status() == status);
    let code = code.unwrap_or(if status.is_server_error() { Code::Internal } else { Code::InvalidRequest });
    ApiError::new(code, status.canonical_reason().unwrap_or("error").to_lowercase())
}

/// The reply to a panic in a handler: the server goes on.
#[allow(clippy::needless_pass_by_value, reason = "the layer hands it over so")]
pub(crate) fn panicked(cause: Box<dyn std::any::Any + Send>) -> Response {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("unknown");
    ApiError::internal(format!("a handler panicked: {text}")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_the_list_is_there_once() {
        for (i, code) in Code::ALL.iter().enumerate() {
            assert!(!Code::ALL[..i].contains(code));
        }
    }

    #[test]
    fn a_validation_error_is_never_one_that_clients_retry() {
        let errors = [
            RequestError::Missing { param: "prompt".into() },
            RequestError::InvalidValue { param: "n".into(), wanted: "less".into(), asked: "more".into() },
            RequestError::Unsupported { param: "mask".into(), why: "no".into() },
            RequestError::UnknownModel { asked: "x".into(), known: "y".into() },
        ];
        for error in errors {
            let code = error.code();
            let api = ApiError::from(error);
            assert_eq!(api.code.name(), code);
            assert!(matches!(api.code.status().as_u16(), 400 | 404));
        }
    }

    #[test]
    fn what_a_retry_cannot_mend_says_so() {
        for code in Code::ALL {
            let response = ApiError::new(*code, "x").into_response();
            let retry = response.headers().get(SHOULD_RETRY).map(|value| value == "true");
            let status = code.status().as_u16();
            if status == 409 {
                assert_eq!(retry, Some(*code == Code::JobBusy), "{code:?}");
            }
            if status == 429 || status == 503 {
                assert!(response.headers().contains_key(RETRY_AFTER), "{code:?}");
            }
        }
        let long = ApiError::new(Code::QueueFull, "x").after(3600).into_response();
        assert_eq!(long.headers()[SHOULD_RETRY], "false");
    }

    #[test]
    fn a_failed_job_keeps_its_code_and_field() {
        let job = JobError { code: "out_of_memory".into(), message: "m".into(), param: Some("size".into()) };
        let error = ApiError::from(&job);
        assert_eq!((error.code, error.param.as_deref()), (Code::OutOfMemory, Some("size")));
        let job = JobError { code: "new one".into(), message: "m".into(), param: None };
        assert_eq!(ApiError::from(&job).code, Code::Internal);
    }
}
