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
    if count <= 1 || work < WORTH_SHARING || threads() == 1 {
        (0..count).for_each(task);
    } else {
        (0..count).into_par_iter().for_each(task);
    }
}
