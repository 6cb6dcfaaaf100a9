//! A study's rows, averaged over prompts and seeds.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Row, Setting};

/// One setting's averages.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// How it was sampled.
    pub setting: Setting,
    /// Model calls a picture.
    pub model_calls: usize,
    /// Seconds a picture.
    pub seconds: f64,
    /// Mean PSNR against the reference.
    pub psnr: f64,
    /// Mean SSIM.
    pub ssim: f64,
    /// Mean perceptual distance.
    pub perceptual: f64,
    /// Whether no other setting is both closer to the reference and cheaper in model calls.
    pub pareto: bool,
}

/// Averages over prompts and seeds, ordered by sampler, schedule and steps.
pub fn summarise(rows: &[Row]) -> Vec<Summary> {
    let mut groups: BTreeMap<&Setting, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        groups.entry(&row.setting).or_default().push(row);
    }
    let mut summaries: Vec<Summary> = groups
        .into_iter()
        .map(|(setting, rows)| {
            let mean = |value: fn(&Row) -> f64| rows.iter().map(|row| value(row)).sum::<f64>() / rows.len() as f64;
            Summary {
                setting: setting.clone(),
                model_calls: rows.first().map_or(0, |row| row.model_calls),
                seconds: mean(|row| row.seconds),
                psnr: mean(|row| row.distances.psnr),
                ssim: mean(|row| row.distances.ssim),
                perceptual: mean(|row| row.distances.perceptual),
                pareto: false,
            }
        })
        .collect();
    let front: Vec<bool> = summaries.iter().map(|one| !summaries.iter().any(|other| dominates(other, one))).collect();
    for (summary, pareto) in summaries.iter_mut().zip(front) {
        summary.pareto = pareto;
    }
    summaries
}

/// At least as good in both, and better in one.
fn dominates(a: &Summary, b: &Summary) -> bool {
    a.model_calls <= b.model_calls
        && a.perceptual <= b.perceptual
        && (a.model_calls < b.model_calls || a.perceptual < b.perceptual)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::Distances;

    fn row(sampler: &str, steps: usize, seed: u64, perceptual: f64) -> Row {
        Row {
            prompt: 0,
            seed,
            setting: Setting { sampler: sampler.into(), schedule: "default".into(), steps },
            model_calls: steps,
            seconds: 1.0,
            distances: Distances { psnr: 30.0, ssim: 0.9, perceptual },
            file: String::new(),
        }
    }

    #[test]
    fn settings_are_averaged_and_only_the_undominated_are_on_the_front() {
        let rows = [
            row("ddim", 10, 0, 40.0),
            row("ddim", 10, 1, 20.0),
            row("euler", 10, 0, 35.0),
            row("euler", 10, 1, 35.0),
            row("euler", 20, 0, 10.0),
            row("euler", 20, 1, 10.0),
        ];
        let found = summarise(&rows);
        let front: Vec<_> =
            found.iter().map(|s| (s.setting.sampler.as_str(), s.setting.steps, s.perceptual, s.pareto)).collect();
        assert_eq!(front, [("ddim", 10, 30.0, true), ("euler", 10, 35.0, false), ("euler", 20, 10.0, true)]);
    }
}
