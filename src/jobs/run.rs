//! One job's way from the queue to its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use easel_models::{RgbImage, Size};
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::inner::Inner;
use super::live::Live;
use super::store::{Ending, StoreError};
use super::{Job, JobError, JobMetrics, ModelLoading, Output, Status, meters};
use crate::engine::{EngineEvent, Pictures, SecondStage, Work, WorkError, WorkMetrics};

/// Previews of each picture that are made for whoever watches a job that asked for none. The engine projects
/// the latents in any case, which is little beside a step; pictures of it are made only while somebody watches.
const WATCHED_PREVIEWS: u32 = 4;
/// Previews of one job that may be in the making; more are left out.
const PREVIEWS_AT_ONCE: usize = 8;
/// The first and the longest pause between attempts to write to a full disk.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(10)];

/// Hands a stored job to the engine, and follows it to its end.
pub(super) fn start(inner: &Arc<Inner>, live: Arc<Live>) {
    let (sender, events) = mpsc::unbounded_channel();
    meters::enters(Status::Queued);
    if live.read(|job| job.request.images.is_empty()) {
        hand_over(inner, &live, &sender, Pictures::default());
    } else {
        tokio::spawn(unpack(inner.clone(), live.clone(), sender));
    }
    tokio::spawn(run(inner.clone(), live, events));
}

/// Reads what the job starts from, and hands it over. Its caller may hang up meanwhile, which the engine then sees.
async fn unpack(inner: Arc<Inner>, live: Arc<Live>, events: UnboundedSender<EngineEvent>) {
    let request = live.read(|job| job.request.clone());
    match inner.artifacts.pictures(&request).await {
        Ok(pictures) => hand_over(&inner, &live, &events, pictures),
        // The receiver may be gone, with the job.
        Err(error) => drop(events.send(EngineEvent::Failed(WorkError::Internal(error.to_string())))),
    }
}

fn hand_over(inner: &Inner, live: &Live, events: &UnboundedSender<EngineEvent>, pictures: Pictures) {
    let work = live.read(|job| work(job, pictures, events.clone()));
    if let Err(error) = inner.renderer.submit(work) {
        // The receiver may be gone, with the job.
        let _ = events.send(EngineEvent::Failed(error));
    }
}

fn work(job: &Job, pictures: Pictures, events: UnboundedSender<EngineEvent>) -> Work {
    let request = &job.request;
    Work {
        job: job.id.clone(),
        model: request.model.clone(),
        prompt: request.positive(),
        negative: request.negative(),
        specs: request.specs(),
        pictures,
        priority: request.priority,
        owner: job.workspace.clone(),
        previews: if request.partial_images > 0 { request.partial_images } else { WATCHED_PREVIEWS },
        second: request.refiner.as_ref().map(|refiner| SecondStage {
            model: refiner.model.clone(),
            prompt: request.positive(),
            negative: request.negative(),
            from: refiner.start,
            specs: request.refiner_specs(),
        }),
        events,
    }
}

/// How a job leaves this process.
enum End {
    Succeeded(WorkMetrics),
    Failed(JobError),
    /// Called off, with the reason where it was not the caller.
    Canceled(Option<JobError>),
    /// The process is about to end, and the job is to be rendered after the next start.
    PutBack,
}

async fn run(inner: Arc<Inner>, live: Arc<Live>, events: UnboundedReceiver<EngineEvent>) {
    let id = live.read(|job| job.id.clone());
    let end = drive(&inner, &live, events).await;
    let was = live.read(|job| job.status);
    match end {
        End::PutBack => put_back(&inner, &live, &id).await,
        end => finish(&inner, &live, &id, end).await,
    }
    meters::leaves(was);
    if live.read(|job| job.status.ended()) {
        inner.live.ended(&id, Instant::now());
    } else {
        inner.live.remove(&id);
    }
    live.close();
}

/// A preview or a picture that has been made of an event.
enum Made {
    Preview(usize, u32, Bytes),
    Output(Output),
    /// A preview that could not be made; the job goes on without it.
    Nothing,
}

/// What is being made of the engine's pictures. It is told in the order of the engine's events, so that a
/// picture's previews come before the picture.
type Making = FuturesOrdered<BoxFuture<'static, Result<Made, JobError>>>;

