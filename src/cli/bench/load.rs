//! `easel bench load`: a running server under load.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{CliError, command, machine};
use crate::cli::common::progress_bar;
use crate::load::{Arrivals, Kind, Load, Summary, Target, drive, read_trace, write};

/// `easel bench load`
#[derive(Debug, Args)]
pub(super) struct LoadArgs {
    /// The server's address, as in http://127.0.0.1:8080.
    url: String,
    /// The key to ask with.
    #[arg(long, env = "EASEL_API_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Closed loop: callers who ask again once they are answered; several numbers are several runs.
    #[arg(long, value_delimiter = ',', value_name = "CALLERS", group = "arrivals",
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    concurrency: Vec<u32>,
    /// Open loop: requests a second at random (Poisson); several numbers give the rate-latency curve.
    #[arg(long, value_delimiter = ',', value_name = "PER_SECOND", group = "arrivals", value_parser = positive)]
    rate: Vec<f64>,
    /// Open loop: SIZE:SECONDS, so many requests at once and so long until the next ones.
    #[arg(long, value_name = "SIZE:SECONDS", group = "arrivals", value_parser = bursts)]
    bursts: Option<Arrivals>,
    /// Open loop: a file with a line a request, the seconds after the start and, after a comma, the body if it has its own.
    #[arg(long, value_name = "FILE", group = "arrivals")]
    trace: Option<PathBuf>,
    /// A kind of request, by the fields of its body and its weight: steps=20,size=512x512,model=sdxl,weight=3. May be given
    /// several times.
    #[arg(long, value_name = "FIELDS", default_value = "steps=20")]
    mix: Vec<Kind>,
    /// Requests of each run; a trace has its own.
    #[arg(short = 'n', long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// Requests, one after the other, before the first run; they are not counted.
    #[arg(long, default_value_t = 2)]
    warm_up: u32,
    /// Seconds within which a reply counts towards the goodput.
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    slo: Option<f64>,
    /// Seconds after which a request is given up.
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0, value_parser = positive)]
    timeout: f64,
    /// Decides arrivals, kinds and pictures; the same seed asks the same again.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The folder for report.html, summary.csv, requests.csv, results.json and the plots.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| format!("{text:?} is not a number above 0"))
}

fn bursts(text: &str) -> Result<Arrivals, String> {
    let (size, every) = text.split_once(':').ok_or("expected SIZE:SECONDS, as in 8:10")?;
    let size = size
        .parse()
        .ok()
        .filter(|size: &usize| *size > 0)
        .ok_or_else(|| format!("{size:?} is not a number of requests"))?;
    Ok(Arrivals::Bursts { size, every: positive(every)? })
}

impl LoadArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        let runtime = tokio::runtime::Runtime::new().map_err(CliError::io("cannot start the runtime"))?;
        runtime.block_on(self.load())
    }

    async fn load(self) -> Result<(), CliError> {
        let settings = self.settings()?;
        let timeout = Duration::from_secs_f64(self.timeout);
        let target =
            Target::new(&self.url, self.key.clone(), self.mix.clone(), self.seed, timeout).map_err(CliError::other)?;
        let server = target.describe().await.map_err(CliError::other)?;
        target.warm_up(self.warm_up as usize).await.map_err(CliError::other)?;
        let mut runs = Vec::new();
        for (arrivals, count) in settings {
            let bar = progress_bar("request");
            bar.set_length(count as u64);
            let told = bar.clone();
            runs.push(drive(&target, &arrivals, count, move || told.inc(1)).await);
            bar.finish_and_clear();
        }
        let load = Load {
            version: env!("CARGO_PKG_VERSION").into(),
            created: jiff::Timestamp::now(),
            command: command(),
            machine: machine(),
            url: self.url,
            server,
            kinds: self.mix,
            slo: self.slo,
            runs,
        };
        let summaries = write(&load, &self.output).map_err(CliError::io("cannot write the report"))?;
        print(&summaries);
        say(&self.output);
        Ok(())
    }

    /// The runs to make, with the requests of each.
    fn settings(&self) -> Result<Vec<(Arrivals, usize)>, CliError> {
        let count = self.requests as usize;
        if let Some(file) = &self.trace {
            let doing = format!("cannot read {}", file.display());
            let text = std::fs::read_to_string(file).map_err(CliError::io(doing))?;
            let trace = read_trace(&text).map_err(|error| CliError::Usage(format!("{}: {error}", file.display())))?;
            let Arrivals::Trace { requests } = &trace else { return Ok(Vec::new()) };
            let count = requests.len();
            return Ok(vec![(trace, count)]);
        }
        if let Some(bursts) = &self.bursts {
            return Ok(vec![(bursts.clone(), count)]);
        }
        if !self.rate.is_empty() {
            return Ok(self.rate.iter().map(|&rate| (Arrivals::Poisson { rate }, count)).collect());
        }
        let callers = if self.concurrency.is_empty() { &[1][..] } else { &self.concurrency };
        Ok(callers.iter().map(|&callers| (Arrivals::Closed { concurrency: callers as usize }, count)).collect())
    }
}

#[allow(clippy::print_stdout, reason = "the table is what the command is for")]
fn print(summaries: &[Summary]) {
    println!(
        "load                          offered/s  answered/s  goodput/s  failed   mean s    p50 s    p95 s    p99 s"
    );
    for summary in summaries {
        let at = |index: usize| summary.percentiles.as_ref().map_or(f64::NAN, |told| told[index].1.value);
        println!(
            "{:<28} {:>10.2} {:>11.2} {:>10.2} {:>7} {:>8.3} {:>8.3} {:>8.3} {:>8.3}",
            summary.load,
            summary.offered,
            summary.throughput,
            summary.goodput,
            summary.failed,
            summary.mean,
            at(0),
            at(2),
            at(3)
        );
    }
}

#[allow(clippy::print_stdout, reason = "it says where the report is")]
fn say(folder: &std::path::Path) {
    println!("{}", folder.join("report.html").display());
}
