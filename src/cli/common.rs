//! What the commands share: the flags that name configuration, opening models, and failing politely.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use clap::Args;
use easel_models::families::{self, Placement};
use easel_models::weights::{HubOptions, Repository};
use easel_models::{Loading, Pipeline};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::config::{Config, ConfigError, ModelsConfig};
use crate::engine::free_bytes;

/// The name that the model inside the binary is served under.
pub(super) const BUILT_IN: &str = easel_models::weights::BUILTIN_MODEL;

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("model {name}: {source}")]
    Model { name: String, source: easel_models::Error },
    #[error("{0}")]
    Usage(String),
    #[error("{doing}: {source}")]
    Io { doing: String, source: std::io::Error },
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl CliError {
    pub(super) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { doing: doing.into(), source }
    }

    pub(super) fn other(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Other(Box::new(error))
    }
}

/// Says on standard error why a command failed.
#[allow(clippy::print_stderr, reason = "this is the command line's own voice")]
pub(super) fn complain(error: &CliError) {
    eprintln!("easel: {error}");
}

/// Flags that every command with models takes. Each stands for a key of the configuration.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct ModelFlags {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "EASEL_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// The device to compute on: auto, cpu, cuda:N or metal.
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// The type to compute in: auto, f32, bf16 or f16.
    #[arg(long, value_name = "TYPE")]
    dtype: Option<String>,
}

impl ModelFlags {
    /// The flags that were given, in the configuration's shape, merged into `section`s given by the command.
    pub(super) fn load(&self, mut sections: Map<String, Value>) -> Result<Config, CliError> {
        let models = sections.entry("models").or_insert_with(|| json!({}));
        if let Some(models) = models.as_object_mut() {
            for (key, value) in [("device", &self.device), ("dtype", &self.dtype)] {
                if let Some(value) = value {
                    models.insert(key.into(), json!(value));
                }
            }
        }
        sections.retain(|_, section| section.as_object().is_none_or(|keys| !keys.is_empty()));
        Ok(Config::load(self.config.as_deref(), Value::Object(sections))?)
    }
}

/// How the names of single files end.
const FILES: [&str; 2] = [".safetensors", ".gguf"];

/// Reads `NAME=SOURCE`; a bare source is named after its last path component, or as on the hub, without a
/// file's ending.
pub(super) fn named_source(text: &str) -> Result<(String, String), String> {
    // A name has no path in it, so the "=" of owner/name?variant=fp16 does not end one.
    let (name, source) = match text.split_once('=').filter(|(name, _)| !name.contains(['/', '?'])) {
        Some((name, source)) => (name.to_owned(), source.to_owned()),
        None => {
            let trimmed = text.trim_end_matches('/');
            let hub = Repository::hub_name(trimmed).filter(|_| !Path::new(trimmed).exists());
            let last = hub.as_deref().unwrap_or_else(|| trimmed.rsplit('/').next().unwrap_or(trimmed));
            let name = FILES.iter().find_map(|ending| last.strip_suffix(ending)).unwrap_or(last);
            (name.to_owned(), text.to_owned())
        }
    };
    if name.is_empty() || source.is_empty() {
        return Err(
            "expected NAME=SOURCE, where SOURCE is a folder in the diffusers layout, a .safetensors or .gguf file, or a name \
             on the hub"
                .into(),
        );
    }
    Ok((name, source))
}

/// A model's source, opened but not loaded.
pub(super) fn repository(name: &str, source: Option<&str>) -> Result<Repository, CliError> {
    let repository = match source {
        None => Ok(Repository::builtin()),
        // What is on the disk comes first: a folder may be named as a repository on the hub.
        Some(hub) if !Path::new(hub).exists() && Repository::hub_name(hub).is_some() => {
            let options = HubOptions::from_env();
            let bar = bytes_bar();
            let file = Repository::hub_file(hub, &options, &|loading| show(&bar, loading));
            bar.finish_and_clear();
            match file {
                Ok(Some(file)) => Repository::open_file(file),
                Ok(None) => Repository::hub(hub, &options),
                Err(error) => Err(error),
            }
        }
        Some(file) if Path::new(file).is_file() => Repository::open_file(file),
        Some(folder) => Repository::folder(folder),
    };
    repository.map_err(|source| CliError::Model { name: name.into(), source })
}

/// Where models are placed. What their weights may take together is also what one of them may: a model that is larger
/// has its parts loaded in turn.
pub(super) fn placement(config: &ModelsConfig) -> Result<Placement, CliError> {
    let device = device(&config.device)?;
    let dtype = match config.dtype.as_str() {
        // Half precision halves a GPU's work; a CPU computes in f32, which is also what parity is measured in.
        "auto" if device.is_cpu() => DType::F32,
        "auto" | "f16" => DType::F16,
        "f32" => DType::F32,
        "bf16" => DType::BF16,
        other => {
            return Err(CliError::Usage(format!("models.dtype is {other:?}; it can be auto, f32, bf16 or f16")));
        }
    };
    if device.is_cpu() && dtype == DType::BF16 {
        tracing::info!(by = easel_models::bf16_products(), "the processor multiplies bf16");
    }
    let memory = config.weights_gib.map(gib).or_else(|| weights_bytes(&device));
    Ok(Placement { device, dtype, memory })
}

/// What the weights may take where nothing is configured: three quarters of the memory that is free now, so that rows,
/// decoding and others have the rest. `None` where the device does not say.
fn weights_bytes(device: &Device) -> Option<u64> {
    free_bytes(device).map(|free| free / 4 * 3)
}

/// A configured size in bytes. An absurd one saturates.
fn gib(gib: f64) -> u64 {
    (gib * f64::from(1 << 30)) as u64
}

