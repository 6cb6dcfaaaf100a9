//! One model call, and what follows from how it ended.

use std::time::{Duration, Instant};

use easel_models::Trajectory;

use super::batch::Row;
use super::decode::Task;
use super::fault::{Fault, guarded};
use super::preview;
use super::thread::Engine;
use super::{EngineEvent, WorkError};

impl Engine {
    /// Makes the next call: of the group whose turn it is, with the pictures whose turn it is.
    pub(super) fn call(&mut self) {
        let Some(group) = self.groups.turn() else { return };
        let seats = self.seats(self.groups.get(group));
        self.groups.get_mut(group).seat(seats);
        loop {
            let pictures = self.groups.get(group).rows.iter().filter(|row| row.seated).count();
            match self.denoise(group) {
                Ok((began, took)) => self.called(group, began, took),
                Err(Fault::OutOfMemory(message)) if pictures > 1 => {
                    self.halve(group, &message);
                    continue;
                }
                Err(fault) => self.isolate(group, fault),
            }
            break;
        }
        self.groups.sweep();
    }

    /// Takes the seated rows of a group one call further.
    fn denoise(&mut self, group: usize) -> Result<(Instant, Duration), Fault> {
        let group = self.groups.get_mut(group);
        let model = group.class.model;
        let mut rows: Vec<&mut Trajectory> =
            group.rows.iter_mut().filter(|row| row.seated).map(|row| &mut row.trajectory).collect();
        let Some(device) = rows.first().map(|row| row.latents().device().clone()) else {
            return Err(Fault::Other(WorkError::Internal("a call without rows".into())));
        };
        let pipeline = &self.models[model].pipeline;
        let began = Instant::now();
        let result = guarded("denoise", || {
            pipeline.denoise(&mut rows)?;
            // A GPU's call returns before its work is done: only when it is done is this a step boundary, with a
            // cost that can be measured and errors that belong to these rows.
            Ok(device.synchronize()?)
        });
        let took = began.elapsed();
        self.in_calls += took;
        self.last_call = took;
        result.map(|()| (began, took))
    }

    /// Takes note of a call that went well, and sends its rows on their way.
    fn called(&mut self, place: usize, began: Instant, took: Duration) {
        let disturbed = self.decoder.pictures > 0 || !self.preparers.pending().is_empty();
        let group = self.groups.get_mut(place);
        let (model, rows) = (group.class.model, group.seated());
        let meters = &self.meters.models[model];
        meters.denoise.record(took.as_secs_f64());
        meters.batch_rows.record(rows as f64);
        self.costs.called(group.place(), rows, took, disturbed);
        self.memory.fitted(model, group.row_bytes, rows);
        let (bytes, class) = (group.row_bytes * rows as u64, group.class);
        group.used += took.as_secs_f64() / group.share;
        let mut steps = 0;
        let mut advanced = Vec::with_capacity(group.rows.len());
        for (index, row) in group.rows.iter_mut().enumerate().filter(|(_, row)| row.seated) {
            let Some(job) = self.jobs.get_mut(&row.job) else { continue };
            let finished = row.called();
            job.called(began, rows, finished);
            steps += finished;
            if finished > 0 {
                advanced.push(index);
            }
        }
        meters.steps.increment(steps as u64);
        let decoding = self.decoder.of(model) > 0;
        let decode = if decoding { self.models[model].pipeline.decode_bytes(class.width, class.height) } else { 0 };
        self.weigh(model, bytes, decode);
        self.report(place, &advanced);
        self.collect(place);
    }

    /// Tells the callers of these rows of a group how far they are.
    fn report(&mut self, group: usize, rows: &[usize]) {
        let forecast = self.forecast();
        let group = self.groups.get_mut(group);
        let model = group.class.model;
        for &row in rows {
            let row = &mut group.rows[row];
            let Some(job) = self.jobs.get_mut(&row.job) else { continue };
            let progress = row.progress();
            let eta = forecast.job(row.job);
            job.send(EngineEvent::Progress { image: row.image, step: progress.step, steps: progress.steps, eta });
            let due = preview::due(row.previews, job.work.previews, progress.steps);
            if due.is_some_and(|due| progress.step >= due) && !row.trajectory.done() {
                // The tensor is shared, not copied; it is read on the decoder's thread.
                let latents = row.trajectory.denoised().unwrap_or(row.trajectory.latents()).clone();
                let target = job.target(row.job, row.image, model);
                self.decoder.send(Task::Preview { target, index: row.previews, latents });
                row.previews += 1;
            }
        }
    }

