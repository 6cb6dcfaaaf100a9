//! `easel generate`: a picture from a prompt, and perhaps from other pictures, without a server.

mod pictures;

use std::path::{Path, PathBuf};

use clap::Args;
use easel_models::Size;
use serde_json::Map;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::common::{CliError, ModelFlags, load_weights, open, placement, progress_bar, repository, source_of};
use crate::artifacts;
use crate::config::Config;
use crate::engine::{EngineEvent, EngineHandle, EngineOptions, Work};
use crate::inputs::{self, Files};
use crate::request::{
    GenerationRequest, OutputFormat, Picture, Priority, ResolvedRequest, Resolver, SizeAsked, fields, parse_size,
};
use crate::telemetry;

/// `easel generate`
#[derive(Debug, Args)]
pub(super) struct Generate {
    /// What to draw.
    prompt: String,
    /// The file to write; its ending (.png, .jpeg, .webp) chooses the format. Several pictures are numbered.
    #[arg(short, long, value_name = "FILE", default_value = "easel.png")]
    output: PathBuf,
    /// A configured model's name, a folder in the diffusers layout, a .safetensors or .gguf file, or a name on the hub.
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,
    /// What to stay away from.
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,
    /// Width and height in pixels, as in 512x512.
    #[arg(long, value_name = "WxH")]
    size: Option<String>,
    /// Denoising steps.
    #[arg(long)]
    steps: Option<u64>,
    /// Guidance scale; 1 switches guidance off.
    #[arg(long)]
    guidance: Option<f64>,
    /// Seed of the first picture; the same seed draws the same picture.
    #[arg(long)]
    seed: Option<u64>,
    /// Sampler, as in ddim, euler, euler_a, dpmpp_2m.
    #[arg(long)]
    sampler: Option<String>,
    /// Schedule, as in default, karras.
    #[arg(long)]
    schedule: Option<String>,
    /// CLIP layers left out at the end.
    #[arg(long, value_name = "LAYERS")]
    clip_skip: Option<u64>,
    /// How many pictures; picture i uses seed + i.
    #[arg(short, long, value_name = "COUNT")]
    n: Option<u64>,
    /// The picture to start from, or with --mask to paint into, or to look at: a png, jpeg or webp file, or its address.
    #[arg(long, value_name = "FILE|URL")]
    image: Option<String>,
    /// Which part of --image is painted anew: white is, black is kept.
    #[arg(long, value_name = "FILE|URL")]
    mask: Option<String>,
    /// How much of --image is drawn anew, from 0 to 1.
    #[arg(long)]
    strength: Option<f64>,
    /// A further picture for a model that edits to look at. May be given several times.
    #[arg(long = "reference", value_name = "FILE|URL")]
    references: Vec<String>,
    #[command(flatten)]
    flags: ModelFlags,
}

/// The flags that errors name, by the field that each of them sets.
const FLAGS: &[(&str, &str)] = &[
    (fields::PROMPT.name, "PROMPT"),
    (fields::NEGATIVE_PROMPT.name, "--negative-prompt"),
    (fields::SIZE.name, "--size"),
    (fields::STEPS.name, "--steps"),
    (fields::GUIDANCE.name, "--guidance"),
    (fields::SEED.name, "--seed"),
    (fields::SAMPLER.name, "--sampler"),
    (fields::SCHEDULE.name, "--schedule"),
    (fields::CLIP_SKIP.name, "--clip-skip"),
    (fields::N.name, "--n"),
    (fields::IMAGE.name, IMAGE),
    (fields::MASK.name, MASK),
    (fields::STRENGTH.name, "--strength"),
    (fields::REFERENCE_IMAGES.name, REFERENCE),
];

const IMAGE: &str = "--image";
const MASK: &str = "--mask";
const REFERENCE: &str = "--reference";

impl Generate {
    pub(super) fn run(self) -> Result<(), CliError> {
        let config = self.flags.load(Map::new())?;
        telemetry::log_quietly(config.telemetry.log);
        let format = format(&self.output)?;
        if let Some(folder) = self.output.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
            return Err(CliError::Usage(format!(
                "--output {}: {} is no folder",
                self.output.display(),
                folder.display()
            )));
        }
        let (name, source) = source_of(&config, self.model.as_deref());
        let model = open(&name, &repository(&name, source.as_deref())?, &placement(&config.models)?)?;
        let cards = vec![(name.clone(), model.card().clone())];
        let mut asked = self.request(name.clone(), format)?;
        let resolver = Resolver::new(cards, config.limits.clone(), &Default::default()).map_err(CliError::other)?;
        // What cannot be is known before anything is fetched, and before the weights are loaded.
        resolver.admit(&asked).map_err(CliError::other)?;
        let files = pictures::bring(&config, &mut asked)?;
        let (request, warnings) = resolver.resolve(asked).map_err(CliError::other)?;
        let pictures = inputs::pictures(&request, &files).map_err(CliError::other)?;
        load_weights(&name, &*model)?;

