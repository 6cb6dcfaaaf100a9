//! The step loop: the one thread that owns the models and everything that runs on them.
//!
//! A round takes the news, drops what was called off, lets in who may join, and makes one model call. All state is
//! this thread's own; others see it by the events and snapshots that it sends. Nothing here waits while a row could
//! be stepped, but for a moment for pictures that are about to be ready to join.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use easel_models::{Pipeline, Stage};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::batch::Groups;
use super::cost::{Costs, Place};
use super::decode::{Decoder, Report, Task};
use super::embeddings::Embeddings;
use super::handle::Message;
use super::job::{Job, STAGES};
use super::ledger::{Ledger, Shape};
use super::loader::Listener;
use super::memory::Memory;
use super::meters::{self, Meters};
use super::prepare::Preparers;
use super::registry::Model;
use super::rest::Rest;
use super::waiting::{Class, Entry, Waiting};
use super::watch::MemoryWatch;
use super::{EngineEvent, EngineOptions, QueueSnapshot, Work, WorkError};

/// Measured costs are written down this often while there is something to do.
const NOTE: Duration = Duration::from_secs(60);

/// The engine's state. See the files of the same subjects for its parts: `begin` lets pictures in, `call` steps them,
/// `forecast` tells callers what to expect, `registry` loads and unloads.
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
    pub(super) embeddings: Arc<Mutex<Embeddings>>,
    pub(super) costs: Costs,
    pub(super) memory: Memory,
    pub(super) preparers: Preparers,
    pub(super) decoder: Decoder,
    pub(super) meters: Meters,
    pub(super) publish: watch::Sender<Arc<QueueSnapshot>>,
    /// Takes what the threads tell that load and unload.
    pub(super) loader: Listener,
    /// Bytes that the weights of all models may take.
    pub(super) budget: Option<u64>,
    /// What the device's memory is seen to be.
    pub(super) watch: Option<MemoryWatch>,
    /// What was measured before, and when it was last written down.
    pub(super) ledger: Option<(Ledger, Instant)>,
    /// When it was last looked at, and for which model.
    pub(super) weighed: (Instant, usize),
    /// When weights are to come or go next, if nothing happens before.
    pub(super) next_move: Option<Instant>,
    /// Since when there has been nothing to do.
    rest: Rest,
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
    /// Puts the engine together and starts its preparers and its decoder.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(super) fn new(
        models: Vec<(String, Arc<dyn Pipeline>)>,
        options: EngineOptions,
        inbox: Receiver<Message>,
        publish: watch::Sender<Arc<QueueSnapshot>>,
        report: impl Fn(Message) -> bool + Send + Clone + 'static,
        loader: Listener,
    ) -> std::io::Result<Self> {
        let embeddings = Arc::new(Mutex::new(Embeddings::new(options.embedding_cache_bytes)));
        let pipelines: Vec<_> = models.iter().map(|(_, model)| Arc::clone(model)).collect();
        let prepared = report.clone();
        let preparers = Preparers::start(&pipelines, &embeddings, move |news| prepared(Message::Preparer(news)))?;
        let decoder = Decoder::start(pipelines, move |news| report(Message::Decoder(news)))?;
        let meters = Meters::new(models.iter().map(|(name, _)| name.as_str()));
        let mut engine = Self {
            models: models.into_iter().map(|(name, pipeline)| Model::new(name, pipeline)).collect(),
            inbox,
            jobs: BTreeMap::new(),
            next_job: 0,
            waiting: Waiting::default(),
            groups: Groups::default(),
            shapes: HashMap::new(),
            embeddings,
            costs: Costs::default(),
            memory: Memory::new(options.memory_bytes),
            loader,
            budget: options.weights_bytes,
            next_move: None,
            rest: Rest::default(),
            watch: None,
            ledger: None,
            weighed: (Instant::now(), 0),
            options,
            preparers,
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
        };
        engine.settle();
        engine.recall();
        let early = engine.models.iter().filter(|model| model.held()).map(|model| model.bytes).sum();
        engine.watch = MemoryWatch::start(&engine.options.device, early);
        // Who asks before the thread has begun is told the models' states, too.
        engine.tell(true);
        Ok(engine)
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
            self.reside();
            self.note(false);
            self.admit();
            if !self.groups.is_empty() {
                self.await_prepared();
            }
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

    /// Takes what an earlier engine has measured of these models.
    fn recall(&mut self) {
        let Some(data) = &self.options.data else { return };
        let ledger = Ledger::open(data, &self.options.device);
        for (model, opened) in self.models.iter().enumerate() {
            for Shape { width, height, latent, curve } in ledger.shapes(&*opened.pipeline).to_vec() {
                self.shapes.insert(Class { model, width, height }, latent);
                self.costs.recall(Place { model, latent }, curve);
            }
        }
        self.ledger = Some((ledger, Instant::now()));
    }

    /// Writes down what was measured, now and then and at the end.
    fn note(&mut self, end: bool) {
        let Some((ledger, last)) = &mut self.ledger else { return };
        if !end && last.elapsed() < NOTE {
            return;
        }
        *last = Instant::now();
        for (model, opened) in self.models.iter().enumerate() {
            let of_model = self.shapes.iter().filter(|(class, _)| class.model == model);
            let shape = |(class, &latent): (&Class, &[usize; 3])| {
                let curve = self.costs.curve(Place { model, latent })?.clone();
                Some(Shape { width: class.width, height: class.height, latent, curve })
            };
            let mut shapes: Vec<Shape> = of_model.filter_map(shape).collect();
            shapes.sort_by_key(|shape| (shape.width, shape.height));
            ledger.put(&opened.name, &*opened.pipeline, shapes);
        }
        let page = ledger.page();
        if end {
            page.write();
            return;
        }
        // The disk may take its time.
        if let Err(error) = std::thread::Builder::new().name("easel-ledger".into()).spawn(move || page.write()) {
            tracing::warn!(%error, "no thread to write the measured costs in");
        }
    }

    /// Takes one piece of news.
    pub(super) fn handle(&mut self, message: Message) {
        match message {
            Message::Submit(work, submitted) => self.submitted(*work, submitted),
            Message::Preparer(report) => self.prepared(report),
            Message::Decoder(report) => self.reported(report),
            Message::Model(report) => self.resided(report),
            Message::Command { name, command, answer } => {
                // Who asked may have gone; it is done all the same.
                let _ = answer.send(self.command(&name, command));
            }
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
        let class = |model| Class { model, width: spec.width, height: spec.height };
        let second = work.second.as_ref();
        let second = second.and_then(|second| self.models.iter().position(|model| model.name == second.model));
        let (first, second, pictures) = (class(model), second.map(class), work.specs.len());
        let job = Job::new(work, first, second, submitted);
        self.tell_newcomer(model, &job);
        if let Some(entry) = self.entry(&job, 0) {
            self.waiting.push(self.next_job, Entry { pictures, ..entry });
        }
        self.jobs.insert(self.next_job, job);
        self.next_job += STAGES;
        self.changed = true;
    }

    /// How a picture of a job waits for the model of this stage.
    pub(super) fn entry(&self, job: &Job, stage: usize) -> Option<Entry> {
        let specs = match &job.work.second {
            Some(second) if stage > 0 => &second.specs,
            _ => &job.work.specs,
        };
        let (spec, class) = (specs.first()?, job.class(stage));
        let model = &self.models[class.model].pipeline;
        let rows = 1 + usize::from(model.guided(spec));
        let steps = match &spec.stage {
            Stage::First { until } => (spec.sampling.steps as f64 * until).round() as usize,
            _ if stage > 0 => job.steps_after(0),
            _ => spec.sampling.steps,
        };
        let pixels = f64::from(spec.width) * f64::from(spec.height);
        // In proportion to the operations, about: every weight is used once a pixel, row and step.
        let weights = model.card().parameters.max(1) as f64;
        let asks = (steps * rows) as f64 * pixels * weights;
        let (owner, priority) = (Arc::clone(&job.owner), job.work.priority);
        Some(Entry { owner, priority, class, rows, steps, pictures: 1, asks })
    }

    /// Lets one more picture of a job wait for its second model.
    pub(super) fn wait_for_second(&mut self, id: u64) {
        let entry = self.jobs.get(&id).and_then(|job| self.entry(job, 1));
        if let Some(entry) = entry {
            self.waiting.push_one(id + 1, entry);
        }
    }

    fn reported(&mut self, report: Report) {
        match report {
            Report::Decoded { job, model, latent, took, last } => {
                self.decoder.reported(model);
                self.changed = true;
                if let Some(class) = self.jobs.get(&job).map(|job| job.class).filter(|_| took.is_some()) {
                    // The rows that may have run beside it.
                    let groups = self.groups.iter().filter(|group| group.class.model == model);
                    let rows = groups.map(|group| group.seated() as u64 * group.row_bytes).max().unwrap_or_default();
                    let decode = self.models[model].pipeline.decode_bytes(class.width, class.height);
                    self.weigh(model, rows, decode);
                }
                if last && self.jobs.remove(&job).is_some() {
                    meters::ended(if took.is_some() { "finished" } else { "canceled" });
                }
                if let (Some(took), &[c, h, w]) = (took, latent.as_slice()) {
                    self.meters.models[model].decode.record(took.as_secs_f64());
                    self.costs.decoded(Place { model, latent: [c, h, w] }, took);
                }
            }
            Report::Failed { job, error } => self.fail(job, error),
            Report::Quiet(quiet) => quiet.grant(),
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
        (id..id + STAGES).for_each(|ticket| self.waiting.remove(ticket));
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
        let rest = self.rest.ends(self.jobs.is_empty(), easel_models::kept_memory(), Instant::now());
        let message = match self.closing.into_iter().chain(self.next_move).chain(rest).min() {
            None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(end) => self.inbox.recv_timeout(end.saturating_duration_since(Instant::now())),
        };
        match message {
            Ok(message) => self.handle(message),
            Err(RecvTimeoutError::Timeout) => {
                if rest.is_some_and(|end| Instant::now() >= end) {
                    let bytes = easel_models::give_back_memory();
                    tracing::debug!(bytes, "gave back memory that was kept for the next step");
                }
            }
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
        self.note(true);
        self.tell(true);
        // A preparer or decoder that waits for an answer must see that none comes.
        drop(self.inbox);
        self.preparers.finish();
        self.decoder.finish();
        tracing::debug!("the engine has ended");
    }
}
