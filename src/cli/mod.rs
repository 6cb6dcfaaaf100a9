//! The command line: one file a command.

mod bench;
mod common;
mod generate;
mod models;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// easel draws pictures from prompts: a server with the image vendors' APIs, and a command line.
#[derive(Debug, Parser)]
#[command(name = "easel", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the APIs and the playground page.
    Serve(serve::Serve),
    /// Draw a picture from a prompt, without a server.
    Generate(Box<generate::Generate>),
    /// Measure samplers, a server under load, what calls cost and a GPU, with reports that anybody can repeat.
    Bench(bench::Bench),
    /// List the models that can be used, or look into one.
    Models(models::Models),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(serve) => serve.run(),
        Command::Generate(generate) => generate.run(),
        Command::Bench(bench) => bench.run(),
        Command::Models(models) => models.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            common::complain(&error);
            ExitCode::FAILURE
        }
    }
}
