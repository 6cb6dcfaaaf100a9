//! Schedules: which noise levels a picture passes, whatever solver steps over them.

use serde::{Deserialize, Serialize};

use super::settings::Spacing;
use super::training::Training;

/// A schedule by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// What the model's scheduler file says.
    #[default]
    Default,
    /// Evenly spread over the trained timesteps, both ends included: diffusers' `linspace`.
    Normal,
    /// diffusers' `trailing` spacing, which it names as its equivalent of this schedule.
    Simple,
    /// diffusers' `trailing` spacing, which it names as its equivalent of this schedule.
    SgmUniform,
    /// diffusers' `leading` spacing.
    DdimUniform,
    /// Even in σ^(1/7) (Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
    /// equation 5).
    Karras,
    /// Even in log σ between the schedule's ends.
    Exponential,
    /// Quantiles of a beta distribution (Lee et al., "Beta Sampling is All You Need", 2024).
    Beta,
    /// Even in log-SNR over the trained range, diffusers' `use_lu_lambdas` (Lu et al., DPM-Solver, 2022).
    Lu,
    /// Linear in noise at first, then quadratic (Genmo's Mochi, 2024).
    LinearQuadratic,
    /// Even in arctan σ (Sabour et al., "Align Your Steps", 2024, appendix: the optimum for a Gaussian).
    KlOptimal,
    /// The optimised levels for SD 1.5 of Sabour et al., "Align Your Steps", 2024.
    AlignYourSteps,
    /// The optimised levels for SDXL of Sabour et al., "Align Your Steps", 2024.
    AlignYourStepsSdxl,
}

impl Schedule {
    /// Every schedule.
    pub const ALL: [Self; 13] = [
        Self::Default,
        Self::Normal,
        Self::Simple,
        Self::SgmUniform,
        Self::DdimUniform,
        Self::Karras,
        Self::Exponential,
        Self::Beta,
        Self::Lu,
        Self::LinearQuadratic,
        Self::KlOptimal,
        Self::AlignYourSteps,
        Self::AlignYourStepsSdxl,
    ];

    /// The name in requests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Normal => "normal",
            Self::Simple => "simple",
            Self::SgmUniform => "sgm_uniform",
            Self::DdimUniform => "ddim_uniform",
            Self::Karras => "karras",
            Self::Exponential => "exponential",
            Self::Beta => "beta",
            Self::Lu => "lu",
            Self::LinearQuadratic => "linear_quadratic",
            Self::KlOptimal => "kl_optimal",
            Self::AlignYourSteps => "align_your_steps",
            Self::AlignYourStepsSdxl => "align_your_steps_sdxl",
        }
    }

    /// The name that A1111's tools show; "Automatic" for the model's own.
    pub fn title(self) -> &'static str {
        match self {
            Self::Default => "Automatic",
            Self::Normal => "Normal",
            Self::Simple => "Simple",
            Self::SgmUniform => "SGM Uniform",
            Self::DdimUniform => "DDIM",
            Self::Karras => "Karras",
            Self::Exponential => "Exponential",
            Self::Beta => "Beta",
            Self::Lu => "Lu",
            Self::LinearQuadratic => "Linear Quadratic",
            Self::KlOptimal => "KL Optimal",
            Self::AlignYourSteps => "Align Your Steps",
            Self::AlignYourStepsSdxl => "Align Your Steps SDXL",
        }
    }

    /// Other spellings that are understood, besides any case and punctuation.
    pub fn aliases(self) -> &'static [&'static str] {
        match self {
            Self::Default => &["automatic", "auto", "model"],
            Self::Normal => &["linspace", "uniform"],
            Self::SgmUniform => &["trailing"],
            Self::DdimUniform => &["leading", "ddim"],
            Self::Karras => &["use_karras_sigmas"],
            Self::Exponential => &["use_exponential_sigmas"],
            Self::Beta => &["use_beta_sigmas"],
            Self::Lu => &["use_lu_lambdas"],
            Self::Simple | Self::LinearQuadratic | Self::KlOptimal => &[],
            Self::AlignYourSteps => &["ays", "ays_sd15"],
            Self::AlignYourStepsSdxl => &["ays_sdxl"],
        }
    }

    /// The schedule of this name or alias.
    pub fn find(name: &str) -> Option<Self> {
        let wanted = super::catalogue::plain(name);
        Self::ALL.into_iter().find(|schedule| {
            std::iter::once(&schedule.name()).chain(schedule.aliases()).any(|n| super::catalogue::plain(n) == wanted)
        })
    }

    /// The timestep spacing that the schedule stands for, if it is one.
    pub(super) fn spacing(self) -> Option<Spacing> {
        match self {
            Self::Normal => Some(Spacing::Linspace),
            Self::Simple | Self::SgmUniform => Some(Spacing::Trailing),
            Self::DdimUniform => Some(Spacing::Leading),
            _ => None,
        }
    }
}

