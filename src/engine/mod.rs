//! The engine: one thread a device owns the models and drives every picture's denoising.
//!
//! The async side talks to it by channels: [`Work`] goes in, [`EngineEvent`]s come out, and a closed
//! event channel is a caller who hung up. Requests join and leave the running batch at step boundaries.
//!
//! | file | its subject |
//! |---|---|
//! | `handle` | the async side's end: submit, queue, shutdown |
//! | `thread`, `begin`, `call` | the step loop: news, letting pictures in, model calls |
//! | `waiting`, `policy` | pure: who is next, who joins, whose call it is, which rows are in it |
//! | `batch` | the running rows, in groups that may share a call |
//! | `cost`, `memory` | how many rows a call should, and can, have |
//! | `embeddings`, `decode`, `preview` | text embeddings kept; pictures made beside the loop |
//! | `forecast`, `snapshot`, `meters` | what callers and operators are told |

mod batch;
mod begin;
mod call;
mod cost;
mod decode;
mod embeddings;
mod fault;
mod forecast;
mod handle;
mod job;
mod memory;
mod meters;
mod options;
mod policy;
mod preview;
mod snapshot;
#[cfg(test)]
mod tests;
mod thread;
mod waiting;

pub use handle::EngineHandle;
pub use options::EngineOptions;
pub use snapshot::{Batch, ModelQueue, QueueSnapshot};

use std::sync::Arc;
use std::time::Duration;

use easel_models::{GrayImage, InitImage, Prompt, RenderSpec, RgbImage};
use tokio::sync::mpsc::UnboundedSender;

use crate::request::Priority;

/// One job as the engine sees it.
#[derive(Debug)]
pub struct Work {
    /// The job's id, for logs and the queue's listing.
    pub job: String,
    /// The model's name in the registry.
    pub model: String,
    /// What to draw.
    pub prompt: Prompt,
    /// The negative prompt, needed when guidance is above 1.
    pub negative: Prompt,
    /// How to render each picture; one row of the batch each (two under guidance). What they start from is in
    /// `pictures`.
    pub specs: Vec<RenderSpec>,
    /// What all of them start from, once for the whole job.
    pub pictures: Pictures,
    /// Place in the waiting list.
    pub priority: Priority,
    /// Whose work it is (a key's workspace): waiting work is taken from owners in turn.
    pub owner: String,
    /// Previews wanted of each picture, spread evenly over its steps.
    pub previews: u32,
    /// Where events go. Once it is closed the work is dropped at the next step boundary.
    pub events: UnboundedSender<EngineEvent>,
}

/// The pictures that a job starts from, of the rendered size where they must have it.
#[derive(Debug, Clone, Default)]
pub struct Pictures {
    /// Image to image.
    pub init: Option<InitImage>,
    /// Which part of it is painted anew.
    pub mask: Option<GrayImage>,
    /// What an editing model looks at.
    pub references: Vec<RgbImage>,
}

impl Work {
    /// How to render one of the pictures, with what it starts from; a copy, made when it begins.
    pub(crate) fn spec(&self, index: usize) -> Option<RenderSpec> {
        let Pictures { init, mask, references } = self.pictures.clone();
        self.specs.get(index).map(|spec| RenderSpec { init, mask, references, ..spec.clone() })
    }
}

/// What the engine tells of one job, in this order: queue places, `Started`, progress and previews of its
/// pictures as they come, one `Image` a picture, and `Finished` or `Failed` last.
#[derive(Debug, Clone)]
pub enum EngineEvent {
    /// The job waits; sent when its place changes.
    Queued {
        /// Jobs ahead of this one.
        position: usize,
        /// Estimated time until the job is done, when enough has been measured.
        eta: Option<Duration>,
    },
    /// The first of its pictures has joined the batch.
    Started,
    /// A picture has finished a step.
    Progress {
        /// Which of the job's pictures.
        image: usize,
        /// Steps finished.
        step: usize,
        /// Steps in all.
        steps: usize,
        /// Estimated time until the whole job is done, from the measured cost of a step.
        eta: Option<Duration>,
    },
    /// A cheap small picture of unfinished latents.
    Preview {
        /// Which of the job's pictures.
        image: usize,
        /// Counts from 0 for each picture.
        index: u32,
        /// One pixel a latent pixel.
        picture: Arc<RgbImage>,
    },
    /// A picture is finished and decoded, at its rendered size.
    Image {
        /// Which of the job's pictures.
        image: usize,
        /// The picture.
        picture: Arc<RgbImage>,
    },
    /// All pictures have been sent.
    Finished(WorkMetrics),
    /// The job cannot be finished.
    Failed(WorkError),
}

/// Where a job's time went.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WorkMetrics {
    /// From submission to the first step.
    pub queued: Duration,
    /// In the text encoders; near nothing when the embedding was cached.
    pub encode: Duration,
    /// From the first step to the last.
    pub denoise: Duration,
    /// Decoding latents into pixels.
    pub decode: Duration,
    /// Denoising steps of all its pictures together.
    pub steps: usize,
    /// Model calls that it took part in.
    pub model_calls: usize,
    /// Rows in the model calls it took part in, on average.
    pub batch_rows_mean: f64,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// The end of the prompt that did not fit, if any is left out; for a warning.
    pub truncated: bool,
}

/// Why the engine could not finish a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkError {
    /// Even one row alone does not fit the device's memory.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// The request asks of the model what it cannot do, which validation did not see.
    #[error("{param}: {message}")]
    Request {
        /// The field at fault.
        param: &'static str,
        /// What was asked and what is possible.
        message: String,
    },
    /// The engine stopped before the work was done; the job may be run again.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// Anything else: a fault of ours or of the device.
    #[error("{0}")]
    Internal(String),
}
