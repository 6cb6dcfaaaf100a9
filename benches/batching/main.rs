//! What batching at step granularity is worth: the same requests one at a time, in batches that drain, and step by step.
//!
//! `cargo bench --bench batching [-- builtin|sd15]`
//!
//! The engine is the server's own, driven without HTTP; the policies differ in when they hand a request to it.
//! *One at a time* is what a plain script behind HTTP does. *Batches that drain* hands over up to a batch of what waits,
//! and the rest once all of those are done; within it the rows may still have steps of their own, which no peer allows.
//! *Step level* hands over each request as it comes. All three run the same pictures in turn in each round, so
//! the ratios hold on a machine with other work, too.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic, reason = "a bench prints its table and may stop")]

mod blank;

use std::collections::VecDeque;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use easel::engine::{EngineEvent, EngineHandle, EngineOptions, Pictures, Work};
use easel::request::Priority;
use easel_models::families::{self, Placement};
use easel_models::samplers::SamplingSpec;
use easel_models::weights::Repository;
use easel_models::{Prompt, RenderSpec};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// When a request is handed to the engine.
#[derive(Debug, Clone, Copy)]
enum Policy {
    OneAtATime,
    Draining,
    StepLevel,
}

const POLICIES: [(&str, Policy); 3] = [
    ("one at a time", Policy::OneAtATime),
    ("batches that drain", Policy::Draining),
    ("step level", Policy::StepLevel),
];

/// What is drawn.
struct Workload {
    model: &'static str,
    size: u32,
    guidance: f64,
    /// Steps of the requests, in turn.
    steps: [usize; 3],
    requests: usize,
    /// Most requests of a batch that drains.
    batch: usize,
    /// Steps of the long requests and of the short one that comes behind them.
    long: (usize, usize),
    rounds: usize,
}

const BUILT_IN: Workload = Workload {
    model: "built-in model, 128x128",
    size: 128,
    guidance: 3.0,
    steps: [10, 20, 30],
    requests: 12,
    batch: 4,
    long: (60, 4),
    rounds: 3,
};

const SD15: Workload = Workload {
    model: "SD1.5's shape, 256x256",
    size: 256,
    guidance: 1.0,
    steps: [2, 4, 6],
    requests: 6,
    batch: 3,
    long: (12, 1),
    rounds: 1,
};

/// A request, and when it comes.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    at: Duration,
    steps: usize,
}

/// How long each request took from its arrival to its picture, and all of them together.
struct Played {
    latencies: Vec<f64>,
    total: f64,
}

fn main() {
    // `cargo test --benches` runs benches too, and wants nothing measured.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let wanted = |name: &str| arguments.iter().all(|word| word.starts_with('-') || word == name);
    if wanted("builtin") {
        measure(&BUILT_IN, &Repository::builtin());
    }
    if wanted("sd15") {
        let folder = tempfile::tempdir().unwrap();
        blank::write(folder.path());
        measure(&SD15, &Repository::folder(folder.path()).unwrap());
    }
}

fn measure(workload: &Workload, repository: &Repository) {
    let model = families::open(repository, &Placement::CPU, "model").unwrap();
    let engine = EngineHandle::start(vec![("model".into(), model)], EngineOptions::default());
    let bench = Bench { engine, workload };

    let at_once: Vec<Arrival> = bench.arrivals(|_| Duration::ZERO);
    // The weights are read and the costs of calls are learned before anything is measured.
    bench.play(Policy::StepLevel, &at_once);
    let alone = median((0..workload.rounds).map(|_| bench.play(Policy::OneAtATime, &at_once).total).collect());
    let poisson = bench.poisson(0.8 * workload.requests as f64 / alone);
    let (long, short) = workload.long;
    let mut behind = vec![Arrival { at: Duration::ZERO, steps: long }; workload.batch];
    let steps: usize = workload.steps.iter().sum();
    let step = alone / workload.requests as f64 * workload.steps.len() as f64 / steps as f64;
    behind.push(Arrival { at: Duration::from_secs_f64(2.0 * step), steps: short });

    println!("\n{}; {} threads", workload.model, std::thread::available_parallelism().unwrap());
    bench.table(&format!("{} requests of {:?} steps at once", workload.requests, workload.steps), &at_once, false);
    bench.table("the same, Poisson arrivals at 0.8 of what one at a time can do", &poisson, false);
    let title = format!("a request of {short} steps that comes behind {} of {long}", workload.batch);
    bench.table(&title, &behind, true);
}

struct Bench<'a> {
    engine: EngineHandle,
    workload: &'a Workload,
}

