//! The models of the registry: opened from the start to the end, their weights coming and going.
//!
//! What is loaded and unloaded when is [`residency`]'s to say; this is what the step loop does about it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use easel_models::{Loading, Pipeline};
use tokio::sync::oneshot;

use super::fault::Fault;
use super::job::{self, Job};
use super::loader::{self, Report};
use super::policy;
use super::residency::{self, Hold, Moves, Tenant, Wish};
use super::snapshot::{LoadingStatus, ModelState, ModelStatus, Peaks};
use super::thread::Engine;
use super::{EngineEvent, WorkError};
use crate::request::Priority;

/// A turn is at least this many times as long as loading the model took, so that models in turn spend at most a
/// fifth of the time on loading.
const TURN_OF_LOADING: u32 = 4;

/// The memory is looked at this often, at most, as it takes a part of a millisecond.
const WEIGH: Duration = Duration::from_millis(25);

/// The longest that a model is kept for callers who may ask again, within its turn.
const MOST_LINGER: Duration = Duration::from_secs(2);

/// What an operator can have done with a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelCommand {
    /// Load its weights, also where an attempt has just failed.
    Load,
    /// Finish its pictures under way and give its memory back; jobs that wait have it loaded again.
    Unload,
    /// Load it, and never unload it.
    Pin,
    /// Let it be unloaded.
    Unpin,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// There is no such model.
    #[error("no model {0:?} is served")]
    Unknown(String),
    /// It must be unpinned first.
    #[error("{0} is pinned, so it is not unloaded; unpin it first")]
    Pinned(String),
    /// The engine has ended.
    #[error("the engine is shutting down")]
    ShuttingDown,
}

/// Where the answer to a command goes.
pub(super) type Answer = oneshot::Sender<Result<ModelStatus, CommandError>>;

/// Where a model's weights are.
enum State {
    Unloaded,
    Loading(Loading),
    Ready,
    Unloading,
    /// They could not be loaded, for this reason, and are not tried again before this time.
    Failed(WorkError, Instant),
}

/// A model of the registry.
#[allow(clippy::struct_excessive_bools, reason = "each is one independent yes or no")]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) pipeline: Arc<dyn Pipeline>,
    /// Bytes that its weights take.
    pub(super) bytes: u64,
    state: State,
    pinned: bool,
    /// The operator wants it unloaded.
    dismissed: bool,
    /// The operator wants it loaded, since then.
    asked: Option<Instant>,
    /// Since when somebody waits for it.
    wanted: Option<Instant>,
    /// When it was last in use or waited for.
    used: Instant,
    /// When it was loaded.
    since: Instant,
    /// How long its loading took.
    took: Duration,
    /// Set while it takes no more pictures, because it is to be unloaded.
    closed: bool,
    /// Whether its weights have been there from before the engine's start.
    early: bool,
    /// Whether it is to be loaded at the start, and that has not ended.
    starting: bool,
    /// The peaks of its memory so far.
    peaks: Peaks,
}

impl Model {
    /// A model that may have been loaded already.
    pub(super) fn new(name: String, pipeline: Arc<dyn Pipeline>) -> Self {
        let (now, early) = (Instant::now(), pipeline.loaded());
        Self {
            bytes: pipeline.weight_bytes(),
            state: if early { State::Ready } else { State::Unloaded },
            name,
            pipeline,
            pinned: false,
            dismissed: false,
            asked: None,
            wanted: None,
            used: now,
            since: now,
            took: Duration::ZERO,
            closed: false,
            early,
            starting: false,
            peaks: Peaks::default(),
        }
    }

    /// Whether pictures may begin.
    pub(super) fn open(&self) -> bool {
        matches!(self.state, State::Ready) && !self.closed
    }

    /// Whether it is to be loaded at the start, and that has not ended.
    pub(super) fn starting(&self) -> bool {
        self.starting
    }

    /// Whether its weights are in memory or on their way.
    pub(super) fn held(&self) -> bool {
        !matches!(self.state, State::Unloaded | State::Failed(..))
    }

    /// How far it is loaded, while it is being loaded.
    pub(super) fn loading(&self) -> Option<Loading> {
        if let State::Loading(loading) = self.state { Some(loading) } else { None }
    }

