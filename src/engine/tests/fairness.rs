//! Owners, priorities, places and estimates.

use std::time::Duration;

use super::fake::{Ask, Fake, ask, engine, engine_with};
use crate::engine::{EngineEvent, EngineOptions};
use crate::request::Priority;

fn one_row_a_call() -> EngineOptions {
    EngineOptions { max_batch_rows: 1, ..EngineOptions::default() }
}

#[test]
fn a_second_owner_does_not_wait_for_the_firsts_backlog() {
    let (engine, fake) = engine_with(Fake::taking("fake", 1), one_row_a_call());
    let greedy: Vec<_> =
        (0..20).map(|seed| Ask { owner: "greedy", seed, ..ask("greedy", 10) }.submit(&engine)).collect();
    let modest = Ask { owner: "modest", ..ask("modest", 10) };
    modest.submit(&engine).check(&modest);
    // In turn with the one that runs, the modest one is done after twenty calls or a few more, not after two hundred.
    let done = *fake.calls_of("modest").last().unwrap();
    assert!(done < 60, "after {done} calls");
    for mut job in greedy {
        job.end().unwrap();
    }
}

#[test]
fn a_short_job_of_another_owner_takes_turns_with_a_long_one_where_only_one_fits() {
    let (engine, fake) = engine_with(Fake::taking("fake", 2), one_row_a_call());
    let long = Ask { owner: "a", ..ask("long", 100) };
    let mut running = long.submit(&engine);
    running.until_started();
    let short = Ask { owner: "b", ..ask("short", 5) };
    short.submit(&engine).check(&short);
    assert!(fake.calls_of("long").len() < 60);
    running.check(&long);
}

#[test]
fn a_short_job_of_the_same_owner_takes_turns_with_a_long_one_too() {
    let (engine, fake) = engine_with(Fake::taking("fake", 2), one_row_a_call());
    let long = ask("long", 100);
    let mut running = long.submit(&engine);
    running.until_started();
    let short = ask("short", 5);
    short.submit(&engine).check(&short);
    assert!(fake.calls_of("long").len() < 60);
    running.check(&long);
}

#[test]
fn a_higher_priority_goes_first_and_the_lower_one_is_not_starved() {
    let (engine, fake) = engine_with(Fake::taking("fake", 1), one_row_a_call());
    let mut first = ask("first", 30).submit(&engine);
    first.until_started();
    let low = Ask { priority: Priority::Low, ..ask("low", 2) }.submit(&engine);
    let high: Vec<_> =
        (0..30).map(|seed| Ask { priority: Priority::High, seed, ..ask("high", 2) }.submit(&engine)).collect();
    for mut job in high.into_iter().chain([low, first]) {
        job.end().unwrap();
    }
    let (of_low, of_high) = (fake.calls_of("low"), fake.calls_of("high"));
    assert!(of_low[0] > of_high[3], "the low one went before the high ones");
    assert!(of_low[1] < *of_high.last().unwrap(), "the low one waited for all of the high ones");
}

#[test]
fn places_are_told_when_they_change_and_only_then() {
    let (engine, _) = engine_with(Fake::taking("fake", 1), one_row_a_call());
    let mut jobs: Vec<_> = (0..5).map(|seed| Ask { seed, ..ask("a", 20) }.submit(&engine)).collect();
    for (place, job) in jobs.iter_mut().enumerate() {
        job.end().unwrap();
        let places: Vec<usize> = job
            .seen
            .iter()
            .filter_map(|event| match event {
                EngineEvent::Queued { position, .. } => Some(*position),
                _ => None,
            })
            .collect();
        // The first may or may not have been let in when the others came; each leaving moves all up by one.
        assert!(places.first().is_none_or(|&first| first + 1 >= place), "{place}: {places:?}");
        assert!(places.windows(2).all(|pair| pair[0] == pair[1] + 1), "{place}: {places:?}");
        assert!(place < 2 || places.last() == Some(&0), "{place}: {places:?}");
        let started = job.seen.iter().position(|event| matches!(event, EngineEvent::Started)).unwrap();
        let last_place = job.seen.iter().rposition(|event| matches!(event, EngineEvent::Queued { .. }));
        assert!(last_place.is_none_or(|place| place < started));
    }
}

#[test]
fn estimates_are_near_what_happens() {
    let (engine, _) = engine(Fake::taking("fake", 5));
    let warm = ask("warm", 4);
    warm.submit(&engine).check(&warm);
    let mut job = ask("a", 40).submit(&engine);
    let mut errors = Vec::new();
    let began = std::time::Instant::now();
    let mut told = Vec::new();
    loop {
        match job.until(|_| true) {
            EngineEvent::Progress { eta, .. } => told.push((began.elapsed(), eta.unwrap())),
            EngineEvent::Finished(_) => break,
            _ => {}
        }
    }
    let end = began.elapsed();
    for (at, eta) in told {
        errors.push((at + eta).abs_diff(end));
    }
    errors.sort();
    // The median, since a busy machine may hold up a few; all 40 steps take 200 ms.
    assert!(errors[errors.len() / 2] < Duration::from_millis(100), "{errors:?}");
}

#[test]
fn those_who_wait_are_told_when_they_will_be_done() {
    let (engine, _) = engine_with(Fake::taking("fake", 5), one_row_a_call());
    let warm = ask("warm", 4);
    warm.submit(&engine).check(&warm);
    let mut running = ask("a", 20).submit(&engine);
    running.until_started();
    let mut waiting = ask("b", 20).submit(&engine);
    let began = std::time::Instant::now();
    let EngineEvent::Queued { position: 0, eta: Some(eta) } =
        waiting.until(|event| matches!(event, EngineEvent::Queued { .. })).clone()
    else {
        panic!("no estimate: {:?}", waiting.seen)
    };
    waiting.end().unwrap();
    let took = began.elapsed();
    assert!(eta > took / 4 && eta < took * 4, "{eta:?} was told, {took:?} it took");
    running.end().unwrap();
}

#[test]
fn a_stream_of_other_sizes_does_not_keep_a_new_one_out() {
    let options = EngineOptions { groups: 2, ..EngineOptions::default() };
    let (engine, fake) = engine_with(Fake::taking("fake", 1), options);
    let mut jobs: Vec<_> = (0..2).map(|i| Ask { width: 64 + 64 * i, ..ask("stream", 10) }.submit(&engine)).collect();
    jobs[1].until_started();
    let other = Ask { width: 256, ..ask("other", 3) };
    let mut waiting = other.submit(&engine);
    // A new job of the two running sizes comes before the last one ends, all the time.
    for i in 0..200 {
        jobs.push(Ask { width: 64 + 64 * (i % 2), ..ask("stream", 10) }.submit(&engine));
        std::thread::sleep(Duration::from_millis(1));
    }
    waiting.check(&other);
    let done = *fake.calls_of("other").last().unwrap();
    assert!(done < 100, "after {done} calls");
    for mut job in jobs {
        job.end().unwrap();
    }
}
