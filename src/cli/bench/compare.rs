//! `easel bench compare`: a gate against regressions.

use std::path::PathBuf;

use clap::Args;

use super::CliError;
use crate::study::{self, Pair};

/// How many of the pictures that are close enough are listed, the furthest first.
const CLOSE_LISTED: usize = 5;

/// `easel bench compare`
#[derive(Debug, Args)]
pub(super) struct Compare {
    /// The folder of the run to measure against.
    before: PathBuf,
    /// The folder of the run in question.
    after: PathBuf,
    /// Fail when a picture's SSIM is below this.
    #[arg(long, default_value_t = 0.98)]
    min_ssim: f64,
    /// Fail when a picture's PSNR in dB is below this.
    #[arg(long, default_value_t = 35.0)]
    min_psnr: f64,
}

impl Compare {
    #[allow(clippy::print_stdout, reason = "the table is what the command is for")]
    pub(super) fn run(self) -> Result<(), CliError> {
        let found = study::compare(&self.before, &self.after).map_err(CliError::other)?;
        if found.pairs.is_empty() {
            return Err(CliError::Usage("the two runs have no picture in common".into()));
        }
        let (mut far, mut close): (Vec<_>, Vec<_>) = found.pairs.iter().partition(|pair| self.too_far(pair));
        for pairs in [&mut far, &mut close] {
            pairs.sort_by(|a, b| a.distances.ssim.total_cmp(&b.distances.ssim));
        }
        println!("sampler          schedule     steps       seed   PSNR dB    SSIM   seconds  prompt");
        for pair in far.iter().chain(close.iter().take(CLOSE_LISTED)) {
            println!(
                "{:<16} {:<12} {:>5} {:>10} {:>9.2} {:>7.4} {:>8.2}x  {}{}",
                pair.setting.sampler,
                pair.setting.schedule,
                pair.setting.steps,
                pair.seed,
                pair.distances.psnr,
                pair.distances.ssim,
                pair.slowdown,
                pair.prompt,
                if self.too_far(pair) { "  <- too far apart" } else { "" }
            );
        }
        println!(
            "{} pictures compared, {} in one run only, {} below SSIM {} or PSNR {} dB",
            found.pairs.len(),
            found.unmatched,
            far.len(),
            self.min_ssim,
            self.min_psnr
        );
        if far.is_empty() { Ok(()) } else { Err(CliError::Usage(format!("{} pictures are too far apart", far.len()))) }
    }

    fn too_far(&self, pair: &Pair) -> bool {
        pair.distances.ssim < self.min_ssim || pair.distances.psnr < self.min_psnr
    }
}
