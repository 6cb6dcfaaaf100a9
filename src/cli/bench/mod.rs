//! `easel bench`: measurements that anybody can repeat.

mod compare;
mod cost;
mod gpu;
mod load;
mod samplers;

use clap::{Args, Subcommand};

use super::common::CliError;

/// `easel bench`
#[derive(Debug, Args)]
pub(super) struct Bench {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare samplers, schedules and step counts on a model, with pictures, curves and a report.
    Samplers(Box<samplers::Samplers>),
    /// Put a running server under load, and report latencies, throughput and goodput.
    Load(Box<load::LoadArgs>),
    /// Show what a server has measured of its models' calls: the curves that batch sizes and estimates are drawn from.
    Cost(cost::Cost),
    /// Hold a device's fast operations to the plain ones, and time models at their true sizes with random weights.
    Gpu(gpu::Gpu),
    /// Compare the pictures of two runs; fails when they are too far apart.
    Compare(compare::Compare),
}

impl Bench {
    pub(super) fn run(self) -> Result<(), CliError> {
        match self.command {
            Command::Samplers(samplers) => samplers.run(),
            Command::Load(load) => load.run(),
            Command::Cost(cost) => cost.run(),
            Command::Gpu(gpu) => gpu.run(),
            Command::Compare(compare) => compare.run(),
        }
    }
}

/// The command as it was given, quoted where a shell needs it, without the key that it may hold.
fn command() -> String {
    let mut secret = false;
    let quoted = std::env::args().skip(1).map(|word| {
        if std::mem::replace(&mut secret, word == "--key") || word.starts_with("--key=") {
            return "KEY".to_owned();
        }
        let plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_=.,:/@+".contains(c));
        if plain { word } else { format!("'{}'", word.replace('\'', "'\\''")) }
    });
    format!("easel {}", quoted.collect::<Vec<_>>().join(" "))
}

/// The machine that a bench runs on.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{} {}, {cores} cores", std::env::consts::OS, std::env::consts::ARCH)
}
