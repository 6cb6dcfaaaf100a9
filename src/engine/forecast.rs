//! What callers may expect: places in the waiting list, times of arrival, and the queue as a whole.
//!
//! All times are drawn from measured costs, on the assumption that what is there now is all that comes. Where nothing
//! has been measured there is no estimate, rather than a wrong one.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::QueueSnapshot;
use super::batch::Group;
use super::cost::Place;
use super::job;
use super::snapshot::{Batch, ModelQueue};
use super::thread::Engine;
use super::waiting::{Class, Entry};

/// The queue is told at most this share of the time, so that a long list does not hold up the loop.
const TELLING_SHARE: u32 = 100;

/// Measured times are told again after this long, even when nobody came or went.
const REFRESH: Duration = Duration::from_secs(1);

/// Seconds until each running job is done; jobs for which it is not known are left out.
pub(super) struct Forecast {
    jobs: HashMap<u64, f64>,
}

impl Forecast {
    /// The time until this job is done.
    pub(super) fn job(&self, job: u64) -> Option<Duration> {
        self.jobs.get(&job).and_then(|&seconds| duration(seconds))
    }
}

/// A time that is certainly representable.
fn duration(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}

impl Engine {
    /// Seconds of a group's call, and how many such calls give each of its rows one.
    fn round(&self, group: &Group) -> Option<(f64, f64)> {
        let (width, seats) = (group.width(), self.seats(group));
        let call = self.costs.call(group.place(), width.min(seats))?;
        Some((call, (width as f64 / seats as f64).max(1.0)))
    }

    /// Seconds of the device until a group's present rows are done.
    pub(super) fn group_left(&self, group: &Group) -> Option<f64> {
        let (call, calls) = self.round(group)?;
        let longest = group.rows.iter().map(super::batch::Row::calls_left).max_by(f64::total_cmp)?;
        Some(longest * call * calls)
    }

    /// When the running jobs will be done.
    pub(super) fn forecast(&self) -> Forecast {
        let shares: f64 = self.groups.iter().map(|group| group.share).sum();
        let mut jobs: HashMap<u64, f64> = HashMap::new();
        for group in self.groups.iter() {
            let Some((call, calls)) = self.round(group) else { continue };
            // The group has `share` of the device's time, so its rows step once in this time.
            let period = call * calls * shares / group.share;
            let seats = self.seats(group) as f64;
            for row in &group.rows {
                let Some(job) = self.jobs.get(&row.job) else { continue };
                let progress = row.trajectory.progress();
                // What the job's second model has to do, one picture after the other.
                let second = job.second.filter(|_| row.stage == 0).and_then(|_| self.picture(&self.entry(job, 1)?));
                let second = second.map_or(0.0, |(steps, _)| steps);
                // Pictures that have not begun come after this one, as many at a time as have seats.
                let later = (job.work.specs.len() - job.begun) as f64 * row.trajectory.rows() as f64;
                let turns = (later / seats).ceil();
                let calls_each = row.calls_left().max(progress.steps as f64 * f64::from(u8::from(turns > 0.0)));
                let decode = self.costs.decode(group.place()).unwrap_or_default() * job.unfinished() as f64;
                let seconds =
                    (row.calls_left() + turns * calls_each) * period + second * job.unfinished() as f64 + decode;
                let known = jobs.entry(row.job).or_default();
                *known = known.max(seconds);
            }
        }
        Forecast { jobs }
    }

    /// Seconds of the device that all running rows still need.
    fn drain(&self) -> Option<f64> {
        let mut seconds = 0.0;
        for group in self.groups.iter() {
            let (call, calls) = self.round(group)?;
            let a_row = call * calls / group.width().max(1) as f64;
            seconds +=
                group.rows.iter().map(|row| row.calls_left() * row.trajectory.rows() as f64 * a_row).sum::<f64>();
        }
        Some(seconds)
    }

    /// Seconds of the device for one picture that has not begun, in calls as full as they may be, and for its decoding.
    fn picture(&self, entry: &Entry) -> Option<(f64, f64)> {
        let place = self.place(entry.class)?;
        let seats = self.costs.rows(place, self.most_rows()).max(entry.rows);
        let a_row = self.costs.call(place, seats)? / seats as f64;
        Some(((entry.steps * entry.rows) as f64 * a_row, self.costs.decode(place).unwrap_or_default()))
    }

