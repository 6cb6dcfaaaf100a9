//! Two runs of a study against each other: a gate against regressions.

use std::collections::BTreeMap;
use std::path::Path;

use easel_models::RgbImage;

use super::{Distances, Setting, Study, StudyError};

/// One picture in both runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The prompt.
    pub prompt: String,
    /// The seed.
    pub seed: u64,
    /// How it was sampled.
    pub setting: Setting,
    /// How far the two runs' pictures are apart.
    pub distances: Distances,
    /// Seconds of the second run divided by the first's.
    pub slowdown: f64,
}

/// What two runs have in common, and what not.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Pictures of both runs.
    pub pairs: Vec<Pair>,
    /// Pictures of only one of them.
    pub unmatched: usize,
}

/// Compares the pictures of the runs in two folders, by prompt, seed and setting.
///
/// # Errors
/// When a folder holds no run, a picture cannot be read, or two pictures differ in size.
pub fn compare(first: &Path, second: &Path) -> Result<Comparison, StudyError> {
    let (a, b) = (load(first)?, load(second)?);
    let mut others: BTreeMap<_, _> =
        b.rows.iter().map(|row| ((prompt(&b, row.prompt), row.seed, &row.setting), row)).collect();
    let mut comparison = Comparison { pairs: Vec::new(), unmatched: 0 };
    for row in &a.rows {
        let text = prompt(&a, row.prompt);
        let Some(other) = others.remove(&(text, row.seed, &row.setting)) else {
            comparison.unmatched += 1;
            continue;
        };
        let distances = Distances::between(&picture(&first.join(&row.file))?, &picture(&second.join(&other.file))?)?;
        comparison.pairs.push(Pair {
            prompt: text.to_owned(),
            seed: row.seed,
            setting: row.setting.clone(),
            distances,
            slowdown: other.seconds / row.seconds.max(f64::MIN_POSITIVE),
        });
    }
    comparison.unmatched += others.len();
    Ok(comparison)
}

fn prompt(study: &Study, index: usize) -> &str {
    study.plan.prompts.get(index).map_or("", String::as_str)
}

fn load(folder: &Path) -> Result<Study, StudyError> {
    let file = folder.join("results.json");
    let text = std::fs::read_to_string(&file).map_err(|error| StudyError::file(&file, error))?;
    serde_json::from_str(&text).map_err(|error| StudyError::file(&file, error))
}

fn picture(file: &Path) -> Result<RgbImage, StudyError> {
    let failed = |error: &dyn std::fmt::Display| StudyError::file(file, error);
    let picture = image::open(file).map_err(|error| failed(&error))?.into_rgb8();
    RgbImage::new(picture.width(), picture.height(), picture.into_raw()).map_err(|error| failed(&error))
}