/// numpy's `linspace`, both ends included.
pub(super) fn linspace(start: f64, end: f64, n: usize) -> Vec<f64> {
    let step = (end - start) / n.saturating_sub(1).max(1) as f64;
    (0..n).map(|i| if i > 0 && i + 1 == n { end } else { i as f64 * step + start }).collect()
}

/// numpy's `round(arange(from, 0, -train / n)) - 1`, the trailing spacing.
///
/// For some n (61 is the first) the rounding of `arange` yields one value more, a timestep of -1, which diffusers then looks up
/// from the wrong end of its tables; n values are asked for and n are given.
fn trailing(from: f64, train: usize, n: usize) -> Vec<f64> {
    let step = train as f64 / n as f64;
    let delta = (from - step) - from;
    let count = (from / step).ceil() as usize;
    (0..count.min(n)).map(|i| (i as f64).mul_add(delta, from).round_ties_even() - 1.0).collect()
}

/// `n` whole timesteps, noisiest first, as DDIM and its kin have them; `whole` false leaves linspace's fractions in,
/// as the samplers in sigma do.
pub(super) fn spread(spacing: Spacing, train: usize, n: usize, offset: i64, whole: bool) -> Vec<f64> {
    match spacing {
        Spacing::Linspace => {
            let mut t = linspace(0.0, train as f64 - 1.0, n);
            t.reverse();
            if whole {
                t.iter_mut().for_each(|t| *t = t.round_ties_even());
            }
            t
        }
        Spacing::Leading => (0..n).rev().map(|i| (i * (train / n)) as f64 + offset as f64).collect(),
        Spacing::Trailing => trailing(train as f64, train, n),
    }
}

/// `n` whole timesteps as the multistep solvers have them: spread as for one step more, without the last.
pub(super) fn spread_open(spacing: Spacing, train: usize, last: usize, n: usize, offset: i64) -> Vec<f64> {
    match spacing {
        Spacing::Linspace => {
            let t = linspace(0.0, last as f64 - 1.0, n + 1);
            t[1..].iter().rev().map(|t| t.round_ties_even()).collect()
        }
        Spacing::Leading => (1..=n).rev().map(|i| (i * (last / (n + 1))) as f64 + offset as f64).collect(),
        Spacing::Trailing => trailing(last as f64, train, n),
    }
}

/// `n` levels from `max` down to `min`, even in σ^(1/7).
pub(super) fn karras(max: f64, min: f64, n: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (high, low) = (max.powf(1.0 / RHO), min.powf(1.0 / RHO));
    linspace(0.0, 1.0, n).into_iter().map(|ramp| (high + ramp * (low - high)).powf(RHO)).collect()
}

/// `n` levels from `max` down to `min`, even in log σ.
pub(super) fn exponential(max: f64, min: f64, n: usize) -> Vec<f64> {
    linspace(max.ln(), min.ln(), n).into_iter().map(f64::exp).collect()
}

/// `n` levels from `max` down to `min`, at the quantiles of Beta(0.6, 0.6).
pub(super) fn beta(max: f64, min: f64, n: usize) -> Vec<f64> {
    linspace(0.0, 1.0, n).into_iter().map(|p| min + beta_quantile(1.0 - p) * (max - min)).collect()
}

/// diffusers' uniform log-SNR: even in log σ over the trained range.
pub(super) fn lu(training: &Training, n: usize) -> Vec<f64> {
    let ends = (training.log_sigmas.last(), training.log_sigmas.first());
    let (max, min) = (ends.0.copied().unwrap_or(0.0), ends.1.copied().unwrap_or(0.0));
    let (max, min) = (f64::from(max), f64::from(min));
    linspace(0.0, 1.0, n).into_iter().map(|ramp| (max + ramp * (min - max)).exp()).collect()
}

/// `n` levels from `max` down to `min`, even in arctan σ.
pub(super) fn kl_optimal(max: f64, min: f64, n: usize) -> Vec<f64> {
    let ramp = linspace(0.0, 1.0, n);
    ramp.into_iter().map(|r| (r * min.atan() + (1.0 - r) * max.atan()).tan()).collect()
}

/// `n` levels from `max`: the first half falls linearly by a fortieth of it, the rest quadratically towards 0.
pub(super) fn linear_quadratic(max: f64, n: usize) -> Vec<f64> {
    const THRESHOLD: f64 = 0.025;
    if n < 2 {
        return vec![max; n];
    }
    let (steps, linear) = (n as f64, (n / 2) as f64);
    let rest = steps - linear;
    let diff = linear - THRESHOLD * steps;
    let quadratic = diff / (linear * rest * rest);
    let slope = THRESHOLD / linear - 2.0 * diff / (rest * rest);
    let fallen = |i: f64| {
        if i < linear { i * THRESHOLD / linear } else { quadratic * i * i + slope * i + quadratic * linear * linear }
    };
    (0..n).map(|i| max * (1.0 - fallen(i as f64))).collect()
}