/// Follows the engine's events to the end, and until nothing of the job is being written any more.
async fn drive(inner: &Arc<Inner>, live: &Arc<Live>, mut events: UnboundedReceiver<EngineEvent>) -> End {
    let stop = live.cancel.child_token();
    let mut making = Making::new();
    let mut finished = None;
    let end = loop {
        if let Some(metrics) = finished
            && making.is_empty()
        {
            break all_there(live, metrics);
        }
        tokio::select! {
            biased;
            () = live.cancel.cancelled() => break End::Canceled(None),
            Some(made) = making.next() => match made {
                Ok(Made::Preview(image, index, png)) => live.preview(image, index, png),
                Ok(Made::Output(output)) => live.output(output),
                Ok(Made::Nothing) => {}
                Err(error) => break End::Failed(error),
            },
            event = events.recv(), if finished.is_none() => match event {
                Some(EngineEvent::Queued { position, eta }) => live.queued(position, eta),
                Some(EngineEvent::Loading { model, done, total, fetching }) => {
                    live.loading(ModelLoading { model, done, total, fetching });
                }
                Some(EngineEvent::Started) => started(inner, live).await,
                Some(EngineEvent::Progress { image, step, steps, eta }) => live.progress(image, step, steps, eta),
                Some(EngineEvent::Preview { image, index, picture }) => {
                    let asked = live.read(|job| job.request.partial_images > 0);
                    if asked || (live.watched() && making.len() < PREVIEWS_AT_ONCE) {
                        making.push_back(preview(inner, live, image, index, picture));
                    }
                }
                Some(EngineEvent::Image { image, picture }) => {
                    making.push_back(keep(inner.clone(), live.clone(), image, picture, stop.clone()).boxed());
                }
                Some(EngineEvent::Finished(metrics)) => finished = Some(metrics),
                Some(EngineEvent::Failed(WorkError::ShuttingDown)) => break interrupted(live),
                Some(EngineEvent::Failed(error)) => break End::Failed(job_error(error)),
                None if inner.closing.load(Ordering::Relaxed) => break interrupted(live),
                None => break End::Failed(internal("the engine has dropped the job".into())),
            },
        }
    };
    // The engine drops what it still has of the job at the next step boundary; what is being written is
    // awaited, for afterwards the files may be removed.
    drop(events);
    stop.cancel();
    while making.next().await.is_some() {}
    end
}

/// How a job ends whose rendering the server's end cuts short.
fn interrupted(live: &Live) -> End {
    if live.tied.load(Ordering::Relaxed) {
        // Its caller is told to ask again; rendered after the next start, it would be made twice.
        End::Canceled(Some(job_error(WorkError::ShuttingDown)))
    } else {
        End::PutBack
    }
}

fn all_there(live: &Live, metrics: WorkMetrics) -> End {
    let (there, asked) = live.read(|job| (job.outputs.len(), job.request.n as usize));
    if there == asked {
        End::Succeeded(metrics)
    } else {
        End::Failed(internal(format!("the engine made {there} of {asked} pictures")))
    }
}

async fn started(inner: &Inner, live: &Live) {
    let now = inner.now();
    live.started(now);
    meters::leaves(Status::Queued);
    meters::enters(Status::Running);
    let id = live.read(|job| job.id.clone());
    // The end is stored with the start, so this is for whoever lists the store meanwhile.
    if let Err(error) = inner.store.start(&id, now).await {
        tracing::warn!(job = id, %error, "cannot store that the job has started");
    }
}

fn preview(
    inner: &Inner,
    live: &Live,
    image: usize,
    index: u32,
    picture: Arc<RgbImage>,
) -> BoxFuture<'static, Result<Made, JobError>> {
    let (id, delivered) =
        live.read(|job| (job.id.clone(), Size { width: job.request.width, height: job.request.height }));
    let artifacts = inner.artifacts.clone();
    async move {
        match artifacts.preview(delivered, picture).await {
            Ok(png) => Ok(Made::Preview(image, index, png)),
            Err(error) => {
                tracing::warn!(job = id, image, %error, "cannot make a preview");
                Ok(Made::Nothing)
            }
        }
    }
    .boxed()
}

/// Encodes and keeps a picture. While there is no room for it the job waits, and is not lost.
async fn keep(
    inner: Arc<Inner>,
    live: Arc<Live>,
    image: usize,
    picture: Arc<RgbImage>,
    stop: CancellationToken,
) -> Result<Made, JobError> {
    let (id, request) = live.read(|job| (job.id.clone(), job.request.clone()));
    let start = Instant::now();
    let encoded = inner.artifacts.encode(&request, image, picture).await;
    let (file, sha256) = encoded.map_err(|error| internal(format!("picture {image} cannot be encoded: {error}")))?;
    let (encode, start) = (start.elapsed(), Instant::now());
    let mut pauses = Pauses::new();
    while let Err(error) = inner.artifacts.keep(&id, image, file.clone()).await {
        let pause = pauses.next();
        tracing::warn!(job = id, image, %error, again_in = ?pause, "cannot keep a picture");
        tokio::select! {
            () = stop.cancelled() => return Ok(Made::Nothing),
            () = sleep(pause) => {}
        }
    }
    meters::kept(encode, start.elapsed());
    Ok(Made::Output(Output {
        index: image,
        seed: request.seed_of(image),
        width: request.width,
        height: request.height,
        content_type: file.format.content_type().into(),
        sha256,
        bytes: file.bytes.len() as u64,
    }))
}

