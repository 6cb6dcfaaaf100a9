//! `stream: true`: previews and pictures as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;

use axum::response::Response;
use axum::response::sse::Event;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::{StreamExt, stream};
use serde_json::{Value, json};

use super::asked::Asked;
use super::reply::{self, Usage};
use super::shape;
use crate::api::App;
use crate::api::errors::ApiError;
use crate::api::events::stream_reply;
use crate::api::jobs::lookup;
use crate::api::request_id::RequestId;
use crate::api::submit::{self, Accepted, Followed};
use crate::jobs::{Job, JobEvent, JobEventKind};
use crate::policy::Caller;

/// What one stream's events are made with.
struct Teller {
    app: App,
    asked: Asked,
    request: RequestId,
}

/// Follows a job to its end. Its caller's hanging up drops the stream, which cancels the job.
pub(super) async fn reply(
    app: App,
    caller: Caller,
    asked: Asked,
    accepted: Accepted,
    request: RequestId,
) -> Result<Response, ApiError> {
    let (job, replayed, mut hangup) = accepted.watched();
    let events = app.jobs.watch(&caller, &job.id, None).await.map_err(lookup)?;
    let followed = submit::follow(&app, job.status.ended(), events);
    let teller = Arc::new(Teller { app, asked, request });
    let events = followed.then(move |followed| {
        if matches!(&followed, Followed::Event(event) if event.kind.last()) {
            hangup.disarm();
        }
        let teller = Arc::clone(&teller);
        async move { teller.tell(followed).await }
    });
    Ok(submit::mark(stream_reply(events.flat_map(stream::iter).map(Ok::<_, Infallible>)), replayed))
}

impl Teller {
    async fn tell(&self, followed: Followed) -> Vec<Event> {
        let event = match followed {
            Followed::Closing => return vec![self.error(&submit::shutting_down())],
            Followed::Event(event) => event,
        };
        match &event.kind {
            // An event does not say whose picture it shows, so only the first one's are sent: clients take them for
            // steps of one picture. Whoever else watches the job may be shown more than this caller asked for.
            JobEventKind::Preview { image: 0, index, png } if *index < event.job.request.partial_images => {
                vec![self.partial(&event, *index, png)]
            }
            JobEventKind::Succeeded => {
                let mut events = Vec::new();
                for output in &event.job.outputs {
                    match self.completed(&event.job, output.index).await {
                        Ok(completed) => events.push(completed),
                        Err(error) => return vec![self.error(&error)],
                    }
                }
                events
            }
            kind if kind.last() => match submit::ended(&event.job) {
                Err(error) => vec![self.error(&error)],
                Ok(()) => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    /// Previews are small PNG pictures, whatever format the finished ones have, and say so.
    fn partial(&self, event: &JobEvent, index: u32, png: &[u8]) -> Event {
        let name = format!("{}.partial_image", self.asked.task.event());
        let mut data = self.common(&name, &event.job, "png");
        data["partial_image_index"] = json!(index);
        data["b64_json"] = json!(STANDARD.encode(png));
        Event::default().event(name).data(data.to_string())
    }

    async fn completed(&self, job: &Job, index: usize) -> Result<Event, ApiError> {
        let name = format!("{}.completed", self.asked.task.event());
        let outputs: Vec<_> = job.outputs.iter().filter(|output| output.index == index).cloned().collect();
        let mut data = self.common(&name, job, job.request.output_format.name());
        data["b64_json"] = json!(reply::base64(&self.app, job, index).await?);
        data["usage"] = json!(Usage::of(job, &outputs));
        data["index"] = json!(index);
        data["seed"] = json!(outputs.first().map(|output| output.seed));
        data["job_id"] = json!(job.id);
        Ok(Event::default().event(name).data(data.to_string()))
    }

    fn common(&self, name: &str, job: &Job, format: &str) -> Value {
        json!({
            "type": name,
            "created_at": job.created_at.as_second(),
            "size": reply::size(job),
            "quality": self.asked.quality,
            "background": "opaque",
            "output_format": format,
        })
    }

    /// The status is long sent, so the error is an event; clients raise what has an `error` member.
    fn error(&self, error: &ApiError) -> Event {
        Event::default().event("error").data(shape(error, &self.request.0).to_string())
    }
}
