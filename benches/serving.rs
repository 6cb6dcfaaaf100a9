//! What serving costs, from outside: the real binary over HTTP, with the built-in model.
//!
//!     cargo bench --bench serving
//!
//! Prints ratios within one run, since machines differ: requests at once against one after another, the share of
//! busy time outside model calls, the overhead of the API, and the time from start to ready.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a bench prints its table and may stop at any fault")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::{Server, client};
use serde_json::{Value, json};

const STEPS: [u64; 3] = [10, 20, 30];
const REQUESTS: u64 = 16;

fn main() {
    // `cargo test --benches` runs benches too, and wants nothing measured.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let server = Server::start(data.path(), &[]);
    while reqwest::blocking::get(format!("{}/readyz", server.url)).map_or(true, |reply| !reply.status().is_success()) {}
    println!("serve to ready                     {:>9.0} ms", start.elapsed().as_secs_f64() * 1e3);

    generate(&server, 0);
    let rounds = 3;
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    let before = busy(&server);
    for round in 0..rounds {
        alone.push(time(|| (0..REQUESTS).for_each(|i| generate(&server, round * 100 + i))));
        together.push(time(|| {
            std::thread::scope(|scope| {
                for i in 0..REQUESTS {
                    let server = &server;
                    scope.spawn(move || generate(server, round * 100 + i));
                }
            });
        }));
    }
    let after = busy(&server);
    shares(&server);
    let (alone, together) = (median(alone), median(together));
    println!("{REQUESTS} requests, one after another       {:>9.2} images/s", REQUESTS as f64 / alone);
    println!("{REQUESTS} requests at once                  {:>9.2} images/s", REQUESTS as f64 / together);
    println!("at once / one after another        {:>9.2} x", alone / together);
    let (model, overhead) = (after.0 - before.0, after.1 - before.1);
    println!("busy time outside model calls      {:>9.2} %", 100.0 * overhead / (model + overhead));

    let client = client();
    let job = server.submit(&request(1));
    server.ended(&job);
    let url = format!("{}/v1/jobs/{job}", server.url);
    report("GET a job", (0..200).map(|_| time(|| drop(client.get(&url).send().unwrap().bytes().unwrap()))).collect());
    // Waiting jobs cost nothing but their acceptance: parsed, validated, stored durably, acknowledged.
    let url = format!("{}/v1/jobs", server.url);
    let mut ids = Vec::new();
    let accept = (0..50)
        .map(|i| {
            time(|| {
                let job: Value = client.post(&url).json(&request(i)).send().unwrap().json().unwrap();
                ids.push(job["id"].as_str().unwrap().to_owned());
            })
        })
        .collect();
    report("accept a job, stored durably", accept);
    for id in &ids {
        server.post(&format!("/v1/jobs/{id}/cancel"), &json!({}));
    }
    let url = format!("{}/v1/images/generations", server.url);
    let refuse = (0..200).map(|_| time(|| drop(client.post(&url).json(&json!({"n": 0})).send().unwrap()))).collect();
    report("refuse a bad request", refuse);
}

fn request(i: u64) -> Value {
    json!({"prompt": "a red circle on a blue background", "seed": i, "steps": STEPS[(i % 3) as usize], "cache": false})
}

fn generate(server: &Server, i: u64) {
    let (status, reply) = server.post("/v1/images/generations", &request(i));
    assert_eq!(status, 200, "{reply}");
}

/// Seconds in model calls, and busy seconds outside them.
fn busy(server: &Server) -> (f64, f64) {
    let text = metrics(server);
    (sum(&text, "easel_model_call_seconds_sum", ""), sum(&text, "easel_loop_overhead_seconds_sum", ""))
}

/// Says where the time of everything so far went. The loop waits for its own calls only: files are made and stored beside it,
/// and so is HTTP, which is what a request takes beyond its job.
fn shares(server: &Server) {
    let text = metrics(server);
    let call = |call: &str| sum(&text, "easel_model_call_seconds_sum", &format!("call=\"{call}\""));
    let picture = |stage: &str| sum(&text, "easel_picture_seconds_sum", &format!("stage=\"{stage}\""));
    let http = sum(&text, "easel_http_request_seconds_sum", "route=\"/v1/images/generations\"");
    let parts = [
        ("text encoders", call("encode")),
        ("beginning a picture", call("begin")),
        ("denoiser and sampler", call("denoise")),
        ("decoder", call("decode")),
        ("making files (beside the loop)", picture("encode")),
        ("storing files (beside the loop)", picture("store")),
        ("HTTP beyond the jobs", http - sum(&text, "easel_job_latency_seconds_sum", "")),
    ];
    let whole: f64 = parts.iter().map(|(_, seconds)| seconds).sum();
    for (part, seconds) in parts {
        println!("{part:<34} {:>9.2} % of the work", 100.0 * seconds / whole);
    }
}

fn metrics(server: &Server) -> String {
    reqwest::blocking::get(format!("{}/metrics", server.url)).unwrap().text().unwrap()
}

/// The sum of a metric's values whose labels contain this.
fn sum(text: &str, name: &str, label: &str) -> f64 {
    text.lines()
        .filter(|line| line.starts_with(name) && line.contains(label))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

fn time(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn report(what: &str, times: Vec<f64>) {
    println!("{what:<34} {:>9.2} ms (median)", Duration::from_secs_f64(median(times)).as_secs_f64() * 1e3);
}
