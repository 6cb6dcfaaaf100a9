//! Loading and unloading beside the step loop: each in a thread of its own, which ends with it.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use easel_models::{Loading, Pipeline, beside};

use super::WorkError;
use super::fault::{Fault, guarded};

/// Progress is told at most this often, for it goes to everybody who waits.
const TELL: Duration = Duration::from_millis(250);

/// What the step loop is told of a model's weights.
pub(super) enum Report {
    /// So far they are loaded.
    Progress { model: usize, loading: Loading },
    /// They are there, or why they are not, after this time.
    Loaded { model: usize, result: Result<(), Fault>, took: Duration },
    /// Their memory has been given back.
    Unloaded { model: usize },
}

/// Takes reports; false when nobody listens any more.
pub(super) type Listener = Arc<dyn Fn(Report) -> bool + Send + Sync>;

/// Starts to load the model at this place of the registry. What becomes of it is told to `listener`.
pub(super) fn load(model: usize, pipeline: &Arc<dyn Pipeline>, listener: &Listener) {
    let (pipeline, tell) = (Arc::clone(pipeline), Arc::clone(listener));
    let work = move || {
        let began = Instant::now();
        let told: Cell<Option<(Instant, bool)>> = Cell::new(None);
        let progress = |loading: Loading| {
            let news = told.get().is_none_or(|(at, fetching)| at.elapsed() >= TELL || fetching != loading.fetching);
            if news || loading.done >= loading.total {
                told.set(Some((Instant::now(), loading.fetching)));
                tell(Report::Progress { model, loading });
            }
        };
        let result = beside(|| guarded("load", || pipeline.load(&progress)));
        tell(Report::Loaded { model, result, took: began.elapsed() });
    };
    spawn(work, |error| {
        let result = Err(Fault::Other(WorkError::Internal(format!("no thread to load it in: {error}"))));
        listener(Report::Loaded { model, result, took: Duration::ZERO });
    });
}

/// Starts to give the memory of a model's weights back.
pub(super) fn unload(model: usize, pipeline: &Arc<dyn Pipeline>, listener: &Listener) {
    let (held, tell) = (Arc::clone(pipeline), Arc::clone(listener));
    let work = move || {
        beside(|| {
            // A model that panics here has given back what it could.
            let _ = guarded("unload", || {
                held.unload();
                Ok(())
            });
            drop(held);
        });
        easel_models::give_back_memory();
        tell(Report::Unloaded { model });
    };
    spawn(work, |_| {
        // Without a thread it is done right here, which holds up the loop once.
        pipeline.unload();
        easel_models::give_back_memory();
        listener(Report::Unloaded { model });
    });
}

fn spawn(work: impl FnOnce() + Send + 'static, otherwise: impl FnOnce(std::io::Error)) {
    if let Err(error) = std::thread::Builder::new().name("easel-loader".into()).spawn(work) {
        otherwise(error);
    }
}
