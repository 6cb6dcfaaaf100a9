//! A job that this process renders, and the events that its listeners drain.
//!
//! Listeners pull: each has the id of the last event that it has seen and is woken when there are more. So a
//! slow one holds up nobody and costs nothing, and one who comes late or again reads the same history. The
//! history is bounded; what a listener too slow for it misses is progress and previews, never an output or
//! the end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, stream};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::store::Ending;
use super::{Job, JobEvent, JobEventKind, ModelLoading, Output, Status};

/// Events that are kept of a job.
const HISTORY: usize = 512;
/// Previews among them: as many as the largest ordinary request asks for.
const PREVIEWS: usize = 32;

/// A job on its way, shared by the task that drives it and everyone who watches.
pub(super) struct Live {
    state: Mutex<State>,
    /// Counts changes, to wake who waits for one.
    changed: watch::Sender<u64>,
    listeners: AtomicUsize,
    /// Calls the job off.
    pub(super) cancel: CancellationToken,
    /// Only the caller whose connection is open has a use for the job, so it is not kept for the next start.
    pub(super) tied: AtomicBool,
}

struct State {
    job: Job,
    /// How much of each picture is done, in 0..=1.
    done: Vec<f64>,
    history: VecDeque<Entry>,
    /// The id of the last event.
    last: u64,
    /// Nothing more will happen here: the job has ended, or was put back into the queue.
    over: bool,
}

/// An event, with what of the job changes while it runs. The rest is not copied for each of a thousand steps.
struct Entry {
    id: u64,
    kind: JobEventKind,
    status: Status,
    loading: Option<ModelLoading>,
    progress: f64,
    queue_position: Option<usize>,
    eta_ms: Option<u64>,
    outputs: usize,
}

impl Live {
    /// A job that has just been accepted; its first event is `Queued`.
    pub(super) fn new(job: Job) -> Self {
        Self::after(job, 0)
    }

    /// A job that an earlier process has left. Its events' ids begin above all that were told of it before: those
    /// of a process begin at the time of its start, with room for 2048 a millisecond, and stay below 2^53 (what
    /// JavaScript reads exactly) for a century. So a listener from before hears all that happens now.
    pub(super) fn resumed(job: Job, now: Timestamp) -> Self {
        Self::after(job, now.as_millisecond().unsigned_abs() << 11)
    }

    fn after(job: Job, last: u64) -> Self {
        let done = vec![0.0; job.request.n as usize];
        let live = Self {
            state: Mutex::new(State { job, done, history: VecDeque::new(), last, over: false }),
            changed: watch::Sender::new(0),
            listeners: AtomicUsize::new(0),
            cancel: CancellationToken::new(),
            tied: AtomicBool::new(false),
        };
        live.change(|state| state.push(JobEventKind::Queued));
        live
    }

    /// The job as it is.
    pub(super) fn job(&self) -> Job {
        let mut job = self.lock().job.clone();
        job.outputs.sort_by_key(|output| output.index);
        job
    }

    /// Reads a part of the job without copying all of it.
    pub(super) fn read<T>(&self, f: impl FnOnce(&Job) -> T) -> T {
        f(&self.lock().job)
    }

    /// Whether somebody watches.
    pub(super) fn watched(&self) -> bool {
        self.listeners.load(Ordering::Relaxed) > 0
    }

    /// The job's place in the waiting list has changed.
    pub(super) fn queued(&self, position: usize, eta: Option<Duration>) {
        self.change(|state| {
            state.job.eta_ms = eta.map(milliseconds);
            // Its time estimate alone is no event.
            let moved = state.job.queue_position.replace(position) != Some(position);
            // Nothing is left to load, so that it waits for its turn only.
            let loaded = state.job.loading.take_if(|loading| loading.done >= loading.total).is_some();
            if loaded || moved {
                state.push(JobEventKind::Queued);
            }
        });
    }

    /// The model that it needs next is loaded this far.
    pub(super) fn loading(&self, loading: ModelLoading) {
        self.change(|state| {
            state.job.loading = Some(loading.clone());
            state.push(JobEventKind::Loading(loading));
        });
    }

    /// The first of its pictures is in the batch.
    pub(super) fn started(&self, at: Timestamp) {
        self.change(|state| {
            state.job.status = Status::Running;
            state.job.started_at = Some(at);
            (state.job.queue_position, state.job.loading) = (None, None);
            state.push(JobEventKind::Started);
        });
    }

    /// A picture is a step further.
    pub(super) fn progress(&self, image: usize, step: usize, steps: usize, eta: Option<Duration>) {
        self.change(|state| {
            if let Some(done) = state.done.get_mut(image) {
                *done = (step as f64 / steps.max(1) as f64).clamp(0.0, 1.0);
            }
            state.job.progress = state.done.iter().sum::<f64>() / state.done.len().max(1) as f64;
            (state.job.eta_ms, state.job.loading) = (eta.map(milliseconds), None);
            state.push(JobEventKind::Progress { image, step, steps });
        });
    }

    /// There is a preview of a picture.
    pub(super) fn preview(&self, image: usize, index: u32, png: Bytes) {
        self.change(|state| state.push(JobEventKind::Preview { image, index, png }));
    }

    /// A picture is kept.
    pub(super) fn output(&self, output: Output) {
        self.change(|state| {
            let image = output.index;
            state.job.outputs.push(output);
            state.push(JobEventKind::Output { image });
        });
    }

    /// The id that the next event will have.
    pub(super) fn next_event(&self) -> u64 {
        self.lock().last + 1
    }

