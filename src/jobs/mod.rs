//! The job's life: submitted, stored, rendered, ended; watched by any number of listeners.
//!
//! Every generation is a job, stored before it is acknowledged. A synchronous call is a job that its
//! handler waits for. Each job that is on its way has a task (`run`) that turns the engine's events into
//! kept pictures and into the job's own events (`live`), which every kind of reply drains; the store
//! ([`store`]) has the last word on how a job ended.

mod error;
mod handle;
mod housekeeping;
mod inner;
mod job;
mod live;
mod meters;
mod registry;
mod run;
pub mod store;
#[cfg(test)]
mod tests;

pub use error::{JobsError, SubmitError};
pub use handle::{Idempotency, InputFiles, Jobs, Submitted};
pub use inner::{Clock, JobsOptions, Renderer};
pub use job::{Job, JobError, JobEvent, JobEventKind, JobMetrics, ModelLoading, Output, Status};
pub use store::{ListQuery, Page, SqliteStore, Store, StoreError};
