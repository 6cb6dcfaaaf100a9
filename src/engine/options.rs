//! What an operator can set of the engine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use candle_core::Device;

use crate::config::ModelsConfig;

/// What an operator can set of the engine. The defaults suit every device.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Most rows in one model call; 0 lets memory and measured cost decide.
    pub max_batch_rows: usize,
    /// Bytes that the rows of one model call may take while they are computed. `None`: half of the memory that
    /// was free at the start for models on the CPU; on other devices whatever turns out to fit.
    pub memory_bytes: Option<u64>,
    /// Bytes that the weights of all models together may take; `None` is no bound. Models that do not fit together take
    /// turns.
    pub weights_bytes: Option<u64>,
    /// Where the models are, for the memory that is seen.
    pub device: Device,
    /// The data folder, in which measured costs are kept; `None` forgets them.
    pub data: Option<PathBuf>,
    /// Models that are loaded at the start.
    pub preload: Vec<String>,
    /// Models that are loaded at the start and never unloaded.
    pub pinned: Vec<String>,
    /// Models whose weights are known not to be of use, and why: they count as failed from the start, until somebody has
    /// them tried all the same.
    pub faults: BTreeMap<String, String>,
    /// Time after which a model that nobody uses is unloaded; `None` keeps it until another needs the memory.
    pub idle_unload: Option<Duration>,
    /// How long a model in use keeps the memory, at least, before it makes room for another that does not fit beside
    /// it.
    pub turn: Duration,
    /// For how long a model that could not be loaded is not tried again by requests.
    pub retry_pause: Duration,
    /// Bytes of text embeddings that are kept for prompts that come again.
    pub embedding_cache_bytes: usize,
    /// Groups of rows (by model, shape and context length) that take turns on the device. More of them would let every
    /// picture wait for every other's step; the rest wait in the list.
    pub groups: usize,
    /// Finished pictures of a model that may wait for the decoder before no further picture of it is begun.
    pub decode_backlog: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            max_batch_rows: 0,
            memory_bytes: None,
            weights_bytes: None,
            device: Device::Cpu,
            data: None,
            preload: Vec::new(),
            pinned: Vec::new(),
            faults: BTreeMap::new(),
            idle_unload: None,
            turn: Duration::from_secs(10),
            retry_pause: Duration::from_secs(10),
            embedding_cache_bytes: 256 << 20,
            groups: 4,
            decode_backlog: 16,
        }
    }
}

impl From<&ModelsConfig> for EngineOptions {
    fn from(config: &ModelsConfig) -> Self {
        const GIB: f64 = (1_u64 << 30) as f64;
        Self {
            max_batch_rows: config.max_batch_rows,
            // A negative or absurd number saturates, which leaves one picture a call.
            memory_bytes: config.memory_gib.map(|gib| (gib * GIB) as u64),
            weights_bytes: config.weights_gib.map(|gib| (gib * GIB) as u64),
            idle_unload: (config.idle_unload_seconds > 0).then(|| Duration::from_secs(config.idle_unload_seconds)),
            turn: Duration::from_secs(config.turn_seconds),
            ..Self::default()
        }
    }
}
