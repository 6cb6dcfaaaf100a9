//! The decoder: a thread beside the step loop that turns latents into pictures.
//!
//! Decoding one picture takes as long as one to three denoising steps. On the step thread everybody's pictures would
//! stand still meanwhile; here the loop goes on, and on a GPU the decoder's kernels queue in between the steps'
//! launches. On a CPU both share the same cores, so nothing is gained in sum, but the boundaries at which others
//! join, leave and cancel stay as close as before. Previews come here too, because reading pixels back waits for the
//! device.
//!
//! - One picture at a time: a batch would need that many times the memory, which is largest here, and a
//!   picture's bytes might then depend on its company.
//! - What ends a job passes through the same queue as its pictures, so the last event is the last.
//! - The backlog is bounded by the loop, which begins no picture while too many wait here ([`Decoder::pictures`]);
//!   the running ones go on, so the loop never blocks.
//! - When there is no memory for decoding beside a step, the decoder asks the loop to pause for it, once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use easel_models::{Pipeline, RgbImage, beside};
use tokio::sync::mpsc::UnboundedSender;

use super::fault::{Fault, guarded};
use super::quiet::{self, Quiet};
use super::{EngineEvent, WorkError, WorkMetrics};

/// What the step loop and the decoder both know of a job.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// Set when the job failed or was called off: the rest of it need not be decoded.
    ended: AtomicBool,
    /// Time spent decoding.
    decode_nanos: AtomicU64,
}

impl Tail {
    /// Nothing more of the job is wanted.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

/// One picture's place in one job.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) job: u64,
    pub(super) image: usize,
    /// The model's place in the registry.
    pub(super) model: usize,
    pub(super) events: UnboundedSender<EngineEvent>,
    pub(super) tail: Arc<Tail>,
}

impl Target {
    /// Whether nobody wants the picture any more.
    fn unwanted(&self) -> bool {
        self.tail.ended() || self.events.is_closed()
    }
}

/// What the decoder is asked to do.
pub(super) enum Task {
    /// A small picture of unfinished latents.
    Preview { target: Target, index: u32, latents: Tensor },
    /// A finished picture; with the job's numbers when it is the job's last, which ends the job.
    Decode { target: Target, latents: Tensor, finish: Option<WorkMetrics> },
    /// The job's last event.
    End { events: UnboundedSender<EngineEvent>, event: EngineEvent },
}

/// What the decoder tells the step loop.
pub(super) enum Report {
    /// A picture has left the decoder, decoded in this time or dropped; `last` when that ended its job.
    Decoded { job: u64, model: usize, latent: Vec<usize>, took: Option<Duration>, last: bool },
    /// A picture cannot be decoded.
    Failed { job: u64, error: WorkError },
    /// The decoder needs the device to itself.
    Quiet(Quiet),
}

/// The step loop's end of the decoder.
pub(super) struct Decoder {
    tasks: Sender<Task>,
    thread: JoinHandle<()>,
    /// Pictures handed over and not reported back.
    pub(super) pictures: usize,
    /// The same by model.
    held: Vec<usize>,
}

impl Decoder {
    /// Starts the thread. `report` takes what it has to tell; it returns false when nobody listens any more.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(super) fn start(
        models: Vec<Arc<dyn Pipeline>>,
        report: impl Fn(Report) -> bool + Send + 'static,
    ) -> std::io::Result<Self> {
        let (tasks, inbox) = mpsc::channel();
        let held = vec![0; models.len()];
        let decodes = models.iter().map(|_| VecDeque::new()).collect();
        let worker = Worker { models, inbox, report, urgent: VecDeque::new(), decodes, last: 0 };
        let thread = std::thread::Builder::new().name("easel-decoder".into()).spawn(move || worker.run())?;
        Ok(Self { tasks, thread, pictures: 0, held })
    }

    /// Hands a task over.
    pub(super) fn send(&mut self, task: Task) {
        if let Task::Decode { target, .. } = &task {
            self.pictures += 1;
            self.held[target.model] += 1;
        }
        // The thread ends only after this sender; a model's panic is caught inside.
        let _ = self.tasks.send(task);
    }

    /// Takes note of a picture that was reported back.
    pub(super) fn reported(&mut self, model: usize) {
        self.pictures -= 1;
        self.held[model] -= 1;
    }

    /// Pictures of this model handed over and not reported back.
    pub(super) fn of(&self, model: usize) -> usize {
        self.held[model]
    }

    /// Waits until everything handed over is done. Nobody may be waiting for a report by then.
    pub(super) fn finish(self) {
        drop(self.tasks);
        let _ = self.thread.join();
    }
}

