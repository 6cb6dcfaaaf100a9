//! Models whose weights come and go, as clients and operators see it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use candle_core::Tensor;
use easel_models::{Conditioning, Error, Loading, ModelCard, Prompt, RenderSpec, Result, RgbImage, Trajectory};

use super::*;

/// A fake of 8 bytes that is loaded when it is needed.
struct Lazy {
    inner: Fake,
    resident: AtomicBool,
    /// What the next attempt to load it gives.
    fails: Mutex<Option<Error>>,
    /// Loading waits until this is set.
    go: Arc<AtomicBool>,
}

impl Lazy {
    fn new(name: &str) -> Self {
        let inner = Fake::exact(name, Duration::from_millis(2));
        let go = Arc::new(AtomicBool::new(true));
        Self { inner, resident: AtomicBool::new(false), fails: Mutex::default(), go }
    }

    fn broken(name: &str) -> Self {
        let error = Error::file("unet/diffusion_pytorch_model.safetensors", "is truncated");
        Self { fails: Mutex::new(Some(error)), ..Self::new(name) }
    }
}

impl Pipeline for Lazy {
    fn card(&self) -> &ModelCard {
        self.inner.card()
    }

    fn load(&self, progress: &dyn Fn(Loading)) -> Result<()> {
        progress(Loading { done: 4, total: 8, fetching: true });
        while !self.go.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Some(error) = self.fails.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        self.resident.store(true, Ordering::SeqCst);
        progress(Loading { done: 8, total: 8, fetching: false });
        Ok(())
    }

    fn unload(&self) {
        self.resident.store(false, Ordering::SeqCst);
    }

    fn loaded(&self) -> bool {
        self.resident.load(Ordering::SeqCst)
    }

    fn weight_bytes(&self) -> u64 {
        8
    }

    fn encode(&self, prompt: &Prompt) -> Result<Conditioning> {
        self.inner.encode(prompt)
    }

    fn begin(
        &self,
        spec: &RenderSpec,
        positive: Arc<Conditioning>,
        negative: Option<Arc<Conditioning>>,
    ) -> Result<Trajectory> {
        self.inner.begin(spec, positive, negative)
    }

    fn denoise(&self, rows: &mut [&mut Trajectory]) -> Result<()> {
        assert!(self.loaded(), "used without its weights");
        self.inner.denoise(rows)
    }

    fn decode(&self, latents: &[Tensor]) -> Result<Vec<RgbImage>> {
        self.inner.decode(latents)
    }

    fn preview(&self, latents: &Tensor) -> Result<RgbImage> {
        self.inner.preview(latents)
    }

    fn row_bytes(&self, width: u32, height: u32) -> u64 {
        self.inner.row_bytes(width, height)
    }
}

/// A server with the models `one` and `two`, of which only one fits at a time.
async fn tight() -> Server {
    let options = EngineOptions { weights_bytes: Some(10), ..EngineOptions::default() };
    Server::of([Lazy::new("one"), Lazy::new("two")].map(boxed).into(), options, |_| {}).await
}

fn boxed(model: Lazy) -> (String, Arc<dyn Pipeline>) {
    (model.inner.name.clone(), Arc::new(model))
}

