//! Where jobs are kept: the record of every job, and the queue of those that have not ended.
//!
//! [`Store`] is written for several workers over one store. A worker *claims* waiting jobs, each under a
//! lease; it *renews* its leases while it works; and it *finishes* a job, which succeeds once whatever
//! happens, so that a job claimed twice still has one result. [`SqliteStore`] serves one process; a store
//! on a database server answers the same calls (`claim` with `FOR UPDATE SKIP LOCKED`).

mod rows;
mod schema;
mod sqlite;
#[cfg(test)]
mod tests;
mod writer;

pub use sqlite::SqliteStore;

use futures::future::BoxFuture;
use jiff::Timestamp;

use super::{Job, JobError, JobMetrics, Output, Status};

/// What a store answers, later.
pub type Reply<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Why the store could not do what it was asked. Nothing of the call has happened then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is no room for another write.
    #[error("the disk that holds the jobs is full")]
    Full,
    /// The store has been shut.
    #[error("the job store is closed")]
    Closed,
    /// Another process works in the same data folder.
    #[error("{0} is in use by another easel process; give each its own --data-dir")]
    InUse(String),
    /// The database was written by a later version.
    #[error("{file} was written by a later version of easel (schema {found}; this one knows {known})")]
    Newer {
        /// The database.
        file: String,
        /// Its schema's version.
        found: u32,
        /// The latest that this program knows.
        known: u32,
    },
    /// Anything else that the database or the file system reports.
    #[error("job store: {0}")]
    Failed(String),
}

/// A job to be stored.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// The job, queued.
    pub job: Job,
    /// The caller's idempotency key.
    pub idempotency: Option<NewKey>,
    /// Jobs that may wait; with as many waiting, the job is not taken.
    pub max_queued: usize,
    /// Who is going to render it.
    pub lease: Lease,
}

/// An idempotency key as it is stored, for the job's workspace and API key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    /// The key as the caller wrote it.
    pub key: String,
    /// What the key stands for.
    pub body_sha256: [u8; 32],
    /// Keys first used before this are forgotten.
    pub not_before: Timestamp,
}

/// What became of a job that was to be stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Inserted {
    /// It is stored.
    New,
    /// Its idempotency key stands for this job, which has the same body.
    Replayed(Box<Job>),
    /// Its idempotency key stands for another body.
    Mismatch,
    /// As many jobs wait as may.
    QueueFull,
}

/// A worker's right to render jobs until it runs out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The worker.
    pub worker: String,
    /// The time of the call.
    pub now: Timestamp,
    /// When others may take the jobs.
    pub until: Timestamp,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// One of the final states.
    pub status: Status,
    /// When its first picture joined the batch.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
    /// Its pictures.
    pub outputs: Vec<Output>,
    /// Where its time went.
    pub metrics: Option<JobMetrics>,
    /// Why it failed.
    pub error: Option<JobError>,
    /// What the caller should know.
    pub warnings: Vec<String>,
    /// The id of its last event, for listeners who come back.
    pub last_event: u64,
}

/// A job as it was stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// The job.
    pub job: Job,
    /// The id of its last event; 0 before it has ended.
    pub last_event: u64,
}

/// Which jobs to list, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// Most jobs.
    pub limit: usize,
    /// Only jobs older than this one.
    pub after: Option<String>,
    /// Only jobs in this state.
    pub status: Option<Status>,
    /// Only jobs for this model.
    pub model: Option<String>,
}

/// One page of the list of jobs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// Newest first.
    pub jobs: Vec<Job>,
    /// Whether there are older ones.
    pub has_more: bool,
}

/// The record of every job, and the queue.
///
/// When a call that writes is answered, what it wrote survives the end of the process and of the power.
pub trait Store: Send + Sync + 'static {
    /// Stores a new job under the worker's lease, unless its idempotency key or a full queue speaks against it.
    /// Of several simultaneous calls with one idempotency key one stores its job, and the others are given that one.
    fn insert(&self, new: NewJob) -> Reply<'_, Inserted>;

    /// What an idempotency key stands for, for the job's workspace and API key; `None` while it stands for nothing.
    fn replay(&self, workspace: &str, api_key: &str, key: NewKey) -> Reply<'_, Option<Inserted>>;

    /// Takes up to `limit` jobs that have not ended and that no lease holds, oldest first. They are queued again.
    fn claim(&self, lease: Lease, limit: usize) -> Reply<'_, Vec<Job>>;

    /// Prolongs the lease of every job that the worker holds; says how many.
    fn renew(&self, lease: Lease) -> Reply<'_, usize>;

    /// Notes that a queued job runs.
    fn start(&self, id: &str, at: Timestamp) -> Reply<'_, ()>;

    /// Puts a job that has not ended back into the queue, held by nobody.
    fn release(&self, id: &str) -> Reply<'_, ()>;

    /// Ends a job. `false` if it has ended before or is gone: the first ending stands.
    fn finish(&self, id: &str, ending: Ending) -> Reply<'_, bool>;

    /// One job.
    fn get(&self, id: &str) -> Reply<'_, Option<Stored>>;

    /// A page of one workspace's jobs; `None` when there is no job `query.after` in it.
    fn list(&self, workspace: &str, query: ListQuery) -> Reply<'_, Option<Page>>;

    /// Removes a job and its idempotency key; `false` if there is none.
    fn remove(&self, id: &str) -> Reply<'_, bool>;

    /// Those of the pictures, by the hash of their file, that no job's request brought.
    fn unused_inputs(&self, hashes: Vec<String>) -> Reply<'_, Vec<String>>;

    /// Up to `limit` ids of jobs that ended before `time`, oldest first.
    fn ended_before(&self, time: Timestamp, limit: usize) -> Reply<'_, Vec<String>>;

    /// Forgets idempotency keys first used before `time`; says how many.
    fn forget_keys(&self, time: Timestamp) -> Reply<'_, usize>;
}
