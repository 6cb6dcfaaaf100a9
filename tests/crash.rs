//! An accepted job is a kept job: through kill -9, SIGTERM, and a crowd.

#![allow(clippy::unwrap_used, reason = "a test's helper may panic as the test may")]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::{Server, client, data, data_uri, digests, read, tiny_klein};
use serde_json::{Value, json};

fn request(seed: u64) -> Value {
    let steps = [3, 6, 12][usize::try_from(seed % 3).unwrap()];
    json!({"prompt": "a red circle on a blue background", "seed": seed, "steps": steps, "n": 1 + seed % 2})
}

#[test]
fn accepted_jobs_are_finished_once_after_kill_9_with_the_same_pictures() {
    let data = tempfile::tempdir().unwrap();
    let mut server = Server::start(data.path(), &[]);
    let mut jobs = BTreeMap::new();
    // Killed at several moments of the jobs' lives: while they are accepted, rendered, and written.
    for (round, pause) in [0u64, 40, 160, 400].into_iter().enumerate() {
        for i in 0..8 {
            let seed = 10 * round as u64 + i;
            jobs.insert(server.submit(&request(seed)), seed);
        }
        std::thread::sleep(Duration::from_millis(pause));
        server.kill();
        server = Server::start(data.path(), &[]);
    }
    let kept: BTreeMap<u64, Vec<String>> = jobs
        .iter()
        .map(|(id, seed)| {
            let job = server.ended(id);
            assert_eq!(job["status"], "succeeded", "{job}");
            assert_eq!(job["outputs"].as_array().unwrap().len() as u64, 1 + seed % 2);
            (*seed, digests(&job))
        })
        .collect();
    let listed = server.get("/v1/jobs?limit=100");
    assert_eq!(listed["data"].as_array().unwrap().len(), jobs.len(), "no job is there twice");

    // What was made across the crashes is what an undisturbed server makes.
    let fresh_data = tempfile::tempdir().unwrap();
    let fresh = Server::start(fresh_data.path(), &[]);
    for (seed, expected) in kept.iter().filter(|(seed, _)| *seed % 5 == 0) {
        let (status, reply) = fresh.post("/v1/images/generations", &request(*seed));
        assert_eq!(status, 200, "{reply}");
        assert_eq!(&digests(&reply), expected);
    }
}

/// The tasks that bring pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    Start,
    Inpaint,
    Edit,
}

/// A job that brings pictures, long enough to be killed while it runs.
fn with_pictures(task: Task, seed: u64) -> Value {
    let file = |name: &str| data_uri(&read(data("flux2/pictures").join(name)));
    // The same files in many jobs, and others in some.
    let start = file(if seed.is_multiple_of(2) { "start-64x64.png" } else { "start-75x83.png" });
    match task {
        Task::Start => json!({"model": "easel-mini", "prompt": "a red circle", "seed": seed, "steps": 30,
            "image": start, "strength": 0.7}),
        Task::Inpaint => json!({"model": "easel-mini", "prompt": "a red circle", "seed": seed, "steps": 30, "n": 2,
            "image": start, "mask": file("mask-64x64.png"), "strength": 0.9}),
        Task::Edit => json!({"model": "klein", "prompt": "a red circle", "seed": seed, "steps": 12, "size": "64x64",
            "image": [start, file("start-160x64.png")]}),
    }
}

