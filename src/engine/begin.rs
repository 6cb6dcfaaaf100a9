//! Letting pictures in: text embeddings, first latents, and a place in a group.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use easel_models::{Conditioning, Prompt, Trajectory};

use super::batch::{Group, Row};
use super::cost::Place;
use super::fault::{Fault, guarded};
use super::job::{self, Leg};
use super::policy::{self, Room, Seat};
use super::thread::Engine;
use super::waiting::Class;
use super::{EngineEvent, WorkError};

/// Most rows of a call when the operator sets no bound; past it no model gains, and a boundary is far away.
const MOST_ROWS: usize = 64;

/// While others run, pictures are let in for about as long as a call takes, and at least this long, before the next
/// call.
const LEAST_ADMISSION: Duration = Duration::from_millis(50);

impl Engine {
    /// Lets in who may join at this boundary.
    pub(super) fn admit(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let rooms = self.groups.iter().map(|group| self.room(group)).collect();
        let open = |model: usize| self.models[model].open() && self.decoder.of(model) < self.options.decode_backlog;
        let admitted = policy::admit(&self.waiting, rooms, self.options.groups, open, |class| self.seats_of(class));
        // Encoding a prompt holds up those who run, so many new prompts come in over several boundaries.
        let patience = (!self.groups.is_empty()).then(|| self.last_call.max(LEAST_ADMISSION));
        let began = Instant::now();
        for ticket in admitted {
            self.begin(ticket);
            if patience.is_some_and(|patience| began.elapsed() > patience) {
                break;
            }
        }
    }

    /// A group as the policy sees it.
    fn room(&self, group: &Group) -> Room {
        let seats = self.seats(group);
        let (rows, left) = (group.width(), self.group_left(group).unwrap_or_default());
        let nearest = group.rows.iter().map(|row| Seat::from(row).left).min().unwrap_or_default();
        Room { class: group.class, rows, seats, left, nearest, owners: HashMap::clone(&group.owners) }
    }

    /// Rows that a call of this group may have.
    pub(super) fn seats(&self, group: &Group) -> usize {
        if group.alone {
            return 1;
        }
        let fit = self.memory.rows(group.class.model, group.on_cpu, group.row_bytes);
        self.costs.rows(group.place(), fit.min(self.most_rows())).max(1)
    }

    /// Rows of the first call of a class that has no group; a guess from what is known, which the group corrects.
    fn seats_of(&self, class: Class) -> usize {
        let model = &self.models[class.model];
        let fit = self.memory.rows(class.model, false, model.pipeline.row_bytes(class.width, class.height));
        // Without a shape of this model nothing has been measured either, so the shape does not matter.
        let place = self.place(class).unwrap_or(Place { model: class.model, latent: [0; 3] });
        self.costs.rows(place, fit.min(self.most_rows())).max(1)
    }

    /// The operator's bound on rows, or ours.
    pub(super) fn most_rows(&self) -> usize {
        if self.options.max_batch_rows == 0 { MOST_ROWS } else { self.options.max_batch_rows }
    }

    /// Begins the next picture that waits under this number.
    fn begin(&mut self, ticket: u64) {
        self.waiting.take(ticket);
        self.changed = true;
        let (id, stage) = job::waits(ticket);
        match self.trajectory(id, stage).or_else(|fault| match fault {
            // The cache is the one thing that can be given up at no loss but time.
            Fault::OutOfMemory(_) => {
                self.embeddings.clear();
                self.trajectory(id, stage)
            }
            Fault::Other(_) => Err(fault),
        }) {
            Ok(trajectory) => self.join(id, stage, trajectory),
            Err(fault) => self.fail(id, fault.into_error()),
        }
    }

    /// Sets up the next picture of a job and stage.
    fn trajectory(&mut self, id: u64, stage: usize) -> Result<Trajectory, Fault> {
        let gone = || Fault::Other(WorkError::Internal("the job is gone".into()));
        let job = self.jobs.get(&id).ok_or_else(gone)?;
        let spec = job.next(stage).ok_or_else(gone)?;
        let model = job.class(stage).model;
        let guided = self.models[model].pipeline.guided(&spec);
        let (prompt, negative) = job.prompts(stage);
        let (prompt, negative) = (prompt.clone(), negative.clone());
        let Leg { positive: known, negative: known_negative } = &job.legs[stage];
        let (known, known_negative) = (known.clone(), known_negative.clone());
        let positive = known.map_or_else(|| self.embed(id, model, prompt), Ok)?;
        let negative =
            guided.then(|| known_negative.map_or_else(|| self.embed(id, model, negative), Ok)).transpose()?;
        let job = self.jobs.get_mut(&id).ok_or_else(gone)?;
        job.legs[stage] = Leg { positive: Some(Arc::clone(&positive)), negative: negative.clone() };
        let began = Instant::now();
        let trajectory = guarded("begin", || self.models[model].pipeline.begin(&spec, positive, negative));
        self.in_calls += began.elapsed();
        self.meters.models[model].begin.record(began.elapsed().as_secs_f64());
        trajectory
    }

    /// What a prompt means to a model, from the cache or its text encoders.
    fn embed(&mut self, id: u64, model: usize, prompt: Prompt) -> Result<Arc<Conditioning>, Fault> {
        if let Some(known) = self.embeddings.get(model, &prompt) {
            self.meters.embeddings_hit.increment(1);
            return Ok(known);
        }
        self.meters.embeddings_missed.increment(1);
        let began = Instant::now();
        let conditioning = guarded("encode", || self.models[model].pipeline.encode(&prompt));
        let took = began.elapsed();
        self.in_calls += took;
        self.meters.models[model].encode.record(took.as_secs_f64());
        if let Some(job) = self.jobs.get_mut(&id) {
            job.encode += took;
        }
        let conditioning = Arc::new(conditioning?);
        self.embeddings.put(model, prompt, Arc::clone(&conditioning));
        Ok(conditioning)
    }

    /// Puts a picture into its group.
    fn join(&mut self, id: u64, stage: usize, trajectory: Trajectory) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some((image, elsewhere, previews)) = job.begin(stage) else { return };
        if (stage, image) == (0, 0) {
            job.send(EngineEvent::Started);
        }
        let class = job.class(stage);
        self.shapes.insert(class, trajectory.key().latent);
        let row = Row::new(id, image, trajectory, Arc::clone(&job.owner), job.work.priority);
        let row = row.in_stage(stage, elsewhere, previews);
        if row.trajectory.done() {
            // Image-to-image of a low strength may have no step to do.
            self.finished_row(class.model, &row);
            return;
        }
        let pipeline = &self.models[class.model].pipeline;
        let refused = self.groups.join(class, row, || pipeline.row_bytes(class.width, class.height));
        self.meters.refused(&refused);
    }
}
