//! How many rows fit the device's memory.
//!
//! A model estimates the bytes of a row from the shapes; the budget is the operator's, or half of what is free beside
//! the weights. Both
//! can be wrong (another process takes memory, a library takes workspace), so the ceiling of each model, counted in
//! its own estimated bytes, goes down when the device says that it is full and up again slowly while calls near it
//! succeed.

use std::collections::HashMap;

use candle_core::Device;

/// Calls near the ceiling that must succeed before it is raised.
const CALLS_BEFORE_RAISING: u32 = 64;

/// A raised ceiling is this much higher.
const RAISE: f64 = 1.1;

/// The ceilings of all models on one device.
pub(super) struct Memory {
    /// Bytes that the rows of one call may take; `None` where only experience tells.
    configured: Option<u64>,
    /// The host's free memory at the start, for models on the CPU.
    host: u64,
    /// Bytes of the weights loaded since.
    weights: u64,
    /// By model; only those that have run out of memory.
    learnt: HashMap<usize, Ceiling>,
}

/// What a model learnt by running out of memory.
struct Ceiling {
    /// In bytes as the model estimates them.
    bytes: f64,
    /// Calls near the ceiling that succeeded since it was last moved.
    successes: u32,
}

impl Memory {
    /// Ceilings for an operator's budget, if any.
    pub(super) fn new(configured: Option<u64>) -> Self {
        Self { configured, host: free_host_bytes(), weights: 0, learnt: HashMap::new() }
    }

    /// Rows of `row_bytes` that fit one call; may be 0, and the caller tries one picture all the same.
    pub(super) fn rows(&self, model: usize, on_cpu: bool, row_bytes: u64) -> usize {
        let budget = self.configured.or(on_cpu.then_some(self.host.saturating_sub(self.weights) / 2));
        let learnt = self.learnt.get(&model).map(|ceiling| ceiling.bytes as u64);
        let bytes = budget.unwrap_or(u64::MAX).min(learnt.unwrap_or(u64::MAX));
        usize::try_from(bytes / row_bytes.max(1)).unwrap_or(usize::MAX)
    }

    /// The weights loaded since the start take this many bytes now.
    pub(super) fn set_weights(&mut self, bytes: u64) {
        self.weights = bytes;
    }

    /// A call of `rows` did not fit: half of them are the new ceiling, for every shape of the model.
    pub(super) fn ran_out(&mut self, model: usize, row_bytes: u64, rows: usize) {
        let bytes = row_bytes.max(1) as f64 * (rows as f64 / 2.0).floor().max(1.0);
        let ceiling = self.learnt.entry(model).or_insert(Ceiling { bytes, successes: 0 });
        *ceiling = Ceiling { bytes: bytes.min(ceiling.bytes), successes: 0 };
    }

    /// A call of `rows` did fit.
    pub(super) fn fitted(&mut self, model: usize, row_bytes: u64, rows: usize) {
        let Some(ceiling) = self.learnt.get_mut(&model) else { return };
        // Only a call that one more row would have taken over the ceiling says anything about it.
        if row_bytes as f64 * (rows + 2) as f64 > ceiling.bytes {
            ceiling.successes += 1;
            if ceiling.successes >= CALLS_BEFORE_RAISING {
                // At least one more row, or a small ceiling would never rise.
                let bytes = (ceiling.bytes * RAISE).max(ceiling.bytes + row_bytes as f64);
                *ceiling = Ceiling { bytes, successes: 0 };
            }
        }
    }
}

/// Bytes of the device's memory that are free; `None` where it does not say.
pub(crate) fn free_bytes(device: &Device) -> Option<u64> {
    if device.is_cpu() {
        return Some(free_host_bytes());
    }
    easel_models::cuda_memory(device).map(|(free, _)| free)
}

/// Bytes of the host's memory that are free; 8 GiB where the system does not say.
fn free_host_bytes() -> u64 {
    const UNKNOWN: u64 = 8 << 30;
    let text = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let free = parse_meminfo(&text("/proc/meminfo")).unwrap_or(UNKNOWN);
    // A container may have less than the machine has.
    let number = |file: &str| text(file).trim().parse::<u64>().ok();
    let most = number("/sys/fs/cgroup/memory.max");
    let left = most.zip(number("/sys/fs/cgroup/memory.current")).map(|(most, used)| most.saturating_sub(used));
    free.min(left.unwrap_or(u64::MAX))
}

/// `MemAvailable` of Linux's /proc/meminfo, in bytes.
fn parse_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_bounds_the_rows() {
        let memory = Memory::new(Some(1000));
        assert_eq!(memory.rows(0, true, 100), 10);
        assert_eq!(memory.rows(0, false, 300), 3);
        assert_eq!(memory.rows(0, true, 2000), 0);
    }

    #[test]
    fn without_a_budget_only_the_cpu_is_bounded() {
        let memory = Memory::new(None);
        assert_eq!(memory.rows(0, false, 1), usize::MAX);
        assert!(memory.rows(0, true, 1) < usize::MAX);
    }

    #[test]
    fn weights_loaded_later_leave_less_for_the_rows() {
        let mut memory = Memory { host: 1000, ..Memory::new(None) };
        assert_eq!(memory.rows(0, true, 100), 5);
        memory.set_weights(600);
        assert_eq!(memory.rows(0, true, 100), 2);
        memory.set_weights(2000);
        assert_eq!(memory.rows(0, true, 100), 0);
    }

    #[test]
    fn running_out_halves_the_rows_of_every_shape_of_that_model_only() {
        let mut memory = Memory::new(Some(1600));
        memory.ran_out(0, 100, 16);
        assert_eq!(memory.rows(0, false, 100), 8);
        assert_eq!(memory.rows(0, false, 400), 2);
        assert_eq!(memory.rows(1, false, 100), 16);
        memory.ran_out(0, 100, 8);
        assert_eq!(memory.rows(0, false, 100), 4);
    }

    #[test]
    fn the_ceiling_rises_again_after_many_calls_near_it_and_never_beyond_the_budget() {
        let mut memory = Memory::new(Some(1600));
        memory.ran_out(0, 100, 16);
        for _ in 0..CALLS_BEFORE_RAISING {
            memory.fitted(0, 100, 2);
        }
        assert_eq!(memory.rows(0, false, 100), 8, "small calls prove nothing");
        for _ in 0..CALLS_BEFORE_RAISING {
            memory.fitted(0, 100, 8);
        }
        assert_eq!(memory.rows(0, false, 100), 9);
        for _ in 0..CALLS_BEFORE_RAISING * 40 {
            memory.fitted(0, 100, 64);
        }
        assert_eq!(memory.rows(0, false, 100), 16);
    }

    #[test]
    fn free_memory_is_read_from_the_kernels_table() {
        let text = "MemTotal:       16000000 kB\nMemFree:          100 kB\nMemAvailable:    8000000 kB\n";
        assert_eq!(parse_meminfo(text), Some(8_000_000 * 1024));
        assert_eq!(parse_meminfo("MemTotal: 1 kB"), None);
    }
}
