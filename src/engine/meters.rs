//! What the engine counts and measures, through the `metrics` facade.

use std::time::Duration;

use easel_models::Mismatch;
use metrics::{Counter, Gauge, Histogram, Unit, counter, gauge, histogram};

use super::residency::Reason;
use super::snapshot::{ModelState, ModelStatus, Peaks};

/// Handles taken once, so that the step loop neither looks up names nor allocates.
pub(super) struct Meters {
    pub(super) models: Vec<ModelMeters>,
    pub(super) embeddings_hit: Counter,
    pub(super) embeddings_missed: Counter,
    pub(super) waiting: Gauge,
    pub(super) running: Gauge,
    pub(super) rows: Gauge,
    overhead: Histogram,
    refused: Vec<(Mismatch, Counter)>,
}

/// The numbers of one model.
pub(super) struct ModelMeters {
    pub(super) steps: Counter,
    pub(super) batch_rows: Histogram,
    pub(super) denoise: Histogram,
    pub(super) encode: Histogram,
    pub(super) begin: Histogram,
    pub(super) decode: Histogram,
    pub(super) out_of_memory: Counter,
    pub(super) isolated: Counter,
    states: Vec<(ModelState, Gauge)>,
    weights: Gauge,
    predicted: Gauge,
    seen: Gauge,
    load: Histogram,
    failed_loads: Counter,
    unloads: Vec<(Reason, Counter)>,
}

impl Meters {
    /// Takes the handles; the counters start at zero, so that a rate can be told from the first scrape.
    pub(super) fn new<'a>(models: impl Iterator<Item = &'a str>) -> Self {
        describe();
        let refused =
            |reason: Mismatch| (reason, zero(counter!("easel_merges_refused_total", "reason" => reason.name())));
        Self {
            models: models.map(ModelMeters::new).collect(),
            embeddings_hit: zero(counter!("easel_embeddings_total", "result" => "hit")),
            embeddings_missed: zero(counter!("easel_embeddings_total", "result" => "miss")),
            waiting: gauge!("easel_engine_waiting"),
            running: gauge!("easel_engine_running"),
            rows: gauge!("easel_engine_rows"),
            overhead: histogram!("easel_loop_overhead_seconds"),
            refused: Mismatch::ALL.map(refused).into(),
        }
    }

    /// A row opened a group of its own, for these reasons.
    pub(super) fn refused(&self, reasons: &[Mismatch]) {
        for reason in reasons {
            if let Some((_, counter)) = self.refused.iter().find(|(known, _)| known == reason) {
                counter.increment(1);
            }
        }
    }

    /// One round of the busy loop spent this much outside model calls.
    pub(super) fn overhead(&self, outside: Duration) {
        self.overhead.record(outside.as_secs_f64());
    }
}

impl ModelMeters {
    fn new(model: &str) -> Self {
        let call =
            |call: &'static str| histogram!("easel_model_call_seconds", "model" => model.to_owned(), "call" => call);
        Self {
            steps: counter!("easel_steps_total", "model" => model.to_owned()),
            batch_rows: histogram!("easel_batch_rows", "model" => model.to_owned()),
            denoise: call("denoise"),
            encode: call("encode"),
            begin: call("begin"),
            decode: call("decode"),
            out_of_memory: counter!("easel_out_of_memory_total", "model" => model.to_owned()),
            isolated: counter!("easel_batches_isolated_total", "model" => model.to_owned()),
            states: ModelState::ALL
                .map(|state| {
                    let gauge = gauge!("easel_model_state", "model" => model.to_owned(), "state" => state.name());
                    (state, gauge)
                })
                .into(),
            weights: gauge!("easel_model_weight_bytes", "model" => model.to_owned()),
            predicted: gauge!("easel_model_peak_bytes", "model" => model.to_owned(), "kind" => "predicted"),
            seen: gauge!("easel_model_peak_bytes", "model" => model.to_owned(), "kind" => "seen"),
            load: histogram!("easel_model_load_seconds", "model" => model.to_owned()),
            failed_loads: zero(counter!("easel_model_loads_failed_total", "model" => model.to_owned())),
            unloads: [(Reason::Idle, "idle"), (Reason::Evicted, "evicted"), (Reason::Asked, "asked")]
                .map(|(reason, name)| {
                    let labels = [("model", model.to_owned()), ("reason", name.to_owned())];
                    (reason, zero(counter!("easel_model_unloads_total", &labels)))
                })
                .into(),
        }
    }