/// `n` levels of Align Your Steps: the published ten-step list, log-linear between its values, its end left out.
pub(super) fn align_your_steps(sdxl: bool, n: usize) -> Vec<f64> {
    const SD15: [f64; 11] = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029];
    const SDXL: [f64; 11] = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029];
    let levels = if sdxl { SDXL } else { SD15 };
    let place = |i: usize| 10.0 * i as f64 / n as f64;
    (0..n)
        .map(|i| {
            let low = (place(i).floor() as usize).min(9);
            let w = place(i) - low as f64;
            ((1.0 - w) * levels[low].ln() + w * levels[low + 1].ln()).exp()
        })
        .collect()
}

/// The quantile of Beta(0.6, 0.6) at `p`, by bisection of its distribution function.
fn beta_quantile(p: f64) -> f64 {
    // The distribution is symmetric, and near 0 a number keeps its digits.
    if p > 0.5 {
        return 1.0 - beta_quantile(1.0 - p);
    }
    let (mut low, mut high) = (0.0_f64, 0.5_f64);
    for _ in 0..200 {
        let mid = 0.5 * (low + high);
        if mid <= low || mid >= high {
            break;
        }
        if beta_distribution(mid) < p { low = mid } else { high = mid }
    }
    if p <= 0.0 { 0.0 } else { 0.5 * (low + high) }
}

/// The regularised incomplete beta function I_x(0.6, 0.6) for x <= 1/2, by its continued fraction (Abramowitz and Stegun, 26.5.8),
/// evaluated with Lentz's method.
fn beta_distribution(x: f64) -> f64 {
    const A: f64 = 0.6;
    // B(0.6, 0.6) = Γ(0.6)² / Γ(1.2).
    const B: f64 = 1.489_192_248_812_817 * 1.489_192_248_812_817 / 0.918_168_742_399_760_6;
    if x <= 0.0 {
        return 0.0;
    }
    let (mut c, mut d) = (1.0_f64, 1.0 / (1.0 - 2.0 * A * x / (A + 1.0)));
    let mut fraction = d;
    for m in 1..200 {
        let m = f64::from(m);
        let even = m * (A - m) * x / ((A + 2.0 * m - 1.0) * (A + 2.0 * m));
        d = 1.0 / (1.0 + even * d);
        c = 1.0 + even / c;
        fraction *= c * d;
        let odd = -(A + m) * (2.0 * A + m) * x / ((A + 2.0 * m) * (A + 2.0 * m + 1.0));
        d = 1.0 / (1.0 + odd * d);
        c = 1.0 + odd / c;
        let change = c * d;
        fraction *= change;
        if (change - 1.0).abs() < 1e-16 {
            break;
        }
    }
    (x * (1.0 - x)).powf(A) / (A * B) * fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beta_quantiles_are_those_of_scipy() {
        // scipy.stats.beta.ppf(p, 0.6, 0.6)
        for (p, x) in BETA_PPF {
            assert!((beta_quantile(p) - x).abs() <= 1e-12 * x, "{p}: {} {x}", beta_quantile(p));
        }
    }

    #[test]
    fn linear_quadratic_falls_monotonically_and_starts_at_the_top() {
        for n in [1, 2, 3, 7, 20, 50] {
            let levels = linear_quadratic(14.6, n);
            assert_eq!((levels.len(), levels[0]), (n, 14.6));
            assert!(levels.windows(2).all(|w| w[0] > w[1]) && levels[n - 1] > 0.0, "{levels:?}");
        }
    }

    #[test]
    fn align_your_steps_gives_the_published_list_at_ten_steps() {
        let levels = align_your_steps(false, 10);
        assert!((levels[0] - 14.615).abs() < 1e-9 && (levels[9] - 0.152).abs() < 1e-9);
        assert!(align_your_steps(true, 25).windows(2).all(|w| w[0] > w[1]));
    }

    #[test]
    fn trailing_spacing_never_gives_more_timesteps_than_were_asked_for() {
        for n in 1..=200 {
            let t = spread(Spacing::Trailing, 1000, n, 0, true);
            assert_eq!(t.len(), n);
            assert!(t.iter().all(|t| (0.0..1000.0).contains(t)));
        }
    }

    const BETA_PPF: [(f64, f64); 10] = [
        (0.0, 0.0),
        (0.0001, 3.998377158137721e-07),
        (0.013, 0.0013334534982845446),
        (0.1, 0.03958440558878085),
        (0.25, 0.17568037865269498),
        (0.5, 0.5000000000000001),
        (0.7, 0.7659829961247643),
        (0.98, 0.9972670179754229),
        (0.9999, 0.9999996001622842),
        (1.0, 1.0),
    ];
}
