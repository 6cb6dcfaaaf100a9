//! Jobs against a real store and real files, with an engine that the tests play themselves.

mod faults;
mod inputs;
mod life;
mod watching;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use easel_models::{RgbImage, Size};
use futures::{FutureExt, Stream, StreamExt};
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::store::{Ending, Inserted, Lease, NewJob, NewKey, Reply, Stored};
use super::*;
use crate::artifacts::{Artifacts, Disk, Storage};
use crate::config::ArtifactsConfig;
use crate::engine::{EngineEvent, Work, WorkError, WorkMetrics};
use crate::policy::Caller;
use crate::request::{LongPrompt, OutputFormat, Priority, ResolvedRequest};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

fn request(seed: u64, n: u32) -> ResolvedRequest {
    ResolvedRequest {
        model: "tiny".into(),
        prompt: "a red circle".into(),
        negative_prompt: None,
        n,
        width: 16,
        height: 16,
        rendered: Size { width: 16, height: 16 },
        steps: 4,
        guidance: 5.0,
        seed,
        sampler: "ddim".into(),
        schedule: "default".into(),
        sampling: Default::default(),
        clip_skip: 0,
        true_guidance: None,
        prompt_weighting: false,
        long_prompt: LongPrompt::Truncate,
        refiner: None,
        images: Vec::new(),
        mask: None,
        strength: None,
        output_format: OutputFormat::Png,
        output_compression: 100,
        partial_images: 0,
        priority: Priority::Normal,
        user: None,
    }
}

fn key(key: &str, body: u8) -> Option<Idempotency> {
    Some(Idempotency { key: key.into(), body_sha256: [body; 32] })
}

/// What a seed looks like.
fn picture(seed: u64, width: u32, height: u32) -> Arc<RgbImage> {
    let pixels =
        (0..width * height * 3).map(|i| (u64::from(i) * 7).wrapping_add(seed.wrapping_mul(31)) as u8).collect();
    Arc::new(RgbImage { width, height, pixels })
}

/// An engine whose work the test takes and does.
struct Hand(mpsc::UnboundedSender<Work>);

impl Renderer for Hand {
    fn submit(&self, work: Work) -> Result<(), WorkError> {
        self.0.send(work).map_err(|_| WorkError::ShuttingDown)
    }
}

/// An engine that does all work at once. It keeps what it has, so that a crash is not told as an engine that drops
/// its jobs one by one.
#[derive(Default)]
struct Prompt(Mutex<Vec<Arc<Work>>>);

impl Renderer for Prompt {
    fn submit(&self, work: Work) -> Result<(), WorkError> {
        let work = Arc::new(work);
        self.0.lock().unwrap().push(work.clone());
        tokio::spawn(async move { render(&work) });
        Ok(())
    }
}

fn send(work: &Work, event: EngineEvent) {
    // The job may have been called off.
    let _ = work.events.send(event);
}

/// What the engine tells of a piece of work that goes well.
fn render(work: &Work) {
    send(work, EngineEvent::Started);
    for (image, spec) in work.specs.iter().enumerate() {
        let steps = spec.sampling.steps;
        for step in 1..=steps {
            send(work, EngineEvent::Progress { image, step, steps, eta: Some(Duration::from_millis(5)) });
        }
        render_image(work, image);
    }
    let steps = work.specs.iter().map(|spec| spec.sampling.steps).sum();
    send(
        work,
        EngineEvent::Finished(WorkMetrics { steps, denoise: Duration::from_millis(7), ..WorkMetrics::default() }),
    );
}

fn render_image(work: &Work, image: usize) {
    let spec = &work.specs[image];
    send(work, EngineEvent::Image { image, picture: picture(spec.seed, spec.width, spec.height) });
}

/// A storage that can be full.
#[derive(Clone)]
struct Files {
    disk: Disk,
    full: Arc<AtomicBool>,
    /// The job whose files cannot be removed.
    stuck: Arc<Mutex<String>>,
}

impl Storage for Files {
    fn put(&self, job: &str, file: &str, bytes: &[u8]) -> io::Result<()> {
        if self.full.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.disk.put(job, file, bytes)
    }

    fn get(&self, job: &str, file: &str) -> io::Result<Option<Vec<u8>>> {
        self.disk.get(job, file)
    }

    fn remove(&self, job: &str) -> io::Result<()> {
        if *self.stuck.lock().unwrap() == job {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.disk.remove(job)
    }

    fn has(&self, job: &str, file: &str) -> io::Result<bool> {
        self.disk.has(job, file)
    }

    fn inputs(&self) -> io::Result<Vec<String>> {
        self.disk.inputs()
    }
}

/// A store that can be full, and that counts endings.
struct Records {
    sqlite: SqliteStore,
    full: Arc<AtomicBool>,
    endings: Mutex<BTreeMap<String, u32>>,
}

impl Records {
    fn unless_full<'a, T: Send + 'a>(&'a self, reply: impl FnOnce() -> Reply<'a, T>) -> Reply<'a, T> {
        if self.full.load(Ordering::Relaxed) { async { Err(StoreError::Full) }.boxed() } else { reply() }
    }
}

