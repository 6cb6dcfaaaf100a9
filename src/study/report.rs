//! A study's files: `results.json`, `results.csv`, `report.html`, and the report's plots by themselves.

use std::fmt::Write as _;
use std::path::Path;

use super::page::page;
use super::{Study, StudyError, plots, summarise};

/// Writes the study's files into `folder`, beside its pictures.
///
/// # Errors
/// When a file cannot be written, or a picture not be read back.
pub fn write(study: &Study, folder: &Path) -> Result<(), StudyError> {
    let keep = |name: &str, text: &str| {
        let file = folder.join(name);
        std::fs::write(&file, text).map_err(|error| StudyError::file(&file, error))
    };
    let json = serde_json::to_string_pretty(study).map_err(|error| StudyError::file(folder, error))?;
    keep("results.json", &json)?;
    keep("results.csv", &csv(study))?;
    let summaries = summarise(&study.rows);
    let plots = plots::all(&summaries).map_err(|error| StudyError::file(folder, error))?;
    let plot_folder = folder.join("plots");
    std::fs::create_dir_all(&plot_folder).map_err(|error| StudyError::file(&plot_folder, error))?;
    for (name, svg) in &plots {
        keep(&format!("plots/{name}.svg"), svg)?;
    }
    keep("report.html", &page(study, &summaries, &plots, folder)?)
}

/// One line a picture.
fn csv(study: &Study) -> String {
    let mut text =
        String::from("prompt,seed,sampler,schedule,steps,model_calls,seconds,psnr_db,ssim,perceptual,file\n");
    for row in &study.rows {
        let prompt = study.plan.prompts.get(row.prompt).map_or("", String::as_str).replace('"', "\"\"");
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "\"{prompt}\",{},{},{},{},{},{:.6},{:.4},{:.6},{:.4},{}",
            row.seed,
            row.setting.sampler,
            row.setting.schedule,
            row.setting.steps,
            row.model_calls,
            row.seconds,
            row.distances.psnr,
            row.distances.ssim,
            row.distances.perceptual,
            row.file
        );
    }
    text
}
