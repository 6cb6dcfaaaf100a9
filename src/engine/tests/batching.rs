//! Rows that come and go, and what they share.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use easel_models::Pipeline;

use super::fake::{Ask, Fake, ask, engine, engine_with, target};
use crate::engine::{EngineEvent, EngineHandle, EngineOptions, QueueSnapshot};

#[test]
fn a_picture_is_what_the_closed_form_says() {
    let (engine, fake) = engine(Fake::new("fake"));
    let asked = Ask { n: 3, guidance: 2.5, ..ask("a red circle", 7) };
    let metrics = asked.submit(&engine).check(&asked);
    assert_eq!(metrics.steps, 21);
    assert_eq!(metrics.prompt_tokens, 3);
    assert!(!metrics.truncated);
    assert!(fake.largest() >= 2, "guidance takes two rows");
}

#[test]
fn jobs_of_any_length_join_and_leave_a_running_batch() {
    let (engine, fake) = engine(Fake::taking("fake", 2));
    let long = ask("long", 60);
    let mut first = long.submit(&engine);
    first.until(|event| matches!(event, EngineEvent::Progress { step: 5, .. }));
    let short = Ask { guidance: 3.0, ..ask("short", 4) };
    let mut second = short.submit(&engine);
    second.check(&short);
    // The long one is still on its way, and was in every call of the short one.
    let (of_long, of_short) = (fake.calls_of("long"), fake.calls_of("short"));
    assert!(of_long.len() < 60, "the short one waited for the long one");
    assert_eq!(of_short.len(), 4);
    assert!(of_short.iter().all(|call| of_long.contains(call)));
    first.check(&long);
    assert_eq!(fake.calls().len(), 60);
}

#[test]
fn an_image_is_the_same_alone_and_in_company() {
    let asked = [
        Ask { n: 2, ..ask("a", 5) },
        Ask { guidance: 4.0, ..ask("b", 11) },
        Ask { seed: 77, ..ask("c", 23) },
        Ask { n: 3, guidance: 1.5, ..ask("d", 8) },
    ];
    let (alone, _) = engine(Fake::new("fake"));
    let pictures = |engine: &EngineHandle, asked: &Ask| {
        let mut job = asked.submit(engine);
        job.end().unwrap();
        job.pictures()
    };
    let expected: Vec<_> = asked.iter().map(|asked| pictures(&alone, asked)).collect();
    let (together, fake) = engine(Fake::taking("fake", 1));
    let jobs: Vec<_> = asked.iter().map(|asked| asked.submit(&together)).collect();
    for (mut job, expected) in jobs.into_iter().zip(expected) {
        job.end().unwrap();
        assert_eq!(job.pictures(), expected);
    }
    assert!(fake.largest() > 4, "they were not in company");
}

#[test]
fn shapes_and_context_lengths_run_in_groups_of_their_own() {
    // The fake refuses a call whose rows differ in their keys.
    let (engine, _) = engine(Fake::taking("fake", 1));
    let words = "a text that is long enough for two chunks of context";
    let asked = [ask("a", 9), Ask { width: 128, ..ask("b", 9) }, ask(words, 9), Ask { width: 128, ..ask(words, 5) }];
    let jobs: Vec<_> = asked.iter().map(|asked| asked.submit(&engine)).collect();
    for (mut job, asked) in jobs.into_iter().zip(&asked) {
        job.check(asked);
    }
}

#[test]
fn two_models_share_the_device_by_time() {
    let (slow, fast) = (Arc::new(Fake::taking("slow", 20)), Arc::new(Fake::taking("fast", 1)));
    let models: Vec<(String, Arc<dyn Pipeline>)> =
        vec![("slow".into(), Arc::clone(&slow) as _), ("fast".into(), Arc::clone(&fast) as _)];
    let engine = EngineHandle::start(models, EngineOptions::default());
    let of_slow = Ask { model: "slow", ..ask("a", 40) };
    let of_fast = Ask { model: "fast", ..ask("b", 60) };
    let mut slow_job = of_slow.submit(&engine);
    slow_job.until(|event| matches!(event, EngineEvent::Progress { step: 1, .. }));
    let before = slow.calls().len();
    let mut fast_job = of_fast.submit(&engine);
    fast_job.check(&of_fast);
    // The fast one's 60 steps take 60 to 100 ms of the device, which are 3 to 5 steps of the slow one, which takes no
    // more than that meanwhile; were turns counted by calls, it would take 60. Twice as many leave room for a busy
    // machine.
    let meanwhile = slow.calls().len() - before;
    assert!((1..=12).contains(&meanwhile), "{meanwhile} slow calls beside 60 fast ones");
    slow_job.check(&of_slow);
}