impl Store for Records {
    fn insert(&self, new: NewJob) -> Reply<'_, Inserted> {
        self.unless_full(|| self.sqlite.insert(new))
    }
    fn claim(&self, lease: Lease, limit: usize) -> Reply<'_, Vec<Job>> {
        self.sqlite.claim(lease, limit)
    }
    fn renew(&self, lease: Lease) -> Reply<'_, usize> {
        self.sqlite.renew(lease)
    }
    fn start(&self, id: &str, at: Timestamp) -> Reply<'_, ()> {
        self.unless_full(|| self.sqlite.start(id, at))
    }
    fn release(&self, id: &str) -> Reply<'_, ()> {
        self.sqlite.release(id)
    }
    fn finish(&self, id: &str, ending: Ending) -> Reply<'_, bool> {
        let id = id.to_owned();
        self.unless_full(|| {
            async move {
                let first = self.sqlite.finish(&id, ending).await?;
                *self.endings.lock().unwrap().entry(id).or_default() += u32::from(first);
                Ok(first)
            }
            .boxed()
        })
    }
    fn get(&self, id: &str) -> Reply<'_, Option<Stored>> {
        self.sqlite.get(id)
    }
    fn list(&self, workspace: &str, query: ListQuery) -> Reply<'_, Option<Page>> {
        self.sqlite.list(workspace, query)
    }
    fn remove(&self, id: &str) -> Reply<'_, bool> {
        self.sqlite.remove(id)
    }
    fn ended_before(&self, time: Timestamp, limit: usize) -> Reply<'_, Vec<String>> {
        self.sqlite.ended_before(time, limit)
    }
    fn forget_keys(&self, time: Timestamp) -> Reply<'_, usize> {
        self.sqlite.forget_keys(time)
    }
    fn replay(&self, workspace: &str, api_key: &str, key: NewKey) -> Reply<'_, Option<Inserted>> {
        self.sqlite.replay(workspace, api_key, key)
    }
    fn unused_inputs(&self, hashes: Vec<String>) -> Reply<'_, Vec<String>> {
        self.sqlite.unused_inputs(hashes)
    }
}

/// Jobs over a data folder, with what a test turns.
struct House {
    jobs: Jobs,
    artifacts: Artifacts,
    store: Arc<Records>,
    disk_full: Arc<AtomicBool>,
    stuck: Arc<Mutex<String>>,
    store_full: Arc<AtomicBool>,
    /// Seconds that the clock is ahead.
    ahead: Arc<AtomicI64>,
}

impl House {
    async fn open(folder: &Path, renderer: impl Renderer, max_queue: usize) -> Self {
        let store_full = Arc::new(AtomicBool::new(false));
        let disk_full = Arc::new(AtomicBool::new(false));
        let sqlite = SqliteStore::open(&folder.join("jobs.sqlite")).unwrap();
        let store = Arc::new(Records { sqlite, full: store_full.clone(), endings: Mutex::default() });
        let stuck = Arc::new(Mutex::default());
        let disk = Disk::open(&folder.join("artifacts")).unwrap();
        let files = Files { disk, full: disk_full.clone(), stuck: stuck.clone() };
        let artifacts = Artifacts::with_storage(Box::new(files), folder, &ArtifactsConfig::default()).unwrap();
        let ahead = Arc::new(AtomicI64::new(0));
        let clock: Clock = {
            let ahead = ahead.clone();
            Arc::new(move || Timestamp::now() + jiff::SignedDuration::from_secs(ahead.load(Ordering::Relaxed)))
        };
        let options = JobsOptions { max_queue, retention_days: 30, clock };
        let jobs = Jobs::open(options, store.clone(), Arc::new(renderer), artifacts.clone()).await.unwrap();
        Self { jobs, artifacts, store, disk_full, stuck, store_full, ahead }
    }

    /// A house whose engine renders at once.
    async fn prompt() -> (TempDir, Self) {
        let folder = tempfile::tempdir().unwrap();
        let house = Self::open(folder.path(), Prompt::default(), 1000).await;
        (folder, house)
    }

    /// A house whose engine is the test.
    async fn by_hand() -> (TempDir, Self, mpsc::UnboundedReceiver<Work>) {
        let folder = tempfile::tempdir().unwrap();
        let (sender, works) = mpsc::unbounded_channel();
        let house = Self::open(folder.path(), Hand(sender), 1000).await;
        (folder, house, works)
    }

    async fn submit(&self, request: ResolvedRequest) -> Job {
        self.try_submit(request, None).await.unwrap().job
    }

    async fn try_submit(
        &self,
        request: ResolvedRequest,
        idempotency: Option<Idempotency>,
    ) -> Result<Submitted, SubmitError> {
        self.jobs.submit(&Caller::local(), request, BTreeMap::new(), BTreeMap::new(), Vec::new(), idempotency).await
    }

    async fn wait(&self, id: &str) -> Job {
        self.jobs.wait(&Caller::local(), id, LONG).await.unwrap()
    }

    async fn get(&self, id: &str) -> Job {
        self.jobs.get(&Caller::local(), id).await.unwrap()
    }

    async fn watch(&self, id: &str, after: Option<u64>) -> impl Stream<Item = JobEvent> + use<> {
        self.jobs.watch(&Caller::local(), id, after).await.unwrap().boxed()
    }
}

/// A stream's events, which must come to an end.
async fn drain(events: impl Stream<Item = JobEvent>) -> Vec<JobEvent> {
    tokio::time::timeout(LONG, events.collect()).await.unwrap()
}

fn names(events: &[JobEvent]) -> Vec<&'static str> {
    events.iter().map(|event| event.kind.name()).collect()
}

/// Waits until something is so.
async fn until(mut reached: impl AsyncFnMut() -> bool) {
    let deadline = std::time::Instant::now() + LONG;
    while !reached().await {
        assert!(std::time::Instant::now() < deadline, "it does not come to it");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