    /// What is told of it.
    pub(super) fn status(&self) -> ModelStatus {
        let (state, error) = match &self.state {
            State::Unloaded => (ModelState::Unloaded, None),
            State::Loading(_) => (ModelState::Loading, None),
            State::Ready => (ModelState::Ready, None),
            State::Unloading => (ModelState::Unloading, None),
            State::Failed(error, _) => (ModelState::Failed, Some(error.to_string())),
        };
        ModelStatus {
            state,
            error,
            loading: self.loading().map(LoadingStatus::from),
            weight_bytes: self.bytes,
            pinned: self.pinned,
            peaks: self.peaks,
        }
    }

    fn tenant(&self, busy: bool, wish: Option<Wish>, turn: Duration) -> Tenant {
        let hold = match &self.state {
            State::Unloaded | State::Failed(..) => Hold::Out,
            State::Loading(loading) => Hold::Loading { fetching: loading.fetching },
            State::Ready => Hold::Ready,
            State::Unloading => Hold::Leaving,
        };
        let (bytes, pinned, dismissed, used, since) = (self.bytes, self.pinned, self.dismissed, self.used, self.since);
        let turn = turn.max(self.took.saturating_mul(TURN_OF_LOADING));
        let linger = (self.took / 2).min(MOST_LINGER);
        Tenant { hold, bytes, pinned, busy, wish, dismissed, used, since, turn, linger }
    }
}

/// The event of a model's loading, as those who wait get it.
fn event(model: &str, loading: Loading) -> EngineEvent {
    EngineEvent::Loading {
        model: model.to_owned(),
        done: loading.done,
        total: loading.total,
        fetching: loading.fetching,
    }
}

fn cannot_be_loaded(model: &str, why: &dyn std::fmt::Display) -> WorkError {
    WorkError::Model(format!("{model} cannot be loaded: {why}"))
}

impl Engine {
    /// Pins and wants what is configured, and fails what is known not to be of use.
    pub(super) fn settle(&mut self) {
        let now = Instant::now();
        for model in &mut self.models {
            model.pinned = self.options.pinned.contains(&model.name);
            if model.pinned || self.options.preload.contains(&model.name) {
                model.asked = Some(now);
                model.starting = !model.early;
            }
        }
        for place in 0..self.models.len() {
            let name = &self.models[place].name;
            if let Some(why) = self.options.faults.get(name) {
                let error = cannot_be_loaded(name, why);
                self.cannot_load(place, &error);
            }
            self.meters.models[place].state(&self.models[place].status());
        }
    }

    /// Loads and unloads what is to be loaded and unloaded now.
    pub(super) fn reside(&mut self) {
        let now = Instant::now();
        self.fail_hopeless(now);
        let busy: BTreeSet<usize> = self.groups.iter().map(|group| group.class.model).collect();
        let mut tenants = Vec::with_capacity(self.models.len());
        // The second models of jobs under way.
        let started = self.jobs.values().filter(|job| job.started());
        let expected: BTreeSet<usize> = started.filter_map(|job| Some(job.second?.model)).collect();
        for place in 0..self.models.len() {
            let waiting = self.waiting.highest(place);
            let busy = busy.contains(&place) || self.preparers.of(place) || self.decoder.of(place) > 0;
            let model = &mut self.models[place];
            if matches!(model.state, State::Ready) {
                (model.asked, model.wanted) = (None, None);
            } else if waiting.is_some() {
                model.wanted.get_or_insert(now);
            } else {
                model.wanted = None;
            }
            if busy || waiting.is_some() {
                model.used = now;
            }
            let wish = match (waiting, model.asked) {
                (Some(priority), asked) => {
                    let since = model.wanted.into_iter().chain(asked).min().unwrap_or(now);
                    Some(Wish { since, weight: policy::weight(priority), soon: false })
                }
                (None, Some(since)) => Some(Wish { since, weight: policy::weight(Priority::Normal), soon: false }),
                (None, None) => {
                    let soon = expected.contains(&place) && !matches!(model.state, State::Failed(..));
                    soon.then(|| Wish { since: now, weight: policy::weight(Priority::Normal), soon })
                }
            };
            tenants.push(self.models[place].tenant(busy, wish, self.options.turn));
        }
        let moves = residency::decide(&tenants, self.budget, self.options.idle_unload, now);
        self.carry_out(&moves);
    }

