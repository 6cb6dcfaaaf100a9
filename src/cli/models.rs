//! `easel models`: what can be used, and what is in a model's files.

mod inspect;
mod pull;

use clap::{Args, Subcommand};
use serde_json::Map;

use super::common::{BUILT_IN, CliError, ModelFlags, open, placement, repository};
use crate::config::{Config, ModelsConfig};

/// `easel models`
#[derive(Debug, Args)]
pub(super) struct Models {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The models that `easel serve` would serve with this configuration.
    List {
        #[command(flatten)]
        flags: ModelFlags,
    },
    /// Fetch a model from the hub before it is needed, with a progress bar; it goes on where it was cut.
    Pull(pull::Pull),
    /// What is in a model: family, parts, types, files, defaults, and the memory that it takes. Its weights are not read.
    Inspect(inspect::Inspect),
}

impl Models {
    pub(super) fn run(self) -> Result<(), CliError> {
        match self.command {
            Command::List { flags } => list(&flags),
            Command::Pull(pull) => pull.run(),
            Command::Inspect(inspect) => inspect.run(),
        }
    }
}

/// Bytes for people.
fn amount(bytes: u64) -> String {
    const MIB: f64 = (1 << 20) as f64;
    let mib = bytes as f64 / MIB;
    if mib < 1000.0 { format!("{mib:.1} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

/// A model's source, by its configured name or as it is given.
fn source<'a>(models: &'a ModelsConfig, asked: &'a str) -> Option<&'a str> {
    let configured = models.sources.get(asked).map(String::as_str);
    configured.or_else(|| (asked != BUILT_IN).then_some(asked))
}

#[allow(clippy::print_stdout, reason = "the list is what the command is for")]
fn list(flags: &ModelFlags) -> Result<(), CliError> {
    let Config { models, .. } = flags.load(Map::new())?;
    let placement = placement(&models)?;
    let default = models.default.as_deref().or(models.sources.keys().next().map(String::as_str)).unwrap_or(BUILT_IN);
    let built_in = (!models.sources.contains_key(BUILT_IN)).then_some(BUILT_IN);
    println!("{:<24} {:<10} {:>14} {:>10}  source", "name", "family", "parameters", "weights");
    for name in models.sources.keys().map(String::as_str).chain(built_in) {
        let source = source(&models, name);
        let shown = source.unwrap_or("(inside the binary)");
        let mark = if name == default { "  [default]" } else { "" };
        // One that cannot be opened is a line of the list, too.
        match repository(name, source).and_then(|repository| open(name, &repository, &placement)) {
            Ok(model) => {
                let (card, weights) = (model.card(), amount(model.weight_bytes()));
                println!("{name:<24} {:<10} {:>14} {weights:>10}  {shown}{mark}", card.family, card.parameters);
            }
            Err(error) => println!("{name:<24} cannot be opened: {error}{mark}"),
        }
    }
    Ok(())
}
