//! The engine: one thread a device owns the models and drives every picture's denoising.
//!
//! The async side talks to it by channels: [`Work`] goes in, [`EngineEvent`]s come out, and a closed
//! event channel is a caller who hung up. Requests join and leave the running batch at step boundaries.
//!
//! | file | its subject |
//! |---|---|
//! | `handle` | the async side's end: submit, queue, shutdown |
//! | `registry`, `loader`, `residency` | the models, whose weights come and go; pure: which of them |
//! | `thread`, `begin`, `call` | the step loop: news, letting pictures in, model calls |
//! | `waiting`, `policy` | pure: who is next, who joins, whose call it is, which rows are in it |
//! | `batch` | the running rows, in groups that may share a call |
//! | `cost`, `memory` | how many rows a call should, and can, have |
//! | `ledger` | what was measured, kept from one start to the next |
//! | `watch`, `rest` | the memory as it is seen, beside what was predicted; when what is kept goes back |
//! | `prepare`, `embeddings` | prompts encoded and first latents set up beside the loop; text embeddings kept |
//! | `decode`, `preview`, `quiet` | pictures made beside the loop, and what happens when memory is short for that |
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
mod ledger;
mod loader;
mod memory;
mod meters;
mod options;
mod policy;
mod prepare;
mod preview;
mod quiet;
mod registry;
mod residency;
mod rest;
mod snapshot;
#[cfg(test)]
mod tests;
mod thread;
mod waiting;
mod watch;

pub use handle::EngineHandle;
pub use ledger::{CostRow, cost_rows};
pub(crate) use memory::free_bytes;
pub use options::EngineOptions;
pub use registry::{CommandError, ModelCommand};
pub use snapshot::{Batch, LoadingStatus, ModelQueue, ModelState, ModelStatus, Peaks, QueueSnapshot};
pub(crate) use watch::MemoryWatch;

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
    /// The model that goes on where this one ends, if there is one: the specs then end early
    /// ([`Stage::First`](easel_models::Stage::First)).
    pub second: Option<SecondStage>,
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

/// What a second model does to each picture of a job, as SDXL's refiner does: the first model's latents go to it instead
/// of to the decoder.
#[derive(Debug, Clone)]
pub struct SecondStage {
    /// The model's name in the registry.
    pub model: String,
    /// What to draw; encoded by this model's own text encoders.
    pub prompt: Prompt,
    /// The negative prompt, needed when guidance is above 1.
    pub negative: Prompt,
    /// diffusers' `denoising_start`: where in the schedule this model goes on, in 0..1.
    pub from: f64,
    /// How it renders each picture: as many as the work's own, of the same size. Their stage is the engine's to set,
    /// as it has the latents.
    pub specs: Vec<RenderSpec>,
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
    /// The model that the job needs next is being loaded; sent to all who wait for it, now and then.
    Loading {
        /// The model's name in the registry.
        model: String,
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
        /// Whether they come over the network.
        fetching: bool,
    },
    /// The first of its pictures has joined the batch.
    Started,
    /// A picture has finished a step.
    Progress {
        /// Which of the job's pictures.
        image: usize,
        /// Steps finished, of both models where there are two.
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
    /// The model cannot be loaded; the message names the file at fault.
    #[error("{0}")]
    Model(String),
    /// The engine stopped before the work was done; the job may be run again.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// Anything else: a fault of ours or of the device.
    #[error("{0}")]
    Internal(String),
}