    fn carry_out(&mut self, moves: &Moves) {
        self.next_move = moves.next;
        for (place, model) in self.models.iter_mut().enumerate() {
            model.closed = moves.closed.contains(&place) || moves.unload.iter().any(|&(going, _)| going == place);
        }
        for &place in &moves.hopeless {
            let error = WorkError::OutOfMemory(self.too_large(place));
            self.cannot_load(place, &error);
        }
        for &(place, reason) in &moves.unload {
            let model = &mut self.models[place];
            tracing::info!(model = model.name, ?reason, "unloading");
            model.state = State::Unloading;
            self.meters.models[place].unloads(reason);
            loader::unload(place, &model.pipeline, &self.loader);
            self.changed_state(place);
        }
        for &place in &moves.load {
            let model = &mut self.models[place];
            tracing::info!(model = model.name, bytes = model.bytes, "loading");
            // What is true of the weights is told by the first report.
            model.state = State::Loading(Loading { done: 0, total: model.bytes, fetching: false });
            loader::load(place, &model.pipeline, &self.loader);
            self.tell_loading(place);
            self.changed_state(place);
        }
    }

    /// Fails those who wait for a model that has just failed; after the pause they have it tried again.
    fn fail_hopeless(&mut self, now: Instant) {
        for place in 0..self.models.len() {
            if self.waiting.highest(place).is_none() {
                continue;
            }
            match &self.models[place].state {
                State::Failed(error, until) if *until > now => {
                    let error = error.clone();
                    self.fail_waiting(place, &error);
                }
                State::Failed(..) => self.models[place].state = State::Unloaded,
                _ => {}
            }
        }
    }

    fn fail_waiting(&mut self, place: usize, error: &WorkError) {
        let jobs: BTreeSet<u64> = self.waiting.of(place).map(|ticket| job::waits(ticket).0).collect();
        for id in jobs {
            self.fail(id, error.clone());
        }
    }

    fn cannot_load(&mut self, place: usize, error: &WorkError) {
        let model = &mut self.models[place];
        tracing::error!(model = model.name, %error, "cannot be loaded");
        (model.asked, model.wanted, model.starting) = (None, None, false);
        model.state = State::Failed(error.clone(), Instant::now() + self.options.retry_pause);
        self.fail_waiting(place, error);
        self.changed_state(place);
    }

    /// Why a model's weights do not fit.
    fn too_large(&self, place: usize) -> String {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let pinned = self.models.iter().enumerate().filter(|(other, model)| *other != place && model.pinned);
        let pinned: u64 = pinned.map(|(_, model)| model.bytes).sum();
        let Model { name, bytes, .. } = &self.models[place];
        let budget = self.budget.unwrap_or(u64::MAX);
        let beside =
            if pinned > 0 { format!(", of which pinned models take {:.2}", gib(pinned)) } else { String::new() };
        format!(
            "the weights of {name} take {:.2} GiB; all models together may take {:.2} GiB (models.weights_gib){beside}",
            gib(*bytes),
            gib(budget)
        )
    }

    /// Takes news of a model's weights.
    pub(super) fn resided(&mut self, report: Report) {
        match report {
            Report::Progress { model, loading } => {
                self.models[model].state = State::Loading(loading);
                self.tell_loading(model);
                self.changed = true;
            }
            Report::Loaded { model, result, took } => self.loaded(model, result, took),
            Report::Unloaded { model } => {
                let unloaded = &mut self.models[model];
                unloaded.state = State::Unloaded;
                (unloaded.dismissed, unloaded.early) = (false, false);
                self.changed_state(model);
            }
        }
    }

    fn loaded(&mut self, place: usize, result: Result<(), Fault>, took: Duration) {
        self.meters.models[place].loaded(result.is_ok(), took);
        let beside: u64 =
            self.models.iter().enumerate().filter(|(other, m)| *other != place && m.held()).map(|(_, m)| m.bytes).sum();
        let model = &mut self.models[place];
        match result {
            Ok(()) => {
                if let Some(loading) = model.loading().filter(|loading| loading.done < loading.total) {
                    // Not every family tells the end.
                    model.state = State::Loading(Loading { done: loading.total, ..loading });
                    self.tell_loading(place);
                }
                let model = &mut self.models[place];
                let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                tracing::info!(model = model.name, ms, "loaded");
                let now = Instant::now();
                model.state = State::Ready;
                (model.used, model.since, model.took, model.starting) = (now, now, took, false);
                (model.asked, model.wanted) = (None, None);
                for ticket in self.waiting.of(place).collect::<Vec<_>>() {
                    if let Some(job) = self.jobs.get_mut(&job::waits(ticket).0) {
                        // Whoever does not begin now is told its place, so that it is known not to wait for this.
                        job.forget_position();
                    }
                }
                self.changed_state(place);
            }
            Err(Fault::OutOfMemory(message)) if beside > 0 => {
                // It may fit alone: from now on these are known not to fit together.
                let together = beside + model.bytes;
                tracing::warn!(model = model.name, message, "out of memory while loading; others must make room");
                model.state = State::Unloaded;
                model.pipeline.unload();
                self.budget = Some(self.budget.unwrap_or(u64::MAX).min(together.saturating_sub(1)));
                self.changed_state(place);
            }
            Err(fault) => {
                model.pipeline.unload();
                let error = match fault {
                    Fault::OutOfMemory(message) => WorkError::OutOfMemory(message),
                    Fault::Other(error) => cannot_be_loaded(&model.name, &error),
                };
                self.cannot_load(place, &error);
            }
        }
    }

