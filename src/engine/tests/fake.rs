//! A small honest model: real tensors, a real batch, and a closed form to compare with.
//!
//! Each call moves every row half of the way to a target that its prompt (and guidance) gives, so after n steps the
//! latents are `target + (start - target) / 2^n`, with the start given by the seed. Pictures are the bits of the
//! latents.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use easel_models::samplers::{Progress, Query, Sampler, SamplingSpec};
use easel_models::{
    Abilities, BatchKey, Conditioning, Error, Fit, Loading, ModelCard, Pipeline, Prompt, RenderSpec, Result, RgbImage,
    Size, Sizes, Stage, Trajectory,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::engine::{EngineEvent, EngineHandle, EngineOptions, Pictures, SecondStage, Work, WorkError, WorkMetrics};
use crate::request::Priority;

/// The longest that anything in these tests may take; reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the fake costs and where it fails.
pub(in crate::engine) struct Fake {
    pub(in crate::engine) card: ModelCard,
    pub(in crate::engine) name: String,
    /// Of a call: a part that does not depend on its rows, and one for each row.
    pub(in crate::engine) call: Duration,
    pub(in crate::engine) row: Duration,
    pub(in crate::engine) decode: Duration,
    pub(in crate::engine) encode: Duration,
    /// Calls with more rows do not fit.
    pub(in crate::engine) fits: usize,
    /// Decodes that do not fit while denoising happens.
    pub(in crate::engine) decode_needs_quiet: bool,
    /// Prompts whose encoding does not.
    pub(in crate::engine) encode_needs_quiet: Option<&'static str>,
    /// Calls in which rows of both of these targets meet fail.
    pub(in crate::engine) unbearable: Option<(f32, f32)>,
    pub(in crate::engine) denoising: AtomicUsize,
    pub(in crate::engine) quiet_broken: AtomicUsize,
    pub(in crate::engine) encodes: AtomicUsize,
    pub(in crate::engine) decodes: AtomicUsize,
    pub(in crate::engine) weights: Weights,
    /// The target of each row of each call, as they came.
    pub(in crate::engine) calls: Mutex<Vec<Vec<f32>>>,
}

impl Fake {
    pub(in crate::engine) fn new(name: &str) -> Self {
        let native = Size { width: 64, height: 64 };
        let card = ModelCard {
            family: "fake".into(),
            description: String::new(),
            native,
            subjects: Vec::new(),
            sizes: Sizes::Any { multiple: 8, min: 8, max: 1024 },
            fit: Fit::Exact,
            steps: 10,
            guidance: 1.0,
            sampler: "halving".into(),
            samplers: vec!["halving".into()],
            abilities: Abilities::default(),
            context_tokens: 4,
            clip_layers: 0,
            parameters: 1,
            dtype: "f32".into(),
            scheduler: easel_models::samplers::SchedulerConfig::default(),
        };
        Self {
            card,
            name: name.into(),
            call: Duration::ZERO,
            row: Duration::ZERO,
            decode: Duration::ZERO,
            encode: Duration::ZERO,
            fits: usize::MAX,
            decode_needs_quiet: false,
            encode_needs_quiet: None,
            unbearable: None,
            denoising: AtomicUsize::new(0),
            quiet_broken: AtomicUsize::new(0),
            encodes: AtomicUsize::new(0),
            decodes: AtomicUsize::new(0),
            weights: Weights::default(),
            calls: Mutex::default(),
        }
    }

    /// With weights of this many bytes that are loaded in this many milliseconds, when they are needed.
    pub(in crate::engine) fn lazy(name: &str, bytes: u64, milliseconds: u64) -> Self {
        let load = Duration::from_millis(milliseconds);
        Self {
            weights: Weights { bytes, load, resident: AtomicBool::new(false), ..Weights::default() },
            ..Self::new(name)
        }
    }

    /// With calls that take this many milliseconds, however many rows they have.
    pub(in crate::engine) fn taking(name: &str, milliseconds: u64) -> Self {
        Self { call: Duration::from_millis(milliseconds), ..Self::new(name) }
    }

    /// The targets of the rows of each successful call.
    pub(in crate::engine) fn calls(&self) -> Vec<Vec<f32>> {
        self.calls.lock().unwrap().clone()
    }

    /// Rows of the largest call.
    pub(in crate::engine) fn largest(&self) -> usize {
        self.calls().iter().map(Vec::len).max().unwrap_or_default()
    }

    /// Which rows of the calls had this prompt, by the calls' order.
    pub(in crate::engine) fn calls_of(&self, prompt: &str) -> Vec<usize> {
        let target = target(prompt);
        let has = |(index, call): (usize, Vec<f32>)| call.contains(&target).then_some(index);
        self.calls().into_iter().enumerate().filter_map(has).collect()
    }
}

/// What loading the fake is like.
pub(in crate::engine) struct Weights {
    pub(in crate::engine) bytes: u64,
    pub(in crate::engine) load: Duration,
    pub(in crate::engine) resident: AtomicBool,
    pub(in crate::engine) fails: Mutex<Option<Error>>,
    pub(in crate::engine) loads: AtomicUsize,
    pub(in crate::engine) unloads: AtomicUsize,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            bytes: 0,
            load: Duration::ZERO,
            resident: AtomicBool::new(true),
            fails: Mutex::default(),
            loads: AtomicUsize::new(0),
            unloads: AtomicUsize::new(0),
        }
    }
}

