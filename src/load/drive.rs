//! Asking: the caller's side of a run.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use rand::SeedableRng;
use rand::rngs::StdRng;
use reqwest::Client;
use serde_json::{Map, Value, json};

use super::mix::{Kind, pick};
use super::{Arrivals, Run, Sample, ServerTimes};

/// A run that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The client could not be set up.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(#[source] reqwest::Error),
    /// The server does not answer at all.
    #[error("{url} cannot be reached: {source}")]
    Unreachable {
        /// The address.
        url: String,
        /// What the connection said.
        source: reqwest::Error,
    },
    /// A warm-up request failed, so there would be nothing to measure.
    #[error("the first request failed: {0}")]
    Refused(String),
}

/// The server under load, and what it is asked.
#[derive(Debug, Clone)]
pub struct Target {
    client: Client,
    url: String,
    key: Option<String>,
    kinds: Vec<Kind>,
    seed: u64,
}

impl Target {
    /// The server at `url`, asked with `key` where it needs one; every request draws its kind and its seed from `seed`.
    ///
    /// # Errors
    /// When the client cannot be set up.
    pub fn new(
        url: &str,
        key: Option<String>,
        kinds: Vec<Kind>,
        seed: u64,
        timeout: Duration,
    ) -> Result<Self, LoadError> {
        let client =
            Client::builder().timeout(timeout).pool_max_idle_per_host(1024).build().map_err(LoadError::Client)?;
        Ok(Self { client, url: url.trim_end_matches('/').to_owned(), key, kinds, seed })
    }

    /// What the server says of itself: its version and its models.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn describe(&self) -> Result<Value, LoadError> {
        let unreachable = |source| LoadError::Unreachable { url: self.url.clone(), source };
        let health = self.get("/healthz").send().await.map_err(unreachable)?;
        let health: Value = health.json().await.unwrap_or(Value::Null);
        let models = self.get("/v1/models").send().await.map_err(unreachable)?;
        let models: Value = models.json().await.unwrap_or(Value::Null);
        Ok(json!({"version": health["version"], "models": models["data"]}))
    }

    /// Asks `count` times, one after the other, so that models are loaded and costs measured before the run.
    ///
    /// # Errors
    /// When the server refuses, or does not answer.
    pub async fn warm_up(&self, count: usize) -> Result<(), LoadError> {
        for index in 0..count {
            let sample = self.ask(index % self.kinds.len().max(1), None, index, Instant::now()).await;
            if let Some(error) = sample.error {
                return Err(LoadError::Refused(error));
            }
        }
        Ok(())
    }

    fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.authorised(self.client.get(format!("{}{path}", self.url)))
    }

    fn authorised(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// One request and its fate. `body` replaces the kind's.
    async fn ask(&self, kind: usize, body: Option<&Value>, number: usize, due: Instant) -> Sample {
        let own = body.and_then(Value::as_object);
        let fields = own.or_else(|| self.kinds.get(kind).map(|kind| &kind.body)).cloned().unwrap_or_else(Map::new);
        let mut body = json!({"prompt": "a red circle on a blue background", "response_format": "url", "cache": false});
        if let Some(body) = body.as_object_mut() {
            body.entry("seed").or_insert_with(|| json!(self.seed.wrapping_add(number as u64) >> 1));
            body.extend(fields);
        }
        let request = self.authorised(self.client.post(format!("{}/v1/images/generations", self.url))).json(&body);
        let reply = async {
            let reply = request.send().await.map_err(|error| (0, error.to_string()))?;
            let status = reply.status();
            let body: Value = reply.json().await.map_err(|error| (status.as_u16(), error.to_string()))?;
            if status.is_success() {
                return Ok((status.as_u16(), body));
            }
            Err((
                status.as_u16(),
                format!("{} {}", status.as_u16(), body["error"]["message"].as_str().unwrap_or("no message")),
            ))
        }
        .await;
        let seconds = due.elapsed().as_secs_f64();
        match reply {
            Ok((status, body)) => {
                let pictures = body["data"].as_array().map_or(0, Vec::len);
                Sample {
                    kind,
                    due: 0.0,
                    seconds,
                    status,
                    error: None,
                    pictures,
                    server: server_times(&body["metrics"]),
                }
            }
            Err((status, error)) => {
                Sample { kind, due: 0.0, seconds, status, error: Some(error), pictures: 0, server: None }
            }
        }
    }
}

fn server_times(metrics: &Value) -> Option<ServerTimes> {
    let ms = |name: &str| metrics[name].as_f64();
    Some(ServerTimes {
        queue: ms("queue_ms")?,
        encode: ms("encode_ms")?,
        denoise: ms("denoise_ms")?,
        decode: ms("decode_ms")?,
    })
}

/// Makes one run of `count` requests; `done` is told of each reply.
pub async fn drive(target: &Target, arrivals: &Arrivals, count: usize, done: impl Fn() + Send + Sync + 'static) -> Run {
    let mut random = StdRng::seed_from_u64(target.seed);
    let kinds: Arc<Vec<usize>> = Arc::new((0..count).map(|_| pick(&target.kinds, &mut random)).collect());
    let (target, done) = (Arc::new(target.clone()), Arc::new(done));
    let start = Instant::now();
    let samples = match arrivals.times(count, &mut random) {
        None => {
            let Arrivals::Closed { concurrency } = arrivals else { return empty(arrivals) };
            let next = Arc::new(AtomicUsize::new(0));
            let callers = (0..*concurrency).map(|_| {
                let (target, kinds, next, done) = (target.clone(), kinds.clone(), next.clone(), done.clone());
                tokio::spawn(async move {
                    let mut samples = Vec::new();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let Some(&kind) = kinds.get(number) else { return samples };
                        let due = Instant::now();
                        let sample = target.ask(kind, None, number, due).await;
                        samples.push(Sample { due: (due - start).as_secs_f64(), ..sample });
                        done();
                    }
                })
            });
            join_all(callers).await.into_iter().flatten().flatten().collect()
        }
        Some(times) => {
            let requests = times.into_iter().enumerate().map(|(number, at)| {
                let (target, done) = (target.clone(), done.clone());
                let kind = kinds.get(number).copied().unwrap_or_default();
                let body = match arrivals {
                    Arrivals::Trace { requests } => requests.get(number).and_then(|(_, body)| body.clone()),
                    _ => None,
                };
                tokio::spawn(async move {
                    let due = start + Duration::from_secs_f64(at);
                    tokio::time::sleep_until(due.into()).await;
                    let sample = target.ask(kind, body.as_ref(), number, due).await;
                    done();
                    Sample { due: at, ..sample }
                })
            });
            join_all(requests).await.into_iter().flatten().collect()
        }
    };
    Run { arrivals: arrivals.clone(), seconds: start.elapsed().as_secs_f64(), samples }
}

fn empty(arrivals: &Arrivals) -> Run {
    Run { arrivals: arrivals.clone(), seconds: 0.0, samples: Vec::new() }
}
