//! The preparers: a thread a model, beside the step loop, that encodes prompts and sets up first latents.
//!
//! A large text encoder takes as long as several denoising steps, and so may the autoencoder over a picture to start
//! from. On the step thread everybody's pictures would stand still meanwhile; here the loop goes on, and the new picture
//! joins at the boundary after it is ready. Each model has a thread of its own, so that a slow encoder holds up its own
//! model's pictures only.
//!
//! - A model's pictures are prepared in the order in which they were let in, so a prompt that several of them share is
//!   encoded once.
//! - What is being prepared has its seats already ([`super::policy::reserve`]).
//! - When there is no memory for it beside a step, the cached embeddings are given up first; if that does not do, the step
//!   loop pauses for it, once ([`super::quiet`]).

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use easel_models::{Conditioning, Pipeline, Prompt, RenderSpec, Trajectory, beside};
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;

use super::EngineEvent;
use super::batch::Elsewhere;
use super::embeddings::Embeddings;
use super::fault::{Fault, guarded};
use super::quiet::{self, Quiet};
use super::waiting::Entry;

/// What a job's prompts mean to one of its models: filled by the preparer at its first picture, and kept while the job
/// lives, so that the cache may forget them.
#[derive(Debug, Default)]
pub(super) struct Leg {
    pub(super) positive: OnceLock<Arc<Conditioning>>,
    negative: OnceLock<Arc<Conditioning>>,
}

/// Which picture of which job.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot {
    pub(super) job: u64,
    /// Which of the job's models.
    pub(super) stage: usize,
    /// Which of the job's pictures.
    pub(super) image: usize,
    /// Steps that the job's other model does of it.
    pub(super) elsewhere: Elsewhere,
    /// Previews that it has had.
    pub(super) previews: u32,
}

/// A picture to be prepared.
pub(super) struct Task {
    pub(super) spot: Spot,
    pub(super) spec: RenderSpec,
    pub(super) prompt: Prompt,
    /// What to keep out, where the model is told.
    pub(super) negative: Option<Prompt>,
    pub(super) leg: Arc<Leg>,
    /// Closed once nobody wants the picture any more.
    pub(super) events: UnboundedSender<EngineEvent>,
}

/// How long the parts of a preparation took.
#[derive(Debug, Default)]
pub(super) struct Spent {
    /// Each prompt that was encoded.
    pub(super) encodes: Vec<Duration>,
    /// Prompts that were known.
    pub(super) known: u64,
    /// Setting up the first latents.
    pub(super) begin: Option<Duration>,
}

/// What has become of a picture.
pub(super) struct Prepared {
    /// The model's place in the registry.
    pub(super) model: usize,
    pub(super) spot: Spot,
    pub(super) spent: Spent,
    /// The picture ready to join, or why it is not; nothing if nobody wants it any more.
    pub(super) result: Option<Result<Trajectory, Fault>>,
}

/// What a preparer tells the step loop.
pub(super) enum Report {
    /// It is done with a picture.
    Prepared(Box<Prepared>),
    /// A preparer needs the device to itself.
    Quiet(Quiet),
}

/// A picture handed over and not reported back.
pub(super) struct Pending {
    spot: Spot,
    /// How it waited, for its seats.
    pub(super) entry: Entry,
    /// Whether a call has been made without it since.
    waited_for: bool,
}

/// The step loop's end of the preparers.
pub(super) struct Preparers {
    tasks: Vec<Sender<Task>>,
    threads: Vec<JoinHandle<()>>,
    pending: Vec<Pending>,
}

