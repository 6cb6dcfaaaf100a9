//! What an operator can set of the engine.

use crate::config::ModelsConfig;

/// What an operator can set of the engine. The defaults suit every device.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineOptions {
    /// Most rows in one model call; 0 lets memory and measured cost decide.
    pub max_batch_rows: usize,
    /// Bytes that the rows of one model call may take while they are computed. `None`: half of the memory that
    /// was free at the start for models on the CPU; on other devices whatever turns out to fit.
    pub memory_bytes: Option<u64>,
    /// Bytes of text embeddings that are kept for prompts that come again.
    pub embedding_cache_bytes: usize,
    /// Groups of rows (by model, shape and context length) that take turns on the device. More of them would let every
    /// picture wait for every other's step; the rest wait in the list.
    pub groups: usize,
    /// Finished pictures that may wait for the decoder before no further picture is begun.
    pub decode_backlog: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { max_batch_rows: 0, memory_bytes: None, embedding_cache_bytes: 256 << 20, groups: 4, decode_backlog: 16 }
    }
}

impl From<&ModelsConfig> for EngineOptions {
    fn from(config: &ModelsConfig) -> Self {
        const GIB: f64 = (1_u64 << 30) as f64;
        Self {
            max_batch_rows: config.max_batch_rows,
            // A negative or absurd number saturates, which leaves one picture a call.
            memory_bytes: config.memory_gib.map(|gib| (gib * GIB) as u64),
            ..Self::default()
        }
    }
}
