//! `easel bench`: measurements that anybody can repeat.

mod compare;
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
    /// Compare the pictures of two runs; fails when they are too far apart.
    Compare(compare::Compare),
}

impl Bench {
    pub(super) fn run(self) -> Result<(), CliError> {
        match self.command {
            Command::Samplers(samplers) => samplers.run(),
            Command::Compare(compare) => compare.run(),
        }
    }
}
