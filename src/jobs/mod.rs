//! The job's life: submitted, stored, rendered, ended; watched by any number of listeners.
//!
//! Every generation is a job, stored before it is acknowledged. A synchronous call is a job that its
//! handler waits for.

mod job;
pub mod store;

pub use job::{Job, JobError, JobEvent, JobEventKind, JobMetrics, Output, Status};
