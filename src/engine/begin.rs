//! Letting pictures in: their seats, their preparation beside the loop, and their places in a group.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use easel_models::Trajectory;

use super::EngineEvent;
use super::batch::{Group, Row};
use super::cost::Place;
use super::job;
use super::policy::{self, Room, Seat};
use super::prepare::{Prepared, Report, Spent, Spot, Task};
use super::thread::Engine;
use super::waiting::Class;

/// Most rows of a call when the operator sets no bound; past it no model gains, and a boundary is far away.
const MOST_ROWS: usize = 64;

/// A call waits for pictures that are being prepared for this part of the time that the last one took, since those that
/// are ready sooner need not wait for the next boundary then.
const PATIENCE: u32 = 10;

/// And for this long at least.
const LEAST_PATIENCE: Duration = Duration::from_millis(5);

impl Engine {
    /// Lets in who may join at this boundary.
    pub(super) fn admit(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let mut rooms: Vec<Room> = self.groups.iter().map(|group| self.room(group)).collect();
        for pending in self.preparers.pending() {
            policy::reserve(&mut rooms, &pending.entry, |class| self.seats_of(class));
        }
        let open = |model: usize| self.models[model].open() && self.decoder.of(model) < self.options.decode_backlog;
        let admitted = policy::admit(&self.waiting, rooms, self.options.groups, open, |class| self.seats_of(class));
        for ticket in admitted {
            self.begin(ticket);
        }
    }

    /// Gives what has just been handed over a moment to get ready, before the next call is made without it.
    pub(super) fn await_prepared(&mut self) {
        let began = Instant::now();
        let patience = (self.last_call / PATIENCE).max(LEAST_PATIENCE);
        while self.preparers.fresh() {
            // However much other news there is, it waits no longer than this.
            let Some(left) = patience.checked_sub(began.elapsed()) else { break };
            match self.inbox.recv_timeout(left) {
                Ok(message) => self.handle(message),
                Err(_) => break,
            }
        }
        self.preparers.waited();
        // Waiting for a model is not what the loop itself costs.
        self.in_calls += began.elapsed();
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

    /// Has the next picture prepared that waits under this number.
    fn begin(&mut self, ticket: u64) {
        let Some(entry) = self.waiting.get(ticket).cloned() else { return };
        self.waiting.take(ticket);
        self.changed = true;
        let (id, stage) = job::waits(ticket);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some((spot, spec)) = job.begin(id, stage) else { return };
        let (prompt, negative) = job.prompts(stage);
        let negative = self.models[entry.class.model].pipeline.guided(&spec).then(|| negative.clone());
        let (prompt, leg, events) = (prompt.clone(), Arc::clone(&job.legs[stage]), job.work.events.clone());
        self.preparers.send(entry, Task { spot, spec, prompt, negative, leg, events });
    }

    /// Takes news from a preparer.
    pub(super) fn prepared(&mut self, report: Report) {
        match report {
            Report::Quiet(quiet) => quiet.grant(),
            Report::Prepared(prepared) => {
                let Prepared { model, spot, spent, result } = *prepared;
                self.preparers.reported(spot);
                self.changed = true;
                self.spent(model, spot.job, &spent);
                match result {
                    Some(Ok(trajectory)) => self.join(spot, trajectory),
                    Some(Err(fault)) => self.fail(spot.job, fault.into_error()),
                    // The job is dropped as all are whose callers have hung up.
                    None => {}
                }
            }
        }
    }

    /// Takes note of what preparing a picture took.
    fn spent(&mut self, model: usize, job: u64, spent: &Spent) {
        self.meters.embeddings_hit.increment(spent.known);
        self.meters.embeddings_missed.increment(spent.encodes.len() as u64);
        let meters = &self.meters.models[model];
        for encode in &spent.encodes {
            meters.encode.record(encode.as_secs_f64());
        }
        if let Some(begin) = spent.begin {
            meters.begin.record(begin.as_secs_f64());
        }
        if let Some(job) = self.jobs.get_mut(&job) {
            job.encode += spent.encodes.iter().sum::<Duration>();
        }
    }

    /// Puts a picture into its group.
    fn join(&mut self, spot: Spot, trajectory: Trajectory) {
        let Spot { job: id, stage, image, elsewhere, previews } = spot;
        let Some(job) = self.jobs.get_mut(&id) else { return };
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