impl Weights {
    pub(in crate::engine) fn resident(&self) -> bool {
        self.resident.load(Ordering::SeqCst)
    }

    pub(in crate::engine) fn loads(&self) -> usize {
        self.loads.load(Ordering::SeqCst)
    }

    pub(in crate::engine) fn unloads(&self) -> usize {
        self.unloads.load(Ordering::SeqCst)
    }
}

/// What a prompt's rows move to.
pub(in crate::engine) fn target(prompt: &str) -> f32 {
    prompt.bytes().fold(1.0, |sum, byte| (sum * 31.0 + f32::from(byte)) % 9973.0)
}

fn start(seed: u64) -> f32 {
    (seed % 1009) as f32 / 7.0
}

/// The latents that a picture must end with, by stepping one number.
pub(in crate::engine) fn solution(prompt: &str, seed: u64, steps: usize, guidance: f64) -> f32 {
    let guided = guided(target(prompt), (guidance > 1.0).then(|| target("")), guidance);
    (0..steps).fold(start(seed), |x, _| (x + guided) * 0.5)
}

fn guided(positive: f32, negative: Option<f32>, guidance: f64) -> f32 {
    negative.map_or(positive, |negative| negative + (positive - negative) * guidance as f32)
}

struct Halving {
    latents: Tensor,
    progress: Progress,
}

impl Sampler for Halving {
    fn query(&self) -> Result<Option<Query>> {
        let query = Query { timestep: 0.0, sigma: 1.0, input: self.latents.clone() };
        Ok((self.progress.step < self.progress.steps).then_some(query))
    }

    fn advance(&mut self, output: &Tensor) -> Result<()> {
        self.latents = output.clone();
        self.progress.step += 1;
        Ok(())
    }

    fn progress(&self) -> Progress {
        self.progress
    }

    fn latents(&self) -> &Tensor {
        &self.latents
    }

    fn denoised(&self) -> Option<&Tensor> {
        None
    }
}

impl Pipeline for Fake {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn load(&self, progress: &dyn Fn(Loading)) -> Result<()> {
        let Weights { bytes, load, .. } = self.weights;
        self.weights.loads.fetch_add(1, Ordering::SeqCst);
        progress(Loading { done: 0, total: bytes, fetching: false });
        std::thread::sleep(load);
        if let Some(error) = self.weights.fails.lock().unwrap().take() {
            return Err(error);
        }
        self.weights.resident.store(true, Ordering::SeqCst);
        progress(Loading { done: bytes, total: bytes, fetching: false });
        Ok(())
    }

