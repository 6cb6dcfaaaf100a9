//! `easel models inspect`: a model without its weights, and with `--load` what they take.

use std::sync::Arc;
use std::time::Instant;

use candle_core::Device;
use clap::Args;
use easel_models::families::{self, Placement};
use easel_models::samplers::SamplingSpec;
use easel_models::weights::Repository;
use easel_models::{Part, Pipeline, Prompt, RenderSpec, Size, Sizes, Trajectory};
use serde::Serialize;
use serde_json::Map;

use super::super::common::{CliError, ModelFlags, open, placement, repository};
use super::{amount, source};
use crate::engine::MemoryWatch;

/// Pictures of the batches whose memory is told.
const BATCHES: [u64; 4] = [1, 2, 4, 8];

/// `easel models inspect`
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// A configured model's name, a folder, a file, a name on the hub, or `easel-mini`, the model inside the binary.
    source: String,
    /// Load the weights too, make a step of one picture, and hold the memory that is seen against the prediction.
    #[arg(long)]
    load: bool,
    /// Write JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ModelFlags,
}

/// What is known of a model.
#[derive(Debug, Serialize)]
struct Report {
    source: String,
    family: String,
    description: String,
    parts: Vec<PartReport>,
    parameters: u64,
    /// Where and in what it computes.
    device: String,
    dtype: String,
    sizes: Sizes,
    native: Size,
    steps: usize,
    guidance: f64,
    sampler: String,
    samplers: Vec<String>,
    context_tokens: usize,
    memory: Memory,
    #[serde(skip_serializing_if = "Option::is_none")]
    seen: Option<Seen>,
}

/// One of its parts.
#[derive(Debug, Serialize)]
struct PartReport {
    #[serde(flatten)]
    part: Part,
    files: Vec<String>,
}

/// What it is predicted to take, in bytes.
#[derive(Debug, Serialize)]
struct Memory {
    /// The weights that are there at once.
    weights: u64,
    /// The weights of all parts.
    all_parts: u64,
    /// Whether the parts are loaded in turn, as they do not fit together.
    in_turn: bool,
    /// A row of the denoiser's call, at the native size.
    row: u64,
    /// Rows of one picture with the model's own guidance.
    rows_a_picture: u64,
    /// Decoding one picture.
    decode: u64,
    /// The peaks of batches of the native size.
    batches: Vec<Batch>,
}

/// The peak of one batch: the weights, its rows, and a picture that is decoded beside them.
#[derive(Debug, Serialize)]
struct Batch {
    pictures: u64,
    bytes: u64,
}

/// What was seen, in bytes above what the process took before.
#[derive(Debug, Serialize)]
struct Seen {
    load_seconds: f64,
    /// Once the weights were there.
    weights: u64,
    /// While they were being loaded.
    peak_loading: u64,
    /// While one picture was encoded, taken a step further, and decoded.
    peak: u64,
    /// The prediction of that.
    predicted: u64,
}

impl Inspect {
    pub(super) fn run(&self) -> Result<(), CliError> {
        let config = self.flags.load(Map::new())?.models;
        let repository = repository(&self.source, source(&config, &self.source))?;
        let placement = placement(&config)?;
        let model = open(&self.source, &repository, &placement)?;
        let failed = |source| CliError::Model { name: self.source.clone(), source };
        // That every part is whole and fits its configuration, by the files' headers alone.
        families::check(&repository).map_err(failed)?;
        let mut report = report(&self.source, &*model, &repository, &placement).map_err(failed)?;
        if self.load {
            report.seen = Some(load(&model, &placement.device, &report.memory).map_err(failed)?);
        }
        if self.json {
            print_line(&serde_json::to_string_pretty(&report).map_err(CliError::other)?);
        } else {
            print_line(&text(&report));
        }
        Ok(())
    }
}

fn report(
    source: &str,
    model: &dyn Pipeline,
    repository: &Repository,
    placement: &Placement,
) -> easel_models::Result<Report> {
    let card = model.card();
    let parts = model.parts().into_iter().map(|part| {
        let files = repository.list(&part.name)?.into_iter().collect();
        Ok(PartReport { part, files })
    });
    let parts = parts.collect::<easel_models::Result<Vec<_>>>()?;
    let Size { width, height } = card.native;
    let (weights, row, decode) =
        (model.weight_bytes(), model.row_bytes(width, height), model.decode_bytes(width, height));
    let all_parts = parts.iter().map(|part| part.part.bytes).sum();
    let rows_a_picture = 1 + u64::from(model.guided(&spec(model)));
    let peak = |pictures| Batch { pictures, bytes: weights + pictures * rows_a_picture * row + decode };
    Ok(Report {
        source: source.to_owned(),
        family: card.family.clone(),
        description: card.description.clone(),
        parameters: card.parameters,
        device: format!("{:?}", placement.device.location()).to_lowercase(),
        dtype: card.dtype.clone(),
        sizes: card.sizes.clone(),
        native: card.native,
        steps: card.steps,
        guidance: card.guidance,
        sampler: card.sampler.clone(),
        samplers: card.samplers.clone(),
        context_tokens: card.context_tokens,
        memory: Memory {
            weights,
            all_parts,
            in_turn: weights < all_parts,
            row,
            rows_a_picture,
            decode,
            batches: BATCHES.map(peak).into(),
        },
        seen: None,
        parts,
    })
}

