//! A job's events, live: server-sent, or on a WebSocket.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use serde_json::{Value, json};

use super::App;
use super::doc::{Content, Doc};
use super::errors::{ApiError, Code};
use super::jobs::lookup;
use super::params::Params;
use super::routes::{Access, Routes};
use super::submit::{self, Followed};
use super::urls::Urls;
use super::wire::{self, JobReply};
use crate::config::Role;
use crate::jobs::{JobEvent, JobEventKind};
use crate::policy::Caller;

/// Between signs of life, so that proxies and clients do not take a long step for a dead connection.
const PULSE: Duration = Duration::from_secs(15);

pub(crate) fn routes() -> Routes {
    Routes::new(ApiError::native)
        .get(
            "/v1/jobs/{id}/events",
            Access::Needs(Role::Read),
            Doc::new("Jobs", "Watch a job by server-sent events")
                .about(
                    "queued, loading, started, progress, preview, output, and last succeeded, failed or canceled. Each \
                     event's data is an Event object. A job whose last event was seen already is answered with 204.",
                )
                .path("id", "string", "The job's id.")
                .header("Last-Event-ID", "Only events after this one.")
                .reply(StatusCode::OK, Content::Media("text/event-stream"), "The events, as they happen.")
                .errors(&[Code::JobNotFound]),
            sse,
        )
        .get(
            "/v1/jobs/{id}/ws",
            Access::Needs(Role::Read),
            Doc::new("Jobs", "Watch a job on a WebSocket")
                .about("The same events, one text message each, with the event's id as `event_id`.")
                .path("id", "string", "The job's id.")
                .query("after", "integer", "Only events after this one.")
                .reply(StatusCode::SWITCHING_PROTOCOLS, Content::Empty, "The WebSocket.")
                .errors(&[Code::JobNotFound, Code::InvalidRequest]),
            ws,
        )
}

async fn sse(
    State(app): State<App>,
    caller: Caller,
    urls: Urls,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    // An id that is not ours is as good as none: the whole story is told.
    let after = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
    let (ended, events) = watch(&app, &caller, &id, after).await?;
    let mut events = Box::pin(events.peekable());
    if ended && events.as_mut().peek().await.is_none() {
        // To a browser's EventSource this says that there is nothing to come back for.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let lines = events.filter_map(move |followed| {
        let line = match followed {
            Followed::Event(event) => {
                let data = data(&app, &urls, &event).to_string();
                Some(Ok::<_, Infallible>(Event::default().id(event.id.to_string()).event(event.kind.name()).data(data)))
            }
            // The stream just ends: the client comes back, and resumes where it was.
            Followed::Closing => None,
        };
        async move { line }
    });
    Ok(stream_reply(lines))
}

/// A reply of server-sent events, each sent as soon as it exists.
pub(crate) fn stream_reply(events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Response {
    let mut reply = Sse::new(events).keep_alive(KeepAlive::new().interval(PULSE).text("ping")).into_response();
    // nginx gathers replies into buffers unless it is told not to.
    reply.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    reply
}

/// Whether the job has ended already, and its events.
async fn watch(
    app: &App,
    caller: &Caller,
    id: &str,
    after: Option<u64>,
) -> Result<(bool, BoxStream<'static, Followed>), ApiError> {
    let ended = app.jobs.get(caller, id).await.map_err(lookup)?.status.ended();
    let events = app.jobs.watch(caller, id, after).await.map_err(lookup)?;
    Ok((ended, submit::follow(app, ended, events)))
}

async fn ws(
    State(app): State<App>,
    caller: Caller,
    urls: Urls,
    Path(id): Path<String>,
    params: Params,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let after = params.integer("after", 0..=u64::MAX)?;
    let (_, events) = watch(&app, &caller, &id, after).await?;
    let upgrade = upgrade.map_err(|error| ApiError::new(Code::InvalidRequest, format!("no WebSocket: {error}")))?;
    // The client has nothing to say but pongs and goodbye.
    let upgrade = upgrade.max_message_size(64 << 10);
    Ok(upgrade.on_upgrade(move |socket| async move {
        // A client that went away is no error: the job goes on, and others may watch it.
        if let Err(error) = talk(socket, &app, &urls, events).await {
            tracing::debug!(job = %id, %error, "a WebSocket ended early");
        }
    }))
}

async fn talk(
    mut socket: WebSocket,
    app: &App,
    urls: &Urls,
    events: impl Stream<Item = Followed> + Send,
) -> Result<(), axum::Error> {
    let mut events = std::pin::pin!(events);
    let mut pulse = tokio::time::interval(PULSE);
    pulse.reset();
    let goodbye = loop {
        tokio::select! {
            followed = events.next() => match followed {
                Some(Followed::Event(event)) => {
                    let mut data = data(app, urls, &event);
                    data["event_id"] = json!(event.id);
                    socket.send(Message::Text(data.to_string().into())).await?;
                }
                Some(Followed::Closing) => break CloseFrame { code: close_code::RESTART, reason: "shutting_down".into() },
                None => break CloseFrame { code: close_code::NORMAL, reason: "the job has ended".into() },
            },
            message = socket.recv() => match message {
                None | Some(Ok(Message::Close(_))) => return Ok(()),
                Some(message) => drop(message?),
            },
            _ = pulse.tick() => socket.send(Message::Ping(bytes::Bytes::new())).await?,
        }
    };
    socket.send(Message::Close(Some(goodbye))).await
}

/// An event as clients see it. The whole job comes with the events that change more of it than a number.
fn data(app: &App, urls: &Urls, event: &JobEvent) -> Value {
    let job = &event.job;
    let mut data = json!({
        "type": event.kind.name(),
        "job_id": job.id,
        "status": job.status,
        "progress": job.progress,
        "queue_position": job.queue_position,
        "eta_ms": job.eta_ms,
    });
    let whole = match &event.kind {
        JobEventKind::Progress { image, step, steps } => {
            data["image"] = json!(image);
            data["step"] = json!(step);
            data["steps"] = json!(steps);
            false
        }
        JobEventKind::Loading(loading) => {
            data["loading"] = json!(loading);
            false
        }
        JobEventKind::Preview { image, index, png } => {
            data["image"] = json!(image);
            data["index"] = json!(index);
            data["content_type"] = json!("image/png");
            data["b64_json"] = json!(STANDARD.encode(png));
            false
        }
        JobEventKind::Output { image } => {
            data["image"] = json!(image);
            data["output"] = json!(wire::outputs(app, urls, job).into_iter().find(|output| output.index == *image));
            false
        }
        JobEventKind::Queued => event.id == 1,
        JobEventKind::Started | JobEventKind::Succeeded | JobEventKind::Failed | JobEventKind::Canceled => true,
    };
    if whole {
        data["job"] = json!(JobReply::new(app, urls, job));
    }
    data
}