    fn unload(&self) {
        if self.weights.resident.swap(false, Ordering::SeqCst) {
            self.weights.unloads.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn loaded(&self) -> bool {
        self.weights.resident()
    }

    fn weight_bytes(&self) -> u64 {
        self.weights.bytes
    }

    fn encode(&self, prompt: &Prompt) -> Result<Conditioning> {
        self.used();
        self.encodes.fetch_add(1, Ordering::SeqCst);
        let text = prompt.text.as_deref().unwrap_or_default();
        assert_ne!(text, "panic in encode", "as the prompt says");
        if self.encode_needs_quiet == Some(text) {
            self.quiet()?;
        }
        std::thread::sleep(self.encode);
        // A long text takes two chunks.
        let tokens = if text.len() > 40 { 8 } else { 4 };
        let states = Tensor::full(target(text), (tokens, 1), &Device::Cpu)?;
        let fault = match text {
            "panic in denoise" => 1.0_f32,
            "error in denoise" => 2.0,
            "panic in begin" => 3.0,
            "error in begin" => 4.0,
            "error in decode" => 5.0,
            "panic in decode" => 6.0,
            _ => 0.0,
        };
        let pooled = Some(Tensor::full(fault, 1, &Device::Cpu)?);
        Ok(Conditioning { states, pooled, mask: None, tokens: text.split_whitespace().count(), truncated: None })
    }

    fn begin(
        &self,
        spec: &RenderSpec,
        positive: Arc<Conditioning>,
        negative: Option<Arc<Conditioning>>,
    ) -> Result<Trajectory> {
        self.used();
        assert_eq!(negative.is_some(), spec.guidance > 1.0);
        match fault(&positive)? {
            3 => panic!("as the prompt says"),
            4 => return Err(Error::Request { param: "size", message: "no".into() }),
            _ => {}
        }
        let latent = [3, spec.height as usize / 8, spec.width as usize / 8];
        let key =
            BatchKey { model: self.name.clone(), latent, context: positive.states.dim(0)?, references: Vec::new() };
        // Faults in decoding are told by the latents, which is all that decoding sees.
        let seed = match fault(&positive)? {
            fault @ 5.. => fault as f32 * 1e30,
            _ => start(spec.seed),
        };
        let share = |share: f64| (spec.sampling.steps as f64 * share).round() as usize;
        let fresh = || Tensor::full(seed, latent.as_slice(), &Device::Cpu);
        let (latents, steps) = match &spec.stage {
            Stage::Whole => (fresh()?, spec.sampling.steps),
            Stage::First { until } => (fresh()?, share(*until)),
            Stage::Second { from, latents } => (latents.clone(), share(1.0 - from)),
        };
        let progress = Progress { step: 0, steps };
        let sampler = Box::new(Halving { latents, progress });
        Ok(Trajectory::new(sampler, positive, negative, spec.guidance, 0.0, key))
    }

    fn denoise(&self, rows: &mut [&mut Trajectory]) -> Result<()> {
        self.denoising.fetch_add(1, Ordering::SeqCst);
        let result = self.step(rows);
        self.denoising.fetch_sub(1, Ordering::SeqCst);
        result
    }

    fn decode(&self, latents: &[Tensor]) -> Result<Vec<RgbImage>> {
        if self.decode_needs_quiet {
            self.quiet()?;
        }
        std::thread::sleep(self.decode);
        self.used();
        self.decodes.fetch_add(1, Ordering::SeqCst);
        latents.iter().map(bits).collect()
    }

    fn preview(&self, latents: &Tensor) -> Result<RgbImage> {
        bits(latents)
    }

    fn row_bytes(&self, width: u32, height: u32) -> u64 {
        u64::from(width) * u64::from(height)
    }
}

impl Fake {
    /// One call: all rows in one tensor, as a real model has them.
    fn step(&self, rows: &mut [&mut Trajectory]) -> Result<()> {
        let count: usize = rows.iter().map(|row| row.rows()).sum();
        assert!(rows.iter().all(|row| row.key() == rows[0].key() && !row.done()), "rows that may not meet");
        if count > self.fits {
            return Err(Error::OutOfMemory(format!("{count} rows")));
        }
        let mut targets = Vec::new();
        for row in rows.iter() {
            match fault(row.positive())? {
                1 => panic!("as the prompt says"),
                2 => return Err(Error::Unsupported("as the prompt says".into())),
                _ => targets.push(value(&row.positive().states)?),
            }
        }
        if let Some((a, b)) = self.unbearable
            && targets.contains(&a)
            && targets.contains(&b)
        {
            return Err(Error::Unsupported("they do not bear each other".into()));
        }
        let inputs = rows.iter().map(|row| Ok(row.query()?.unwrap().input)).collect::<Result<Vec<_>>>()?;
        let aims = rows.iter().map(|row| {
            let negative = row.negative().map(|negative| value(&negative.states)).transpose()?;
            let aim = guided(value(&row.positive().states)?, negative, row.guidance());
            Ok(Tensor::full(aim, (1, 1, 1), &Device::Cpu)?)
        });
        let aims = Tensor::stack(&aims.collect::<Result<Vec<_>>>()?, 0)?;
        let outputs = (Tensor::stack(&inputs, 0)?.broadcast_add(&aims)? * 0.5)?;
        std::thread::sleep(self.call + self.row * u32::try_from(count).unwrap());
        self.used();
        for (index, row) in rows.iter_mut().enumerate() {
            row.advance(&outputs.get(index)?)?;
        }
        let twice = rows.iter().zip(&targets).flat_map(|(row, &target)| std::iter::repeat_n(target, row.rows()));
        self.calls.lock().unwrap().push(twice.collect());
        Ok(())
    }

    /// What does not fit while denoising happens: it looks for a while whether it does.
    fn quiet(&self) -> Result<()> {
        for _ in 0..20 {
            if self.denoising.load(Ordering::SeqCst) > 0 {
                self.quiet_broken.fetch_add(1, Ordering::SeqCst);
                return Err(Error::OutOfMemory("a step is being made".into()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Every use of the weights: they must be there, for nobody else may load or unload them meanwhile.
    fn used(&self) {
        assert!(self.weights.resident(), "{} is used without its weights", self.name);
    }

    /// How often what needs quiet met a step.
    pub(in crate::engine) fn quiet_broken(&self) -> usize {
        self.quiet_broken.load(Ordering::SeqCst)
    }
}

fn value(states: &Tensor) -> Result<f32> {
    Ok(states.flatten_all()?.to_vec1::<f32>()?[0])
}

fn fault(conditioning: &Conditioning) -> Result<u32> {
    Ok(value(conditioning.pooled.as_ref().unwrap())? as u32)
}

/// A picture of the bits, so that comparing pictures compares latents exactly.
fn bits(latents: &Tensor) -> Result<RgbImage> {
    let (c, h, w) = latents.dims3()?;
    assert_eq!(c, 3);
    let values = latents.flatten_all()?.to_vec1::<f32>()?;
    let fault = values[0] / 1e30 * 2_f32.powi(FAULTY_STEPS);
    match fault.round() as u32 {
        5 => return Err(Error::Unsupported("as the prompt says".into())),
        6 => panic!("as the prompt says"),
        _ => {}
    }
    let pixels = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    RgbImage::new(4 * w as u32, h as u32, pixels)
}

/// Steps that a picture whose decoding is to fail must have.
pub(in crate::engine) const FAULTY_STEPS: i32 = 4;

/// The first value of a picture's latents.
pub(in crate::engine) fn latent(picture: &RgbImage) -> f32 {
    f32::from_le_bytes(picture.pixels[..4].try_into().unwrap())
}

/// A job to be submitted.
#[derive(Clone)]
pub(in crate::engine) struct Ask {
    pub(in crate::engine) model: &'static str,
    pub(in crate::engine) prompt: String,
    pub(in crate::engine) owner: &'static str,
    pub(in crate::engine) priority: Priority,
    pub(in crate::engine) steps: usize,
    pub(in crate::engine) n: usize,
    pub(in crate::engine) seed: u64,
    pub(in crate::engine) guidance: f64,
    pub(in crate::engine) width: u32,
    pub(in crate::engine) previews: u32,
    /// The second model, and where it goes on.
    pub(in crate::engine) second: Option<(&'static str, f64)>,
}

/// A job with these steps, and otherwise as plain as can be.
pub(in crate::engine) fn ask(prompt: &str, steps: usize) -> Ask {
    Ask {
        model: "fake",
        prompt: prompt.into(),
        owner: "somebody",
        priority: Priority::Normal,
        steps,
        n: 1,
        seed: 3,
        guidance: 1.0,
        width: 64,
        previews: 0,
        second: None,
    }
}

/// A submitted job, as its caller sees it.
pub(in crate::engine) struct Job {
    pub(in crate::engine) events: UnboundedReceiver<EngineEvent>,
    /// Everything received so far.
    pub(in crate::engine) seen: Vec<EngineEvent>,
}

impl Ask {
    /// As the engine gets it.
    pub(in crate::engine) fn work(&self, events: UnboundedSender<EngineEvent>) -> Work {
        let spec = |image| RenderSpec {
            guidance: self.guidance,
            stage: self.second.map_or(Stage::Whole, |(_, from)| Stage::First { until: from }),
            ..RenderSpec::new(self.width, 64, self.seed + image as u64, SamplingSpec::steps(self.steps))
        };
        let prompt = |text: &str| Prompt::new(text);
        Work {
            job: format!("{} x{}", self.prompt, self.steps),
            model: self.model.into(),
            prompt: prompt(&self.prompt),
            negative: prompt(""),
            specs: (0..self.n).map(spec).collect(),
            pictures: Pictures::default(),
            priority: self.priority,
            owner: self.owner.into(),
            previews: self.previews,
            second: self.second.map(|(model, from)| SecondStage {
                model: model.into(),
                prompt: prompt(&format!("{} refined", self.prompt)),
                negative: prompt(""),
                from,
                specs: (0..self.n).map(|image| RenderSpec { stage: Stage::Whole, ..spec(image) }).collect(),
            }),
            events,
        }
    }

    pub(in crate::engine) fn submit(&self, engine: &EngineHandle) -> Job {
        let (sender, events) = unbounded_channel();
        engine.submit(self.work(sender)).unwrap();
        Job { events, seen: Vec::new() }
    }

    /// The picture that this must become.
    pub(in crate::engine) fn solution(&self, image: usize) -> f32 {
        let alone = |steps| solution(&self.prompt, self.seed + image as u64, steps, self.guidance);
        let Some((_, from)) = self.second else { return alone(self.steps) };
        let first = (self.steps as f64 * from).round() as usize;
        let aim = guided(target(&format!("{} refined", self.prompt)), None, self.guidance);
        (first..self.steps).fold(alone(first), |x, _| (x + aim) * 0.5)
    }
}

impl Job {
    /// Receives until `wanted`.
    pub(in crate::engine) fn until(&mut self, wanted: impl Fn(&EngineEvent) -> bool) -> &EngineEvent {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.events.try_recv() {
                Ok(event) => {
                    let found = wanted(&event);
                    self.seen.push(event);
                    if found {
                        return self.seen.last().unwrap();
                    }
                }
                Err(error) => {
                    assert!(!self.events.is_closed() || !self.events.is_empty(), "closed after {:?}", self.seen);
                    assert!(Instant::now() < end, "{error} after {:?}", self.seen);
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        }
    }

    /// Receives until the job runs.
    pub(in crate::engine) fn until_started(&mut self) {
        self.until(|event| matches!(event, EngineEvent::Started));
    }

    /// Receives until the last event, and that it is the last.
    pub(in crate::engine) fn end(&mut self) -> Result<WorkMetrics, WorkError> {
        let last = |event: &EngineEvent| matches!(event, EngineEvent::Finished(_) | EngineEvent::Failed(_));
        let result = match self.until(last) {
            EngineEvent::Finished(metrics) => Ok(*metrics),
            EngineEvent::Failed(error) => Err(error.clone()),
            _ => unreachable!(),
        };
        let end = Instant::now() + PATIENCE;
        while !self.events.is_closed() && Instant::now() < end {
            std::thread::sleep(Duration::from_micros(200));
        }
        assert!(self.events.try_recv().is_err(), "an event after the last one");
        result
    }

    /// The pictures, in the order of their places in the job.
    pub(in crate::engine) fn pictures(&self) -> Vec<Arc<RgbImage>> {
        let mut pictures: Vec<_> = self
            .seen
            .iter()
            .filter_map(|event| match event {
                EngineEvent::Image { image, picture } => Some((*image, Arc::clone(picture))),
                _ => None,
            })
            .collect();
        pictures.sort_by_key(|(image, _)| *image);
        pictures.into_iter().map(|(_, picture)| picture).collect()
    }

    /// Waits for the end, which must be a good one, and compares every picture with the closed form, bit by bit.
    pub(in crate::engine) fn check(&mut self, ask: &Ask) -> WorkMetrics {
        let metrics = self.end().unwrap();
        let pictures = self.pictures();
        assert_eq!(pictures.len(), ask.n);
        for (image, picture) in pictures.iter().enumerate() {
            assert_eq!(latent(picture).to_bits(), ask.solution(image).to_bits(), "{} {image}", ask.prompt);
        }
        metrics
    }
}

/// An engine over one fake with the name `fake`.
pub(in crate::engine) fn engine(fake: Fake) -> (EngineHandle, Arc<Fake>) {
    engine_with(fake, EngineOptions::default())
}

/// An engine over several fakes, each under its name.
pub(in crate::engine) fn engine_of<const N: usize>(
    fakes: [Fake; N],
    options: EngineOptions,
) -> (EngineHandle, [Arc<Fake>; N]) {
    let fakes = fakes.map(Arc::new);
    let models = fakes.iter().map(|fake| (fake.name.clone(), Arc::clone(fake) as Arc<dyn Pipeline>)).collect();
    (EngineHandle::start(models, options), fakes)
}

pub(in crate::engine) fn engine_with(fake: Fake, options: EngineOptions) -> (EngineHandle, Arc<Fake>) {
    let fake = Arc::new(fake);
    (EngineHandle::start(vec![("fake".into(), Arc::clone(&fake) as Arc<dyn Pipeline>)], options), fake)
}