async fn state(server: &Server, model: &str) -> String {
    server.get(&format!("/v1/models/{model}")).await.json()["state"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_job_tells_that_its_model_is_being_loaded_and_how_far() {
    let server = tight().await;
    let id = server.job(&json!({"prompt": "x", "model": "two"})).await;
    let events = server.get(&format!("/v1/jobs/{id}/events")).await.text();
    let kinds: Vec<&str> = events.lines().filter_map(|line| line.strip_prefix("event:")).map(str::trim).collect();
    let first =
        |kind: &str| kinds.iter().position(|other| *other == kind).unwrap_or_else(|| panic!("{kind}: {kinds:?}"));
    assert!(first("queued") < first("loading") && first("loading") < first("started"), "{kinds:?}");
    let data: Vec<Value> = events
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data:")?.trim()).ok())
        .filter(|data| data["type"] == "loading")
        .collect();
    assert!(data.iter().all(|data| data["status"] == "queued"), "{data:?}");
    let seen: Vec<&Value> = data.iter().map(|data| &data["loading"]).collect();
    assert!(seen.contains(&&json!({"model": "two", "done": 4, "total": 8, "fetching": true})), "{seen:?}");
    let job = server.ended(&id).await;
    assert_eq!((&job["status"], &job["loading"]), (&json!("succeeded"), &Value::Null));
}

#[tokio::test]
async fn models_tell_where_their_weights_are() {
    let server = tight().await;
    let model = server.get("/v1/models/one").await.json();
    assert_eq!(
        (&model["state"], &model["weight_bytes"], &model["pinned"]),
        (&json!("unloaded"), &json!(8), &json!(false))
    );
    for (model, other) in [("one", "two"), ("two", "one")] {
        let id = server.job(&json!({"prompt": "x", "model": model})).await;
        assert_eq!(server.ended(&id).await["status"], "succeeded");
        assert_eq!((state(&server, model).await.as_str(), state(&server, other).await.as_str()), ("ready", "unloaded"));
    }
}

#[tokio::test]
async fn a_model_whose_weights_are_broken_fails_its_jobs_by_the_file_and_nobody_elses() {
    let models = [Lazy::broken("one"), Lazy::new("two")].map(boxed).into();
    let server = Server::of(models, EngineOptions::default(), |_| {}).await;
    let reply = server.post("/v1/images/generations", &json!({"prompt": "x", "model": "one"})).await;
    assert_eq!(reply.error(), (503, "model_failed".into(), Some("model".into())));
    assert!(reply.text().contains("unet/diffusion_pytorch_model.safetensors: is truncated"), "{}", reply.text());
    let model = server.get("/v1/models/one").await.json();
    assert_eq!(model["state"], "failed");
    assert!(model["error"].as_str().unwrap().contains("is truncated"));
    let id = server.job(&json!({"prompt": "x", "model": "two"})).await;
    assert_eq!(server.ended(&id).await["status"], "succeeded");
    assert_eq!(server.get("/readyz").await.status, StatusCode::OK);
    // The operator has mended the file.
    let model = server.post("/admin/v1/models/one/load?wait=30", &json!({})).await.json();
    assert_eq!((&model["state"], &model["error"]), (&json!("ready"), &Value::Null));
}

#[tokio::test]
async fn the_server_is_ready_once_what_is_to_be_there_from_the_start_is() {
    let options = EngineOptions { preload: vec!["one".into()], ..EngineOptions::default() };
    let models = [Lazy::new("one"), Lazy::new("two")];
    let go = Arc::clone(&models[0].go);
    go.store(false, Ordering::SeqCst);
    let server = Server::of(models.map(boxed).into(), options, |_| {}).await;
    assert_eq!(server.get("/readyz").await.error(), (503, "model_loading".into(), None));
    go.store(true, Ordering::SeqCst);
    while server.get("/readyz").await.status != StatusCode::OK {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!((state(&server, "one").await.as_str(), state(&server, "two").await.as_str()), ("ready", "unloaded"));

    // With nothing but broken models there is nothing to be ready for.
    let options = EngineOptions { preload: vec!["one".into()], ..EngineOptions::default() };
    let server = Server::of(vec![boxed(Lazy::broken("one"))], options, |_| {}).await;
    while state(&server, "one").await != "failed" {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(server.get("/readyz").await.error(), (503, "model_failed".into(), None));
}

#[tokio::test]
async fn an_operator_loads_pins_and_unloads_models() {
    let server = tight().await;
    let command = async |path: &str| server.post(&format!("/admin/v1/models/{path}"), &json!({})).await;
    assert_eq!(command("one/load?wait=30").await.json()["state"], "ready");
    let pinned = command("one/pin").await.json();
    assert_eq!((&pinned["state"], &pinned["pinned"]), (&json!("ready"), &json!(true)));
    assert_eq!(command("one/unload").await.error(), (409, "model_pinned".into(), None));
    // Nothing else fits beside the pinned one, which is told without being tried.
    let reply = server.post("/v1/images/generations", &json!({"prompt": "x", "model": "two"})).await;
    assert_eq!(reply.error().1, "out_of_memory");
    assert_eq!(command("one/unpin").await.json()["pinned"], false);
    assert_eq!(command("one/unload?wait=30").await.json()["state"], "unloaded");
    assert_eq!(command("two/load?wait=30").await.json()["state"], "ready");
    let list = server.get("/admin/v1/models").await.json();
    let states: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|model| &model["state"]).collect();
    assert_eq!(states, ["unloaded", "ready"]);
    assert_eq!(command("three/load").await.error().1, "model_not_found");
    assert_eq!(command("one/load?wait=601").await.error(), (400, "invalid_request".into(), Some("wait".into())));
    assert_eq!(command("one/paint").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn only_an_admin_may_load_and_unload() {
    let server = Server::with_keys().await;
    for path in ["load", "unload", "pin", "unpin"] {
        let request = || post(&format!("/admin/v1/models/quick/{path}"), &json!({}));
        assert_eq!(server.send(request()).await.error().0, 401);
        for key in ["maker", "reader"] {
            assert_eq!(server.send(bearer(request(), key)).await.error().1, "insufficient_role", "{key}");
        }
        assert_eq!(server.send(bearer(request(), "admin")).await.status, StatusCode::OK, "{path}");
    }
    let list = || Request::get("/admin/v1/models").body(Body::empty()).unwrap();
    assert_eq!(server.send(bearer(list(), "reader")).await.error().0, 403);
    assert_eq!(server.send(bearer(list(), "admin")).await.status, StatusCode::OK);
}
