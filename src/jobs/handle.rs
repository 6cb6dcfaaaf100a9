//! The one handle on all jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::sync::{RwLock, oneshot};
use tokio::time::timeout;
use ulid::Ulid;

use super::live::{Live, last_kind};
use super::registry::Registry;
use super::store::{Inserted, Lease, ListQuery, NewJob, NewKey, Page, Store, StoreError};
use super::{Job, JobEvent, JobsError, Status, SubmitError, housekeeping, meters, run};
use crate::artifacts::Artifacts;
use crate::config::Config;
use crate::engine::{EngineHandle, Work, WorkError};
use crate::policy::Caller;
use crate::request::ResolvedRequest;

/// How long an idempotency key is kept.
pub(super) const KEY_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How long a job is this process's own without a sign of life.
pub(super) const LEASE: Duration = Duration::from_secs(60);
/// Jobs that are taken over in one go.
const CLAIM: usize = 1000;
/// What a cancellation waits for the job's end.
const CANCEL: Duration = Duration::from_secs(5);

/// What renders: the engine, as far as jobs need it.
pub trait Renderer: Send + Sync + 'static {
    /// Takes one job's work; its events say how it goes. Does not block.
    ///
    /// # Errors
    /// When the work cannot be taken; no event follows then.
    fn submit(&self, work: Work) -> Result<(), WorkError>;

    /// How many jobs wait, and how long it takes until all of them have begun, where that is known.
    fn forecast(&self) -> Option<(usize, Duration)> {
        None
    }
}

impl Renderer for EngineHandle {
    fn submit(&self, work: Work) -> Result<(), WorkError> {
        EngineHandle::submit(self, work)
    }

    fn forecast(&self) -> Option<(usize, Duration)> {
        let queue = self.queue();
        Some((queue.waiting, Duration::from_millis(queue.wait_estimate_ms?)))
    }
}

/// What the time is.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// How jobs are taken and kept.
#[derive(Clone)]
pub struct JobsOptions {
    /// Jobs that may wait.
    pub max_queue: usize,
    /// Days that an ended job and its pictures are kept; 0 keeps them for good.
    pub retention_days: u32,
    /// What the time is.
    pub clock: Clock,
}

impl JobsOptions {
    /// What is configured, by the system's clock.
    pub fn new(config: &Config) -> Self {
        Self {
            max_queue: config.limits.max_queue,
            retention_days: config.jobs.retention_days,
            clock: Arc::new(Timestamp::now),
        }
    }
}

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

pub(super) struct Inner {
    pub(super) store: Arc<dyn Store>,
    pub(super) renderer: Arc<dyn Renderer>,
    pub(super) artifacts: Artifacts,
    pub(super) options: JobsOptions,
    pub(super) live: Registry,
    /// Set when the process is about to end.
    pub(super) closing: AtomicBool,
    /// Shared while a job is stored with the pictures that its request brought, held alone while those are removed that
    /// no job needs: between the two, a picture would be found kept and be gone a moment later.
    inputs: RwLock<()>,
    /// This process, in its leases.
    worker: String,
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
        let inner = Arc::new(Inner {
            store,
            renderer,
            artifacts,
            options,
            live: Registry::default(),
            closing: AtomicBool::new(false),
            inputs: RwLock::default(),
            worker: Ulid::generate().to_string(),
        });
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

impl Inner {
    /// The time, as exactly as the store keeps it.
    pub(super) fn now(&self) -> Timestamp {
        let now = (self.options.clock)();
        Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
    }

    pub(super) fn lease(&self) -> Lease {
        let now = self.now();
        Lease { worker: self.worker.clone(), now, until: now.checked_add(LEASE).unwrap_or(Timestamp::MAX) }
    }

    /// The oldest idempotency key that still stands for its job.
    fn keys_from(&self) -> Timestamp {
        self.now().checked_sub(KEY_LIFE).unwrap_or(Timestamp::MIN)
    }

    /// A job that was taken before, as it is now.
    fn replay(&self, job: Job) -> Submitted {
        let job = self.live.get(&job.id).map_or(job, |live| live.job());
        Submitted { job, replayed: true }
    }

