//! Rendering a study's pictures.

use std::path::{Path, PathBuf};

use easel_models::samplers::{SamplingSpec, Schedule, find};
use easel_models::{Prompt, RenderSpec, RgbImage};
use tokio::sync::mpsc::unbounded_channel;

use super::{Distances, Plan, Row, Setting};
use crate::engine::{EngineEvent, EngineHandle, Pictures, Work, WorkError, WorkMetrics};
use crate::request::Priority;

/// Why a study could not be run.
#[derive(Debug, thiserror::Error)]
pub enum StudyError {
    /// A sampler or schedule that does not exist.
    #[error("{0}")]
    Plan(String),
    /// A picture could not be rendered.
    #[error("{setting}: {source}")]
    Render {
        /// How it was to be sampled.
        setting: String,
        /// What the engine said.
        source: WorkError,
    },
    /// A file could not be written or read.
    #[error("{file}: {message}")]
    File {
        /// Which file.
        file: PathBuf,
        /// What went wrong.
        message: String,
    },
    /// Two pictures could not be compared.
    #[error(transparent)]
    Distance(#[from] super::distance::Incomparable),
}

impl StudyError {
    pub(super) fn file(file: &Path, message: impl std::fmt::Display) -> Self {
        Self::File { file: file.to_owned(), message: message.to_string() }
    }
}

/// What was rendered.
pub struct Rendered {
    /// Combinations that are not possible.
    pub left_out: Vec<String>,
    /// The reference's pictures: prompt, seed, file.
    pub references: Vec<(usize, u64, String)>,
    /// Every other picture.
    pub rows: Vec<Row>,
}

/// Renders the plan's pictures, one at a time so that seconds mean something, into `folder`; `tick` is called after
/// each with the number done and the number in all.
///
/// # Errors
/// When a name is not known, a picture cannot be rendered, or a file not be written.
pub fn run(
    plan: &Plan,
    engine: &EngineHandle,
    folder: &Path,
    mut tick: impl FnMut(usize, usize),
) -> Result<Rendered, StudyError> {
    let (settings, left_out) = settings(plan)?;
    let total = plan.prompts.len() * plan.seeds.len() * (settings.len() + 1);
    let mut done = 0;
    let mut rendered = Rendered { left_out, references: Vec::new(), rows: Vec::new() };
    for prompt in 0..plan.prompts.len() {
        for &seed in &plan.seeds {
            let (reference, _) = render(plan, engine, prompt, seed, &plan.reference)?;
            let file = format!("images/p{prompt}-s{seed}-reference.png");
            save(&folder.join(&file), &reference)?;
            rendered.references.push((prompt, seed, file));
            done += 1;
            tick(done, total);
            for setting in &settings {
                let (picture, metrics) = render(plan, engine, prompt, seed, setting)?;
                let Setting { sampler, schedule, steps } = setting;
                let file = format!("images/p{prompt}-s{seed}-{sampler}-{schedule}-{steps}.png");
                save(&folder.join(&file), &picture)?;
                rendered.rows.push(Row {
                    prompt,
                    seed,
                    setting: setting.clone(),
                    model_calls: metrics.model_calls,
                    seconds: metrics.denoise.as_secs_f64(),
                    distances: Distances::between(&reference, &picture)?,
                    file,
                });
                done += 1;
                tick(done, total);
            }
        }
    }
    Ok(rendered)
}

/// Every possible combination, and the reasons why others are left out.
fn settings(plan: &Plan) -> Result<(Vec<Setting>, Vec<String>), StudyError> {
    let mut settings = Vec::new();
    let mut left_out = Vec::new();
    for sampler in &plan.samplers {
        let info = find(sampler).ok_or_else(|| StudyError::Plan(format!("unknown sampler {sampler:?}")))?;
        for name in &plan.schedules {
            let schedule =
                Schedule::find(name).ok_or_else(|| StudyError::Plan(format!("unknown schedule {name:?}")))?;
            if !info.schedules.contains(&schedule) {
                let can: Vec<_> = info.schedules.iter().map(|schedule| schedule.name()).collect();
                left_out.push(format!("{sampler} cannot step over {name}; it can over {}", can.join(", ")));
                continue;
            }
            settings.extend(plan.steps.iter().map(|&steps| Setting {
                sampler: info.name.into(),
                schedule: schedule.name().into(),
                steps,
            }));
        }
    }
    if settings.is_empty() {
        return Err(StudyError::Plan(format!("no combination is possible: {}", left_out.join("; "))));
    }
    Ok((settings, left_out))
}

fn render(
    plan: &Plan,
    engine: &EngineHandle,
    prompt: usize,
    seed: u64,
    setting: &Setting,
) -> Result<(RgbImage, WorkMetrics), StudyError> {
    let failed = |source| StudyError::Render {
        setting: format!("{}, {} schedule, {} steps", setting.sampler, setting.schedule, setting.steps),
        source,
    };
    let sampling = SamplingSpec::steps(setting.steps).with_sampler(&setting.sampler).with_schedule(&setting.schedule);
    let spec = RenderSpec { guidance: plan.guidance, ..RenderSpec::new(plan.width, plan.height, seed, sampling) };
    let (events, mut received) = unbounded_channel();
    let work = Work {
        job: format!("study-{prompt}-{seed}"),
        model: plan.model.clone(),
        prompt: Prompt { text: plan.prompts.get(prompt).cloned(), ..Prompt::default() },
        negative: Prompt::default(),
        specs: vec![spec],
        pictures: Pictures::default(),
        priority: Priority::Normal,
        owner: String::new(),
        previews: 0,
        second: None,
        events,
    };
    engine.submit(work).map_err(failed)?;
    let mut picture = None;
    while let Some(event) = received.blocking_recv() {
        match event {
            EngineEvent::Image { picture: finished, .. } => picture = Some(finished),
            EngineEvent::Finished(metrics) => {
                let Some(picture) = picture else { break };
                return Ok((RgbImage::clone(&picture), metrics));
            }
            EngineEvent::Failed(error) => return Err(failed(error)),
            _ => {}
        }
    }
    Err(failed(WorkError::ShuttingDown))
}

/// Writes a PNG.
fn save(file: &Path, picture: &RgbImage) -> Result<(), StudyError> {
    image::save_buffer(file, &picture.pixels, picture.width, picture.height, image::ExtendedColorType::Rgb8)
        .map_err(|error| StudyError::file(file, error))
}