    /// The job has ended, and is stored so.
    pub(super) fn end(&self, ending: Ending) {
        self.change(|state| {
            // The outputs are those that were told of, in the order that their events count.
            let Ending { status, started_at, finished_at, outputs: _, metrics, error, warnings, last_event: _ } =
                ending;
            let job = &mut state.job;
            (job.status, job.started_at, job.finished_at) = (status, started_at, Some(finished_at));
            (job.metrics, job.error, job.warnings) = (metrics, error, warnings);
            (job.queue_position, job.eta_ms, job.loading) = (None, None, None);
            if status == Status::Succeeded {
                job.progress = 1.0;
            } else {
                job.outputs.clear();
            }
            state.push(last_kind(status));
        });
    }

    /// The job has ended elsewhere, like this.
    pub(super) fn end_as(&self, job: Job) {
        self.change(|state| {
            let kind = last_kind(job.status);
            state.job = job;
            state.push(kind);
        });
    }

    /// The job is in the queue again, and will be rendered by another process.
    pub(super) fn release(&self) {
        self.change(|state| {
            let job = &mut state.job;
            (job.status, job.started_at, job.progress) = (Status::Queued, None, 0.0);
            (job.queue_position, job.eta_ms, job.loading) = (None, None, None);
            job.outputs.clear();
        });
    }

    /// Nothing more will happen.
    pub(super) fn close(&self) {
        self.change(|state| state.over = true);
    }

    /// Whether nothing more will happen.
    pub(super) fn over(&self) -> bool {
        self.lock().over
    }

    /// Waits until the job has ended or was put back.
    pub(super) async fn ended(&self) {
        self.until(|state| state.over || state.job.status.ended()).await;
    }

    /// Waits until nothing more will happen.
    pub(super) async fn closed(&self) {
        self.until(|state| state.over).await;
    }

    /// Forgets the previews of a job that has ended.
    pub(super) fn drop_previews(&self) {
        self.lock().history.retain(|entry| !matches!(entry.kind, JobEventKind::Preview { .. }));
    }

    /// The events after `after`, those that are known at once and then each as it happens. It ends after the
    /// job's last event, and without one when the job is put back into the queue.
    ///
    /// An `after` that this job has not reached yet was never told of it, and means nothing here.
    pub(super) fn watch(self: Arc<Self>, after: Option<u64>) -> impl Stream<Item = JobEvent> + Send + use<> {
        let seen = after.filter(|after| *after <= self.lock().last).unwrap_or(0);
        let changed = self.changed.subscribe();
        stream::unfold((Listener::new(self), changed, seen), |(listener, mut changed, seen)| async move {
            loop {
                changed.mark_unchanged();
                let (event, over) = listener.0.next(seen);
                if let Some(event) = event {
                    let id = event.id;
                    return Some((event, (listener, changed, id)));
                }
                // The sender is a part of what the listener holds, so it is there.
                if over || changed.changed().await.is_err() {
                    return None;
                }
            }
        })
    }

    /// The first known event after `seen`, and whether there will be no more than are known.
    fn next(&self, seen: u64) -> (Option<JobEvent>, bool) {
        let state = self.lock();
        let place = state.history.partition_point(|entry| entry.id <= seen);
        (state.history.get(place).map(|entry| state.event(entry)), state.over || state.job.status.ended())
    }

    async fn until(&self, reached: impl Fn(&State) -> bool) {
        let mut changed = self.changed.subscribe();
        while !reached(&self.lock()) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    fn change(&self, f: impl FnOnce(&mut State)) {
        f(&mut self.lock());
        self.changed.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, kind: JobEventKind) {
        self.last += 1;
        let preview = |kind: &JobEventKind| matches!(kind, JobEventKind::Preview { .. });
        if preview(&kind) && self.history.iter().filter(|entry| preview(&entry.kind)).count() >= PREVIEWS {
            self.forget(preview);
        }
        let job = &self.job;
        self.history.push_back(Entry {
            id: self.last,
            kind,
            status: job.status,
            loading: job.loading.clone(),
            progress: job.progress,
            queue_position: job.queue_position,
            eta_ms: job.eta_ms,
            outputs: job.outputs.len(),
        });
        if self.history.len() > HISTORY {
            use JobEventKind::{Loading, Preview, Progress, Queued};
            self.forget(|kind| matches!(kind, Queued | Loading(_) | Progress { .. } | Preview { .. }));
        }
    }

    /// Forgets the oldest event of these kinds.
    fn forget(&mut self, kinds: impl Fn(&JobEventKind) -> bool) {
        if let Some(oldest) = self.history.iter().position(|entry| kinds(&entry.kind)) {
            self.history.remove(oldest);
        }
    }

    /// An event with the job as it was just after it.
    fn event(&self, entry: &Entry) -> JobEvent {
        let mut job = self.job.clone();
        if !entry.kind.last() {
            (job.status, job.progress) = (entry.status, entry.progress);
            (job.queue_position, job.eta_ms) = (entry.queue_position, entry.eta_ms);
            job.loading.clone_from(&entry.loading);
            (job.finished_at, job.metrics, job.error) = (None, None, None);
            job.outputs.truncate(entry.outputs);
            if entry.status == Status::Queued {
                job.started_at = None;
            }
        }
        job.outputs.sort_by_key(|output| output.index);
        JobEvent { id: entry.id, kind: entry.kind.clone(), job: Arc::new(job) }
    }
}

/// Counts itself among a job's listeners while it lives.
struct Listener(Arc<Live>);

impl Listener {
    fn new(live: Arc<Live>) -> Self {
        live.listeners.fetch_add(1, Ordering::Relaxed);
        Self(live)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.listeners.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The last event of a job that has ended.
pub(super) fn last_kind(status: Status) -> JobEventKind {
    match status {
        Status::Succeeded => JobEventKind::Succeeded,
        Status::Failed => JobEventKind::Failed,
        Status::Canceled | Status::Queued | Status::Running => JobEventKind::Canceled,
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