#[test]
fn a_prompt_is_encoded_once() {
    let (engine, fake) = engine(Fake::new("fake"));
    let asked = Ask { n: 4, guidance: 2.0, ..ask("again", 3) };
    asked.submit(&engine).check(&asked);
    assert_eq!(fake.encodes.load(Ordering::SeqCst), 2, "the prompt and the negative prompt");
    asked.submit(&engine).check(&asked);
    let unguided = Ask { guidance: 1.0, ..asked };
    unguided.submit(&engine).check(&unguided);
    assert_eq!(fake.encodes.load(Ordering::SeqCst), 2);
}

#[test]
fn a_call_has_at_most_the_rows_that_the_operator_allows() {
    let options = EngineOptions { max_batch_rows: 3, ..EngineOptions::default() };
    let (engine, fake) = engine_with(Fake::new("fake"), options);
    let asked = Ask { n: 10, ..ask("many", 4) };
    asked.submit(&engine).check(&asked);
    assert_eq!(fake.largest(), 3);
    // A guided picture takes two, so a second one does not fit.
    let asked = Ask { n: 3, guidance: 2.0, ..ask("guided", 4) };
    asked.submit(&engine).check(&asked);
    assert!(fake.calls_of("guided").iter().all(|&call| fake.calls()[call].len() == 2));
}

#[test]
fn a_call_has_at_most_the_rows_that_fit_the_memory() {
    // The fake's rows take a byte a pixel.
    let options = EngineOptions { memory_bytes: Some(5 * 64 * 64), ..EngineOptions::default() };
    let (engine, fake) = engine_with(Fake::new("fake"), options);
    let asked = Ask { n: 10, ..ask("many", 6) };
    asked.submit(&engine).check(&asked);
    assert_eq!(fake.largest(), 5);
}

#[test]
fn batches_grow_past_the_first_size_when_that_pays() {
    let (engine, fake) = engine(Fake::taking("fake", 2));
    let jobs: Vec<_> = (0..30).map(|i| (Ask { seed: i, ..ask("many", 20) }).submit(&engine)).collect();
    for mut job in jobs {
        job.end().unwrap();
    }
    assert!(fake.largest() >= 16, "{}", fake.largest());
}

#[test]
fn previews_come_on_their_steps_and_progress_on_every_step() {
    let (engine, _) = engine(Fake::taking("fake", 1));
    let asked = Ask { previews: 3, n: 2, ..ask("watched", 8) };
    let mut job = asked.submit(&engine);
    job.check(&asked);
    for wanted in 0..2 {
        let steps: Vec<usize> = job
            .seen
            .iter()
            .filter_map(|event| match event {
                EngineEvent::Progress { image, step, steps: 8, .. } if *image == wanted => Some(*step),
                _ => None,
            })
            .collect();
        assert_eq!(steps, (1..=8).collect::<Vec<_>>());
        let previews: Vec<_> = job
            .seen
            .iter()
            .filter_map(|event| match event {
                EngineEvent::Preview { image, index, picture } if *image == wanted => {
                    Some((*index, super::fake::latent(picture)))
                }
                _ => None,
            })
            .collect();
        let after = |steps| super::fake::solution("watched", 3 + wanted as u64, steps, 1.0);
        assert_eq!(previews, [(0, after(2)), (1, after(4)), (2, after(6))]);
    }
}

#[test]
fn two_hundred_jobs_at_once_all_finish() {
    let (engine, fake) = engine(Fake::new("fake"));
    let asked: Vec<Ask> = (0..200)
        .map(|i| Ask {
            n: 1 + i % 3,
            seed: i as u64,
            guidance: 1.0 + (i % 2) as f64,
            width: 64 + 8 * (i as u32 % 7),
            owner: ["a", "b", "c"][i % 3],
            ..ask(&format!("number {}", i % 20), 1 + i * 7 % 30)
        })
        .collect();
    let jobs: Vec<_> = asked.iter().map(|asked| asked.submit(&engine)).collect();
    for (mut job, asked) in jobs.into_iter().zip(&asked) {
        let metrics = job.check(asked);
        assert_eq!(metrics.steps, asked.steps * asked.n);
    }
    assert!(fake.largest() > 2);
    let queue = settled(&engine);
    assert_eq!(queue.rows, 0);
    assert!(queue.busy_seconds > queue.overhead_seconds);
}

#[test]
fn the_targets_of_these_tests_tell_their_prompts_apart() {
    let prompts = ["long", "short", "many", "guided", "good", "a", "b", "c", "d"];
    for (i, a) in prompts.iter().enumerate() {
        assert!(prompts[i + 1..].iter().all(|b| target(a).to_bits() != target(b).to_bits()), "{a}");
    }
}

/// The queue once nothing is left in it.
fn settled(engine: &EngineHandle) -> QueueSnapshot {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let queue = engine.queue();
        if (queue.waiting, queue.running, queue.decoding) == (0, 0, 0) {
            return queue;
        }
        assert!(Instant::now() < end, "{queue:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
