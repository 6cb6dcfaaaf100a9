//! One job inside the engine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use easel_models::Conditioning;

use super::decode::{Tail, Target};
use super::waiting::Class;
use super::{EngineEvent, Work, WorkError, WorkMetrics};

/// One job from submission to its last event.
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) owner: Arc<str>,
    pub(super) class: Class,
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
    /// Kept while the job has pictures to begin, so that the cache may forget them.
    pub(super) positive: Option<Arc<Conditioning>>,
    pub(super) negative: Option<Arc<Conditioning>>,
    /// The place that its caller was told last.
    position: Option<usize>,
    tail: Arc<Tail>,
    /// Whether anything was ever handed to the decoder: its last event must then go the same way.
    pub(super) at_decoder: bool,
}

impl Job {
    /// A job that has just come.
    pub(super) fn new(work: Work, class: Class, submitted: Instant) -> Self {
        Self {
            owner: work.owner.as_str().into(),
            work,
            class,
            submitted,
            first_call: None,
            last_call: None,
            encode: Duration::ZERO,
            steps: 0,
            calls: 0,
            call_rows: 0,
            begun: 0,
            handed: 0,
            positive: None,
            negative: None,
            position: None,
            tail: Arc::default(),
            at_decoder: false,
        }
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
    pub(super) fn target(&mut self, id: u64, image: usize) -> Target {
        self.at_decoder = true;
        let tail = Arc::clone(&self.tail);
        Target { job: id, image, model: self.class.model, events: self.work.events.clone(), tail }
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
        let positive = self.positive.as_deref();
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
    /// When there is no picture to make, or the pictures differ in more than the batch they wait for allows.
    pub(super) fn check(work: &Work) -> Result<(), WorkError> {
        let Some(first) = work.specs.first() else {
            let message = "0 pictures were asked for; at least 1 is possible".into();
            return Err(WorkError::Request { param: "n", message });
        };
        if work.specs.iter().any(|spec| (spec.width, spec.height) != (first.width, first.height)) {
            let message = "the pictures of one job must have one size".into();
            return Err(WorkError::Request { param: "size", message });
        }
        Ok(())
    }
}
