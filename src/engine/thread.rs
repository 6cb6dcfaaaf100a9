//! The step loop: the one thread that owns the models and everything that runs on them.
//!
//! A round takes the news, drops what was called off, lets in who may join, and makes one model call. All state is
//! this thread's own; others see it by the events and snapshots that it sends. Nothing here waits while a row could
//! be stepped.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use easel_models::Pipeline;
use tokio::sync::watch;

use super::batch::Groups;
use super::cost::{Costs, Place};
use super::decode::{Decoder, Report, Task};
use super::embeddings::Embeddings;
use super::handle::Message;
use super::job::Job;
use super::memory::Memory;
use super::meters::{self, Meters};
use super::waiting::{Class, Entry, Waiting};
use super::{EngineEvent, EngineOptions, QueueSnapshot, Work, WorkError};

/// A model of the registry.
pub(super) struct Model {
    pub(super) name: String,
    pub(super) pipeline: Arc<dyn Pipeline>,
}

/// The engine's state. See the files of the same subjects for its parts: `begin` lets pictures in, `call` steps them,
/// `forecast` tells callers what to expect.
pub(super) struct Engine {
    pub(super) models: Vec<Model>,
    pub(super) options: EngineOptions,
    pub(super) inbox: Receiver<Message>,
    /// By number, which grows.
    pub(super) jobs: BTreeMap<u64, Job>,
    next_job: u64,
    pub(super) waiting: Waiting,
    pub(super) groups: Groups,
    /// Latent shapes of the classes begun so far.
    pub(super) shapes: HashMap<Class, [usize; 3]>,
    pub(super) embeddings: Embeddings,
    pub(super) costs: Costs,
    pub(super) memory: Memory,
    pub(super) decoder: Decoder,
    pub(super) meters: Meters,
    pub(super) publish: watch::Sender<Arc<QueueSnapshot>>,
    /// When to end at the latest, once told to.
    closing: Option<Instant>,
    abandoned: bool,
    /// Time in model calls in this round.
    pub(super) in_calls: Duration,
    /// How long the last call of a batch took.
    pub(super) last_call: Duration,
    /// Whether the queue looks different from what was told last.
    pub(super) changed: bool,
    /// When the queue was told last, and how long the telling took.
    pub(super) told: (Instant, Duration),
    pub(super) busy: Duration,
    pub(super) overhead: Duration,
}

