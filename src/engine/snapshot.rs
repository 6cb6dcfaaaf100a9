//! What the engine shows of itself.

use easel_models::Loading;
use serde::Serialize;

/// The queue as it was a moment ago.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct QueueSnapshot {
    /// Jobs that wait for their first picture to begin.
    pub waiting: usize,
    /// Jobs that have begun and not ended.
    pub running: usize,
    /// Rows of all running pictures; guidance takes two a picture.
    pub rows: usize,
    /// Pictures that wait for the decoder or are in it.
    pub decoding: usize,
    /// Milliseconds until a job that came now would begin, when enough has been measured; 0 while there is room.
    pub wait_estimate_ms: Option<u64>,
    /// Every model, in the registry's order.
    pub models: Vec<ModelQueue>,
    /// Models that are to be there from the start and whose first loading has not ended.
    pub starting: Vec<String>,
    /// Jobs that have begun, by id, oldest first.
    pub jobs: Vec<String>,
    /// Seconds that the loop has been busy since the start.
    pub busy_seconds: f64,
    /// Those of them that were spent outside model calls.
    pub overhead_seconds: f64,
}

/// One model's part of the queue.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ModelQueue {
    /// Its name.
    pub model: String,
    /// Jobs that wait for their first picture to begin.
    pub waiting: usize,
    /// Jobs that have begun and not ended.
    pub running: usize,
    /// Rows of its running pictures.
    pub rows: usize,
    /// Its running groups: pictures that share model calls.
    pub batches: Vec<Batch>,
    /// Where its weights are.
    #[serde(flatten)]
    pub status: ModelStatus,
}

/// A running group.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Batch {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// Pictures in it.
    pub pictures: usize,
    /// Rows that they take.
    pub rows: usize,
    /// Rows that a call may have; with more, the pictures take turns.
    pub max_rows: usize,
    /// Milliseconds of a call, as measured.
    pub call_ms: Option<f64>,
}

/// Where a model's weights are, as operators and clients see it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelState {
    /// On the disk or the hub; the first request has it loaded.
    #[default]
    Unloaded,
    /// On their way into memory; requests wait.
    Loading,
    /// In memory.
    Ready,
    /// Leaving memory; the next request has it loaded again.
    Unloading,
    /// They could not be loaded; a later request has it tried again.
    Failed,
}

impl ModelState {
    /// Every state, for metrics and messages.
    pub const ALL: [Self; 5] = [Self::Unloaded, Self::Loading, Self::Ready, Self::Unloading, Self::Failed];

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unloaded => "unloaded",
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Unloading => "unloading",
            Self::Failed => "failed",
        }
    }
}

/// How far a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LoadingStatus {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
    /// Whether they come over the network.
    pub fetching: bool,
}

impl From<Loading> for LoadingStatus {
    fn from(Loading { done, total, fetching }: Loading) -> Self {
        Self { done, total, fetching }
    }
}

/// What is told of a model's weights.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ModelStatus {
    /// Where they are.
    pub state: ModelState,
    /// Why they could not be loaded.
    pub error: Option<String>,
    /// How far they are loaded, while they are.
    pub loading: Option<LoadingStatus>,
    /// Bytes that they take.
    pub weight_bytes: u64,
    /// Whether they are never unloaded.
    pub pinned: bool,
    /// The peaks of the memory that the model took.
    pub peaks: Peaks,
}

/// The most bytes that a model took so far: its weights, the rows of a call, and decoding beside them. 0 before the first
/// call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Peaks {
    /// As predicted from the shapes.
    pub predicted: u64,
    /// As seen on the device, beside other models' weights; 0 where the system does not say.
    pub seen: u64,
}
