//! The one handle on all jobs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use tokio::sync::oneshot;
use tokio::time::timeout;
use ulid::Ulid;

use super::inner::{Inner, JobsOptions, Renderer};
use super::live::{Live, last_kind};
use super::store::{Inserted, ListQuery, NewKey, Page, Store, StoreError};
use super::{Job, JobEvent, JobsError, Status, SubmitError, housekeeping, meters, run};
use crate::artifacts::Artifacts;
use crate::policy::Caller;
use crate::request::ResolvedRequest;

/// Jobs that are taken over in one go.
const CLAIM: usize = 1000;
/// What a cancellation waits for the job's end.
const CANCEL: Duration = Duration::from_secs(5);

/// A caller's idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// As the caller wrote it.
    pub key: String,
    /// The SHA-256 of the request's body.
    pub body_sha256: [u8; 32],
}

/// The pictures that a request brought: files by their SHA-256 in hex.
pub type InputFiles = BTreeMap<String, Bytes>;

/// A job that was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Submitted {
    /// The job, as it is now.
    pub job: Job,
    /// It was taken before, under the same idempotency key.
    pub replayed: bool,
}

/// Every job of this server. Clones share them.
#[derive(Clone)]
pub struct Jobs {
    pub(super) inner: Arc<Inner>,
}

