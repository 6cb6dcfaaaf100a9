//! Measuring operations and denoisers on a device, without any file: weights have the real shapes and are random.
//!
//! [`check_operations`] holds each operation's fast form to its plain form, and [`measure_denoiser`] times a model's step at
//! its true size. `easel bench gpu` prints both.

mod denoisers;
mod operations;
mod weights;

use std::time::{Duration, Instant};

use candle_core::Device;

use crate::Result;

pub use denoisers::{Denoiser, ReplayCost, Scale, StepCost, Subject, ceilings};
pub use operations::{OperationCheck, check_operations};

/// The median time of `calls` calls of `body` after one more, each waited for.
///
/// # Errors
/// Those of `body`.
fn median_time(device: &Device, calls: usize, mut body: impl FnMut() -> Result<()>) -> Result<Duration> {
    body()?;
    device.synchronize()?;
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls.max(1) {
        let start = Instant::now();
        body()?;
        device.synchronize()?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2])
}
