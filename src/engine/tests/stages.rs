//! Jobs that a second model finishes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::fake::{Ask, Fake, ask, engine_of, target};
use crate::engine::{EngineEvent, EngineHandle, EngineOptions, WorkError};

/// An engine over a base model and its refiner.
fn engine() -> (EngineHandle, [Arc<Fake>; 2]) {
    engine_of(["base", "refiner"].map(|name| Fake::taking(name, 1)), EngineOptions::default())
}

fn refined(prompt: &str, steps: usize, n: usize) -> Ask {
    Ask { model: "base", n, second: Some(("refiner", 0.8)), ..ask(prompt, steps) }
}

#[test]
fn the_second_model_goes_on_where_the_first_ends() {
    let (engine, [base, refiner]) = engine();
    let asked = refined("a", 10, 3);
    let metrics = asked.submit(&engine).check(&asked);
    assert_eq!(metrics.steps, 30);
    let rows = |fake: &Fake| fake.calls().iter().map(Vec::len).sum::<usize>();
    assert_eq!((rows(&base), base.decodes.load(Ordering::SeqCst)), (24, 0));
    let refined = target("a refined");
    assert!(refiner.calls().iter().all(|call| call.iter().all(|&row| row.to_bits() == refined.to_bits())));
    assert_eq!((rows(&refiner), refiner.decodes.load(Ordering::SeqCst)), (6, 3));
}

#[test]
fn progress_and_previews_count_both_models() {
    let (engine, _) = engine();
    let asked = Ask { previews: 4, ..refined("a", 10, 1) };
    let mut job = asked.submit(&engine);
    job.check(&asked);
    let steps = job.seen.iter().filter_map(|event| match event {
        EngineEvent::Progress { step, steps, .. } => Some((*step, *steps)),
        _ => None,
    });
    assert_eq!(steps.collect::<Vec<_>>(), (1..=10).map(|step| (step, 10)).collect::<Vec<_>>());
    // Those of steps 2, 4 and 6 come of the base model; that of step 8, where the models meet, of the refiner.
    let previews = job.seen.iter().filter_map(|event| match event {
        EngineEvent::Preview { index, .. } => Some(*index),
        _ => None,
    });
    assert_eq!(previews.collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn refined_and_plain_jobs_share_the_calls_of_both_models() {
    let (engine, [_, refiner]) = engine();
    let asked = [
        refined("a", 20, 2),
        Ask { model: "base", ..ask("b", 30) },
        Ask { model: "refiner", ..ask("c", 60) },
        Ask { seed: 9, ..refined("d", 15, 1) },
    ];
    let jobs: Vec<_> = asked.iter().map(|asked| asked.submit(&engine)).collect();
    for (mut job, asked) in jobs.into_iter().zip(&asked) {
        job.check(asked);
    }
    assert!(refiner.largest() >= 2, "the refiner's own job and the refined ones were never in one call");
}

#[test]
fn two_models_that_do_not_fit_together_still_finish_a_job() {
    let options =
        EngineOptions { weights_bytes: Some(10), turn: Duration::from_millis(20), ..EngineOptions::default() };
    let (engine, [base, refiner]) = engine_of(["base", "refiner"].map(|name| Fake::lazy(name, 8, 5)), options);
    let asked = refined("a", 10, 3);
    asked.submit(&engine).check(&asked);
    assert_eq!((base.weights.loads(), refiner.weights.loads()), (1, 1));
    assert!(base.weights.unloads() == 1 && refiner.weights.resident());
}

#[test]
fn the_second_model_is_loaded_while_the_first_runs_where_both_fit() {
    let [base, refiner] = ["base", "refiner"].map(|name| Fake::lazy(name, 8, 5));
    let base = Fake { call: Duration::from_millis(5), ..base };
    let (engine, [base, refiner]) = engine_of([base, refiner], EngineOptions::default());
    let asked = refined("a", 50, 1);
    let mut job = asked.submit(&engine);
    job.until(|event| matches!(event, EngineEvent::Progress { step: 39, .. }));
    assert!(base.weights.resident() && refiner.weights.resident());
    job.check(&asked);
}

#[test]
fn a_job_called_off_between_its_models_leaves_nothing_behind() {
    let (engine, [_, refiner]) = engine();
    let mut job = refined("a", 1000, 2).submit(&engine);
    job.until_started();
    drop(job);
    let good = refined("b", 5, 1);
    good.submit(&engine).check(&good);
    assert!(refiner.calls_of("a refined").is_empty());
    let queue = engine.queue();
    assert_eq!((queue.waiting, queue.rows), (0, 0));
}

#[test]
fn a_second_model_that_is_not_served_is_refused_by_its_field() {
    let (engine, _) = engine();
    let asked = Ask { second: Some(("nobody", 0.5)), ..refined("a", 4, 1) };
    let (events, _receiver) = tokio::sync::mpsc::unbounded_channel();
    let error = engine.submit(asked.work(events)).unwrap_err();
    assert!(matches!(&error, WorkError::Request { param: "refiner", .. }), "{error}");
}
