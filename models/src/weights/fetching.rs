//! Telling whoever loads a part how far its files have come over the network.
//!
//! Between the two lie the networks' constructors, which know nothing of files. So the listener is found by the thread that
//! loads, and the transfer speaks to it through a channel.

use std::cell::RefCell;
use std::sync::mpsc::{Sender, channel};

use easel_kernels::{plain_forms, with_plain_forms};

use crate::Loading;

thread_local! {
    static LISTENER: RefCell<Option<Sender<Loading>>> = const { RefCell::new(None) };
}

/// Runs `work`, which may fetch files, on a thread of its own, and calls `progress` with what has arrived meanwhile. Where
/// the plain forms of operations are forced on this thread, they are for the work.
pub(crate) fn listening<T: Send>(progress: &dyn Fn(Loading), work: impl FnOnce() -> T + Send) -> T {
    let (sender, receiver) = channel();
    let plain = plain_forms();
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            LISTENER.set(Some(sender));
            let result = if plain { with_plain_forms(work) } else { work() };
            // The channel closes with its last sender, and then nobody waits for more.
            LISTENER.set(None);
            result
        });
        receiver.into_iter().for_each(progress);
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Says what has arrived, to whoever listens on this thread.
pub(super) fn report(loading: Loading) {
    LISTENER.with_borrow(|listener| {
        if let Some(listener) = listener {
            // Nobody is left to hear it only if the listener has panicked.
            let _ = listener.send(loading);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_hears_what_the_work_fetches() {
        let heard = RefCell::new(Vec::new());
        let loading = |done| Loading { done, total: 2, fetching: true };
        report(loading(0));
        let result = listening(&|loading| heard.borrow_mut().push(loading.done), || {
            report(loading(1));
            report(loading(2));
            3
        });
        assert_eq!((result, heard.into_inner()), (3, vec![1, 2]));
    }

    #[test]
    fn plain_forms_stay_forced_for_the_work() {
        // A check of a model's headers would otherwise take the memory of all its weights.
        assert!(with_plain_forms(|| listening(&|_| {}, plain_forms)));
        assert_eq!(listening(&|_| {}, plain_forms), plain_forms());
    }
}