impl Bench<'_> {
    fn arrivals(&self, mut at: impl FnMut(usize) -> Duration) -> Vec<Arrival> {
        let steps = self.workload.steps;
        (0..self.workload.requests).map(|i| Arrival { at: at(i), steps: steps[i % steps.len()] }).collect()
    }

    /// The requests at times of a Poisson process of this rate, the same at each run.
    fn poisson(&self, rate: f64) -> Vec<Arrival> {
        let (mut random, mut clock) = (StdRng::seed_from_u64(7), 0.0);
        self.arrivals(|_| {
            clock += -random.random::<f64>().max(f64::MIN_POSITIVE).ln() / rate;
            Duration::from_secs_f64(clock)
        })
    }

    /// Prints a line for each policy: medians over the rounds. `last` tells of the last request alone.
    fn table(&self, title: &str, arrivals: &[Arrival], last: bool) {
        let mut played: Vec<Vec<Played>> = POLICIES.iter().map(|_| Vec::new()).collect();
        for _ in 0..self.workload.rounds {
            for ((_, policy), played) in POLICIES.iter().zip(&mut played) {
                played.push(self.play(*policy, arrivals));
            }
        }
        println!("\n{title}\n| | images/s | mean s | longest s |{}", if last { " the last one s |" } else { "" });
        println!("|---|---|---|---|{}", if last { "---|" } else { "" });
        for ((name, _), rounds) in POLICIES.iter().zip(&played) {
            let of = |value: &dyn Fn(&Played) -> f64| median(rounds.iter().map(value).collect());
            let mean = of(&|played| played.latencies.iter().sum::<f64>() / played.latencies.len() as f64);
            let longest = of(&|played| played.latencies.iter().copied().fold(0.0, f64::max));
            let rate = of(&|played| played.latencies.len() as f64 / played.total);
            let end =
                if last { format!(" {:.2} |", of(&|played| *played.latencies.last().unwrap())) } else { String::new() };
            println!("| {name} | {rate:.2} | {mean:.2} | {longest:.2} |{end}");
        }
    }

    /// Has all requests drawn under this policy.
    fn play(&self, policy: Policy, arrivals: &[Arrival]) -> Played {
        let start = Instant::now();
        let (done, finished) = mpsc::channel();
        let mut coming: VecDeque<usize> = (0..arrivals.len()).collect();
        let (mut waiting, mut running) = (VecDeque::new(), 0_usize);
        let mut latencies = vec![0.0; arrivals.len()];
        let mut left = arrivals.len();
        while left > 0 {
            while let Some(&next) = coming.front().filter(|&&next| arrivals[next].at <= start.elapsed()) {
                coming.pop_front();
                waiting.push_back(next);
            }
            let room = match policy {
                Policy::StepLevel => waiting.len(),
                Policy::OneAtATime if running == 0 => 1,
                Policy::Draining if running == 0 => self.workload.batch,
                Policy::OneAtATime | Policy::Draining => 0,
            };
            for index in waiting.drain(..room.min(waiting.len())) {
                self.submit(index, arrivals[index].steps, done.clone());
                running += 1;
            }
            let next = coming.front().map(|&next| arrivals[next].at.saturating_sub(start.elapsed()));
            if let Some(index) = wait(&finished, next) {
                latencies[index] = (start.elapsed().saturating_sub(arrivals[index].at)).as_secs_f64();
                running -= 1;
                left -= 1;
            }
        }
        Played { latencies, total: start.elapsed().as_secs_f64() }
    }

    /// Hands a request to the engine; its number comes back once its picture is there.
    fn submit(&self, index: usize, steps: usize, done: Sender<usize>) {
        let Workload { size, guidance, .. } = *self.workload;
        let sampling = SamplingSpec::steps(steps).with_sampler("euler");
        let spec = RenderSpec { guidance, ..RenderSpec::new(size, size, index as u64, sampling) };
        let (events, mut told) = tokio::sync::mpsc::unbounded_channel();
        let work = Work {
            job: format!("job {index}"),
            model: "model".into(),
            prompt: Prompt::new("a red circle on a blue background"),
            negative: Prompt::new(""),
            specs: vec![spec],
            pictures: Pictures::default(),
            priority: Priority::Normal,
            owner: "bench".into(),
            previews: 0,
            second: None,
            events,
        };
        self.engine.submit(work).unwrap();
        std::thread::spawn(move || {
            while let Some(event) = told.blocking_recv() {
                match event {
                    EngineEvent::Finished(_) => return done.send(index).unwrap(),
                    EngineEvent::Failed(error) => panic!("request {index}: {error}"),
                    _ => {}
                }
            }
        });
    }
}

/// The next request that is done, or nothing when the next one comes first.
fn wait(finished: &Receiver<usize>, next: Option<Duration>) -> Option<usize> {
    match next {
        Some(next) => finished.recv_timeout(next).ok(),
        None => Some(finished.recv().unwrap()),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
