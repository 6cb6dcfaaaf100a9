//! The reply that OpenAI's, Together's and our own clients read.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use utoipa::ToSchema;

use super::asked::Asked;
use crate::api::App;
use crate::api::errors::ApiError;
use crate::api::files;
use crate::api::urls::Urls;
use crate::api::wire::{self, OutputReply};
use crate::jobs::{Job, JobMetrics, Output, Status};
use crate::request::ResponseFormat;

/// Bytes of a file from which on its encoding is too long for an async thread.
const AT_ONCE: usize = 1 << 20;

/// A finished request's pictures.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ImagesResponse {
    /// Unix seconds.
    created: i64,
    data: Vec<Image>,
    /// `WIDTHxHEIGHT`
    size: String,
    quality: String,
    /// `opaque`
    background: &'static str,
    output_format: &'static str,
    usage: Usage,
    /// The job's id.
    id: String,
    /// `list`
    object: &'static str,
    model: String,
    /// The job's id.
    job_id: String,
    #[schema(value_type = String)]
    status: Status,
    outputs: Vec<OutputReply>,
    /// Where the time went.
    #[schema(value_type = Option<Object>)]
    metrics: Option<JobMetrics>,
    metadata: BTreeMap<String, String>,
    /// Fields that were ignored, and the like.
    warnings: Vec<String>,
}

/// One picture: either `url` or `b64_json` is there.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Image {
    /// Counts from 0.
    index: usize,
    /// `url` or `b64_json`: which of the two is there.
    r#type: &'static str,
    /// Where it can be fetched, without a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    /// The file.
    #[serde(skip_serializing_if = "Option::is_none")]
    b64_json: Option<String>,
    /// The seed that makes this picture alone.
    seed: u64,
}

/// What a request took, in OpenAI's unit.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct Usage {
    /// The prompt's tokens, and one for each 16x16 pixels of the pictures that the request brought.
    input_tokens: u64,
    input_tokens_details: Tokens,
    /// One for each 16x16 pixels, begun ones counted.
    output_tokens: u64,
    output_tokens_details: Tokens,
    total_tokens: u64,
}

/// Tokens by what they stand for.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct Tokens {
    text_tokens: u64,
    image_tokens: u64,
}

impl ImagesResponse {
    /// The reply for an ended job.
    ///
    /// # Errors
    /// When a picture cannot be read.
    pub(super) async fn of(app: &App, urls: &Urls, asked: &Asked, job: &Job) -> Result<Self, ApiError> {
        let outputs = wire::outputs(app, urls, job);
        let mut data = Vec::with_capacity(outputs.len());
        for output in &outputs {
            let (index, seed) = (output.index, output.seed);
            data.push(match asked.format {
                ResponseFormat::Url => {
                    Image { index, r#type: "url", url: Some(output.url.clone()), b64_json: None, seed }
                }
                ResponseFormat::B64Json => {
                    Image { index, r#type: "b64_json", url: None, b64_json: Some(base64(app, job, index).await?), seed }
                }
            });
        }
        Ok(Self {
            created: job.created_at.as_second(),
            data,
            size: size(job),
            quality: asked.quality.clone(),
            background: "opaque",
            output_format: job.request.output_format.name(),
            usage: Usage::of(job, &job.outputs),
            id: job.id.clone(),
            object: "list",
            model: job.request.model.clone(),
            job_id: job.id.clone(),
            status: job.status,
            outputs,
            metrics: job.metrics.clone(),
            metadata: job.metadata.clone(),
            warnings: job.warnings.clone(),
        })
    }
}

impl Usage {
    /// What `outputs` of a job took.
    pub(super) fn of(job: &Job, outputs: &[Output]) -> Self {
        let text = job.metrics.as_ref().map_or(0, |metrics| metrics.prompt_tokens as u64);
        let tiles = |width: u32, height: u32| u64::from(width.div_ceil(16)) * u64::from(height.div_ceil(16));
        let seen: u64 = job.request.inputs().map(|input| tiles(input.width, input.height)).sum();
        let made: u64 = outputs.iter().map(|output| tiles(output.width, output.height)).sum();
        Self {
            input_tokens: text + seen,
            input_tokens_details: Tokens { text_tokens: text, image_tokens: seen },
            output_tokens: made,
            output_tokens_details: Tokens { text_tokens: 0, image_tokens: made },
            total_tokens: text + seen + made,
        }
    }
}

/// The delivered pictures' size.
pub(super) fn size(job: &Job) -> String {
    format!("{}x{}", job.request.width, job.request.height)
}

/// A picture's file in base64.
pub(super) async fn base64(app: &App, job: &Job, index: usize) -> Result<String, ApiError> {
    let picture = app.artifacts.open_picture(&job.id, index).await.map_err(|error| files::missing(error, index))?;
    if picture.bytes.len() < AT_ONCE {
        return Ok(STANDARD.encode(&picture.bytes));
    }
    let encoded = tokio::task::spawn_blocking(move || STANDARD.encode(&picture.bytes)).await;
    encoded.map_err(ApiError::internal)
}