/// Stores the job's end, however long the disk is full, and tells of it.
async fn finish(inner: &Inner, live: &Live, id: &str, end: End) {
    let ending = ending(live, end, inner.now());
    let mut pauses = Pauses::new();
    let first = loop {
        match inner.store.finish(id, ending.clone()).await {
            Ok(first) => break first,
            // The process ends; the job is rendered again after the next start.
            Err(StoreError::Closed) => return,
            Err(error) => {
                let pause = pauses.next();
                tracing::warn!(job = id, %error, again_in = ?pause, "cannot store the job's end");
                sleep(pause).await;
            }
        }
    };
    if !first {
        return ended_elsewhere(inner, live, id).await;
    }
    let latency = between(live.read(|job| job.created_at), ending.finished_at);
    meters::ended(ending.status, latency);
    let error = ending.error.as_ref().map(|error| error.message.as_str());
    tracing::info!(job = id, status = ending.status.name(), latency_s = latency.as_secs_f64(), error, "job ended");
    if ending.status != Status::Succeeded
        && let Err(error) = inner.artifacts.remove(id).await
    {
        // They go with the job, when it is deleted or its time is over.
        tracing::warn!(job = id, %error, "cannot remove the pictures of a job that did not succeed");
    }
    live.end(ending);
}

fn ending(live: &Live, end: End, finished_at: Timestamp) -> Ending {
    let job = live.job();
    let last_event = live.next_event();
    let Job { started_at, outputs, mut warnings, .. } = job;
    let (status, outputs, metrics, error) = match end {
        End::Succeeded(metrics) => {
            if metrics.truncated {
                warnings.push("the end of `prompt` does not fit into the model's text encoder and was left out".into());
            }
            let latency = between(job.created_at, finished_at);
            (Status::Succeeded, outputs, Some(job_metrics(metrics, latency)), None)
        }
        End::Failed(error) => (Status::Failed, Vec::new(), None, Some(error)),
        End::Canceled(error) => (Status::Canceled, Vec::new(), None, error),
        End::PutBack => (Status::Canceled, Vec::new(), None, None),
    };
    Ending { status, started_at, finished_at, outputs, metrics, error, warnings, last_event }
}

/// Another worker was first, or the record is gone; its word stands.
async fn ended_elsewhere(inner: &Inner, live: &Live, id: &str) {
    tracing::warn!(job = id, "the job has been ended elsewhere");
    let stored = inner.store.get(id).await.ok().flatten();
    let job = stored.map_or_else(|| Job { status: Status::Canceled, ..live.job() }, |stored| stored.job);
    live.end_as(job);
}

async fn put_back(inner: &Inner, live: &Live, id: &str) {
    // At the next start it is found either way.
    if let Err(error) = inner.store.release(id).await {
        tracing::warn!(job = id, %error, "cannot put the job back into the queue");
    }
    tracing::info!(job = id, "job put back into the queue");
    live.release();
}

fn job_metrics(metrics: WorkMetrics, latency: Duration) -> JobMetrics {
    // Whole microseconds have a short decimal form, which the store gives back as it was.
    let ms = |duration: Duration| duration.as_micros() as f64 / 1000.0;
    JobMetrics {
        queue_ms: ms(metrics.queued),
        encode_ms: ms(metrics.encode),
        denoise_ms: ms(metrics.denoise),
        decode_ms: ms(metrics.decode),
        latency_ms: ms(latency),
        steps: metrics.steps,
        batch_rows_mean: metrics.batch_rows_mean,
        prompt_tokens: metrics.prompt_tokens,
    }
}

fn job_error(error: WorkError) -> JobError {
    let message = error.to_string();
    match error {
        WorkError::OutOfMemory(_) => JobError { code: "out_of_memory".into(), message, param: None },
        WorkError::Request { param, message } => {
            JobError { code: "invalid_request".into(), message, param: Some(param.into()) }
        }
        WorkError::Model(_) => JobError { code: "model_failed".into(), message, param: Some("model".into()) },
        WorkError::ShuttingDown => JobError { code: "shutting_down".into(), message, param: None },
        WorkError::Internal(_) => internal(message),
    }
}

fn internal(message: String) -> JobError {
    JobError { code: "internal".into(), message, param: None }
}

/// The time from one to the other; none if the clock was set back meanwhile.
fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// Pauses that double up to a cap.
struct Pauses(Duration);

impl Pauses {
    fn new() -> Self {
        Self(PAUSES[0])
    }

    fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(PAUSES[1]);
        pause
    }
}
