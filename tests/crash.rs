//! An accepted job is a kept job: through kill -9, SIGTERM, and a crowd.

#![allow(clippy::unwrap_used, reason = "a test's helper may panic as the test may")]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::{Server, client};
use serde_json::{Value, json};

fn request(seed: u64) -> Value {
    let steps = [3, 6, 12][usize::try_from(seed % 3).unwrap()];
    json!({"prompt": "a red circle on a blue background", "seed": seed, "steps": steps, "n": 1 + seed % 2})
}

fn digests(job: &Value) -> Vec<String> {
    let outputs = job["outputs"].as_array().unwrap();
    outputs.iter().map(|output| output["sha256"].as_str().unwrap().to_owned()).collect()
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