impl Jobs {
    /// Takes the store's jobs into service: those that a killed process has left are rendered again, and old
    /// ones are removed, now and from time to time.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn open(
        options: JobsOptions,
        store: Arc<dyn Store>,
        renderer: Arc<dyn Renderer>,
        artifacts: Artifacts,
    ) -> Result<Self, StoreError> {
        let inner = Arc::new(Inner::new(options, store, renderer, artifacts));
        meters::describe();
        inner.sweep_inputs().await;
        let mut resumed = 0;
        loop {
            let claimed = inner.store.claim(inner.lease(), CLAIM).await?;
            if claimed.is_empty() {
                break;
            }
            resumed += claimed.len();
            for job in claimed {
                let live = Arc::new(Live::resumed(job, inner.now()));
                live.read(|job| inner.live.insert(&job.id, live.clone()));
                run::start(&inner, live);
            }
        }
        if resumed > 0 {
            tracing::info!(jobs = resumed, "resumed the jobs that were left unfinished");
        }
        housekeeping::start(&inner);
        Ok(Self { inner })
    }

    /// Takes a job: when this returns, it is stored, and will be rendered whatever happens to this process.
    ///
    /// `files` are the pictures that the request brought, by the hash that it names them by; they are stored first.
    /// `metadata` is given back unchanged; `warnings` is what the caller should know. A caller who drops the
    /// future before it is done has hung up: the job is called off, unless it has an idempotency key.
    ///
    /// # Errors
    /// When the queue is full, the idempotency key stands for another body, or the job cannot be stored.
    pub async fn submit(
        &self,
        caller: &Caller,
        request: ResolvedRequest,
        files: InputFiles,
        metadata: BTreeMap<String, String>,
        warnings: Vec<String>,
        idempotency: Option<Idempotency>,
    ) -> Result<Submitted, SubmitError> {
        if self.refuses() {
            return Err(SubmitError::ShuttingDown);
        }
        let job = Job {
            id: format!("job_{}", Ulid::generate()),
            workspace: caller.workspace.clone(),
            key: caller.key.clone(),
            status: Status::Queued,
            request,
            created_at: self.inner.now(),
            started_at: None,
            finished_at: None,
            loading: None,
            progress: 0.0,
            queue_position: None,
            eta_ms: None,
            outputs: Vec::new(),
            metrics: None,
            error: None,
            metadata,
            warnings,
        };
        // A task of its own, so that a job which is stored is also started, however soon the caller hangs up.
        let (answer, answered) = oneshot::channel();
        let inner = self.inner.clone();
        tokio::spawn(async move {
            let keyed = idempotency.is_some();
            let submitted = inner.submit(job, files, idempotency).await;
            if let Err(Ok(Submitted { job, replayed: false })) = answer.send(submitted)
                && !keyed
                && let Some(live) = inner.live.get(&job.id)
            {
                live.cancel.cancel();
            }
        });
        answered.await.unwrap_or(Err(SubmitError::ShuttingDown))
    }

    /// The job that an earlier call with the same idempotency key made, if there is one: found before anything is fetched
    /// for the request, whose pictures may be gone from where they were.
    ///
    /// # Errors
    /// When the key stands for another body, or the store does not answer.
    pub async fn replayed(&self, caller: &Caller, idempotency: &Idempotency) -> Result<Option<Submitted>, SubmitError> {
        let Idempotency { key, body_sha256 } = idempotency.clone();
        let new = NewKey { key: key.clone(), body_sha256, not_before: self.inner.keys_from() };
        let found = self.inner.store.replay(&caller.workspace, &caller.key, new).await;
        match found.map_err(SubmitError::Unavailable)? {
            Some(Inserted::Replayed(job)) => Ok(Some(self.inner.replay(*job))),
            Some(Inserted::Mismatch) => Err(SubmitError::IdempotencyMismatch(key)),
            Some(Inserted::New | Inserted::QueueFull) | None => Ok(None),
        }
    }

    /// A job of the caller's workspace.
    ///
    /// # Errors
    /// When there is none of this id, or the store does not answer.
    pub async fn get(&self, caller: &Caller, id: &str) -> Result<Job, JobsError> {
        if let Some(live) = self.live(caller, id)? {
            return Ok(live.job());
        }
        Ok(self.stored(caller, id).await?.0)
    }

    /// A page of the caller's workspace's jobs, newest first.
    ///
    /// # Errors
    /// `NotFound` when there is no job `query.after`; or when the store does not answer.
    pub async fn list(&self, caller: &Caller, query: ListQuery) -> Result<Page, JobsError> {
        let (after, status) = (query.after.clone(), query.status);
        let page = self.inner.store.list(&caller.workspace, query).await?;
        let mut page = page.ok_or_else(|| JobsError::NotFound(after.unwrap_or_default()))?;
        for job in &mut page.jobs {
            if let Some(live) = self.inner.live.get(&job.id) {
                *job = live.job();
            }
        }
        // A job may have moved on since the store was read.
        page.jobs.retain(|job| status.is_none_or(|status| job.status == status));
        Ok(page)
    }

    /// Calls a job off, at its next step boundary, and gives it back as it is then. A job that has ended is
    /// given back as it is.
    ///
    /// # Errors
    /// When there is no such job, or the store does not answer.
    pub async fn cancel(&self, caller: &Caller, id: &str) -> Result<Job, JobsError> {
        if let Some(live) = self.live(caller, id)? {
            live.cancel.cancel();
            // On a full disk a job cannot end; it will when it can.
            let _ = timeout(CANCEL, live.ended()).await;
            return Ok(live.job());
        }
        Ok(self.stored(caller, id).await?.0)
    }

    /// Removes a job with its pictures; calls it off first if it has not ended.
    ///
    /// # Errors
    /// When there is no such job, it cannot be called off now, or it cannot be removed.
    pub async fn delete(&self, caller: &Caller, id: &str) -> Result<(), JobsError> {
        match self.live(caller, id)? {
            Some(live) => {
                live.cancel.cancel();
                // Until then a picture of it may still be written.
                timeout(CANCEL, live.closed()).await.map_err(|_| JobsError::Busy(id.to_owned()))?;
            }
            None => drop(self.stored(caller, id).await?),
        }
        self.inner.remove(id).await
    }

    /// The job, as soon as it has ended or when the time is over.
    ///
    /// # Errors
    /// When there is no such job, or the store does not answer.
    pub async fn wait(&self, caller: &Caller, id: &str, most: Duration) -> Result<Job, JobsError> {
        if let Some(live) = self.live(caller, id)? {
            // Out of time is an answer, too.
            let _ = timeout(most, live.ended()).await;
            return Ok(live.job());
        }
        Ok(self.stored(caller, id).await?.0)
    }

    /// A job's events after `after`: those that are known, then each as it happens, to the job's last one.
    ///
    /// The stream ends without a last event when the server shuts down, for the job goes on after a restart.
    /// Of a job that ended some time ago only the last event is known. Previews are made, besides those that
    /// the request asks for, only while somebody watches; a stream may miss some, but never an output.
    ///
    /// # Errors
    /// When there is no such job, or the store does not answer.
    pub async fn watch(
        &self,
        caller: &Caller,
        id: &str,
        after: Option<u64>,
    ) -> Result<impl Stream<Item = JobEvent> + Send + use<>, JobsError> {
        if let Some(live) = self.live(caller, id)? {
            return Ok(live.watch(after).left_stream());
        }
        let (job, last) = self.stored(caller, id).await?;
        // The listener may have seen the end already. Another number is that of an earlier event.
        let seen = !job.status.ended() || after == Some(last);
        let event = (!seen).then(|| JobEvent { id: last, kind: last_kind(job.status), job: Arc::new(job) });
        Ok(stream::iter(event).right_stream())
    }

    /// Says whether only a caller who waits on an open connection has a use for a job: when the server shuts down,
    /// such a job is canceled, for its caller is told to ask again, while all others are resumed at the next start.
    pub fn tie(&self, id: &str, tied: bool) {
        if let Some(live) = self.inner.live.get(id) {
            live.tied.store(tied, Ordering::Relaxed);
        }
    }

    /// Takes no more jobs, and waits until every job has ended or was put back into the queue. To be called
    /// when the engine shuts down, which makes that happen. `false` when the time is over before; whatever is
    /// still open then is resumed at the next start.
    pub async fn close(&self, most: Duration) -> bool {
        self.inner.closing.store(true, Ordering::Relaxed);
        let all_closed = async {
            loop {
                let open = self.inner.live.open();
                if open.is_empty() {
                    break;
                }
                for live in open {
                    live.closed().await;
                }
            }
        };
        timeout(most, all_closed).await.is_ok()
    }

    /// Refuses new jobs from here on, while those that are there go on.
    pub fn refuse(&self) {
        self.inner.closing.store(true, Ordering::Relaxed);
    }

    /// Whether new jobs are refused, because the process is about to end.
    pub fn refuses(&self) -> bool {
        self.inner.closing.load(Ordering::Relaxed)
    }

    /// A job that this process knows, if it is the caller's.
    fn live(&self, caller: &Caller, id: &str) -> Result<Option<Arc<Live>>, JobsError> {
        match self.inner.live.get(id) {
            Some(live) if live.read(|job| job.workspace == caller.workspace) => Ok(Some(live)),
            Some(_) => Err(JobsError::NotFound(id.to_owned())),
            None => Ok(None),
        }
    }

    /// A job from the store, if it is the caller's, and the id of its last event.
    async fn stored(&self, caller: &Caller, id: &str) -> Result<(Job, u64), JobsError> {
        let stored = self.inner.store.get(id).await?.filter(|stored| stored.job.workspace == caller.workspace);
        let stored = stored.ok_or_else(|| JobsError::NotFound(id.to_owned()))?;
        Ok((stored.job, stored.last_event))
    }
}