impl Engine {
    /// Puts the engine together and starts its decoder.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(super) fn new(
        models: Vec<(String, Arc<dyn Pipeline>)>,
        options: EngineOptions,
        inbox: Receiver<Message>,
        publish: watch::Sender<Arc<QueueSnapshot>>,
        report: impl Fn(Report) -> bool + Send + 'static,
    ) -> std::io::Result<Self> {
        let decoder = Decoder::start(models.iter().map(|(_, model)| Arc::clone(model)).collect(), report)?;
        let meters = Meters::new(models.iter().map(|(name, _)| name.as_str()));
        Ok(Self {
            models: models.into_iter().map(|(name, pipeline)| Model { name, pipeline }).collect(),
            inbox,
            jobs: BTreeMap::new(),
            next_job: 0,
            waiting: Waiting::default(),
            groups: Groups::default(),
            shapes: HashMap::new(),
            embeddings: Embeddings::new(options.embedding_cache_bytes),
            costs: Costs::default(),
            memory: Memory::new(options.memory_bytes),
            options,
            decoder,
            meters,
            publish,
            closing: None,
            abandoned: false,
            in_calls: Duration::ZERO,
            last_call: Duration::ZERO,
            changed: true,
            told: (Instant::now(), Duration::ZERO),
            busy: Duration::ZERO,
            overhead: Duration::ZERO,
        })
    }

    /// The loop, until it is told to end.
    pub(super) fn run(mut self) {
        tracing::debug!(models = self.models.len(), "the engine runs");
        loop {
            let began = Instant::now();
            self.in_calls = Duration::ZERO;
            while let Ok(message) = self.inbox.try_recv() {
                self.handle(message);
            }
            self.drop_canceled();
            self.groups.sweep();
            if self.finished() {
                break;
            }
            self.admit();
            if self.groups.is_empty() {
                self.tell(true);
                if !self.wait() {
                    break;
                }
            } else {
                self.tell(false);
                self.call();
                let took = began.elapsed();
                let outside = took.saturating_sub(self.in_calls);
                self.busy += took;
                self.overhead += outside;
                self.meters.overhead(outside);
            }
        }
        self.close();
    }

    /// Takes one piece of news.
    pub(super) fn handle(&mut self, message: Message) {
        match message {
            Message::Submit(work, submitted) => self.submitted(*work, submitted),
            Message::Decoder(report) => self.reported(report),
            Message::Shutdown(end) => {
                self.closing = Some(self.closing.map_or(end, |earlier| earlier.min(end)));
                // What has begun may finish, with all of its pictures; the rest is not begun.
                let idle: Vec<u64> = self.jobs.iter().filter(|(_, job)| !job.started()).map(|(&id, _)| id).collect();
                for id in idle {
                    self.fail(id, WorkError::ShuttingDown);
                }
            }
            Message::Abandoned => self.abandoned = true,
        }
    }

    fn submitted(&mut self, work: Work, submitted: Instant) {
        let model = self.models.iter().position(|model| model.name == work.model);
        // The handle has checked both.
        let (Some(model), Some(spec)) = (model, work.specs.first()) else { return };
        if self.closing.is_some() {
            let _ = work.events.send(EngineEvent::Failed(WorkError::ShuttingDown));
            return;
        }
        let class = Class { model, width: spec.width, height: spec.height };
        let rows = 1 + usize::from(self.models[model].pipeline.guided(spec));
        let pixels = f64::from(spec.width) * f64::from(spec.height);
        // In proportion to the operations, about: every weight is used once a pixel, row and step.
        let weights = self.models[model].pipeline.card().parameters.max(1) as f64;
        let steps = spec.sampling.steps;
        let asks = (steps * rows) as f64 * pixels * weights;
        let (priority, pictures) = (work.priority, work.specs.len());
        let job = Job::new(work, class, submitted);
        let owner = Arc::clone(&job.owner);
        self.waiting.push(self.next_job, Entry { owner, priority, class, rows, steps, pictures, asks });
        self.jobs.insert(self.next_job, job);
        self.next_job += 1;
        self.changed = true;
    }

    fn reported(&mut self, report: Report) {
        match report {
            Report::Decoded { job, model, latent, took, last } => {
                self.decoder.pictures -= 1;
                self.changed = true;
                if last && self.jobs.remove(&job).is_some() {
                    meters::ended(if took.is_some() { "finished" } else { "canceled" });
                }
                if let (Some(took), &[c, h, w]) = (took, latent.as_slice()) {
                    self.meters.models[model].decode.record(took.as_secs_f64());
                    self.costs.decoded(Place { model, latent: [c, h, w] }, took);
                }
            }
            Report::Failed { job, error } => self.fail(job, error),
            Report::Quiet { go, done } => {
                // Ends when the decoder drops its side, which it does however the decoding ends.
                if go.send(()).is_ok() {
                    let _ = done.recv();
                }
            }
        }
    }

    /// Takes jobs out whose callers have hung up.
    fn drop_canceled(&mut self) {
        // Where only decoding is left the decoder sees it for itself, and a caller may go as soon as it has the last
        // event.
        let gone = |job: &Job| job.canceled() && job.unfinished() > 0;
        let canceled: Vec<u64> = self.jobs.iter().filter(|(_, job)| gone(job)).map(|(&id, _)| id).collect();
        for id in canceled {
            if self.remove(id).is_some() {
                meters::ended("canceled");
            }
        }
    }

    /// Ends a job for this reason.
    pub(super) fn fail(&mut self, id: u64, error: WorkError) {
        let Some(job) = self.remove(id) else { return };
        tracing::debug!(job = job.work.job, %error, "a job failed");
        meters::ended(if error == WorkError::ShuttingDown { "interrupted" } else { "failed" });
        let event = EngineEvent::Failed(error);
        if job.at_decoder {
            // A picture of it may just be leaving the decoder; the last event must come after.
            self.decoder.send(Task::End { events: job.work.events, event });
        } else {
            job.send(event);
        }
    }

    /// Takes a job out, wherever it is.
    fn remove(&mut self, id: u64) -> Option<Job> {
        let job = self.jobs.remove(&id)?;
        job.end();
        self.waiting.remove(id);
        self.groups.retain(|row| row.job != id);
        self.changed = true;
        Some(job)
    }

    /// Whether there is nothing more to do, or no more time.
    fn finished(&self) -> bool {
        let late = self.closing.is_some_and(|end| Instant::now() >= end);
        late || (self.jobs.is_empty() && (self.abandoned || self.closing.is_some()))
    }

    /// Waits for news, as there is nothing to step; false when none can come.
    fn wait(&mut self) -> bool {
        let message = match self.closing {
            None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(end) => self.inbox.recv_timeout(end.saturating_duration_since(Instant::now())),
        };
        match message {
            Ok(message) => self.handle(message),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        true
    }

    /// Answers everything that is left, and ends the decoder.
    fn close(mut self) {
        let left: Vec<u64> = self.jobs.keys().copied().collect();
        for id in left {
            self.fail(id, WorkError::ShuttingDown);
        }
        while let Ok(message) = self.inbox.try_recv() {
            if let Message::Submit(work, _) = message {
                let _ = work.events.send(EngineEvent::Failed(WorkError::ShuttingDown));
            }
        }
        self.tell(true);
        // A decoder that waits for an answer must see that none comes.
        drop(self.inbox);
        self.decoder.finish();
        tracing::debug!("the engine has ended");
    }
}
