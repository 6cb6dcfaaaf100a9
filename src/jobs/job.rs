//! A job as the store keeps it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::request::ResolvedRequest;

/// Where a job is in its life. The last three are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Accepted and waiting.
    Queued,
    /// Being rendered.
    Running,
    /// Its pictures are there.
    Succeeded,
    /// It ended without pictures, and `error` says why.
    Failed,
    /// Its caller no longer wanted it.
    Canceled,
}

impl Status {
    /// Every status, for messages that name the allowed values.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Canceled];

    /// The name on the wire and in the store.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }

    /// Whether nothing more will happen.
    pub fn ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Canceled)
    }
}

/// One job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// `job_` and a ULID.
    pub id: String,
    /// Who may see it.
    pub workspace: String,
    /// The name of the key that submitted it.
    pub key: String,
    /// Where it is in its life.
    pub status: Status,
    /// What was asked, as understood.
    pub request: ResolvedRequest,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its first picture joined the batch.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// How far the model that it waits for is loaded, while it is.
    #[serde(skip)]
    pub loading: Option<ModelLoading>,
    /// Steps done of all its pictures' steps, in 0..=1.
    pub progress: f64,
    /// Jobs ahead of it while it waits.
    pub queue_position: Option<usize>,
    /// Estimated milliseconds until it is done.
    pub eta_ms: Option<u64>,
    /// Its pictures.
    pub outputs: Vec<Output>,
    /// Where its time went.
    pub metrics: Option<JobMetrics>,
    /// Why it failed.
    pub error: Option<JobError>,
    /// The caller's own, given back unchanged.
    pub metadata: BTreeMap<String, String>,
    /// What the caller should know.
    pub warnings: Vec<String>,
}

/// How far a model is loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelLoading {
    /// The model's name.
    pub model: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
    /// Whether they come over the network.
    pub fetching: bool,
}

/// One finished picture, kept in the artifact store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// Counts from 0.
    pub index: usize,
    /// The seed that makes this picture alone.
    pub seed: u64,
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// The file's media type.
    pub content_type: String,
    /// The file's SHA-256 in hex.
    pub sha256: String,
    /// The file's length in bytes.
    pub bytes: u64,
}

/// Where a job's time went, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct JobMetrics {
    /// Waiting for the first step.
    pub queue_ms: f64,
    /// In the text encoders.
    pub encode_ms: f64,
    /// From the first step to the last.
    pub denoise_ms: f64,
    /// Latents to pixels.
    pub decode_ms: f64,
    /// From acceptance to the end.
    pub latency_ms: f64,
    /// Denoising steps of all pictures.
    pub steps: usize,
    /// Rows in its model calls, on average.
    pub batch_rows_mean: f64,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// A code of the error table.
    pub code: String,
    /// A sentence.
    pub message: String,
    /// The field at fault, where one is.
    pub param: Option<String>,
}

/// One event of a job's life. Every reply form (synchronous, SSE, WebSocket, streaming) drains these.
#[derive(Debug, Clone, PartialEq)]
pub struct JobEvent {
    /// Counts from 1 in each job; the SSE event id.
    pub id: u64,
    /// What happened.
    pub kind: JobEventKind,
    /// The job just after.
    pub job: std::sync::Arc<Job>,
}

/// What happened to a job.
#[derive(Debug, Clone, PartialEq)]
pub enum JobEventKind {
    /// It waits, or its place has changed.
    Queued,
    /// The model that it needs next is being loaded.
    Loading(ModelLoading),
    /// It runs.
    Started,
    /// A step is done.
    Progress {
        /// Which picture.
        image: usize,
        /// Steps finished.
        step: usize,
        /// Steps in all.
        steps: usize,
    },
    /// A small picture of what is being made.
    Preview {
        /// Which picture.
        image: usize,
        /// Counts from 0 for each picture.
        index: u32,
        /// PNG bytes, of the delivered picture's shape and at most 512 pixels a side.
        png: bytes::Bytes,
    },
    /// A picture is kept.
    Output {
        /// Which picture.
        image: usize,
    },
    /// All pictures are there.
    Succeeded,
    /// It ended without.
    Failed,
    /// It was called off.
    Canceled,
}

impl JobEventKind {
    /// The event's name on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Loading(_) => "loading",
            Self::Started => "started",
            Self::Progress { .. } => "progress",
            Self::Preview { .. } => "preview",
            Self::Output { .. } => "output",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }

    /// Whether this is the job's last event.
    pub fn last(&self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Canceled)
    }
}
