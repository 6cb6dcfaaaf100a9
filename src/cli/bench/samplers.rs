//! `easel bench samplers`: a study of samplers on a model.

use std::path::{Path, PathBuf};

use clap::Args;
use easel_models::samplers::{Schedule, find};
use easel_models::{ModelCard, Size};
use serde_json::Map;

use super::super::common::{ModelFlags, load_model, progress_bar, source_of};
use super::{CliError, command, machine};
use crate::engine::{EngineHandle, EngineOptions};
use crate::request::parse_size;
use crate::study::{self, Plan, Setting, Study};
use crate::telemetry;

/// `easel bench samplers`
#[derive(Debug, Args)]
pub(super) struct Samplers {
    /// A configured model's name, a folder in the diffusers layout, a .safetensors or .gguf file, or a name on the hub; without it, the model inside the binary.
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,
    /// A file with one prompt a line.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompts: Option<PathBuf>,
    /// A prompt; may be given several times.
    #[arg(long, value_name = "TEXT", default_value = "a red circle on a blue background")]
    prompt: Vec<String>,
    /// Samplers by name; `all` is every one that suits the model.
    #[arg(long, value_delimiter = ',', default_value = "ddim,euler,heun,dpmpp_2m,unipc")]
    samplers: Vec<String>,
    /// Schedules by name.
    #[arg(long, value_delimiter = ',', default_value = "default")]
    schedules: Vec<String>,
    /// Step counts.
    #[arg(long, value_delimiter = ',', default_value = "5,10,20,50", value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps: Vec<u32>,
    /// Seeds: a range without its end (0..3), or a list.
    #[arg(long, default_value = "0..1", value_parser = seeds)]
    seeds: Seeds,
    /// Guidance scale; without it, the model's.
    #[arg(long)]
    guidance: Option<f64>,
    /// Width and height in pixels; without it, the model's.
    #[arg(long, value_name = "WxH")]
    size: Option<String>,
    /// The reference: sampler and steps, as in heun:100. It should have converged.
    #[arg(long, value_name = "SAMPLER:STEPS", default_value = "heun:100", value_parser = reference)]
    reference: Setting,
    /// The folder for results.csv, results.json, report.html and the pictures.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    flags: ModelFlags,
}

/// The seeds of a study.
#[derive(Debug, Clone)]
struct Seeds(Vec<u64>);

fn seeds(text: &str) -> Result<Seeds, String> {
    let number = |text: &str| text.trim().parse::<u64>().map_err(|_| format!("{text:?} is not a seed"));
    let seeds: Vec<u64> = match text.split_once("..") {
        Some((from, to)) => (number(from)?..number(to)?).collect(),
        None => text.split(',').map(number).collect::<Result<_, _>>()?,
    };
    if seeds.is_empty() { Err("there is no seed in it".into()) } else { Ok(Seeds(seeds)) }
}

fn reference(text: &str) -> Result<Setting, String> {
    let (sampler, steps) = text.split_once(':').ok_or("expected SAMPLER:STEPS")?;
    let info = find(sampler).ok_or_else(|| format!("unknown sampler {sampler:?}"))?;
    let steps = steps.parse().map_err(|_| format!("{steps:?} is not a number of steps"))?;
    Ok(Setting { sampler: info.name.into(), schedule: Schedule::Default.name().into(), steps })
}

impl Samplers {
    pub(super) fn run(self) -> Result<(), CliError> {
        let config = self.flags.load(Map::new())?;
        telemetry::log_quietly(config.telemetry.log);
        let (name, source) = source_of(&config, self.model.as_deref());
        let model = load_model(&config.models, &name, source.as_deref())?;
        let card = model.card().clone();
        let plan = self.plan(&name, &card)?;
        let images = self.output.join("images");
        std::fs::create_dir_all(&images).map_err(CliError::io(format!("cannot make {}", images.display())))?;

        let engine = EngineHandle::start(vec![(name, model)], EngineOptions::from(&config.models));
        let bar = progress_bar("picture");
        let rendered = study::run(&plan, &engine, &self.output, |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        })
        .map_err(CliError::other)?;
        bar.finish_and_clear();
        let study = Study {
            version: env!("CARGO_PKG_VERSION").into(),
            created: jiff::Timestamp::now(),
            command: command(),
            machine: machine(),
            device: format!("{}, {}", config.models.device, card.dtype),
            plan,
            left_out: rendered.left_out,
            references: rendered.references,
            rows: rendered.rows,
        };
        study::write(&study, &self.output).map_err(CliError::other)?;
        print(&study, &self.output);
        Ok(())
    }

    fn plan(&self, name: &str, card: &ModelCard) -> Result<Plan, CliError> {
        let Size { width, height } = self.size(name, card)?;
        let samplers = match self.samplers.as_slice() {
            [all] if all == "all" => card.samplers.clone(),
            named => named.to_vec(),
        };
        Ok(Plan {
            model: name.into(),
            prompts: self.prompts()?,
            samplers,
            schedules: self.schedules.clone(),
            steps: self.steps.iter().map(|&steps| steps as usize).collect(),
            seeds: self.seeds.0.clone(),
            guidance: self.guidance.unwrap_or(card.guidance),
            width,
            height,
            reference: self.reference.clone(),
        })
    }

    fn size(&self, name: &str, card: &ModelCard) -> Result<Size, CliError> {
        let Some(text) = &self.size else { return Ok(card.native) };
        let size = parse_size(text)
            .ok_or_else(|| CliError::Usage(format!("--size {text}: expected WIDTHxHEIGHT, as in 512x512")))?;
        if card.sizes.contains(size) {
            return Ok(size);
        }
        let nearest = card.sizes.nearest(size);
        Err(CliError::Usage(format!("--size {size}: {name} cannot make it; the nearest it can is {nearest}")))
    }

    fn prompts(&self) -> Result<Vec<String>, CliError> {
        let Some(file) = &self.prompts else { return Ok(self.prompt.clone()) };
        let text = std::fs::read_to_string(file).map_err(CliError::io(format!("cannot read {}", file.display())))?;
        let prompts: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
        if prompts.is_empty() {
            return Err(CliError::Usage(format!("{} holds no prompt", file.display())));
        }
        Ok(prompts)
    }
}

#[allow(clippy::print_stdout, reason = "the table is what the command is for")]
fn print(study: &Study, folder: &Path) {
    println!("sampler          schedule     steps  calls  seconds  perceptual  PSNR dB    SSIM");
    for line in study::summarise(&study.rows) {
        println!(
            "{:<16} {:<12} {:>5} {:>6} {:>8.2} {:>11.1} {:>8.1} {:>7.3}{}",
            line.setting.sampler,
            line.setting.schedule,
            line.setting.steps,
            line.model_calls,
            line.seconds,
            line.perceptual,
            line.psnr,
            line.ssim,
            if line.pareto { "  *" } else { "" }
        );
    }
    for reason in &study.left_out {
        println!("left out: {reason}");
    }
    println!("* nothing else is both closer and cheaper in model calls\n{}", folder.join("report.html").display());
}
