//! One job inside the engine.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use easel_models::{Prompt, RenderSpec, Stage};

use super::batch::{Elsewhere, Row};
use super::decode::{Tail, Target};
use super::prepare::{Leg, Spot};
use super::waiting::Class;
use super::{EngineEvent, Work, WorkError, WorkMetrics};

/// A job's places in the waiting list are told by numbers: its own, which is even, for the pictures that its first
/// model begins, and the one after it for those that wait for its second.
pub(super) const STAGES: u64 = 2;

/// The job that waits under this number, and with which of its models.
pub(super) fn waits(ticket: u64) -> (u64, usize) {
    let stage = ticket % STAGES;
    (ticket - stage, usize::from(stage > 0))
}

/// A picture that the first model is done with.
struct Parked {
    image: usize,
    latents: Tensor,
    /// Steps that it has had.
    steps: usize,
    /// Previews sent of it.
    previews: u32,
}

/// One job from submission to its last event.
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) owner: Arc<str>,
    /// Where its first model's pictures belong.
    pub(super) class: Class,
    /// Where its second model's do, if it has one.
    pub(super) second: Option<Class>,
    /// What its prompts mean to each of its models.
    pub(super) legs: [Arc<Leg>; STAGES as usize],
    /// Pictures that wait for the second model, in the order in which they came.
    parked: VecDeque<Parked>,
    submitted: Instant,
    /// When its first call began.
    first_call: Option<Instant>,
    last_call: Option<Instant>,
    /// Time in the text encoders.
    pub(super) encode: Duration,
    steps: usize,
    calls: usize,
    /// Rows of those calls together.
    call_rows: usize,
    /// Pictures that have begun.
    pub(super) begun: usize,
    /// Pictures handed to the decoder.
    handed: usize,
    /// The place that its caller was told last.
    position: Option<usize>,
    tail: Arc<Tail>,
    /// Whether anything was ever handed to the decoder: its last event must then go the same way.
    pub(super) at_decoder: bool,
}

impl Job {
    /// A job that has just come.
    pub(super) fn new(work: Work, class: Class, second: Option<Class>, submitted: Instant) -> Self {
        Self {
            owner: work.owner.as_str().into(),
            work,
            class,
            second,
            legs: Default::default(),
            parked: VecDeque::new(),
            submitted,
            first_call: None,
            last_call: None,
            encode: Duration::ZERO,
            steps: 0,
            calls: 0,
            call_rows: 0,
            begun: 0,
            handed: 0,
            position: None,
            tail: Arc::default(),
            at_decoder: false,
        }
    }

    /// What the model of this stage is told to draw, and to keep out.
    pub(super) fn prompts(&self, stage: usize) -> (&Prompt, &Prompt) {
        match &self.work.second {
            Some(second) if stage > 0 => (&second.prompt, &second.negative),
            _ => (&self.work.prompt, &self.work.negative),
        }
    }

    /// Where this stage's pictures belong.
    pub(super) fn class(&self, stage: usize) -> Class {
        self.second.filter(|_| stage > 0).unwrap_or(self.class)
    }

    /// Counts the next picture of this stage as begun: which one of the job `id` it is, and how it is to be rendered; `None` when
    /// there is none.
    pub(super) fn begin(&mut self, id: u64, stage: usize) -> Option<(Spot, RenderSpec)> {
        if stage == 0 {
            let (image, spec) = (self.begun, self.work.spec(self.begun)?);
            self.begun += 1;
            let elsewhere = Elsewhere { before: 0, after: self.steps_after(image) };
            return Some((Spot { job: id, stage, image, elsewhere, previews: 0 }, spec));
        }
        let Parked { image, latents, steps, previews } = self.parked.pop_front()?;
        let second = self.work.second.as_ref()?;
        let spec = second.specs.get(image)?.clone();
        let elsewhere = Elsewhere { before: steps, after: 0 };
        let spot = Spot { job: id, stage, image, elsewhere, previews };
        Some((spot, RenderSpec { stage: Stage::Second { from: second.from, latents }, ..spec }))
    }

    /// Lets a picture that the first model is done with wait for the second.
    pub(super) fn park(&mut self, row: &Row) {
        let (latents, steps) = (row.trajectory.latents().clone(), row.trajectory.progress().step);
        self.parked.push_back(Parked { image: row.image, latents, steps, previews: row.previews });
    }