#[test]
fn jobs_that_bring_pictures_are_finished_after_kill_9_with_the_same_pictures() {
    let klein = tiny_klein();
    let models = ["--model", &klein];
    let data = tempfile::tempdir().unwrap();
    let mut server = Server::start(data.path(), &models);
    let mut jobs = Vec::new();
    for task in [Task::Start, Task::Inpaint, Task::Edit] {
        let ids: Vec<_> = (0..2).map(|seed| (server.submit(&with_pictures(task, seed)), task, seed)).collect();
        server.until_progress(&ids[0].0);
        server.kill();
        server = Server::start(data.path(), &models);
        jobs.extend(ids);
    }
    let made: Vec<Vec<String>> = jobs
        .iter()
        .map(|(id, task, _)| {
            let job = server.ended(id);
            assert_eq!(job["status"], "succeeded", "{task:?}: {job}");
            digests(&job)
        })
        .collect();
    let listed = server.get("/v1/jobs?limit=100");
    assert_eq!(listed["data"].as_array().unwrap().len(), jobs.len(), "no job is there twice");

    // On a server that nobody disturbs, each alone.
    let fresh_data = tempfile::tempdir().unwrap();
    let fresh = Server::start(fresh_data.path(), &models);
    for ((_, task, seed), expected) in jobs.iter().zip(&made) {
        let (status, reply) = fresh.post("/v1/images/generations", &with_pictures(*task, *seed));
        assert_eq!(status, 200, "{reply}");
        assert_eq!(&digests(&reply), expected, "{task:?} {seed}");
    }
}

#[test]
fn a_job_whose_picture_is_lost_fails_by_name_and_no_other_does() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    // The first keeps the engine busy; of the others one has a picture of its own.
    let ids: Vec<_> = [0, 1, 2].map(|seed| server.submit(&with_pictures(Task::Inpaint, seed))).into();
    let lost = server.get(&format!("/v1/jobs/{}", ids[1]))["request"]["images"][0]["sha256"].clone();
    let lost = lost.as_str().unwrap();
    server.kill();
    let shard: String = lost.chars().rev().take(2).collect();
    std::fs::remove_dir_all(data.path().join("artifacts").join(shard).join(format!("input_{lost}"))).unwrap();

    let server = Server::start(data.path(), &[]);
    let jobs: Vec<Value> = ids.iter().map(|id| server.ended(id)).collect();
    assert_eq!(jobs.iter().map(|job| &job["status"]).collect::<Vec<_>>(), ["succeeded", "failed", "succeeded"]);
    let message = format!("the picture of the request is gone: the data folder has no file {lost}");
    assert_eq!(jobs[1]["error"], json!({"code": "internal", "message": message, "param": null}), "{}", jobs[1]);
    assert_eq!(jobs[1]["outputs"], json!([]));
}

#[test]
fn sigterm_ends_with_0_and_keeps_what_was_not_finished() {
    let data = tempfile::tempdir().unwrap();
    let mut server = Server::start(data.path(), &["--shutdown-seconds", "1"]);
    let ids: Vec<_> =
        (0..6).map(|seed| server.submit(&json!({"prompt": "a cat", "steps": 150, "n": 4, "seed": seed}))).collect();
    std::thread::sleep(Duration::from_millis(200));
    server.signal("TERM");
    let end = Instant::now() + Duration::from_secs(30);
    let status = loop {
        if let Some(status) = server.process.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < end, "the server does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");
    let again = Server::start(data.path(), &[]);
    for id in &ids {
        let job = again.get(&format!("/v1/jobs/{id}"));
        assert!(matches!(job["status"].as_str(), Some("queued" | "running" | "succeeded")), "{job}");
    }
    for id in &ids {
        let (status, job) = again.post(&format!("/v1/jobs/{id}/cancel"), &json!({}));
        assert_eq!(status, 200, "{job}");
    }
    assert!(ids.iter().all(|id| matches!(again.ended(id)["status"].as_str(), Some("canceled" | "succeeded"))));
}

#[test]
fn two_hundred_requests_at_once_are_all_answered() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let client = client();
    let url = format!("{}/v1/images/generations", server.url);
    let answers: Vec<(u16, Value)> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..200u64)
            .map(|seed| {
                let (client, url) = (&client, &url);
                scope.spawn(move || {
                    let body = json!({"prompt": "a blue square", "steps": 1 + seed % 3, "seed": seed});
                    let reply = client.post(url).json(&body).send().unwrap();
                    (reply.status().as_u16(), reply.json().unwrap())
                })
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    for (seed, (status, reply)) in answers.iter().enumerate() {
        assert_eq!(*status, 200, "{reply}");
        assert_eq!(reply["data"][0]["seed"], seed as u64);
    }
}
