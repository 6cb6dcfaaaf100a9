//! A real server process for the tests that need one.

#![allow(dead_code, reason = "each test file uses its own part of this")]
#![allow(clippy::expect_used, clippy::panic, reason = "a test's helper may panic as the test may")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// A running `easel serve` on a port of its own.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) process: Child,
}

impl Server {
    /// Starts a server over `data` and waits until it says where it listens.
    pub(crate) fn start(data: &Path, more: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_easel"))
            .args(["serve", "--port", "0", "--data-dir"])
            .arg(data)
            .args(more)
            .env("EASEL_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let out = BufReader::new(process.stdout.take().expect("stdout is a pipe"));
        let url = out
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.split_whitespace().find(|word| word.starts_with("http://")).map(str::to_owned))
            .expect("the server says where it listens");
        Self { url: url.trim_end_matches('/').to_owned(), process }
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        let reply = client().get(format!("{}{path}", self.url)).send().expect("a reply");
        reply.json().expect("a JSON body")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let reply = client().post(format!("{}{path}", self.url)).json(body).send().expect("a reply");
        (reply.status().as_u16(), reply.json().expect("a JSON body"))
    }

    /// Submits a job and gives its id.
    pub(crate) fn submit(&self, body: &Value) -> String {
        let (status, job) = self.post("/v1/jobs", body);
        assert_eq!(status, 202, "{job}");
        job["id"].as_str().expect("an id").to_owned()
    }

    /// Waits until the job has ended.
    pub(crate) fn ended(&self, id: &str) -> Value {
        let end = Instant::now() + Duration::from_secs(300);
        loop {
            let job = self.get(&format!("/v1/jobs/{id}?wait=30"));
            if matches!(job["status"].as_str(), Some("succeeded" | "failed" | "canceled")) {
                return job;
            }
            assert!(Instant::now() < end, "the job does not end: {job}");
        }
    }

    /// Waits until the job has made a step, and not its last one.
    pub(crate) fn until_progress(&self, id: &str) {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            let job = self.get(&format!("/v1/jobs/{id}"));
            let progress = job["progress"].as_f64().expect("a number");
            assert!(progress < 1.0 && Instant::now() < end, "the job is not seen running: {job}");
            if progress > 0.0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal by name, as in `kill -TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.process.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// `kill -9`, and waits until the process is gone.
    pub(crate) fn kill(mut self) {
        self.process.kill().expect("it can be killed");
        self.process.wait().expect("it ends");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A folder or file of the models' own test data.
pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/data").join(name)
}

/// FLUX.2 klein in the least size, as a `--model`: it draws noise, and every picture that it looks at has its part in it.
pub(crate) fn tiny_klein() -> String {
    format!("klein={}", data("flux2/distilled").display())
}

/// A file's bytes.
pub(crate) fn read(path: impl AsRef<Path>) -> Vec<u8> {
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

/// A png file as a request carries it.
pub(crate) fn data_uri(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(png))
}

/// The hashes of a job's pictures.
pub(crate) fn digests(job: &Value) -> Vec<String> {
    let outputs = job["outputs"].as_array().expect("a list of outputs");
    outputs.iter().map(|output| output["sha256"].as_str().expect("a hash").to_owned()).collect()
}

/// A client that waits as long as a test may take.
pub(crate) fn client() -> reqwest::blocking::Client {
    reqwest::blocking::Client::builder().timeout(Duration::from_secs(180)).build().expect("a client")
}
