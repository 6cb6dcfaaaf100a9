//! What all jobs share, and how one comes and goes with the pictures that its request brought.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::sync::RwLock;
use ulid::Ulid;

use super::handle::{Idempotency, InputFiles, Submitted};
use super::live::Live;
use super::registry::Registry;
use super::store::{Inserted, Lease, NewJob, NewKey, Store};
use super::{Job, JobsError, SubmitError, run};
use crate::artifacts::Artifacts;
use crate::config::Config;
use crate::engine::{EngineHandle, Work, WorkError};
use crate::request::ResolvedRequest;

/// How long an idempotency key is kept.
pub(super) const KEY_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How long a job is this process's own without a sign of life.
pub(super) const LEASE: Duration = Duration::from_secs(60);
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

impl Inner {
    pub(super) fn new(
        options: JobsOptions,
        store: Arc<dyn Store>,
        renderer: Arc<dyn Renderer>,
        artifacts: Artifacts,
    ) -> Self {
        Self {
            store,
            renderer,
            artifacts,
            options,
            live: Registry::default(),
            closing: AtomicBool::new(false),
            inputs: RwLock::default(),
            worker: Ulid::generate().to_string(),
        }
    }

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
    pub(super) fn keys_from(&self) -> Timestamp {
        self.now().checked_sub(KEY_LIFE).unwrap_or(Timestamp::MIN)
    }

    /// A job that was taken before, as it is now.
    pub(super) fn replay(&self, job: Job) -> Submitted {
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
    pub(super) async fn sweep_inputs(&self) {
        let swept = async { self.remove_unused(self.artifacts.kept_inputs().await?).await };
        match swept.await {
            Ok(0) => {}
            Ok(pictures) => tracing::info!(pictures, "removed pictures of requests that no job needs"),
            Err(error) => tracing::warn!(%error, "cannot remove the pictures of requests that no job needs"),
        }
    }

    /// Stores a job with the pictures that its request brought, and starts it.
    pub(super) async fn submit(
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