    /// Sends the finished pictures of a group on their way.
    fn collect(&mut self, group: usize) {
        let model = self.groups.get(group).class.model;
        for row in self.groups.take_done(group) {
            self.finished_row(model, &row);
        }
    }

    /// Hands a picture that this model is done with to the decoder, or lets it wait for the job's second model.
    pub(super) fn finished_row(&mut self, model: usize, row: &Row) {
        let Some(job) = self.jobs.get_mut(&row.job) else { return };
        self.changed = true;
        if job.second.is_some() && row.stage == 0 {
            job.park(row);
            self.wait_for_second(row.job);
            return;
        }
        let (target, finish) = (job.target(row.job, row.image, model), job.hand_over());
        self.decoder.send(Task::Decode { target, latents: row.trajectory.latents().clone(), finish });
    }

    /// After a call that did not fit: the memory's ceiling goes down, and half of the pictures stay seated. The
    /// others have had fewer calls then, so theirs is the next one.
    fn halve(&mut self, group: usize, message: &str) {
        let group = self.groups.get_mut(group);
        let (model, rows) = (group.class.model, group.seated());
        self.memory.ran_out(model, group.row_bytes, rows);
        self.meters.models[model].out_of_memory.increment(1);
        tracing::warn!(model = self.models[model].name, rows, message, "out of memory; half of the rows are tried");
        let mut half = rows / 2;
        let mut first = true;
        for row in group.rows.iter_mut().filter(|row| row.seated) {
            let needs = row.trajectory.rows();
            row.seated = first || needs <= half;
            half = if row.seated { half.saturating_sub(needs) } else { 0 };
            first = false;
        }
    }

    /// After a call that failed: its pictures are called one by one, so that only those whose own call fails are
    /// failed, and their neighbours take their step.
    fn isolate(&mut self, group: usize, fault: Fault) {
        let members: Vec<(u64, usize)> =
            self.groups.get(group).rows.iter().filter(|row| row.seated).map(|row| (row.job, row.image)).collect();
        let model = self.groups.get(group).class.model;
        let mut culprits = Vec::new();
        if let ([(job, _)], Fault::Other(_)) = (members.as_slice(), &fault) {
            culprits.push((*job, fault));
        } else {
            let together = members.len() > 1;
            if together {
                self.meters.models[model].isolated.increment(1);
                tracing::warn!(model = self.models[model].name, ?fault, "a call failed; its rows are tried one by one");
            }
            for (job, image) in members {
                if let Err(fault) = self.alone(group, job, image) {
                    culprits.push((job, fault));
                }
            }
            // Rows that fail together and not alone would do so at every step.
            self.groups.get_mut(group).alone |= together && culprits.is_empty();
        }
        for (job, fault) in culprits {
            self.fail(job, fault.into_error());
        }
    }

    /// Calls one picture of a group, if need be again with all the memory that there is.
    fn alone(&mut self, group: usize, job: u64, image: usize) -> Result<(), Fault> {
        match self.only(group, job, image) {
            Err(Fault::OutOfMemory(message)) => {
                tracing::warn!(
                    message,
                    "out of memory with one picture; it is tried again when nothing is being prepared or decoded"
                );
                self.make_room();
                self.only(group, job, image)
            }
            result => result,
        }
    }

    /// Calls one picture of a group.
    fn only(&mut self, group: usize, job: u64, image: usize) -> Result<(), Fault> {
        let rows = self.groups.get_mut(group);
        rows.unseat();
        // It may have been called off, or failed with another picture of its job.
        let Some(row) = rows.find(job, image) else { return Ok(()) };
        if rows.rows[row].trajectory.done() {
            // A call that panicked may have moved some of its rows on before.
            self.collect(group);
            return Ok(());
        }
        rows.rows[row].seated = true;
        let (began, took) = self.denoise(group)?;
        self.called(group, began, took);
        Ok(())
    }

    /// Gives up what memory can be given up: cached embeddings, and what the preparers and the decoder hold once they are
    /// done.
    fn make_room(&mut self) {
        self.embeddings.lock().clear();
        while self.decoder.pictures > 0 || !self.preparers.pending().is_empty() {
            let Ok(message) = self.inbox.recv() else { return };
            self.handle(message);
        }
    }
}
