//! From an understood request to a job, and from a job to its end: what every creating route shares.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};

use super::errors::{ApiError, Code};
use super::urls::Urls;
use super::{App, inputs};
use crate::jobs::{Idempotency, Job, JobEvent, Status, StoreError, SubmitError};
use crate::policy::Caller;
use crate::request::GenerationRequest;

const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// What a creating call says beside the request that was read from its body.
pub(crate) struct Call {
    pub(crate) headers: HeaderMap,
    /// What an idempotency key stands for.
    pub(crate) body: Bytes,
    /// How the caller reaches this server.
    pub(crate) urls: Urls,
}

/// A job that is stored.
pub(crate) struct Accepted {
    pub(crate) job: Job,
    /// Whether an earlier call with the same idempotency key made it.
    pub(crate) replayed: bool,
    hangup: HangUp,
}

/// Checks a request, brings the pictures here that it names, and stores its job with them.
///
/// The job is canceled when [`Accepted`] is dropped before its end, unless it was kept or carries an idempotency key:
/// then its caller can come back for it. So it is when the server goes down: the caller is told to ask again.
pub(crate) async fn submit(
    app: &App,
    caller: &Caller,
    mut request: GenerationRequest,
    call: &Call,
) -> Result<Accepted, ApiError> {
    let idempotency = idempotency(&call.headers, &call.body)?;
    let asked = request.priority;
    app.resolver.admit(&request)?;
    let brings = !(request.images.is_empty() && request.references.is_empty() && request.mask.is_none());
    if brings
        && let Some(idempotency) = &idempotency
        && let Some(earlier) = app.jobs.replayed(caller, idempotency).await.map_err(refused)?
    {
        let hangup = HangUp { app: app.clone(), caller: caller.clone(), id: None };
        return Ok(Accepted { job: earlier.job, replayed: true, hangup });
    }
    let files = inputs::load(app, caller, &call.urls, &mut request).await?;
    let metadata = request.metadata.clone();
    let (mut resolved, mut warnings) = app.resolver.resolve(request)?;
    let (priority, lowered) = caller.bounded(asked);
    resolved.priority = priority;
    warnings.extend(lowered);

    let keyed = idempotency.is_some();
    // A caller who hangs up while this waits is the store's to care for; from then on it is ours.
    let submitted = app.jobs.submit(caller, resolved, files, metadata, warnings, idempotency).await.map_err(refused)?;
    let id = (!keyed).then(|| submitted.job.id.clone());
    if let Some(id) = &id {
        app.jobs.tie(id, true);
    }
    let hangup = HangUp { app: app.clone(), caller: caller.clone(), id };
    Ok(Accepted { job: submitted.job, replayed: submitted.replayed, hangup })
}

impl Accepted {
    /// The job, which goes on without its caller.
    pub(crate) fn keep(mut self) -> (Job, bool) {
        self.hangup.disarm();
        (self.job, self.replayed)
    }

    /// The job and what cancels it when dropped.
    pub(crate) fn watched(self) -> (Job, bool, HangUp) {
        (self.job, self.replayed, self.hangup)
    }

    /// Waits for the job's end.
    ///
    /// # Errors
    /// When it failed or was canceled, or the server goes down first.
    pub(crate) async fn finish(mut self, app: &App) -> Result<(Job, bool), ApiError> {
        let job = tokio::select! {
            ended = until_end(app, &self.hangup.caller, &self.job.id) => ended?,
            () = app.closing.cancelled() => {
                self.hangup.call_off().await;
                return Err(shutting_down());
            }
        };
        self.hangup.disarm();
        ended(&job)?;
        Ok((job, self.replayed))
    }
}

async fn until_end(app: &App, caller: &Caller, id: &str) -> Result<Job, ApiError> {
    const A_WHILE: Duration = Duration::from_secs(3600);
    loop {
        let start = Instant::now();
        let job = app.jobs.wait(caller, id, A_WHILE).await.map_err(super::jobs::lookup)?;
        if job.status.ended() {
            return Ok(job);
        }
        // Back before its time and not ended: the job was put back for the next start.
        if start.elapsed() < A_WHILE / 2 {
            return Err(shutting_down());
        }
    }
}

/// The error that an ended job is for the caller who waited for its pictures.
///
/// # Errors
/// When it failed or was canceled.
pub(crate) fn ended(job: &Job) -> Result<(), ApiError> {
    match (job.status, &job.error) {
        // A job that the server canceled says why, too.
        (Status::Canceled | Status::Failed, Some(error)) => Err(error.into()),
        (Status::Canceled, None) => Err(ApiError::new(Code::JobCanceled, format!("job {} was canceled", job.id))),
        (Status::Failed, None) => Err(ApiError::internal(format!("job {} failed and does not say why", job.id))),
        _ => Ok(()),
    }
}

