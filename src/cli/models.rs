//! `easel models`: what can be used, and what is in a model's folder.

use clap::{Args, Subcommand};
use easel_models::{Sizes, families};
use serde_json::Map;

use super::common::{BUILT_IN, CliError, ModelFlags, placement, repository};
use crate::config::Config;

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
    /// What is in a model (family, parts, sizes, defaults), and whether it can be opened.
    Inspect {
        /// A configured model's name, a folder in the diffusers layout, a .safetensors file, or `easel-mini`, the model
        /// inside the binary.
        source: String,
        #[command(flatten)]
        flags: ModelFlags,
    },
}

impl Models {
    pub(super) fn run(self) -> Result<(), CliError> {
        match self.command {
            Command::List { flags } => list(&flags),
            Command::Inspect { source, flags } => inspect(&source, &flags),
        }
    }
}

#[allow(clippy::print_stdout, reason = "the list is what the command is for")]
fn list(flags: &ModelFlags) -> Result<(), CliError> {
    let Config { models, .. } = flags.load(Map::new())?;
    let default = models.default.as_deref().or(models.sources.keys().next().map(String::as_str)).unwrap_or(BUILT_IN);
    let built_in = (!models.sources.contains_key(BUILT_IN)).then_some((BUILT_IN, "(inside the binary)"));
    let configured = models.sources.iter().map(|(name, source)| (name.as_str(), source.as_str()));
    for (name, source) in configured.chain(built_in) {
        println!("{name:<24} {source}{}", if name == default { "  [default]" } else { "" });
    }
    Ok(())
}

#[allow(clippy::print_stdout, reason = "the description is what the command is for")]
fn inspect(source: &str, flags: &ModelFlags) -> Result<(), CliError> {
    let config = flags.load(Map::new())?;
    let folder = config.models.sources.get(source).map_or(source, String::as_str);
    let repository = repository(source, (source != BUILT_IN).then_some(folder))?;
    let failed = |error| CliError::Model { name: source.into(), source: error };
    let model = families::open(&repository, &placement(&config.models)?, source).map_err(failed)?;
    println!("{:<18} {:>14} {:<12} {:>10}  files", "part", "parameters", "stored as", "loaded");
    for part in model.parts() {
        let files = repository.list(&part.name).map_err(failed)?.into_iter().collect::<Vec<_>>().join(", ");
        let (stored, mib) = (part.stored.join(", "), part.bytes >> 20);
        println!("{:<18} {:>14} {stored:<12} {mib:>6} MiB  {files}", part.name, part.parameters);
    }
    families::check(&repository).map_err(failed)?;
    let card = model.card();
    let sizes = match &card.sizes {
        Sizes::Any { multiple, min, max } => format!("sides of {min} to {max} pixels, multiples of {multiple}"),
        Sizes::List(sizes) => sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let row_mib = model.row_bytes(card.native.width, card.native.height) >> 20;
    println!(
        "\nfamily             {}\nparameters         {}\ncomputes in        {}\nsizes              {sizes}\ndefaults           {}, {} steps, \
         guidance {}, {}\nsamplers           {}\nprompt             {} tokens at most\nmemory a row       about {row_mib} MiB at {}",
        card.family,
        card.parameters,
        card.dtype,
        card.native,
        card.steps,
        card.guidance,
        card.sampler,
        card.samplers.join(", "),
        card.context_tokens,
        card.native,
    );
    if !card.description.is_empty() {
        println!("{}", card.description);
    }
    Ok(())
}
