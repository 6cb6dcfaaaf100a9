//! Having the device to oneself, for what does not fit beside a step.

use std::sync::mpsc::{self, Receiver, SyncSender};

use super::fault::Fault;

/// A wish for the device: from the answer on `go` until `done` ends.
pub(super) struct Quiet {
    go: SyncSender<()>,
    done: Receiver<()>,
}

impl Quiet {
    /// The step loop's side: stands still until whoever wished for it is done, which happens however that ends.
    pub(super) fn grant(self) {
        if self.go.send(()).is_ok() {
            let _ = self.done.recv();
        }
    }
}

/// Runs `again` while the step loop stands still, after `what` did not fit beside it. `ask` hands the wish to the loop; it
/// returns false when there is none any more.
pub(super) fn undisturbed<T>(
    what: &str,
    message: String,
    ask: impl FnOnce(Quiet) -> bool,
    again: impl FnOnce() -> Result<T, Fault>,
) -> Result<T, Fault> {
    let (go, may_go) = mpsc::sync_channel(0);
    let (done, wait) = mpsc::channel();
    if !ask(Quiet { go, done: wait }) || may_go.recv().is_err() {
        return Err(Fault::OutOfMemory(message));
    }
    tracing::warn!(what, message, "out of memory beside the step loop; it pauses");
    let result = again();
    drop(done);
    result
}
