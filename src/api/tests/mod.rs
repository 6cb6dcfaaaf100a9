//! The API against the real jobs, the real engine and a small fake model.

mod auth;
mod edits;
mod fake;
mod hangup;
mod inputs;
mod jobs;
mod malformed;
mod models;
mod openai;
mod pictures;
mod plain;
mod server;
mod streaming;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use easel_models::Pipeline;
use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt;

use super::{App, router};
use crate::artifacts::Artifacts;
use crate::config::{Config, KeyConfig, Role};
use crate::engine::{EngineHandle, EngineOptions};
use crate::inputs::Fetcher;
use crate::jobs::{Jobs, JobsOptions, SqliteStore};
use crate::policy::Keys;
use crate::request::{Priority, Resolver};
use fake::Fake;

/// A server without a network.
struct Server {
    app: App,
    router: Router,
    _dir: TempDir,
}

/// An answer, read to its end.
struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    bytes: bytes::Bytes,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{e}: {:?}", self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// (status, code, param) of an error.
    fn error(&self) -> (u16, String, Option<String>) {
        let body = self.json();
        let error = &body["error"];
        assert!(error["message"].is_string() && error["type"].is_string(), "{body}");
        assert_eq!(error["request_id"].as_str(), self.header("x-request-id"), "{body}");
        assert_eq!(self.header("content-type"), Some("application/json"));
        let param = error["param"].as_str().map(ToOwned::to_owned);
        (self.status.as_u16(), error["code"].as_str().unwrap().to_owned(), param)
    }
}

impl Server {
    /// The local user's server.
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// A server with these changes of the configuration, and the models `quick`, `slow`, `tiny`, `editor` and `drawer`.
    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let models: Vec<(String, Arc<dyn Pipeline>)> = vec![
            ("quick".into(), Arc::new(Fake::exact("quick", Duration::ZERO))),
            ("slow".into(), Arc::new(Fake::exact("slow", Duration::from_millis(20)))),
            ("tiny".into(), Arc::new(Fake::resizing("tiny"))),
            ("editor".into(), Arc::new(Fake::editing("editor"))),
            ("drawer".into(), Arc::new(Fake::drawing("drawer"))),
        ];
        Self::of(models, EngineOptions::default(), |config| {
            config.models.aliases.insert("house".into(), "tiny".into());
            change(config);
        })
        .await
    }

    /// A server with these models.
    async fn of(
        models: Vec<(String, Arc<dyn Pipeline>)>,
        options: EngineOptions,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.server.data_dir = dir.path().to_owned();
        change(&mut config);
        let engine = EngineHandle::start(models, options);
        let artifacts = Artifacts::open(dir.path(), &config.artifacts).unwrap();
        let store = Arc::new(SqliteStore::open(&dir.path().join("jobs.db")).unwrap());
        let renderer = Arc::new(engine.clone());
        let jobs = Jobs::open(JobsOptions::new(&config), store, renderer, artifacts.clone()).await.unwrap();
        let app = App {
            jobs,
            resolver: Resolver::new(engine.models().to_vec(), config.limits.clone(), &config.models).unwrap(),
            engine,
            artifacts,
            fetcher: Fetcher::new(&config.fetch).unwrap(),
            keys: Arc::new(Keys::new(&config.keys).unwrap()),
            config: Arc::new(config),
            metrics: None,
            started: Timestamp::now(),
            closing: tokio_util::sync::CancellationToken::new(),
        };
        Self { router: router(app.clone()), app, _dir: dir }
    }

    /// A server with a key for each role and a second workspace: `maker`, `reader`, `other` and `admin`.
    async fn with_keys() -> Self {
        Self::with(|config| {
            config.keys = vec![
                key("maker", "default", &[Role::Generate, Role::Read]),
                key("reader", "default", &[Role::Read]),
                key("other", "elsewhere", &[Role::Generate, Role::Read]),
                key("admin", "default", &[Role::Admin]),
            ];
        })
        .await
    }

    async fn send(&self, request: Request<Body>) -> Reply {
        let reply = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = reply.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        Reply { status: parts.status, headers: parts.headers, bytes }
    }

    async fn get(&self, path: &str) -> Reply {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(post(path, body)).await
    }

    /// Makes a job and gives its id.
    async fn job(&self, body: &Value) -> String {
        let reply = self.post("/v1/jobs", body).await;
        assert_eq!(reply.status, StatusCode::ACCEPTED, "{}", reply.text());
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    /// The job, once it has ended.
    async fn ended(&self, id: &str) -> Value {
        let job = self.get(&format!("/v1/jobs/{id}?wait=60")).await.json();
        assert!(matches!(job["status"].as_str(), Some("succeeded" | "failed" | "canceled")), "{job}");
        job
    }
}

fn post(path: &str, body: &Value) -> Request<Body> {
    let request = Request::post(path).header("content-type", "application/json");
    request.body(Body::from(body.to_string())).unwrap()
}

fn with_header(mut request: Request<Body>, name: &'static str, value: &str) -> Request<Body> {
    request.headers_mut().insert(name, value.parse().unwrap());
    request
}

fn key(name: &str, workspace: &str, roles: &[Role]) -> KeyConfig {
    KeyConfig {
        name: name.into(),
        key: Some(format!("secret of {name}").replace(' ', "-")),
        key_sha256: None,
        workspace: workspace.into(),
        roles: roles.to_vec(),
        priority: Priority::Normal,
    }
}

fn bearer(request: Request<Body>, name: &str) -> Request<Body> {
    with_header(request, "authorization", &format!("Bearer secret-of-{name}"))
}

fn red() -> Value {
    json!({"prompt": "a red circle", "seed": 7})
}