    /// The latent shape of a class, from another of the model's where it has not been seen.
    pub(super) fn place(&self, class: Class) -> Option<Place> {
        let model = class.model;
        if let Some(&latent) = self.shapes.get(&class) {
            return Some(Place { model, latent });
        }
        let (other, &[c, h, w]) = self.shapes.iter().find(|(other, _)| other.model == model)?;
        let scale = |latent: usize, pixels: u32, others: u32| latent * pixels as usize / others.max(1) as usize;
        let latent = [c, scale(h, class.height, other.height).max(1), scale(w, class.width, other.width).max(1)];
        Some(Place { model, latent })
    }

    /// Tells those who wait their places, and everybody the state of the queue. Unless it must be now, not more often
    /// than its own cost allows.
    pub(super) fn tell(&mut self, now: bool) {
        let (last, took) = self.told;
        let stale = self.changed || last.elapsed() > REFRESH;
        if !stale || (!now && last.elapsed() < took * TELLING_SHARE) {
            return;
        }
        let began = Instant::now();
        let ahead = self.tell_positions();
        self.tell_snapshot(ahead);
        self.changed = false;
        self.told = (Instant::now(), began.elapsed());
    }

    /// Tells places; gives the seconds of all that waits.
    fn tell_positions(&mut self) -> Option<f64> {
        let drain = self.drain();
        let mut ahead = Some(0.0);
        let mut seen = HashSet::new();
        let mut places = Vec::new();
        for ticket in self.waiting.order() {
            let Some(entry) = self.waiting.get(ticket) else { continue };
            let (job, _) = job::waits(ticket);
            let picture = self.picture(entry);
            if seen.insert(job) && self.jobs.get(&job).is_some_and(|job| !job.started()) {
                let own = picture.map(|(steps, decode)| (steps + decode) * entry.pictures as f64);
                let eta = drain.zip(ahead).zip(own).and_then(|((drain, ahead), own)| duration(drain + ahead + own));
                places.push((job, eta));
            }
            ahead = ahead.zip(picture).map(|(ahead, (steps, _))| ahead + steps);
        }
        for (position, (job, eta)) in places.into_iter().enumerate() {
            if let Some(job) = self.jobs.get_mut(&job) {
                job.tell_position(position, eta);
            }
        }
        ahead
    }

    /// Publishes the queue, with `ahead` seconds of waiting work.
    fn tell_snapshot(&self, ahead: Option<f64>) {
        let mut models: Vec<ModelQueue> = self
            .models
            .iter()
            .map(|model| ModelQueue { model: model.name.clone(), status: model.status(), ..ModelQueue::default() })
            .collect();
        for job in self.jobs.values() {
            let queue = &mut models[job.class.model];
            if job.started() { queue.running += 1 } else { queue.waiting += 1 }
        }
        for group in self.groups.iter() {
            let (queue, rows, seats) = (&mut models[group.class.model], group.width(), self.seats(group));
            queue.rows += rows;
            queue.batches.push(Batch {
                width: group.class.width,
                height: group.class.height,
                pictures: group.rows.len(),
                rows,
                max_rows: seats,
                call_ms: self.costs.call(group.place(), rows.min(seats)).map(|seconds| seconds * 1000.0),
            });
        }
        let sum = |of: fn(&ModelQueue) -> usize| models.iter().map(of).sum::<usize>();
        let snapshot = QueueSnapshot {
            waiting: sum(|model| model.waiting),
            running: sum(|model| model.running),
            rows: sum(|model| model.rows),
            decoding: self.decoder.pictures,
            wait_estimate_ms: ahead.and_then(duration).and_then(|wait| u64::try_from(wait.as_millis()).ok()),
            starting: self.models.iter().filter(|model| model.starting()).map(|model| model.name.clone()).collect(),
            jobs: self.jobs.values().filter(|job| job.started()).map(|job| job.work.job.clone()).collect(),
            busy_seconds: self.busy.as_secs_f64(),
            overhead_seconds: self.overhead.as_secs_f64(),
            models,
        };
        self.meters.waiting.set(snapshot.waiting as f64);
        self.meters.running.set(snapshot.running as f64);
        self.meters.rows.set(snapshot.rows as f64);
        self.publish.send_replace(Arc::new(snapshot));
    }
}
