//! Memory as it is seen, to hold what was predicted against.
//!
//! A peak lies inside a call, where nobody of ours looks; so a thread of its own samples the memory, the process's on
//! a CPU and the device's on a GPU, and keeps the highest until it is asked for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use candle_core::Device;

/// Between samples: often beside calls of tens of milliseconds, and well under a thousandth of a core.
const SAMPLE: Duration = Duration::from_millis(20);

/// The memory of this process on one device, above what it took at the start beside its models.
#[derive(Debug)]
pub(crate) struct MemoryWatch {
    /// What was taken at the start by others than models.
    base: u64,
    device: Device,
    /// The most since it was last asked for.
    peak: Arc<AtomicU64>,
}

impl MemoryWatch {
    /// Begins to watch, where `weights` bytes are taken by models already; `None` where the system does not say what is
    /// taken.
    pub(crate) fn start(device: &Device, weights: u64) -> Option<Self> {
        let base = taken(device)?.saturating_sub(weights);
        let peak = Arc::new(AtomicU64::new(0));
        let (watched, sampled) = (device.clone(), Arc::downgrade(&peak));
        let thread = std::thread::Builder::new().name("easel-memory".into());
        // Ends within a sample's time of the watch.
        let sample = move || {
            while let Some(peak) = Weak::upgrade(&sampled) {
                peak.fetch_max(taken(&watched).unwrap_or_default(), Ordering::Relaxed);
                drop(peak);
                std::thread::sleep(SAMPLE);
            }
        };
        thread.spawn(sample).ok()?;
        Some(Self { base, device: device.clone(), peak })
    }

    /// Bytes that are taken now.
    pub(crate) fn now(&self) -> u64 {
        taken(&self.device).unwrap_or_default().saturating_sub(self.base)
    }

    /// The most bytes that were taken since this was last asked.
    pub(crate) fn peak(&self) -> u64 {
        let peak = self.peak.swap(0, Ordering::Relaxed);
        peak.max(taken(&self.device).unwrap_or_default()).saturating_sub(self.base)
    }
}

/// Bytes of the device's memory that are taken.
fn taken(device: &Device) -> Option<u64> {
    if device.is_cpu() {
        // Mapped files are not counted: the system takes their pages back when it needs them.
        return anonymous(&std::fs::read_to_string("/proc/self/status").ok()?);
    }
    easel_models::cuda_memory(device).map(|(free, total)| total.saturating_sub(free))
}

/// `RssAnon` of Linux's /proc/self/status, in bytes.
fn anonymous(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processes_own_memory_is_read_from_the_kernels_table() {
        let status = "VmRSS:\t   2000 kB\nRssAnon:\t    1234 kB\nRssFile:\t     766 kB\n";
        assert_eq!(anonymous(status), Some(1234 * 1024));
        assert_eq!(anonymous("VmRSS: 1 kB"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_peak_is_seen_after_it_is_over() {
        const BYTES: usize = 64 << 20;
        let watch = MemoryWatch::start(&Device::Cpu, 0).unwrap();
        let block = vec![1_u8; BYTES];
        // Held for several samples' time.
        std::thread::sleep(SAMPLE * 10);
        assert!(block.iter().all(|&byte| byte == 1));
        drop(block);
        let peak = watch.peak();
        // Other tests of this process take and give back memory of their own meanwhile.
        assert!(peak >= (BYTES as u64) / 2, "{peak}");
    }
}