    /// The model is in this state now.
    pub(super) fn state(&self, status: &ModelStatus) {
        for (state, gauge) in &self.states {
            gauge.set(f64::from(u8::from(*state == status.state)));
        }
        let held = matches!(status.state, ModelState::Loading | ModelState::Ready | ModelState::Unloading);
        self.weights.set(if held { status.weight_bytes as f64 } else { 0.0 });
    }

    /// Its memory has had these peaks so far.
    pub(super) fn peaks(&self, peaks: Peaks) {
        self.predicted.set(peaks.predicted as f64);
        self.seen.set(peaks.seen as f64);
    }

    /// An attempt to load it has ended.
    pub(super) fn loaded(&self, well: bool, took: Duration) {
        if well {
            self.load.record(took.as_secs_f64());
        } else {
            self.failed_loads.increment(1);
        }
    }

    /// It is unloaded for this reason.
    pub(super) fn unloads(&self, reason: Reason) {
        if let Some((_, counter)) = self.unloads.iter().find(|(known, _)| *known == reason) {
            counter.increment(1);
        }
    }
}

/// A counter that is there from the first scrape.
fn zero(counter: Counter) -> Counter {
    counter.increment(0);
    counter
}

/// An outcome of a job, as the engine sees it.
pub(super) fn ended(outcome: &'static str) {
    counter!("easel_engine_jobs_total", "outcome" => outcome).increment(1);
}

fn describe() {
    use metrics::{describe_counter as total, describe_gauge as level, describe_histogram as spread};
    total!("easel_steps_total", "Denoising steps of pictures.");
    total!(
        "easel_merges_refused_total",
        "Groups that a picture could not join when it had to open its own, by reason."
    );
    total!("easel_embeddings_total", "Prompts found in the cache of text embeddings (hit) or encoded (miss).");
    total!("easel_out_of_memory_total", "Model calls that did not fit the device's memory.");
    total!("easel_batches_isolated_total", "Failed calls whose rows were repeated one by one to find the culprit.");
    total!("easel_engine_jobs_total", "Jobs that left the engine, by outcome.");
    level!("easel_model_state", "1 for the state that the model is in: unloaded, loading, ready, unloading or failed.");
    level!("easel_model_weight_bytes", Unit::Bytes, "Bytes that the model's weights take now, as its files tell.");
    level!(
        "easel_model_peak_bytes",
        Unit::Bytes,
        "The most memory that the model took so far, its weights included: as predicted and as seen."
    );
    spread!("easel_model_load_seconds", Unit::Seconds, "Duration of loading a model.");
    total!("easel_model_loads_failed_total", "Attempts to load a model that failed.");
    total!(
        "easel_model_unloads_total",
        "Models unloaded, by reason: idle, evicted for another, or asked by an operator."
    );
    level!("easel_engine_waiting", "Jobs that wait for their first picture to begin.");
    level!("easel_engine_running", "Jobs that have begun and not ended.");
    level!("easel_engine_rows", "Rows of all running pictures; guidance takes two a picture.");
    spread!("easel_batch_rows", "Rows of a model call.");
    spread!("easel_model_call_seconds", Unit::Seconds, "Duration of a call into a model.");
    spread!("easel_loop_overhead_seconds", Unit::Seconds, "Time of one round of the busy loop outside model calls.");
}
