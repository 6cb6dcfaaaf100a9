//! `easel models pull`: fetch a model from the hub before it is needed.

use clap::Args;
use easel_models::weights::{HubOptions, Repository};
use easel_models::{Loading, families};
use serde_json::Map;

use crate::cli::common::{CliError, ModelFlags, bytes_bar, placement, repository, show};

/// `easel models pull`
#[derive(Debug, Args)]
pub(super) struct Pull {
    /// A name on the hub: owner/name, owner/name@revision, owner/name:file.safetensors; or the name of a configured model.
    source: String,
    #[command(flatten)]
    flags: ModelFlags,
}

impl Pull {
    /// Fetches the files that the model's family reads, and no others.
    #[allow(clippy::print_stdout, reason = "what was fetched is what the command is for")]
    pub(super) fn run(self) -> Result<(), CliError> {
        let config = self.flags.load(Map::new())?;
        let name = self.source.as_str();
        let source = config.models.sources.get(name).map_or(name, String::as_str);
        if Repository::hub_name(source).is_none() {
            let message = format!("{source:?} is no name on the hub; owner/name or owner/name@revision is expected");
            return Err(CliError::Usage(message));
        }
        let failed = |error| CliError::Model { name: name.into(), source: error };
        let bar = bytes_bar();
        let show = |loading: Loading| show(&bar, loading);
        let fetched = Repository::hub_file(source, &HubOptions::from_env(), &show);
        bar.reset();
        fetched.map_err(failed)?;
        // Opening checks that easel runs the model before its weights are fetched, and fetches the small files.
        let repository = repository(name, Some(source))?;
        let model = families::open(&repository, &placement(&config.models)?, name).map_err(failed)?;
        let parts = model.parts();
        let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
        let fetched = repository.fetch(&names, &show);
        bar.finish_and_clear();
        fetched.map_err(failed)?;
        println!(
            "{source} is here: {}, {} parameters in {}",
            model.card().family,
            model.card().parameters,
            names.join(", ")
        );
        Ok(())
    }
}
