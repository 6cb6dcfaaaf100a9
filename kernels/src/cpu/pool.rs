//! Splitting work over rayon's pool.

use rayon::prelude::*;

/// The work, in multiplications or what takes as long as 16 of them do, below which handing over to other threads costs more than it saves.
///
/// A core does about 40 of these in a nanosecond, and waking a thread takes some ten microseconds.
const WORTH_SHARING: usize = 1 << 20;

/// How many threads share the work.
pub(super) fn threads() -> usize {
    rayon::current_num_threads()
}

/// Runs `task` for each index below `count`, on several threads if `work`, all of it together, is worth that.
pub(super) fn tasks(count: usize, work: usize, task: impl Fn(usize) + Sync + Send) {
    if worth_sharing(count, work) {
        (0..count).into_par_iter().for_each(task);
    } else {
        (0..count).for_each(task);
    }
}

/// The results of `task` for each index below `count`, on several threads if `work` is worth that.
pub(super) fn collect<T: Send>(count: usize, work: usize, task: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
    if worth_sharing(count, work) {
        (0..count).into_par_iter().map(task).collect()
    } else {
        (0..count).map(task).collect()
    }
}

fn worth_sharing(count: usize, work: usize) -> bool {
    count > 1 && work >= WORTH_SHARING && threads() > 1
}

/// Runs `body`, a whole model call for instance, on a thread of the pool that the CPU forms share their work over.
///
/// Called from elsewhere, every operation worth sharing hands its work to the pool and sleeps until it is woken again. On a
/// thread of the pool it takes part instead, and the others look for what is left before they fall asleep.
pub fn on_pool<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| body())
}
