//! Cancelling, refusing and ending.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use easel_models::samplers::SamplingSpec;
use easel_models::{Prompt, RenderSpec};
use tokio::sync::mpsc::unbounded_channel;

use super::fake::{Ask, Fake, ask, engine, engine_with};
use crate::engine::{EngineEvent, EngineHandle, EngineOptions, Pictures, Work, WorkError};
use crate::request::Priority;

fn shut_down(engine: &EngineHandle, grace: Duration) {
    futures::executor::block_on(engine.shutdown(grace));
}

fn until(what: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !what() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_caller_who_hangs_up_frees_the_rows_at_the_next_boundary() {
    let (engine, fake) = engine(Fake::taking("fake", 1));
    let stays = ask("good", 40);
    let mut neighbour = stays.submit(&engine);
    let mut leaves = Ask { n: 2, ..ask("long", 100_000) }.submit(&engine);
    leaves.until(|event| matches!(event, EngineEvent::Progress { step: 3, .. }));
    drop(leaves);
    neighbour.check(&stays);
    until(|| engine.queue().running == 0);
    assert!(fake.calls_of("long").len() < 1000);
    assert_eq!(fake.decodes.load(Ordering::SeqCst), 1);
}

#[test]
fn a_caller_who_hangs_up_while_waiting_never_begins() {
    let options = EngineOptions { max_batch_rows: 1, ..EngineOptions::default() };
    let (engine, fake) = engine_with(Fake::taking("fake", 1), options);
    let first = ask("good", 40);
    let mut running = first.submit(&engine);
    running.until_started();
    let mut leaves = ask("long", 30).submit(&engine);
    leaves.until(|event| matches!(event, EngineEvent::Queued { .. }));
    until(|| engine.queue().waiting == 1);
    drop(leaves);
    running.check(&first);
    until(|| engine.queue().running == 0);
    assert_eq!(engine.queue().waiting, 0);
    assert!(fake.calls_of("long").is_empty());
}

#[test]
fn the_queue_shows_what_runs_and_what_waits() {
    let options = EngineOptions { max_batch_rows: 2, ..EngineOptions::default() };
    let (engine, _) = engine_with(Fake::taking("fake", 2), options);
    let mut running = Ask { guidance: 2.0, ..ask("a", 200) }.submit(&engine);
    running.until_started();
    let waiting = ask("b", 150).submit(&engine);
    until(|| engine.queue().waiting == 1 && engine.queue().rows == 2);
    let queue = engine.queue();
    assert_eq!((queue.running, queue.jobs), (1, vec!["a x200".to_string()]));
    let model = &queue.models[0];
    assert_eq!((model.model.as_str(), model.waiting, model.running, model.rows), ("fake", 1, 1, 2));
    assert_eq!((model.batches[0].pictures, model.batches[0].rows, model.batches[0].max_rows), (1, 2, 2));
    until(|| engine.queue().wait_estimate_ms.is_some_and(|wait| wait > 0));
    drop((running, waiting));
}

#[test]
fn work_that_cannot_be_is_refused_at_once() {
    let (engine, _) = engine(Fake::new("fake"));
    let (events, _receiver) = unbounded_channel();
    let prompt = Prompt::default();
    let work = |model: &str| Work {
        job: "j".into(),
        model: model.into(),
        prompt: prompt.clone(),
        negative: prompt.clone(),
        specs: vec![],
        pictures: Pictures::default(),
        priority: Priority::Normal,
        owner: "o".into(),
        previews: 0,
        second: None,
        events: events.clone(),
    };
    let field = |work| match engine.submit(work) {
        Err(WorkError::Request { param, .. }) => param,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(work("fake")), "n");
    assert_eq!(field(work("other")), "model");
    let spec = |width| RenderSpec::new(width, 64, 0, SamplingSpec::steps(2));
    assert_eq!(field(Work { specs: vec![spec(64), spec(72)], ..work("fake") }), "size");
    assert_eq!(engine.models()[0].0, "fake");
    assert_eq!(engine.models()[0].1.family, "fake");
}

#[test]
fn shutting_down_lets_what_runs_finish_and_refuses_the_rest() {
    let options = EngineOptions { max_batch_rows: 1, ..EngineOptions::default() };
    let (engine, _) = engine_with(Fake::taking("fake", 1), options);
    // It has two pictures of which one has begun; the job has, so both are made.
    let begun = Ask { n: 2, ..ask("begun", 20) };
    let mut running = begun.submit(&engine);
    running.until_started();
    let mut waiting = ask("waits", 15).submit(&engine);
    shut_down(&engine, Duration::from_secs(30));
    running.check(&begun);
    assert_eq!(waiting.end(), Err(WorkError::ShuttingDown));
    let (events, mut receiver) = unbounded_channel();
    let prompt = Prompt::default();
    let late = Work {
        job: "late".into(),
        model: "fake".into(),
        prompt: prompt.clone(),
        negative: prompt,
        specs: vec![],
        pictures: Pictures::default(),
        priority: Priority::Normal,
        owner: "o".into(),
        previews: 0,
        second: None,
        events,
    };
    assert_eq!(engine.submit(late), Err(WorkError::ShuttingDown));
    assert!(receiver.try_recv().is_err());
}

#[test]
fn shutting_down_ends_within_the_grace() {
    let (engine, _) = engine(Fake::taking("fake", 2));
    let mut running = ask("endless", 100_000).submit(&engine);
    running.until_started();
    let began = Instant::now();
    shut_down(&engine, Duration::from_millis(50));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(running.end(), Err(WorkError::ShuttingDown));
    shut_down(&engine, Duration::from_secs(1));
}

#[test]
fn an_idle_engine_shuts_down_at_once() {
    let (engine, _) = engine(Fake::new("fake"));
    let began = Instant::now();
    shut_down(&engine, Duration::from_secs(60));
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_grace_beyond_the_clock_lets_what_runs_finish() {
    let (engine, _) = engine(Fake::taking("fake", 1));
    let asked = ask("good", 40);
    let mut running = asked.submit(&engine);
    running.until_started();
    shut_down(&engine, Duration::MAX);
    running.check(&asked);
    assert!(!engine.takes_work());
}

#[test]
fn an_engine_without_handles_finishes_what_it_has() {
    let (engine, fake) = engine(Fake::taking("fake", 1));
    let asked = ask("good", 30);
    let mut job = asked.submit(&engine);
    drop(engine);
    job.check(&asked);
    // Both threads end, and with them their hold on the model.
    until(|| std::sync::Arc::strong_count(&fake) == 1);
}

#[test]
fn a_full_decoder_holds_back_new_pictures_and_loses_none() {
    let options = EngineOptions { decode_backlog: 1, ..EngineOptions::default() };
    let decode = Duration::from_millis(5);
    let (engine, _) = engine_with(Fake { decode, ..Fake::new("fake") }, options);
    let asked: Vec<_> = (0..20).map(|seed| Ask { seed, ..ask("many", 2) }).collect();
    let jobs: Vec<_> = asked.iter().map(|asked| asked.submit(&engine)).collect();
    for (mut job, asked) in jobs.into_iter().zip(&asked) {
        let metrics = job.check(asked);
        assert!(metrics.decode >= decode);
        assert!(metrics.denoise + metrics.queued > Duration::ZERO);
    }
}
