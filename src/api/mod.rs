//! HTTP: the router and its layers, the native routes, and the vendors' dialects over them.
//!
//! Every route is listed once, with who may call it and what it says of itself ([`routes`]); the router, the key
//! check, the errors' shapes and the API document are all made from that list.

mod admin;
mod auth;
mod body;
mod browser;
mod cors;
mod dialects;
mod doc;
mod errors;
mod events;
mod files;
mod form;
mod inputs;
mod jobs;
mod models;
mod openapi;
mod outputs;
mod page;
mod params;
mod request_id;
mod routes;
mod status;
mod submit;
#[cfg(test)]
mod tests;
mod urls;
mod wire;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use jiff::Timestamp;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;

use crate::artifacts::Artifacts;
use crate::config::Config;
use crate::engine::EngineHandle;
use crate::inputs::Fetcher;
use crate::jobs::Jobs;
use crate::policy::Keys;
use crate::request::Resolver;
use errors::{ApiError, Code};
use routes::Routes;

/// What the handlers work with.
#[derive(Clone)]
pub struct App {
    /// Every job.
    pub jobs: Jobs,
    /// The models.
    pub engine: EngineHandle,
    /// The pictures.
    pub artifacts: Artifacts,
    /// What requests are checked against.
    pub resolver: Resolver,
    /// Who may call. Empty: everyone is the local user.
    pub keys: Arc<Keys>,
    /// What fetches the pictures that requests name by an address.
    pub fetcher: Fetcher,
    /// What the operator has set.
    pub config: Arc<Config>,
    /// The metrics' recorder, where one is installed.
    pub metrics: Option<PrometheusHandle>,
    /// When the server started; the models' `created`.
    pub started: Timestamp,
    /// Once canceled, open streams and waiting calls end with `shutting_down`, so that the server can.
    pub closing: CancellationToken,
}

/// The whole API.
pub fn router(app: App) -> Router {
    let (router, table) = all(&app).finish();
    let spec = openapi::Spec::new(&table);
    let cors = cors::layer(&app.config.server);
    let state = (app.clone(), table.clone());
    let router = router
        .fallback(|| async { ApiError::new(Code::NotFound, "there is no such path; see /docs") })
        .method_not_allowed_fallback(|| async { ApiError::new(Code::MethodNotAllowed, "the path has no such method") })
        // The last layer is the outermost.
        .layer(axum::Extension(spec))
        // Every body is read by `body`, which has its own bound.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(state.clone(), auth::check))
        .layer(from_fn_with_state(state, browser::guard))
        .layer(CatchPanicLayer::custom(errors::panicked))
        .layer(from_fn_with_state(table, errors::render));
    let router = match cors {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router.layer(from_fn(request_id::assign)).layer(from_fn(body::drain)).with_state(app)
}

/// Every route.
fn all(app: &App) -> Routes {
    let native = Routes::new(ApiError::native)
        .merge(jobs::routes())
        .merge(events::routes())
        .merge(outputs::routes())
        .merge(files::routes())
        .merge(models::routes())
        .merge(admin::routes())
        .merge(status::routes());
    let native = if app.config.server.docs { native.merge(page::routes()) } else { native };
    dialects::ALL.iter().fold(native, |routes, dialect| routes.merge(dialect()))
}
