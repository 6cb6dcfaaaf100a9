//! How the server is: the queue, liveness, readiness and metrics.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::App;
use super::doc::{Content, Doc};
use super::errors::{ApiError, Code};
use super::routes::{Access, Routes};
use super::submit::shutting_down;
use crate::config::Role;
use crate::engine::ModelState;
use crate::policy::Caller;

pub(crate) fn routes() -> Routes {
    Routes::new(ApiError::native)
        .get(
            "/v1/queue",
            Access::Needs(Role::Read),
            Doc::new("Server", "How long the queue is")
                .about("Waiting and running jobs, rows, batch sizes and the estimated wait, by model.")
                .ok("Queue"),
            queue,
        )
        .get("/healthz", Access::Open, Doc::new("Server", "Whether the process lives").ok("Health"), health)
        .get(
            "/readyz",
            Access::Open,
            Doc::new("Server", "Whether requests are taken and can be answered")
                .about(
                    "Not while a model that is configured to be loaded at the start is still being loaded, and not \
                     once every model has failed.",
                )
                .ok("Health")
                .errors(&[Code::ModelLoading, Code::ModelFailed, Code::ShuttingDown]),
            ready,
        )
        .get(
            "/metrics",
            Access::Needs(Role::Read),
            Doc::new("Server", "Metrics for Prometheus")
                .reply(StatusCode::OK, Content::Media("text/plain"), "Prometheus' text format.")
                .errors(&[Code::NotFound]),
            metrics,
        )
}

async fn queue(State(app): State<App>, caller: Caller) -> Result<Json<Value>, ApiError> {
    let mut queue = serde_json::to_value(app.engine.queue()).map_err(ApiError::internal)?;
    // Other workspaces' jobs are counted, but named to the operator only.
    if !caller.may(Role::Admin)
        && let Some(queue) = queue.as_object_mut()
    {
        queue.remove("jobs");
    }
    Ok(Json(queue))
}

async fn health() -> Json<Value> {
    Json(json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}))
}

async fn ready(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    // Jobs are refused from the signal on, while `closing` waits for the pictures that are still being made.
    if app.closing.is_cancelled() || app.jobs.refuses() {
        return Err(shutting_down());
    }
    if !app.engine.takes_work() {
        return Err(ApiError::new(Code::ShuttingDown, "the engine has ended; the server must be started again"));
    }
    let queue = app.engine.queue();
    // A first request should not have to wait for what was to be there from the start. That a request's model is loaded
    // later on is nobody else's matter.
    if !queue.starting.is_empty() {
        let message = format!("still being loaded for the start: {}", queue.starting.join(", "));
        return Err(ApiError::new(Code::ModelLoading, message));
    }
    if queue.models.iter().all(|model| model.status.state == ModelState::Failed) {
        return Err(ApiError::new(Code::ModelFailed, "no model can be loaded; /v1/models says why"));
    }
    Ok(Json(json!({"status": "ready", "version": env!("CARGO_PKG_VERSION")})))
}

async fn metrics(State(app): State<App>) -> Result<Response, ApiError> {
    let Some(recorder) = &app.metrics else {
        return Err(ApiError::new(Code::NotFound, "this server records no metrics"));
    };
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], recorder.render()).into_response())
}