impl Preparers {
    /// Starts the threads. `report` takes what they have to tell; it returns false when nobody listens any more.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(super) fn start(
        models: &[Arc<dyn Pipeline>],
        embeddings: &Arc<Mutex<Embeddings>>,
        report: impl Fn(Report) -> bool + Send + Clone + 'static,
    ) -> std::io::Result<Self> {
        let mut preparers = Self { tasks: Vec::new(), threads: Vec::new(), pending: Vec::new() };
        for (model, pipeline) in models.iter().enumerate() {
            let (tasks, inbox) = mpsc::channel();
            let (pipeline, embeddings, report) = (Arc::clone(pipeline), Arc::clone(embeddings), report.clone());
            let worker = Worker { model, pipeline, embeddings, report };
            let thread = std::thread::Builder::new().name("easel-preparer".into()).spawn(move || worker.run(&inbox))?;
            preparers.tasks.push(tasks);
            preparers.threads.push(thread);
        }
        Ok(preparers)
    }

    /// Hands a picture over that waited like this.
    pub(super) fn send(&mut self, entry: Entry, task: Task) {
        let model = entry.class.model;
        self.pending.push(Pending { spot: task.spot, entry, waited_for: false });
        // The thread ends only after this sender; a model's panic is caught inside.
        let _ = self.tasks[model].send(task);
    }

    /// Takes note of a picture that was reported back.
    pub(super) fn reported(&mut self, spot: Spot) {
        let same = |pending: &Pending| {
            let Spot { job, stage, image, .. } = pending.spot;
            (job, stage, image) == (spot.job, spot.stage, spot.image)
        };
        if let Some(index) = self.pending.iter().position(same) {
            self.pending.remove(index);
        }
    }

    /// What is being prepared, in the order in which it was handed over.
    pub(super) fn pending(&self) -> &[Pending] {
        &self.pending
    }

    /// Whether something of this model is being prepared.
    pub(super) fn of(&self, model: usize) -> bool {
        self.pending.iter().any(|pending| pending.entry.class.model == model)
    }

    /// Whether something is being prepared that no call has been held up for.
    pub(super) fn fresh(&self) -> bool {
        self.pending.iter().any(|pending| !pending.waited_for)
    }

    /// Has no further call wait for what is being prepared now.
    pub(super) fn waited(&mut self) {
        for pending in &mut self.pending {
            pending.waited_for = true;
        }
    }

    /// Waits until the threads have ended; what they had not begun is dropped, if its callers have been told.
    pub(super) fn finish(self) {
        drop(self.tasks);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

struct Worker<R> {
    /// The model's spot in the registry.
    model: usize,
    pipeline: Arc<dyn Pipeline>,
    embeddings: Arc<Mutex<Embeddings>>,
    report: R,
}

impl<R: Fn(Report) -> bool> Worker<R> {
    fn run(self, inbox: &Receiver<Task>) {
        while let Ok(task) = inbox.recv() {
            // What a task holds of the device is given up beside the loop, too.
            beside(|| {
                let mut spent = Spent::default();
                let result = (!task.events.is_closed()).then(|| self.prepare(&task, &mut spent));
                let prepared = Prepared { model: self.model, spot: task.spot, spent, result };
                drop(task);
                // Without a loop what is left is dropped, quickly.
                let _ = (self.report)(Report::Prepared(Box::new(prepared)));
            });
        }
    }

    fn prepare(&self, task: &Task, spent: &mut Spent) -> Result<Trajectory, Fault> {
        match self.trajectory(task, spent) {
            Err(Fault::OutOfMemory(_)) => {
                // The cache is the one thing that can be given up at no loss but time.
                self.embeddings.lock().clear();
                match self.trajectory(task, spent) {
                    Err(Fault::OutOfMemory(message)) => {
                        let ask = |quiet| (self.report)(Report::Quiet(quiet));
                        quiet::undisturbed("prepare", message, ask, || self.trajectory(task, spent))
                    }
                    result => result,
                }
            }
            result => result,
        }
    }

    fn trajectory(&self, task: &Task, spent: &mut Spent) -> Result<Trajectory, Fault> {
        let positive = self.meaning(&task.leg.positive, &task.prompt, spent)?;
        let negative = task.negative.as_ref().map(|negative| self.meaning(&task.leg.negative, negative, spent));
        let negative = negative.transpose()?;
        let began = Instant::now();
        let trajectory = guarded("begin", || self.pipeline.begin(&task.spec, positive, negative));
        spent.begin = Some(began.elapsed());
        trajectory
    }

    /// What a prompt means to the model: as the job knows it, from the cache, or from the text encoders.
    fn meaning(
        &self,
        kept: &OnceLock<Arc<Conditioning>>,
        prompt: &Prompt,
        spent: &mut Spent,
    ) -> Result<Arc<Conditioning>, Fault> {
        if let Some(known) = kept.get() {
            return Ok(Arc::clone(known));
        }
        let cached = self.embeddings.lock().get(self.model, prompt);
        let conditioning = if let Some(known) = cached {
            spent.known += 1;
            known
        } else {
            let began = Instant::now();
            let conditioning = Arc::new(guarded("encode", || self.pipeline.encode(prompt))?);
            spent.encodes.push(began.elapsed());
            self.embeddings.lock().put(self.model, prompt.clone(), Arc::clone(&conditioning));
            conditioning
        };
        Ok(Arc::clone(kept.get_or_init(|| conditioning)))
    }
}