        let engine = EngineHandle::start(vec![(name, model)], EngineOptions::from(&config.models));
        let (events, received) = unbounded_channel();
        let work = Work {
            job: "generate".into(),
            model: request.model.clone(),
            prompt: request.positive(),
            negative: request.negative(),
            specs: request.specs(),
            pictures,
            priority: request.priority,
            owner: String::new(),
            previews: 0,
            second: None,
            events,
        };
        engine.submit(work).map_err(CliError::other)?;
        for warning in warnings {
            say(&format!("note: {warning}"));
        }
        self.follow(&request, &files, &config, received)
    }

    fn request(&self, model: String, format: OutputFormat) -> Result<GenerationRequest, CliError> {
        let size = match &self.size {
            None => SizeAsked::Native,
            Some(text) => SizeAsked::Exact(size(text)?),
        };
        Ok(GenerationRequest {
            model: Some(model),
            prompt: Some(self.prompt.clone()),
            negative_prompt: self.negative_prompt.clone(),
            n: self.n,
            size,
            steps: self.steps,
            guidance: self.guidance,
            seed: self.seed,
            sampler: self.sampler.clone(),
            schedule: self.schedule.clone(),
            clip_skip: self.clip_skip,
            images: self.image.iter().map(|text| pictures::picture(IMAGE, None, text)).collect::<Result<_, _>>()?,
            references: self.references()?,
            mask: self.mask.as_ref().map(|text| pictures::picture(MASK, None, text)).transpose()?,
            strength: self.strength,
            spelling: FLAGS.to_vec(),
            output_format: Some(format),
            priority: Some(Priority::Normal),
            ..GenerationRequest::default()
        })
    }

    fn references(&self) -> Result<Vec<Picture>, CliError> {
        let several = self.references.len() > 1;
        let numbered = (1..).zip(&self.references);
        numbered.map(|(number, text)| pictures::picture(REFERENCE, several.then_some(number), text)).collect()
    }

    /// Shows progress and writes the pictures as they come.
    fn follow(
        &self,
        request: &ResolvedRequest,
        files: &Files,
        config: &Config,
        mut events: UnboundedReceiver<EngineEvent>,
    ) -> Result<(), CliError> {
        let count = request.n as usize;
        let mut done = vec![0; count];
        let bar = progress_bar("step");
        bar.set_length((count * request.steps) as u64);
        while let Some(event) = events.blocking_recv() {
            match event {
                EngineEvent::Queued { .. }
                | EngineEvent::Loading { .. }
                | EngineEvent::Started
                | EngineEvent::Preview { .. } => {}
                EngineEvent::Progress { image, step, .. } => {
                    if let Some(steps) = done.get_mut(image) {
                        *steps = step;
                    }
                    bar.set_position(done.iter().sum::<usize>() as u64);
                }
                EngineEvent::Image { image, picture } => {
                    let file = numbered(&self.output, image, count);
                    let finished = artifacts::finish(request, image, &picture, config.artifacts.embed_metadata, files)
                        .map_err(CliError::other)?;
                    std::fs::write(&file, &finished.bytes)
                        .map_err(CliError::io(format!("cannot write {}", file.display())))?;
                    bar.suspend(|| say(&format!("{} (seed {})", file.display(), request.seed_of(image))));
                }
                EngineEvent::Finished(_) => {
                    bar.finish_and_clear();
                    return Ok(());
                }
                EngineEvent::Failed(error) => {
                    bar.abandon();
                    return Err(CliError::other(error));
                }
            }
        }
        Err(CliError::Usage("the engine stopped before the picture was finished".into()))
    }
}

fn size(text: &str) -> Result<Size, CliError> {
    parse_size(text).ok_or_else(|| CliError::Usage(format!("--size {text}: expected WIDTHxHEIGHT, as in 512x512")))
}

/// The format that a file's ending asks for.
fn format(file: &Path) -> Result<OutputFormat, CliError> {
    let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    match ending.as_str() {
        "jpg" => Ok(OutputFormat::Jpeg),
        ending => OutputFormat::ALL.into_iter().find(|format| format.name() == ending).ok_or_else(|| {
            CliError::Usage(format!("--output {}: the ending must be .png, .jpeg, .jpg or .webp", file.display()))
        }),
    }
}

/// `file` itself for one picture; `name-0.png` and so on for several.
fn numbered(file: &Path, image: usize, count: usize) -> PathBuf {
    if count == 1 {
        return file.to_owned();
    }
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let ending = file.extension().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!("{stem}-{image}.{ending}"))
}

#[allow(clippy::print_stderr, reason = "this is the command line's own voice")]
fn say(text: &str) {
    eprintln!("{text}");
}