    /// Steps that the second model will do of a picture, as far as the share of the schedule tells; the model's own
    /// timesteps may make it one more or less.
    pub(super) fn steps_after(&self, image: usize) -> usize {
        let Some(second) = &self.work.second else { return 0 };
        let steps = second.specs.get(image).map_or(0, |spec| spec.sampling.steps);
        (steps as f64 * (1.0 - second.from)).round() as usize
    }

    /// Whether its first picture has begun.
    pub(super) fn started(&self) -> bool {
        self.begun > 0
    }

    /// Whether its caller has hung up.
    pub(super) fn canceled(&self) -> bool {
        self.work.events.is_closed()
    }

    /// Sends an event. A caller who has gone misses nothing: the job is dropped at the next step boundary.
    pub(super) fn send(&self, event: EngineEvent) {
        let _ = self.work.events.send(event);
    }

    /// Tells its place in the waiting list if that is news.
    pub(super) fn tell_position(&mut self, position: usize, eta: Option<Duration>) {
        if self.position != Some(position) {
            self.position = Some(position);
            self.send(EngineEvent::Queued { position, eta });
        }
    }

    /// Has its place told again, though it may be the same.
    pub(super) fn forget_position(&mut self) {
        self.position = None;
    }

    /// Takes note of a call of `rows` that one of its pictures was in, and of the steps that it finished.
    pub(super) fn called(&mut self, began: Instant, rows: usize, steps: usize) {
        self.first_call.get_or_insert(began);
        self.last_call = Some(Instant::now());
        self.calls += 1;
        self.call_rows += rows;
        self.steps += steps;
    }

    /// Pictures that are not decoded or at the decoder.
    pub(super) fn unfinished(&self) -> usize {
        self.work.specs.len() - self.handed
    }

    /// How the decoder knows one of its pictures.
    pub(super) fn target(&mut self, id: u64, image: usize, model: usize) -> Target {
        self.at_decoder = true;
        let tail = Arc::clone(&self.tail);
        Target { job: id, image, model, events: self.work.events.clone(), tail }
    }

    /// Counts a picture as handed over; the job's numbers when it is the last.
    pub(super) fn hand_over(&mut self) -> Option<WorkMetrics> {
        self.handed += 1;
        (self.unfinished() == 0).then(|| self.metrics())
    }

    /// Stops what is left of it at the decoder.
    pub(super) fn end(&self) {
        self.tail.end();
    }

    /// Everything but the decoding time, which the decoder adds.
    fn metrics(&self) -> WorkMetrics {
        // An image-to-image request may have no step to do.
        let first = self.first_call.unwrap_or_else(Instant::now);
        let last = self.last_call.unwrap_or(first);
        let positive = self.legs[0].positive.get();
        WorkMetrics {
            queued: first.saturating_duration_since(self.submitted),
            encode: self.encode,
            denoise: last.saturating_duration_since(first),
            decode: Duration::ZERO,
            steps: self.steps,
            model_calls: self.calls,
            batch_rows_mean: self.call_rows as f64 / self.calls.max(1) as f64,
            prompt_tokens: positive.map_or(0, |conditioning| conditioning.tokens),
            truncated: positive.is_some_and(|conditioning| conditioning.truncated.is_some()),
        }
    }

    /// Whether the work can wait at all.
    ///
    /// # Errors
    /// When there is no picture to make, the pictures differ in more than the batch they wait for allows, or the second
    /// model's are not those of the first.
    pub(super) fn check(work: &Work) -> Result<(), WorkError> {
        let Some(first) = work.specs.first() else {
            let message = "0 pictures were asked for; at least 1 is possible".into();
            return Err(WorkError::Request { param: "n", message });
        };
        let second = work.second.as_ref().map(|second| second.specs.as_slice()).unwrap_or_default();
        if work.specs.iter().chain(second).any(|spec| (spec.width, spec.height) != (first.width, first.height)) {
            let message = "the pictures of one job must have one size".into();
            return Err(WorkError::Request { param: "size", message });
        }
        if work.second.as_ref().is_some_and(|second| second.specs.len() != work.specs.len()) {
            let message = "both models of a job must render all of its pictures".into();
            return Err(WorkError::Request { param: "n", message });
        }
        Ok(())
    }
}
