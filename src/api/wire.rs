//! The native replies as they go over the wire.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::urls::Urls;
use super::{App, files};
use crate::jobs::{Job, JobError, JobMetrics, ModelLoading, Status};
use crate::request::ResolvedRequest;

/// A job.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Job)]
pub(crate) struct JobReply {
    /// `job_` and a ULID.
    id: String,
    /// The same, for clients that look here.
    job_id: String,
    /// `image.job`
    object: &'static str,
    /// `queued`, `running`, `succeeded`, `failed` or `canceled`; the last three are final.
    #[schema(value_type = String)]
    status: Status,
    /// The model's name in `/v1/models`.
    model: String,
    #[schema(value_type = String)]
    created_at: Timestamp,
    /// When its first picture joined the batch.
    #[schema(value_type = Option<String>)]
    started_at: Option<Timestamp>,
    #[schema(value_type = Option<String>)]
    finished_at: Option<Timestamp>,
    /// How far the model that it waits for is loaded, while it is: `model`, `done` and `total` in bytes, and whether it
    /// is `fetching` them over the network.
    #[schema(value_type = Option<Object>)]
    loading: Option<ModelLoading>,
    /// Steps done of all its pictures' steps, in 0..=1.
    progress: f64,
    /// Jobs ahead of it while it waits.
    queue_position: Option<usize>,
    /// Estimated milliseconds until it is done.
    eta_ms: Option<u64>,
    /// What was asked, as understood, with every default filled in.
    request: ResolvedRequest,
    outputs: Vec<OutputReply>,
    /// Where its time went, once it has ended.
    #[schema(value_type = Option<Object>)]
    metrics: Option<JobMetrics>,
    /// Why it failed.
    #[schema(value_type = Option<Object>)]
    error: Option<JobError>,
    metadata: BTreeMap<String, String>,
    /// Fields that were ignored, and the like.
    warnings: Vec<String>,
}

impl JobReply {
    /// The job for a caller who reaches the server by `urls`.
    pub(crate) fn new(app: &App, urls: &Urls, job: &Job) -> Self {
        Self {
            id: job.id.clone(),
            job_id: job.id.clone(),
            object: "image.job",
            status: job.status,
            model: job.request.model.clone(),
            created_at: job.created_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
            loading: job.loading.clone(),
            progress: job.progress,
            queue_position: job.queue_position,
            eta_ms: job.eta_ms,
            request: job.request.clone(),
            outputs: outputs(app, urls, job),
            metrics: job.metrics.clone(),
            error: job.error.clone(),
            metadata: job.metadata.clone(),
            warnings: job.warnings.clone(),
        }
    }
}

/// One finished picture.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Output)]
pub(crate) struct OutputReply {
    /// Counts from 0.
    pub(crate) index: usize,
    /// Where it can be fetched, without a key.
    pub(crate) url: String,
    /// The same, for clients that look here.
    image_url: String,
    /// The seed that makes this picture alone.
    pub(crate) seed: u64,
    width: u32,
    height: u32,
    content_type: String,
    /// The file's SHA-256 in hex.
    sha256: String,
    /// The file's length.
    bytes: u64,
    safety: Safety,
}

/// What moderation said of a picture. A picture that it does not allow is no output.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Safety {
    allowed: bool,
    categories: Vec<String>,
}

/// A job's pictures.
pub(crate) fn outputs(app: &App, urls: &Urls, job: &Job) -> Vec<OutputReply> {
    let reply = |output: &crate::jobs::Output| {
        let url = urls.at(&files::path(app, job, output));
        OutputReply {
            index: output.index,
            image_url: url.clone(),
            url,
            seed: output.seed,
            width: output.width,
            height: output.height,
            content_type: output.content_type.clone(),
            sha256: output.sha256.clone(),
            bytes: output.bytes,
            safety: Safety { allowed: true, categories: Vec::new() },
        }
    };
    job.outputs.iter().map(reply).collect()
}

/// A page of jobs, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobList {
    /// `list`
    pub(crate) object: &'static str,
    pub(crate) data: Vec<JobReply>,
    /// Whether `after` the last one there are more.
    pub(crate) has_more: bool,
}

/// An error, on every native route.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Error {
    error: ErrorBody,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// What was asked, and what is possible.
    message: String,
    /// `invalid_request_error`, `permission_error`, `rate_limit_error` or `server_error`.
    r#type: String,
    /// One of the codes that the route lists.
    code: String,
    /// The field at fault.
    param: Option<String>,
    /// As in the header `x-request-id`.
    request_id: String,
}