    /// Removes an ended job: its files first, so that none are left behind if the rest fails.
    pub(super) async fn remove(&self, id: &str) -> Result<(), JobsError> {
        let brought = self.store.get(id).await?.map(|stored| hashes(&stored.job.request)).unwrap_or_default();
        self.artifacts.remove(id).await?;
        self.store.remove(id).await?;
        self.live.remove(id);
        self.give_up(brought).await;
        Ok(())
    }

    /// Removes those of the pictures that requests brought which no job needs.
    async fn remove_unused(&self, hashes: Vec<String>) -> Result<usize, JobsError> {
        let _alone = self.inputs.write().await;
        let unused = self.store.unused_inputs(hashes).await?;
        for hash in &unused {
            self.artifacts.remove_input(hash).await?;
        }
        Ok(unused.len())
    }

    /// Removes the pictures that the request of a job brought which is gone or was never stored, unless others need
    /// them. Should that fail, the next start does it.
    async fn give_up(&self, brought: Vec<String>) {
        if !brought.is_empty()
            && let Err(error) = self.remove_unused(brought).await
        {
            tracing::warn!(%error, "cannot remove the pictures that a request brought");
        }
    }

    /// Removes what a killed process has left: pictures that were kept for a job which was never stored.
    async fn sweep_inputs(&self) {
        let swept = async { self.remove_unused(self.artifacts.kept_inputs().await?).await };
        match swept.await {
            Ok(0) => {}
            Ok(pictures) => tracing::info!(pictures, "removed pictures of requests that no job needs"),
            Err(error) => tracing::warn!(%error, "cannot remove the pictures of requests that no job needs"),
        }
    }

    async fn submit(
        self: &Arc<Self>,
        job: Job,
        files: InputFiles,
        idempotency: Option<Idempotency>,
    ) -> Result<Submitted, SubmitError> {
        let key = idempotency.as_ref().map(|Idempotency { key, .. }| key.clone()).unwrap_or_default();
        let not_before = self.keys_from();
        let stored = self.inputs.read().await;
        let brought = hashes(&job.request);
        for (hash, file) in files {
            if let Err(error) = self.artifacts.keep_input(&hash, file).await {
                drop(stored);
                self.give_up(brought).await;
                return Err(SubmitError::Unavailable(error.into()));
            }
        }
        let idempotency = idempotency.map(|Idempotency { key, body_sha256 }| NewKey { key, body_sha256, not_before });
        let max_queued = self.options.max_queue;
        // Known before it is stored: who repeats its key a moment later finds it under way.
        let live = Arc::new(Live::new(job.clone()));
        let id = job.id.clone();
        self.live.insert(&id, live.clone());
        let inserted = self.store.insert(NewJob { job, idempotency, max_queued, lease: self.lease() }).await;
        drop(stored);
        if !matches!(inserted, Ok(Inserted::New)) {
            self.live.remove(&id);
            live.close();
            self.give_up(brought).await;
        }
        match inserted.map_err(SubmitError::Unavailable)? {
            Inserted::New => {
                live.read(|job| {
                    let request = &job.request;
                    let prompt = prompt_hash(&request.prompt);
                    tracing::info!(
                        job = id,
                        key = job.key,
                        model = request.model,
                        n = request.n,
                        prompt,
                        "job accepted"
                    );
                });
                run::start(self, live.clone());
                Ok(Submitted { job: live.job(), replayed: false })
            }
            Inserted::Replayed(job) => Ok(self.replay(*job)),
            Inserted::Mismatch => Err(SubmitError::IdempotencyMismatch(key)),
            Inserted::QueueFull => {
                let retry_after = self.live.retry_after(self.renderer.forecast());
                Err(SubmitError::QueueFull { max_queue: max_queued, retry_after })
            }
        }
    }
}

/// The files that a request brought, by the hash of each.
fn hashes(request: &ResolvedRequest) -> Vec<String> {
    let hashes: BTreeSet<&str> = request.inputs().map(|input| input.sha256.as_str()).collect();
    hashes.into_iter().map(str::to_owned).collect()
}

/// What stands for a prompt in logs.
fn prompt_hash(prompt: &str) -> String {
    Sha256::digest(prompt.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
