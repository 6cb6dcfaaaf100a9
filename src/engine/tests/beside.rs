//! What is done beside the step loop, and does not hold it up.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::fake::{Ask, Fake, ask, engine, engine_of};
use crate::engine::{EngineEvent, EngineOptions};

#[test]
fn a_slow_decode_does_not_hold_up_the_steps() {
    let decode = std::time::Duration::from_millis(150);
    let (engine, fake) = engine(Fake { decode, ..Fake::taking("fake", 2) });
    let long = ask("long", 50);
    let mut running = long.submit(&engine);
    running.until_started();
    let mut short = ask("short", 2).submit(&engine);
    short.until(|event| matches!(event, EngineEvent::Progress { step: 2, .. }));
    let before = fake.calls().len();
    short.end().unwrap();
    assert!(fake.calls().len() - before >= 20, "{} steps in the time of one decode", fake.calls().len() - before);
    running.check(&long);
}

#[test]
fn a_slow_text_encoder_does_not_hold_up_the_steps() {
    let encode = Duration::from_millis(150);
    let (engine, fake) = engine(Fake { encode, ..Fake::taking("fake", 2) });
    let long = ask("long", 400);
    let mut running = long.submit(&engine);
    running.until(|event| matches!(event, EngineEvent::Progress { step: 2, .. }));
    let before = fake.calls().len();
    let short = Ask { guidance: 2.0, ..ask("short", 2) };
    let mut other = short.submit(&engine);
    other.until_started();
    let meanwhile = fake.calls().len() - before;
    assert!(meanwhile >= 20, "{meanwhile} steps in the time of two prompts");
    let metrics = other.check(&short);
    assert!(metrics.encode >= 2 * encode, "{:?}", metrics.encode);
    running.check(&long);
    assert!(fake.calls_of("short").iter().all(|call| fake.calls_of("long").contains(call)), "they shared no calls");
}

#[test]
fn a_slow_text_encoder_holds_up_its_own_model_only() {
    let slow = Fake { encode: Duration::from_secs(1), ..Fake::new("slow") };
    let (engine, _) = engine_of([slow, Fake::new("quick")], EngineOptions::default());
    let of_slow = Ask { model: "slow", ..ask("a", 2) };
    let mut waits = of_slow.submit(&engine);
    let of_quick = Ask { model: "quick", ..ask("b", 2) };
    of_quick.submit(&engine).check(&of_quick);
    while let Ok(event) = waits.events.try_recv() {
        assert!(!matches!(event, EngineEvent::Started), "it waited for the other model's encoder");
    }
    waits.check(&of_slow);
}

#[test]
fn pictures_that_share_a_prompt_which_is_being_encoded_wait_for_that() {
    let (engine, fake) = engine(Fake { encode: Duration::from_millis(20), ..Fake::new("fake") });
    let asked: Vec<_> = (0..6).map(|seed| Ask { seed, n: 2, guidance: 3.0, ..ask("shared", 4) }).collect();
    let jobs: Vec<_> = asked.iter().map(|asked| asked.submit(&engine)).collect();
    for (mut job, asked) in jobs.into_iter().zip(&asked) {
        job.check(asked);
    }
    assert_eq!(fake.encodes.load(Ordering::SeqCst), 2, "the prompt and the negative prompt");
}

#[test]
fn who_leaves_while_the_prompt_is_encoded_leaves_nothing_behind() {
    let (engine, fake) = engine(Fake { encode: Duration::from_millis(50), ..Fake::new("fake") });
    let mut stays = ask("stays", 2).submit(&engine);
    let leaves: Vec<_> = (0..3).map(|n| ask(&format!("leaves {n}"), 2).submit(&engine)).collect();
    std::thread::sleep(Duration::from_millis(10));
    drop(leaves);
    stays.check(&ask("stays", 2));
    let end = Instant::now() + Duration::from_secs(10);
    while { (engine.queue().waiting, engine.queue().running) } != (0, 0) {
        assert!(Instant::now() < end, "{:?}", engine.queue());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(fake.encodes.load(Ordering::SeqCst) <= 2, "prompts were encoded that nobody wanted any more");
    assert_eq!(fake.calls().len(), 2);
}