/// What happens next to a job that is followed.
pub(crate) enum Followed {
    /// Something happened to it.
    Event(JobEvent),
    /// The server goes down before its end.
    Closing,
}

/// A job's events, up to its last one or the server's end. `over`: the job has ended already, so that no event may come.
pub(crate) fn follow(
    app: &App,
    over: bool,
    events: impl Stream<Item = JobEvent> + Send + 'static,
) -> BoxStream<'static, Followed> {
    let closing = app.closing.clone();
    stream::unfold((events.boxed(), closing, false), move |(mut events, closing, done)| async move {
        if done {
            return None;
        }
        tokio::select! {
            biased;
            event = events.next() => {
                // Events that stop before the last one are those of a job that was put back for the next start.
                let Some(event) = event else { return (!over).then_some((Followed::Closing, (events, closing, true))) };
                let last = event.kind.last();
                Some((Followed::Event(event), (events, closing, last)))
            }
            () = closing.cancelled() => Some((Followed::Closing, (events, closing, true))),
        }
    })
    .boxed()
}

/// The error of calls that the server's end cuts short.
pub(crate) fn shutting_down() -> ApiError {
    ApiError::new(Code::ShuttingDown, "the server is going down; try again soon")
}

/// Marks the reply of a job that an earlier call made.
pub(crate) fn mark(mut response: Response, replayed: bool) -> Response {
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

/// Whether the caller wants a job at once (RFC 7240).
pub(crate) fn prefers_async(headers: &HeaderMap) -> bool {
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let mut preferences = values.flat_map(|value| value.split([',', ';']));
    preferences.any(|preference| preference.trim().eq_ignore_ascii_case("respond-async"))
}

/// Sets the reply's `Location` to the job.
pub(crate) fn located(mut response: Response, url: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(url) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    response
}

fn idempotency(headers: &HeaderMap, body: &Bytes) -> Result<Option<Idempotency>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().ok().filter(|key| (1..=255).contains(&key.len()));
    let key = key.ok_or_else(|| {
        ApiError::new(Code::InvalidRequest, "the header Idempotency-Key must be 1 to 255 ASCII characters")
    })?;
    Ok(Some(Idempotency { key: key.to_owned(), body_sha256: Sha256::digest(body).into() }))
}

fn refused(error: SubmitError) -> ApiError {
    let message = error.to_string();
    match error {
        SubmitError::QueueFull { retry_after, .. } => {
            ApiError::new(Code::QueueFull, message).after(retry_after.as_secs())
        }
        SubmitError::IdempotencyMismatch(_) => ApiError::new(Code::IdempotencyMismatch, message),
        SubmitError::ShuttingDown | SubmitError::Unavailable(StoreError::Closed) => shutting_down(),
        SubmitError::Unavailable(StoreError::Full) => ApiError::new(Code::StorageFull, message),
        SubmitError::Unavailable(other) => ApiError::internal(other),
    }
}

/// Cancels a job when dropped, unless it was disarmed: its caller has hung up.
pub(crate) struct HangUp {
    app: App,
    caller: Caller,
    /// The job, while nobody else would want it finished.
    id: Option<String>,
}

impl HangUp {
    /// The job goes on without its caller, or has ended.
    pub(crate) fn disarm(&mut self) {
        if let Some(id) = self.id.take() {
            self.app.jobs.tie(&id, false);
        }
    }

    /// Cancels the job because the server goes down, so that the next start does not render it for nobody.
    async fn call_off(&mut self) {
        /// Less than the server waits for its last replies.
        const MOST: Duration = Duration::from_secs(1);
        let Some(id) = self.id.take() else { return };
        tracing::info!(job = %id, "canceled: the server goes down, and the caller is told to ask again");
        if tokio::time::timeout(MOST, self.app.jobs.cancel(&self.caller, &id)).await.is_err() {
            tracing::warn!(job = %id, "could not cancel the job in time; the next start may resume it");
        }
    }
}

impl Drop for HangUp {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (jobs, caller) = (self.app.jobs.clone(), self.caller.clone());
        let why = if self.app.closing.is_cancelled() { "the server goes down" } else { "the caller hung up" };
        tracing::info!(job = %id, why, "canceled");
        runtime.spawn(async move {
            if let Err(error) = jobs.cancel(&caller, &id).await {
                tracing::warn!(job = %id, %error, "could not cancel the job that nobody waits for");
            }
        });
    }
}
