//! The async side's end of the engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use easel_models::{ModelCard, Pipeline};
use tokio::sync::{oneshot, watch};

use super::decode;
use super::job::Job;
use super::loader;
use super::prepare;
use super::registry::{Answer, CommandError, ModelCommand};
use super::snapshot::{ModelState, ModelStatus};
use super::thread::Engine;
use super::{EngineOptions, QueueSnapshot, Work, WorkError};

/// What stands for a grace whose end no clock can tell: ten years.
const FOR_GOOD: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What the engine's thread is told.
pub(super) enum Message {
    /// A job, and when it came.
    Submit(Box<Work>, Instant),
    /// News from a preparer.
    Preparer(prepare::Report),
    /// News from the decoder.
    Decoder(decode::Report),
    /// News of a model's weights.
    Model(loader::Report),
    /// An operator's command, and who wants to know what became of it.
    Command { name: String, command: ModelCommand, answer: Answer },
    /// Take nothing more, and end by this time at the latest.
    Shutdown(Instant),
    /// Nobody can submit or ask any more: end once everything is done.
    Abandoned,
}

/// The engine of one device. Cheap to clone; when the last clone is gone, the engine finishes what it has and ends.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

struct Shared {
    messages: Sender<Message>,
    models: Vec<(String, ModelCard)>,
    snapshot: watch::Receiver<Arc<QueueSnapshot>>,
    /// True once the thread has ended.
    ended: watch::Receiver<bool>,
    closing: AtomicBool,
}

impl EngineHandle {
    /// Starts the engine's thread over these models, by the names that they are served under.
    ///
    /// Should the system have no thread to give, that is logged, and the engine counts as shut down.
    pub fn start(models: Vec<(String, Arc<dyn Pipeline>)>, options: EngineOptions) -> Self {
        let cards = models.iter().map(|(name, model)| (name.clone(), model.card().clone())).collect();
        let (messages, inbox) = mpsc::channel();
        let (publish, snapshot) = watch::channel(Arc::default());
        let (end, ended) = watch::channel(false);
        let reports = messages.clone();
        let report = move |message| reports.send(message).is_ok();
        let reports = messages.clone();
        let loader = Arc::new(move |report| reports.send(Message::Model(report)).is_ok());
        let spawned = Engine::new(models, options, inbox, publish, report, loader).and_then(|engine| {
            let thread = std::thread::Builder::new().name("easel-engine".into());
            let end = Ended(end);
            thread.spawn(move || {
                // Set however the thread ends.
                let _end = end;
                engine.run();
            })
        });
        let closing = AtomicBool::new(spawned.is_err());
        if let Err(error) = spawned {
            tracing::error!(%error, "cannot start the engine's threads");
        }
        Self { shared: Arc::new(Shared { messages, models: cards, snapshot, ended, closing }) }
    }

    /// Hands a job over. What becomes of it is told on its `events`; this never blocks.
    ///
    /// # Errors
    /// When the model is not known, no picture is asked for, or the engine is shutting down.
    pub fn submit(&self, work: Work) -> Result<(), WorkError> {
        if self.shared.closing.load(Ordering::Acquire) {
            return Err(WorkError::ShuttingDown);
        }
        let second = work.second.as_ref().map(|second| ("refiner", &second.model));
        for (param, asked) in [("model", &work.model)].into_iter().chain(second) {
            if !self.shared.models.iter().any(|(name, _)| name == asked) {
                let known: Vec<&str> = self.shared.models.iter().map(|(name, _)| name.as_str()).collect();
                let message = format!("no model {asked:?} is served; there are {}", known.join(", "));
                return Err(WorkError::Request { param, message });
            }
        }
        Job::check(&work)?;
        let message = Message::Submit(Box::new(work), Instant::now());
        self.shared.messages.send(message).map_err(|_| WorkError::ShuttingDown)
    }

    /// The models in the registry's order; the first is the default unless the configuration names one.
    pub fn models(&self) -> &[(String, ModelCard)] {
        &self.shared.models
    }

    /// Whether jobs are taken: the engine is not shutting down, and its thread lives.
    pub fn takes_work(&self) -> bool {
        !self.shared.closing.load(Ordering::Acquire) && !*self.shared.ended.borrow()
    }

    /// The queue as it was a moment ago. Never waits for the engine.
    pub fn queue(&self) -> QueueSnapshot {
        QueueSnapshot::clone(&self.shared.snapshot.borrow())
    }

    /// Where a model's weights are, as it was a moment ago; `None` for a name that is not served.
    pub fn status(&self, name: &str) -> Option<ModelStatus> {
        let snapshot = self.shared.snapshot.borrow();
        snapshot.models.iter().find(|model| model.model == name).map(|model| model.status.clone())
    }

    /// Has an operator's command carried out at the next step boundary; how the model is then. Loading goes on after
    /// that, and so does unloading, which waits for the model's running pictures.
    ///
    /// # Errors
    /// When there is no such model, it is pinned and was to be unloaded, or the engine has ended.
    pub async fn command(&self, name: &str, command: ModelCommand) -> Result<ModelStatus, CommandError> {
        let (answer, answered) = oneshot::channel();
        let message = Message::Command { name: name.to_owned(), command, answer };
        self.shared.messages.send(message).map_err(|_| CommandError::ShuttingDown)?;
        answered.await.unwrap_or(Err(CommandError::ShuttingDown))
    }

    /// Waits until a model is in one of these states; that is at once for a name that is not served, and when the
    /// engine ends.
    pub async fn reached(&self, name: &str, states: &[ModelState]) {
        let there = |queue: &Arc<QueueSnapshot>| {
            let model = queue.models.iter().find(|model| model.model == name);
            model.is_none_or(|model| states.contains(&model.status.state))
        };
        // An error means that the engine has ended.
        let _ = self.shared.snapshot.clone().wait_for(there).await;
    }

    /// Ends the engine: nothing more is taken, jobs that have not begun are answered `WorkError::ShuttingDown`, those
    /// that have may finish within `grace` and are answered the same then. Returns when the thread has ended, which
    /// takes up to one model call longer. Called again, the earlier end counts. A job submitted at the very same
    /// moment may see its channel close without an event.
    pub async fn shutdown(&self, grace: Duration) {
        self.shared.closing.store(true, Ordering::Release);
        let now = Instant::now();
        let end = now.checked_add(grace).unwrap_or_else(|| now + FOR_GOOD);
        // An engine that has ended already cannot be told.
        let _ = self.shared.messages.send(Message::Shutdown(end));
        // An error means that the sender is gone, and so is the thread.
        let _ = self.shared.ended.clone().wait_for(|ended| *ended).await;
    }
}

impl std::fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let models: Vec<&str> = self.shared.models.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("EngineHandle").field("models", &models).finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The decoder holds a sender too, so the channel alone would not tell.
        let _ = self.messages.send(Message::Abandoned);
    }
}

/// Says that the thread has ended, a panic of ours included.
struct Ended(watch::Sender<bool>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_whose_thread_is_lost_takes_no_work() {
        let (messages, _inbox) = mpsc::channel();
        let (_publish, snapshot) = watch::channel(Arc::default());
        let (end, ended) = watch::channel(false);
        let closing = AtomicBool::new(false);
        let shared = Shared { messages, models: Vec::new(), snapshot, ended, closing };
        let engine = EngineHandle { shared: Arc::new(shared) };
        assert!(engine.takes_work());
        let end = Ended(end);
        let lost = std::thread::spawn(move || {
            let _end = end;
            panic!("as tested");
        });
        assert!(lost.join().is_err());
        assert!(!engine.takes_work());
    }
}