struct Worker<R> {
    models: Vec<Arc<dyn Pipeline>>,
    inbox: Receiver<Task>,
    report: R,
    /// Previews and ends, which are quick and go before decodes. A picture's previews were handed over before its
    /// latents were, so their order stays.
    urgent: VecDeque<Task>,
    /// By model. They take turns, so that a model whose pictures take long does not hold up another's.
    decodes: Vec<VecDeque<Task>>,
    /// The model whose turn was last.
    last: usize,
}

impl<R: Fn(Report) -> bool> Worker<R> {
    fn run(mut self) {
        loop {
            while let Ok(task) = self.inbox.try_recv() {
                self.sort(task);
            }
            let Some(task) = self.urgent.pop_front().or_else(|| self.turn()) else {
                let Ok(task) = self.inbox.recv() else { return };
                self.sort(task);
                continue;
            };
            // Also what is dropped at a task's end is the device's.
            beside(|| match task {
                Task::Preview { target, index, latents } => self.preview(&target, index, &latents),
                Task::Decode { target, latents, finish } => self.picture(&target, &latents, finish),
                // A caller who has gone misses nothing.
                Task::End { events, event } => drop(events.send(event)),
            });
        }
    }

    fn sort(&mut self, task: Task) {
        match &task {
            Task::Decode { target, .. } => self.decodes[target.model].push_back(task),
            Task::Preview { .. } | Task::End { .. } => self.urgent.push_back(task),
        }
    }

    /// The next picture, of the model after the last one that has any.
    fn turn(&mut self) -> Option<Task> {
        let count = self.decodes.len();
        let order = (1..=count).map(|step| (self.last + step) % count);
        self.last = order.into_iter().find(|&model| !self.decodes[model].is_empty())?;
        self.decodes[self.last].pop_front()
    }

    fn preview(&self, target: &Target, index: u32, latents: &Tensor) {
        if target.unwanted() {
            return;
        }
        let Some(model) = self.models.get(target.model) else { return };
        match guarded("preview", || model.preview(latents)) {
            Ok(picture) => {
                let picture = Arc::new(picture);
                let _ = target.events.send(EngineEvent::Preview { image: target.image, index, picture });
            }
            // The picture itself may still come out well, so a missing preview does not fail the job.
            Err(fault) => tracing::warn!(job = target.job, error = %fault.into_error(), "no preview"),
        }
    }

    fn picture(&self, target: &Target, latents: &Tensor, finish: Option<WorkMetrics>) {
        let last = finish.is_some();
        let decoded = |took| {
            let latent = latents.dims().to_vec();
            (self.report)(Report::Decoded { job: target.job, model: target.model, latent, took, last });
        };
        if target.unwanted() {
            decoded(None);
            return;
        }
        let began = Instant::now();
        let result = match self.decode(target, latents) {
            Err(Fault::OutOfMemory(message)) => {
                let ask = |quiet| (self.report)(Report::Quiet(quiet));
                quiet::undisturbed("decode", message, ask, || self.decode(target, latents))
            }
            result => result,
        };
        match result {
            Ok(picture) => {
                let took = began.elapsed();
                let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
                let before = target.tail.decode_nanos.fetch_add(nanos, Ordering::Relaxed);
                let picture = Arc::new(picture);
                let _ = target.events.send(EngineEvent::Image { image: target.image, picture });
                if let Some(metrics) = finish {
                    let decode = Duration::from_nanos(before.saturating_add(nanos));
                    let _ = target.events.send(EngineEvent::Finished(WorkMetrics { decode, ..metrics }));
                }
                decoded(Some(took));
            }
            Err(fault) => {
                // Nothing more of the job is decoded; the loop sends its last event, after it has dropped its rows.
                target.tail.end();
                (self.report)(Report::Failed { job: target.job, error: fault.into_error() });
                decoded(None);
            }
        }
    }

    fn decode(&self, target: &Target, latents: &Tensor) -> Result<RgbImage, Fault> {
        let internal = |message: &str| Fault::Other(WorkError::Internal(message.into()));
        let model = self.models.get(target.model).ok_or_else(|| internal("the model is gone"))?;
        let mut pictures = guarded("decode", || model.decode(std::slice::from_ref(latents)))?;
        pictures.pop().ok_or_else(|| internal("the decoder gave no picture"))
    }
}
