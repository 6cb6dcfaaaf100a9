//! What happens when a model fails.

use super::fake::{Ask, FAULTY_STEPS, Fake, ask, engine, target};
use crate::engine::{EngineEvent, WorkError};

#[test]
fn running_out_of_memory_makes_batches_smaller_and_loses_no_job() {
    let (engine, fake) = engine(Fake { fits: 3, ..Fake::new("fake") });
    let asked: Vec<_> = (0..12).map(|seed| Ask { seed, ..ask("many", 6) }).collect();
    let jobs: Vec<_> = asked.iter().map(|asked| asked.submit(&engine)).collect();
    for (mut job, asked) in jobs.into_iter().zip(&asked) {
        job.check(asked);
    }
    assert!((2..=3).contains(&fake.largest()), "{}", fake.largest());
}

#[test]
fn one_picture_that_does_not_fit_fails_alone() {
    let (engine, _) = engine(Fake { fits: 1, ..Fake::taking("fake", 1) });
    let small = ask("small", 40);
    let mut fits = small.submit(&engine);
    fits.until_started();
    let error = (Ask { guidance: 2.0, ..ask("large", 5) }).submit(&engine).end().unwrap_err();
    assert_eq!(error, WorkError::OutOfMemory("2 rows".into()));
    fits.check(&small);
}

#[test]
fn a_bad_row_does_not_fail_its_neighbours() {
    for bad in ["panic in denoise", "error in denoise"] {
        let (engine, fake) = engine(Fake::taking("fake", 1));
        let good = Ask { n: 2, ..ask("good", 30) };
        let mut neighbour = good.submit(&engine);
        neighbour.until(|event| matches!(event, EngineEvent::Progress { step: 3, .. }));
        let mut job = Ask { n: 3, ..ask(bad, 20) }.submit(&engine);
        let error = job.end().unwrap_err();
        assert!(matches!(&error, WorkError::Internal(message) if message.contains("as the prompt says")), "{error}");
        neighbour.check(&good);
        assert_eq!(fake.calls_of("good").len(), 30 + fake.calls().iter().filter(|call| call.len() == 1).count() / 2);
    }
}

#[test]
fn a_panic_anywhere_fails_its_job_and_no_other() {
    let (engine, _) = engine(Fake::new("fake"));
    for bad in ["panic in encode", "panic in begin", "panic in denoise", "panic in decode"] {
        let mut job = Ask { n: 2, ..ask(bad, FAULTY_STEPS as usize) }.submit(&engine);
        let error = job.end().unwrap_err();
        assert!(matches!(&error, WorkError::Internal(message) if message.contains("panicked")), "{bad}: {error}");
        let good = ask("good", 3);
        good.submit(&engine).check(&good);
    }
}

#[test]
fn a_model_that_refuses_a_request_names_the_field() {
    let (engine, _) = engine(Fake::new("fake"));
    let error = ask("error in begin", 5).submit(&engine).end().unwrap_err();
    assert_eq!(error, WorkError::Request { param: "size", message: "no".into() });
    let error = ask("error in decode", FAULTY_STEPS as usize).submit(&engine).end().unwrap_err();
    assert_eq!(error, WorkError::Internal("as the prompt says".into()));
}

#[test]
fn rows_that_fail_only_together_are_called_one_by_one() {
    let unbearable = Some((target("a"), target("b")));
    let (engine, fake) = engine(Fake { unbearable, ..Fake::taking("fake", 1) });
    let asked = [ask("a", 12), ask("b", 12)];
    let jobs: Vec<_> = asked.iter().map(|asked| asked.submit(&engine)).collect();
    for (mut job, asked) in jobs.into_iter().zip(&asked) {
        job.check(asked);
    }
    assert_eq!(fake.calls().len(), 24);
}

#[test]
fn a_decode_that_needs_the_device_to_itself_gets_it() {
    let (engine, fake) = engine(Fake { decode_needs_quiet: true, ..Fake::taking("fake", 5) });
    let long = ask("long", 60);
    let mut running = long.submit(&engine);
    running.until_started();
    let short = ask("short", 3);
    short.submit(&engine).check(&short);
    assert!(fake.quiet_broken() >= 1, "the first attempt met a step");
    assert!(fake.calls_of("long").len() < 60, "the decode waited for the long job");
    running.check(&long);
}

#[test]
fn an_encoding_that_needs_the_device_to_itself_gets_it() {
    let (engine, fake) = engine(Fake { encode_needs_quiet: Some("short"), ..Fake::taking("fake", 5) });
    let long = ask("long", 60);
    let mut running = long.submit(&engine);
    running.until_started();
    let short = ask("short", 3);
    short.submit(&engine).check(&short);
    assert_eq!(fake.quiet_broken(), 2, "beside a step, and again without the cached embeddings");
    assert!(fake.calls_of("long").len() < 60, "the short one waited for the long job");
    running.check(&long);
}
