//! Models whose weights come and go.
//!
//! The fake's every use of its weights asserts that they are there, so each of these also holds that nothing is
//! unloaded under a running picture.

use std::time::{Duration, Instant};

use easel_models::Error;
use futures::executor::block_on;

use super::fake::{Ask, Fake, Job, ask, engine_of};
use crate::engine::{CommandError, EngineEvent, EngineHandle, EngineOptions, ModelCommand, ModelState, WorkError};

fn of(model: &'static str, prompt: &str, steps: usize) -> Ask {
    Ask { model, ..ask(prompt, steps) }
}

fn state(engine: &EngineHandle, model: &str) -> ModelState {
    engine.status(model).unwrap().state
}

fn until(what: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !what() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Room for one of two models of 8 bytes, and short turns.
fn tight() -> EngineOptions {
    EngineOptions { weights_bytes: Some(10), turn: Duration::from_millis(30), ..EngineOptions::default() }
}

fn loading(job: &Job) -> Vec<(u64, u64)> {
    let events = job.seen.iter().filter_map(|event| match event {
        EngineEvent::Loading { done, total, .. } => Some((*done, *total)),
        _ => None,
    });
    events.collect()
}

#[test]
fn the_first_request_has_its_model_loaded_and_is_told_so() {
    let (engine, [a, b]) = engine_of(["a", "b"].map(|name| Fake::lazy(name, 8, 5)), EngineOptions::default());
    assert_eq!((state(&engine, "a"), state(&engine, "b")), (ModelState::Unloaded, ModelState::Unloaded));
    let asked = of("b", "x", 3);
    let mut job = asked.submit(&engine);
    job.check(&asked);
    assert_eq!((loading(&job).first(), loading(&job).last()), (Some(&(0, 8)), Some(&(8, 8))));
    let place = |wanted: fn(&EngineEvent) -> bool| job.seen.iter().position(wanted).unwrap();
    let last_loading = job.seen.iter().rposition(|event| matches!(event, EngineEvent::Loading { .. }));
    assert!(last_loading.unwrap() < place(|event| matches!(event, EngineEvent::Started)));
    assert_eq!((a.weights.loads(), b.weights.loads()), (0, 1));
    assert_eq!(state(&engine, "b"), ModelState::Ready);
    // Another finds it there.
    let mut job = asked.submit(&engine);
    job.check(&asked);
    assert!(loading(&job).is_empty());
}

#[test]
fn who_comes_while_a_model_is_loading_is_told_how_far_it_is() {
    let (engine, [_]) = engine_of([Fake::lazy("a", 8, 100)], EngineOptions::default());
    let asked = of("a", "x", 3);
    let mut first = asked.submit(&engine);
    first.until(|event| matches!(event, EngineEvent::Loading { .. }));
    let mut second = asked.submit(&engine);
    second.check(&asked);
    assert!(loading(&second).len() >= 2, "{:?}", second.seen);
    first.check(&asked);
}

#[test]
fn running_models_go_on_stepping_while_another_is_loaded_and_unloaded() {
    let slow = Fake { call: Duration::from_millis(1), ..Fake::lazy("b", 8, 100) };
    let (engine, [a, _]) = engine_of([Fake::taking("a", 1), slow], EngineOptions::default());
    let mut running = of("a", "long", 100_000).submit(&engine);
    running.until_started();
    let mut other = of("b", "x", 2).submit(&engine);
    other.until(|event| matches!(event, EngineEvent::Loading { .. }));
    let before = a.calls().len();
    other.until_started();
    let meanwhile = a.calls().len() - before;
    // A hundred milliseconds hold up to 90 calls; one that waited for the loading would have made one or two.
    assert!(meanwhile > 5, "{meanwhile} calls while the other model was loading");
    other.end().unwrap();
    drop(running);
}

#[test]
fn preloaded_and_pinned_models_are_loaded_at_the_start() {
    let fakes = ["a", "b", "c"].map(|name| Fake::lazy(name, 8, 5));
    let options = EngineOptions { preload: vec!["a".into()], pinned: vec!["b".into()], ..EngineOptions::default() };
    let (engine, [_, _, c]) = engine_of(fakes, options);
    assert_eq!(engine.queue().starting, ["a", "b"]);
    until(|| state(&engine, "a") == ModelState::Ready && state(&engine, "b") == ModelState::Ready);
    assert!(engine.queue().starting.is_empty());
    assert_eq!((engine.status("a").unwrap().pinned, engine.status("b").unwrap().pinned), (false, true));
    assert_eq!(c.weights.loads(), 0);
}

#[test]
fn an_unused_model_is_unloaded_and_a_pinned_one_is_not() {
    let fakes = ["a", "b"].map(|name| Fake::lazy(name, 8, 1));
    let options = EngineOptions {
        preload: vec!["a".into()],
        pinned: vec!["b".into()],
        idle_unload: Some(Duration::from_millis(50)),
        ..EngineOptions::default()
    };
    let (engine, [a, b]) = engine_of(fakes, options);
    let used = of("a", "x", 2);
    used.submit(&engine).check(&used);
    until(|| state(&engine, "a") == ModelState::Unloaded);
    assert_eq!((a.weights.resident(), state(&engine, "b")), (false, ModelState::Ready));
    // It comes back for the next request.
    used.submit(&engine).check(&used);
    assert_eq!((a.weights.loads(), b.weights.loads()), (2, 1));
}

#[test]
fn the_model_longest_unused_makes_room() {
    let fakes = ["a", "b", "c"].map(|name| Fake::lazy(name, 5, 1));
    let (engine, [a, b, c]) = engine_of(fakes, tight());
    for model in ["a", "b", "a", "c"] {
        let asked = of(model, "x", 2);
        asked.submit(&engine).check(&asked);
    }
    assert!(a.weights.resident() && !b.weights.resident() && c.weights.resident());
}

#[test]
fn a_pinned_model_stays_and_what_does_not_fit_beside_it_is_refused_with_the_reason() {
    let options = EngineOptions { pinned: vec!["a".into()], ..tight() };
    let (engine, [a, b]) = engine_of(["a", "b"].map(|name| Fake::lazy(name, 8, 1)), options);
    let good = of("a", "x", 2);
    good.submit(&engine).check(&good);
    let error = of("b", "x", 2).submit(&engine).end().unwrap_err();
    assert!(matches!(&error, WorkError::OutOfMemory(why) if why.contains("models.weights_gib")), "{error}");
    assert_eq!(state(&engine, "b"), ModelState::Failed);
    assert!(a.weights.resident() && b.weights.loads() == 0);
    // Unpinned, it makes room.
    block_on(engine.command("a", ModelCommand::Unpin)).unwrap();
    block_on(engine.command("b", ModelCommand::Load)).unwrap();
    until(|| state(&engine, "b") == ModelState::Ready);
    assert_eq!(state(&engine, "a"), ModelState::Unloaded);
}

#[test]
fn models_that_do_not_fit_together_take_turns_instead_of_thrashing() {
    let fakes = ["a", "b"].map(|name| Fake { call: Duration::from_millis(1), ..Fake::lazy(name, 8, 5) });
    let (engine, [a, b]) = engine_of(fakes, EngineOptions { max_batch_rows: 1, ..tight() });
    let asked: Vec<_> = (0..60).map(|i| Ask { seed: i, ..of(["a", "b"][i as usize % 2], "many", 5) }).collect();
    let mut jobs: Vec<_> = asked.iter().map(|asked| asked.submit(&engine)).collect();
    for (job, asked) in jobs.iter_mut().zip(&asked) {
        job.check(asked);
    }
    // 300 calls of a millisecond in turns of 30 ms are some ten turns; by jobs there would be sixty.
    let loads = a.weights.loads() + b.weights.loads();
    assert!((3..=24).contains(&loads), "{loads} loads for 60 jobs");
}

#[test]
fn a_flood_on_one_model_does_not_keep_another_out_of_the_memory() {
    let fakes = ["a", "b"].map(|name| Fake { call: Duration::from_millis(1), ..Fake::lazy(name, 8, 5) });
    let (engine, [a, _]) = engine_of(fakes, EngineOptions { max_batch_rows: 1, ..tight() });
    let flood: Vec<_> = (0..200).map(|seed| Ask { seed, ..of("a", "many", 5) }.submit(&engine)).collect();
    let other = of("b", "one", 5);
    other.submit(&engine).check(&other);
    let before = a.calls().len();
    assert!(before < 500, "{before} of the flood's 1000 calls came first");
    for mut job in flood {
        job.end().unwrap();
    }
}

#[test]
fn a_flood_of_sizes_on_one_model_does_not_starve_another() {
    let fakes = ["a", "b"].map(|name| Fake::taking(name, 1));
    let (engine, [a, _]) = engine_of(fakes, EngineOptions::default());
    let sized = |i: u32| Ask { width: 64 + 8 * (i % 40), seed: u64::from(i), ..of("a", "many", 20) };
    let flood: Vec<_> = (0..200).map(|i| sized(i).submit(&engine)).collect();
    let other = of("b", "one", 20);
    other.submit(&engine).check(&other);
    let before = a.calls().len();
    // It has half of the device, so it is done after twenty calls of the flood or a few more.
    assert!(before < 100, "{before} calls of the flood came first");
    drop(flood);
}

#[test]
fn a_model_that_cannot_be_loaded_fails_its_jobs_and_no_others() {
    let options = EngineOptions { retry_pause: Duration::from_secs(1), ..EngineOptions::default() };
    let (engine, [a, b]) = engine_of([Fake::taking("a", 1), Fake::lazy("b", 8, 5)], options);
    let broken = || Error::file("unet/model.safetensors", "is truncated");
    *b.weights.fails.lock().unwrap() = Some(broken());
    let good = of("a", "good", 100);
    let mut neighbour = good.submit(&engine);
    let asked = of("b", "x", 2);
    let mut jobs = [asked.submit(&engine), asked.submit(&engine)];
    for job in &mut jobs {
        let error = job.end().unwrap_err();
        let expected = "b cannot be loaded: unet/model.safetensors: is truncated";
        assert_eq!(error, WorkError::Model(expected.into()));
    }
    // A job hears of it first; the list of models is told at the end of the round.
    until(|| state(&engine, "b") == ModelState::Failed);
    assert!(engine.status("b").unwrap().error.is_some());
    // Right after it is not tried again, and later it is.
    assert!(matches!(asked.submit(&engine).end(), Err(WorkError::Model(_))));
    assert_eq!(b.weights.loads(), 1);
    std::thread::sleep(Duration::from_millis(1100));
    asked.submit(&engine).check(&asked);
    assert_eq!((b.weights.loads(), state(&engine, "b")), (2, ModelState::Ready));
    neighbour.check(&good);
    assert!(!a.calls().is_empty());
}

#[test]
fn a_model_that_is_known_to_be_broken_has_failed_from_the_start_and_is_tried_later() {
    let faults = [("b".to_owned(), "unet/model.safetensors: has no conv_in.weight".to_owned())];
    let options = EngineOptions {
        faults: faults.into(),
        preload: vec!["a".into(), "b".into()],
        retry_pause: Duration::from_secs(1),
        ..EngineOptions::default()
    };
    let (engine, [a, b]) = engine_of(["a", "b"].map(|name| Fake::lazy(name, 8, 1)), options);
    until(|| state(&engine, "a") == ModelState::Ready);
    let message = "b cannot be loaded: unet/model.safetensors: has no conv_in.weight";
    let status = engine.status("b").unwrap();
    assert_eq!((status.state, status.error.as_deref()), (ModelState::Failed, Some(message)));
    assert!(engine.queue().starting.is_empty(), "nobody waits for it");
    assert_eq!((a.weights.loads(), b.weights.loads()), (1, 0));
    std::thread::sleep(Duration::from_millis(1100));
    // The files may have been mended.
    let asked = of("b", "x", 2);
    asked.submit(&engine).check(&asked);
    assert_eq!((b.weights.loads(), state(&engine, "b")), (1, ModelState::Ready));
}

#[test]
fn a_panic_while_loading_fails_the_models_jobs_only() {
    let (engine, [_, b]) = engine_of([Fake::taking("a", 1), Fake::lazy("b", 8, 1)], EngineOptions::default());
    // A lock held by a panicking thread makes the next load panic.
    let weights = std::sync::Arc::clone(&b);
    let poisoned = std::thread::spawn(move || {
        let _held = weights.weights.fails.lock().unwrap();
        panic!("as tested");
    });
    assert!(poisoned.join().is_err());
    let error = of("b", "x", 2).submit(&engine).end().unwrap_err();
    assert!(matches!(&error, WorkError::Model(why) if why.contains("panicked")), "{error}");
    let good = of("a", "good", 3);
    good.submit(&engine).check(&good);
}

#[test]
fn models_found_not_to_fit_together_take_turns_from_then_on() {
    let (engine, [a, b]) = engine_of(
        ["a", "b"].map(|name| Fake::lazy(name, 8, 1)),
        EngineOptions { turn: Duration::from_millis(10), ..EngineOptions::default() },
    );
    let asked = ["a", "b"].map(|model| of(model, "x", 3));
    asked[0].submit(&engine).check(&asked[0]);
    *b.weights.fails.lock().unwrap() = Some(Error::OutOfMemory("the device is full".into()));
    asked[1].submit(&engine).check(&asked[1]);
    assert_eq!((b.weights.loads(), a.weights.resident()), (2, false));
    // Alone on the device there is nobody to make room.
    block_on(engine.command("b", ModelCommand::Unload)).unwrap();
    until(|| state(&engine, "b") == ModelState::Unloaded);
    *b.weights.fails.lock().unwrap() = Some(Error::OutOfMemory("the device is full".into()));
    let error = asked[1].submit(&engine).end().unwrap_err();
    assert_eq!(error, WorkError::OutOfMemory("the device is full".into()));
}

#[test]
fn an_operator_loads_unloads_and_pins() {
    let (engine, [a]) =
        engine_of([Fake { call: Duration::from_millis(1), ..Fake::lazy("a", 8, 5) }], EngineOptions::default());
    let command = |command| block_on(engine.command("a", command));
    assert_eq!(command(ModelCommand::Load).unwrap().state, ModelState::Loading);
    block_on(engine.reached("a", &[ModelState::Ready, ModelState::Failed]));
    assert_eq!(state(&engine, "a"), ModelState::Ready);
    assert!(command(ModelCommand::Pin).unwrap().pinned);
    assert_eq!(command(ModelCommand::Unload), Err(CommandError::Pinned("a".into())));
    assert!(!command(ModelCommand::Unpin).unwrap().pinned);
    assert_eq!(block_on(engine.command("b", ModelCommand::Load)), Err(CommandError::Unknown("b".into())));

    // What runs is finished first; what waits has it loaded again.
    let options = of("a", "x", 100);
    let mut running = options.submit(&engine);
    running.until_started();
    assert_eq!(command(ModelCommand::Unload).unwrap().state, ModelState::Ready);
    let waiting = of("a", "y", 3);
    let mut waits = waiting.submit(&engine);
    running.check(&options);
    waits.check(&waiting);
    assert_eq!((a.weights.unloads(), a.weights.loads()), (1, 2));
}

#[test]
fn a_pin_loads_and_unloading_while_loading_comes_right_after() {
    let (engine, [a]) = engine_of([Fake::lazy("a", 8, 50)], EngineOptions::default());
    let command = |command| block_on(engine.command("a", command));
    assert_eq!(command(ModelCommand::Pin).unwrap().state, ModelState::Loading);
    command(ModelCommand::Unpin).unwrap();
    assert_eq!(command(ModelCommand::Unload).unwrap().state, ModelState::Loading);
    until(|| state(&engine, "a") == ModelState::Unloaded);
    assert_eq!((a.weights.loads(), a.weights.unloads()), (1, 1));
}

#[test]
fn callers_who_leave_while_a_model_is_loading_leave_nothing_behind() {
    let (engine, [a]) = engine_of([Fake::lazy("a", 8, 30)], EngineOptions::default());
    let mut job = of("a", "x", 3).submit(&engine);
    job.until(|event| matches!(event, EngineEvent::Loading { .. }));
    drop(job);
    until(|| state(&engine, "a") == ModelState::Ready);
    until(|| engine.queue().waiting == 0);
    assert!(a.calls().is_empty());
}

#[test]
fn shutting_down_does_not_wait_for_a_load() {
    let (engine, [fake]) = engine_of([Fake::lazy("a", 8, 5000)], EngineOptions::default());
    let mut job = of("a", "x", 3).submit(&engine);
    job.until(|event| matches!(event, EngineEvent::Loading { .. }));
    block_on(engine.shutdown(Duration::from_secs(60)));
    assert!(!fake.weights.resident(), "it waited for the load");
    assert_eq!(job.end(), Err(WorkError::ShuttingDown));
    assert_eq!(block_on(engine.command("a", ModelCommand::Load)), Err(CommandError::ShuttingDown));
}
