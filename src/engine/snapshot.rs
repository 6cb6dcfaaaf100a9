//! What the engine shows of itself.

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
