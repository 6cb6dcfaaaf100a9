//! `/admin/v1/models`: what an operator can have done with the models.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};

use super::App;
use super::doc::Doc;
use super::errors::{ApiError, Code};
use super::models::{ModelList, ModelReply, model};
use super::params::Params;
use super::routes::{Access, Routes};
use super::submit::shutting_down;
use crate::config::Role;
use crate::engine::{CommandError, ModelCommand, ModelState};

/// The longest that `?wait=` holds a reply.
const MAX_WAIT: u64 = 600;

pub(crate) fn routes() -> Routes {
    let admin = Access::Needs(Role::Admin);
    let command = |summary, about| {
        Doc::new("Administration", summary)
            .about(about)
            .path("name", "string", "The model's name in `/v1/models`, or an alias; slashes are encoded.")
            .query("wait", "integer", "Seconds, at most 600, to hold the reply until it is done.")
            .ok("Model")
            .errors(&[Code::ModelNotFound, Code::InvalidRequest, Code::ShuttingDown])
    };
    Routes::new(ApiError::native)
        .get(
            "/admin/v1/models",
            admin,
            Doc::new("Administration", "List the models with their states").ok("ModelList"),
            list,
        )
        .post(
            "/admin/v1/models/{name}/load",
            admin,
            command(
                "Load a model",
                "It stays until it is unused for long or another needs the memory. A model that has just failed is tried \
                 again at once.",
            ),
            load,
        )
        .post(
            "/admin/v1/models/{name}/unload",
            admin,
            command(
                "Unload a model",
                "Its running pictures are finished first; jobs that wait for it, and later ones, have it loaded again.",
            )
            .errors(&[Code::ModelPinned]),
            unload,
        )
        .post(
            "/admin/v1/models/{name}/pin",
            admin,
            command("Pin a model", "It is loaded, and not unloaded until it is unpinned or the server ends."),
            pin,
        )
        .post(
            "/admin/v1/models/{name}/unpin",
            admin,
            command("Unpin a model", "It stays until it is unused for long or another needs the memory."),
            unpin,
        )
}

async fn list(State(app): State<App>) -> Json<ModelList> {
    Json(ModelList::of(&app))
}

async fn load(State(app): State<App>, Path(name): Path<String>, params: Params) -> Result<Json<ModelReply>, ApiError> {
    command(&app, &name, &params, ModelCommand::Load).await
}

async fn unload(
    State(app): State<App>,
    Path(name): Path<String>,
    params: Params,
) -> Result<Json<ModelReply>, ApiError> {
    command(&app, &name, &params, ModelCommand::Unload).await
}

async fn pin(State(app): State<App>, Path(name): Path<String>, params: Params) -> Result<Json<ModelReply>, ApiError> {
    command(&app, &name, &params, ModelCommand::Pin).await
}

async fn unpin(State(app): State<App>, Path(name): Path<String>, params: Params) -> Result<Json<ModelReply>, ApiError> {
    command(&app, &name, &params, ModelCommand::Unpin).await
}

/// Has a command carried out; the model as it is then, or once the command's aim is reached or the wait is over.
async fn command(app: &App, name: &str, params: &Params, command: ModelCommand) -> Result<Json<ModelReply>, ApiError> {
    let wait = params.integer("wait", 0..=MAX_WAIT)?.unwrap_or(0);
    let (name, card) = app.resolver.model(Some(name))?;
    app.engine.command(name, command).await.map_err(|error| refused(&error))?;
    let aim: &[ModelState] = match command {
        ModelCommand::Load | ModelCommand::Pin => &[ModelState::Ready, ModelState::Failed],
        ModelCommand::Unload => &[ModelState::Unloaded, ModelState::Failed],
        ModelCommand::Unpin => &ModelState::ALL,
    };
    tokio::select! {
        () = app.engine.reached(name, aim) => {}
        () = tokio::time::sleep(Duration::from_secs(wait)) => {}
        () = app.closing.cancelled() => {}
    }
    Ok(Json(model(app, name, card)))
}

fn refused(error: &CommandError) -> ApiError {
    match error {
        CommandError::Unknown(_) => ApiError::field(Code::ModelNotFound, "name", error.to_string()),
        CommandError::Pinned(_) => ApiError::new(Code::ModelPinned, error.to_string()),
        CommandError::ShuttingDown => shutting_down(),
    }
}
