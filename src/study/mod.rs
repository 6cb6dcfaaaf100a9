//! Studies of samplers: the same prompts and seeds with every sampler, schedule and step count, measured against a
//! converged reference.
//!
//! A study renders through the engine that the server uses, so that what it measures is what is served.

mod compare;
mod distance;
mod page;
mod plots;
mod report;
mod run;
mod summary;

pub use compare::{Comparison, Pair, compare};
pub use distance::Distances;
pub use report::write;
pub use run::{StudyError, run};
pub use summary::{Summary, summarise};

use serde::{Deserialize, Serialize};

/// What is to be studied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The model's name.
    pub model: String,
    /// The prompts.
    pub prompts: Vec<String>,
    /// Canonical names of samplers.
    pub samplers: Vec<String>,
    /// Names of schedules. One that a sampler cannot step over is left out for it, and the study says so.
    pub schedules: Vec<String>,
    /// Step counts.
    pub steps: Vec<usize>,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// diffusers' `guidance_scale`.
    pub guidance: f64,
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// What the pictures are measured against.
    pub reference: Setting,
}

/// One way to sample.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Setting {
    /// The sampler's canonical name.
    pub sampler: String,
    /// The schedule's name.
    pub schedule: String,
    /// Denoising steps.
    pub steps: usize,
}

/// One picture of the study: what was rendered, what it took, how far it is from the reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Which of the plan's prompts.
    pub prompt: usize,
    /// The seed.
    pub seed: u64,
    /// How it was sampled.
    #[serde(flatten)]
    pub setting: Setting,
    /// Calls of the model that the sampler made.
    pub model_calls: usize,
    /// Seconds from the first step to the last.
    pub seconds: f64,
    /// The distance to the reference of the same prompt and seed.
    #[serde(flatten)]
    pub distances: Distances,
    /// The picture's file, in the study's folder.
    pub file: String,
}

/// A finished study, as `results.json` keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Study {
    /// easel's version.
    pub version: String,
    /// When it was run.
    pub created: jiff::Timestamp,
    /// The command that repeats it.
    pub command: String,
    /// The operating system, the processor's architecture and its usable cores.
    pub machine: String,
    /// The device that the model was asked onto, and the type it computed in.
    pub device: String,
    /// What was studied.
    pub plan: Plan,
    /// Combinations that are not possible, with the reason.
    pub left_out: Vec<String>,
    /// The reference's pictures: prompt, seed, file.
    pub references: Vec<(usize, u64, String)>,
    /// Every other picture.
    pub rows: Vec<Row>,
}