/// The device of this name.
pub(super) fn device(name: &str) -> Result<Device, CliError> {
    let failed = |error| CliError::Usage(format!("models.device is {name:?}, which cannot be used: {error}"));
    if let Some(ordinal) = name.strip_prefix("cuda") {
        let ordinal = ordinal.strip_prefix(':').unwrap_or("0").parse();
        let ordinal = ordinal.map_err(|_| CliError::Usage(format!("models.device is {name:?}; expected cuda:N")))?;
        return easel_models::cuda_device(ordinal).map_err(failed);
    }
    match name {
        "auto" => {
            let cuda = easel_models::cuda_device(0);
            if let (true, Err(error)) = (cfg!(feature = "cuda"), &cuda) {
                tracing::info!("computing without CUDA: {error}");
            }
            Ok(cuda.or_else(|_| Device::new_metal(0)).unwrap_or(Device::Cpu))
        }
        "cpu" => Ok(Device::Cpu),
        "metal" => Device::new_metal(0).map_err(failed),
        other => Err(CliError::Usage(format!("models.device is {other:?}; it can be auto, cpu, cuda:N or metal"))),
    }
}

/// The models that are served.
#[derive(Default)]
pub(super) struct Opened {
    /// By the names that they are served under.
    pub(super) models: Vec<(String, Arc<dyn Pipeline>)>,
    /// Those whose weights cannot be loaded, as far as their files' headers tell, and why.
    pub(super) faults: BTreeMap<String, String>,
}

/// Opens every configured model and, last, the one inside the binary. Their weights are not read, but those that are on
/// this machine are checked by their headers.
pub(super) fn open_models(config: &ModelsConfig, placement: &Placement) -> Result<Opened, CliError> {
    let built_in = (!config.sources.contains_key(BUILT_IN)).then_some((BUILT_IN, None));
    let configured = config.sources.iter().map(|(name, source)| (name.as_str(), Some(source.as_str())));
    let mut opened = Opened::default();
    for (name, source) in configured.chain(built_in) {
        let start = std::time::Instant::now();
        let repository = repository(name, source)?;
        let pipeline = open(name, &repository, placement)?;
        if source.is_some()
            && let Some(fault) = fault(&repository, &*pipeline)
        {
            opened.faults.insert(name.to_owned(), fault.to_string());
        }
        let (family, parameters, ms) = (&pipeline.card().family, pipeline.card().parameters, milliseconds(start));
        tracing::info!(model = name, family, parameters, weight_bytes = pipeline.weight_bytes(), ms, "opened");
        opened.models.push((name.to_owned(), pipeline));
    }
    Ok(opened)
}

/// What the headers of a model's files say against its weights. Where they are still to be fetched, that is found out when
/// they are.
fn fault(repository: &Repository, pipeline: &dyn Pipeline) -> Option<easel_models::Error> {
    let parts = pipeline.parts();
    let parts: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
    match repository.fetched(&parts) {
        Ok(true) => families::check(repository).err(),
        Ok(false) => None,
        Err(error) => Some(error),
    }
}

/// Opens one model and loads its weights; without a source, the one inside the binary.
pub(super) fn load_model(
    config: &ModelsConfig,
    name: &str,
    source: Option<&str>,
) -> Result<Arc<dyn Pipeline>, CliError> {
    let pipeline = open(name, &repository(name, source)?, &placement(config)?)?;
    load_weights(name, &*pipeline)?;
    Ok(pipeline)
}

/// Loads an opened model's weights.
pub(super) fn load_weights(name: &str, pipeline: &dyn Pipeline) -> Result<(), CliError> {
    let start = std::time::Instant::now();
    let bar = bytes_bar();
    let loaded = pipeline.load(&|loading| show(&bar, loading));
    bar.finish_and_clear();
    loaded.map_err(|source| CliError::Model { name: name.into(), source })?;
    let card = pipeline.card();
    let (family, parameters, dtype) = (&card.family, card.parameters, &card.dtype);
    tracing::info!(model = name, family, parameters, dtype, ms = milliseconds(start), "loaded");
    Ok(())
}

/// The name of the asked model, else of the default one, and its source unless it is the one inside the binary.
pub(super) fn source_of(config: &Config, asked: Option<&str>) -> (String, Option<String>) {
    match asked.or(config.models.default.as_deref()) {
        None | Some(BUILT_IN) => (BUILT_IN.to_owned(), None),
        Some(name) => {
            let source = config.models.sources.get(name).map_or(name, String::as_str);
            (name.to_owned(), Some(source.to_owned()))
        }
    }
}

/// Opens a model whose files are at hand.
pub(super) fn open(name: &str, repository: &Repository, placement: &Placement) -> Result<Arc<dyn Pipeline>, CliError> {
    families::open(repository, placement, name).map_err(|source| CliError::Model { name: name.into(), source })
}

fn milliseconds(since: std::time::Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Moves a bar to what has come over the network.
pub(super) fn show(bar: &ProgressBar, loading: Loading) {
    if loading.fetching {
        bar.set_length(loading.total);
        bar.set_position(loading.done);
    }
}

/// A bar for what comes over the network.
pub(super) fn bytes_bar() -> ProgressBar {
    // The template is ours; were it wrong, the plain bar would do.
    let style = ProgressStyle::with_template("{bar:32} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} to go");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// A bar that counts `unit`s.
pub(super) fn progress_bar(unit: &str) -> ProgressBar {
    // The template is ours; were it wrong, the plain bar would do.
    let style = ProgressStyle::with_template(&format!("{{bar:32}} {unit} {{pos}} of {{len}}, {{eta}} to go"));
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