    /// Tells all who wait for a model how far it is loaded.
    fn tell_loading(&self, place: usize) {
        let model = &self.models[place];
        let Some(loading) = model.loading() else { return };
        let jobs: BTreeSet<u64> = self.waiting.of(place).map(|ticket| job::waits(ticket).0).collect();
        for job in jobs.iter().filter_map(|id| self.jobs.get(id)) {
            job.send(event(&model.name, loading));
        }
    }

    /// Tells a job that has just come how far its model is loaded, if it is being loaded.
    pub(super) fn tell_newcomer(&self, place: usize, job: &Job) {
        let model = &self.models[place];
        if let Some(loading) = model.loading() {
            job.send(event(&model.name, loading));
        }
    }

    /// Carries out an operator's command.
    pub(super) fn command(&mut self, name: &str, command: ModelCommand) -> Result<ModelStatus, CommandError> {
        let place = self.models.iter().position(|model| model.name == name);
        let place = place.ok_or_else(|| CommandError::Unknown(name.to_owned()))?;
        let model = &mut self.models[place];
        match command {
            ModelCommand::Unload if model.pinned => return Err(CommandError::Pinned(name.to_owned())),
            ModelCommand::Unload => {
                (model.asked, model.starting) = (None, false);
                model.dismissed = model.held();
            }
            ModelCommand::Unpin => {
                model.pinned = false;
                // Others that found no room beside it may find it now.
                for other in &mut self.models {
                    if let State::Failed(WorkError::OutOfMemory(_), _) = other.state {
                        other.state = State::Unloaded;
                    }
                }
            }
            ModelCommand::Load | ModelCommand::Pin => {
                model.pinned |= command == ModelCommand::Pin;
                model.dismissed = false;
                if let State::Failed(..) = model.state {
                    model.state = State::Unloaded;
                }
                if !matches!(model.state, State::Ready) {
                    model.asked.get_or_insert_with(Instant::now);
                }
            }
        }
        tracing::info!(model = name, ?command, "as the operator asks");
        // What follows from it is done and told before it is answered, so that whoever looks then sees it.
        self.reside();
        self.changed_state(place);
        self.tell(true);
        Ok(self.models[place].status())
    }

    /// Holds what the device takes for a model against what was predicted: its weights, these bytes for the rows of a
    /// call, and these for decoding beside them.
    pub(super) fn weigh(&mut self, place: usize, rows: u64, decode: u64) {
        let others = self.models.iter().enumerate().filter(|(other, model)| *other != place && model.held());
        let others: u64 = others.map(|(_, model)| model.bytes).sum();
        let model = &mut self.models[place];
        model.peaks.predicted = model.peaks.predicted.max(model.bytes + rows + decode);
        let Some(watch) = &self.watch else { return };
        let (since, watched) = self.weighed;
        if since.elapsed() < WEIGH && watched == place {
            return;
        }
        // Looked at too soon again, or after another model's calls, the peak would tell nothing of this one.
        let peak = watch.peak();
        if watched == place {
            model.peaks.seen = model.peaks.seen.max(peak.saturating_sub(others));
        }
        self.weighed = (Instant::now(), place);
        self.meters.models[place].peaks(model.peaks);
    }

    /// A model's state has changed: memory is counted anew, and everybody is told.
    fn changed_state(&mut self, place: usize) {
        self.changed = true;
        // What was there before the free memory was read is not counted twice.
        let later = |model: &&Model| model.held() && !model.early;
        self.memory.set_weights(self.models.iter().filter(later).map(|model| model.bytes).sum());
        self.meters.models[place].state(&self.models[place].status());
    }
}