/// One picture of the native size, with the model's own guidance and as few steps as can be.
fn spec(model: &dyn Pipeline) -> RenderSpec {
    let card = model.card();
    let sampling = SamplingSpec::steps(1).with_sampler(&card.sampler);
    RenderSpec { guidance: card.guidance, ..RenderSpec::new(card.native.width, card.native.height, 0, sampling) }
}

/// Loads the weights and makes one picture of one step, watching the memory.
fn load(model: &Arc<dyn Pipeline>, device: &Device, memory: &Memory) -> easel_models::Result<Seen> {
    let watch = MemoryWatch::start(device, 0);
    let taken = |what: fn(&MemoryWatch) -> u64| watch.as_ref().map_or(0, what);
    let began = Instant::now();
    model.load(&|_| {})?;
    let load_seconds = began.elapsed().as_secs_f64();
    let (weights, peak_loading) = (taken(MemoryWatch::now), taken(MemoryWatch::peak));

    let spec = spec(&**model);
    let positive = Arc::new(model.encode(&Prompt::new("a red circle"))?);
    let negative = model.guided(&spec).then(|| model.encode(&Prompt::new(""))).transpose()?.map(Arc::new);
    let mut row: Trajectory = model.begin(&spec, positive, negative)?;
    while !row.done() {
        model.denoise(&mut [&mut row])?;
    }
    model.decode(std::slice::from_ref(row.latents()))?;
    // One after the other, so the larger of the two.
    let predicted = memory.weights + (memory.rows_a_picture * memory.row).max(memory.decode);
    Ok(Seen { load_seconds, weights, peak_loading, peak: taken(MemoryWatch::peak), predicted })
}

fn text(report: &Report) -> String {
    let mut lines = vec![format!("{:<18} {:>14} {:<12} {:>10}  files", "part", "parameters", "stored as", "loaded")];
    for PartReport { part, files } in &report.parts {
        let (stored, loaded) = (part.stored.join(", "), amount(part.bytes));
        lines.push(format!(
            "{:<18} {:>14} {stored:<12} {loaded:>10}  {}",
            part.name,
            part.parameters,
            files.join(", ")
        ));
    }
    let Memory { weights, all_parts, in_turn, row, rows_a_picture, decode, batches } = &report.memory;
    let sizes = match &report.sizes {
        Sizes::Any { multiple, min, max } => format!("sides of {min} to {max} pixels, multiples of {multiple}"),
        Sizes::List(sizes) => sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let defaults =
        format!("{}, {} steps, guidance {}, {}", report.native, report.steps, report.guidance, report.sampler);
    let weights = if *in_turn {
        format!("{}, the largest part: loaded in turn, as {} do not fit", amount(*weights), amount(*all_parts))
    } else {
        amount(*weights)
    };
    let batches: Vec<String> =
        batches.iter().map(|batch| format!("{} {}", batch.pictures, amount(batch.bytes))).collect();
    let mut row_of = |name: &str, value: String| lines.push(format!("{name:<18} {value}"));
    row_of("", String::new());
    row_of("family", report.family.clone());
    row_of("parameters", report.parameters.to_string());
    row_of("computes", format!("in {} on {}", report.dtype, report.device));
    row_of("sizes", sizes);
    row_of("defaults", defaults);
    row_of("samplers", report.samplers.join(", "));
    row_of("prompt", format!("{} tokens at most", report.context_tokens));
    row_of("weights", weights);
    row_of("a picture", format!("{rows_a_picture} rows of {}, and {} to decode it", amount(*row), amount(*decode)));
    row_of("peak, by pictures", batches.join(", "));
    if let Some(seen) = &report.seen {
        let loading = format!(
            "{} after {:.1} s, at most {} while loading; {} predicted",
            amount(seen.weights),
            seen.load_seconds,
            amount(seen.peak_loading),
            amount(report.memory.weights)
        );
        row_of("weights seen", loading);
        row_of("one picture seen", format!("{}; {} predicted", amount(seen.peak), amount(seen.predicted)));
    }
    if !report.description.is_empty() {
        lines.push(report.description.clone());
    }
    lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
}

#[allow(clippy::print_stdout, reason = "the description is what the command is for")]
fn print_line(text: &str) {
    println!("{text}");
}
