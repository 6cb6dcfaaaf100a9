//! The noise levels that a diffusion model was trained with.
//!
//! diffusers computes them in f32, and near the clean end 1 - ᾱ keeps only four digits of that. So the roundings are
//! part of the reference: they are followed here step by step, and everything after is f64.

use super::SamplerError;
use super::settings::Settings;

/// ᾱ and σ for each training timestep, from clean to noisy.
#[derive(Debug, Clone)]
pub(super) struct Training {
    /// The products of 1 - β, diffusers' `alphas_cumprod`.
    pub(super) alphas: Vec<f32>,
    /// √((1 - ᾱ) / ᾱ).
    pub(super) sigmas: Vec<f32>,
    /// Natural logarithms of the sigmas.
    pub(super) log_sigmas: Vec<f32>,
}

impl Training {
    /// Works the levels out from the settings' betas.
    ///
    /// `finite` keeps the last sigma finite where the betas are rescaled to zero terminal SNR, as the classes do that
    /// work in sigma.
    pub(super) fn new(settings: &Settings, finite: bool) -> Result<Self, SamplerError> {
        let mut betas = betas(settings)?;
        if settings.rescale_zero_snr {
            rescale_zero_terminal_snr(&mut betas);
        }
        let mut alphas = cumulative_products(&betas);
        if let Some(last) = alphas.last_mut()
            && settings.rescale_zero_snr
            && finite
        {
            *last = 2.0_f32.powi(-24);
        }
        let sigmas: Vec<f32> = alphas.iter().map(|a| ((1.0 - a) / a).sqrt()).collect();
        let log_sigmas = sigmas.iter().map(|s| s.ln()).collect();
        Ok(Self { alphas, sigmas, log_sigmas })
    }

    /// ᾱ at a whole timestep.
    pub(super) fn alpha(&self, timestep: usize) -> f64 {
        f64::from(self.alphas[timestep.min(self.alphas.len() - 1)])
    }

    /// σ at a timestep, linear between whole ones (numpy's `interp`).
    pub(super) fn sigma(&self, timestep: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        let t = timestep.clamp(0.0, last as f64);
        let low = (t.floor() as usize).min(last.saturating_sub(1));
        let (a, b) = (f64::from(self.sigmas[low]), f64::from(self.sigmas[(low + 1).min(last)]));
        (b - a) * (t - low as f64) + a
    }

    /// The timestep at which the noise level is `sigma`, linear in log σ and clamped to the trained ones.
    pub(super) fn timestep(&self, sigma: f64) -> f64 {
        let wanted = sigma.max(1e-10).ln();
        let above = self.log_sigmas.partition_point(|s| f64::from(*s) <= wanted);
        let low = above.saturating_sub(1).min(self.log_sigmas.len().saturating_sub(2));
        let (a, b) = (self.log_sigmas[low], self.log_sigmas[low + 1]);
        let w = ((f64::from(a) - wanted) / f64::from(a - b)).clamp(0.0, 1.0);
        (1.0 - w) * low as f64 + w * (low + 1) as f64
    }
}

fn betas(settings: &Settings) -> Result<Vec<f32>, SamplerError> {
    let n = settings.train_steps;
    if let Some(betas) = &settings.trained_betas {
        if betas.len() != n {
            return Err(SamplerError::new(
                "sampler",
                format!("scheduler_config.json: trained_betas has {} values for num_train_timesteps {n}", betas.len()),
            ));
        }
        return Ok(betas.iter().map(|b| *b as f32).collect());
    }
    let (start, end) = (settings.beta_start, settings.beta_end);
    Ok(match settings.beta_schedule.as_str() {
        "linear" => linspace_f32(start, end, n),
        "scaled_linear" => linspace_f32(start.sqrt(), end.sqrt(), n).into_iter().map(|b| b * b).collect(),
        "squaredcos_cap_v2" => from_alpha_bar(n, |t| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2)),
        "exp" => from_alpha_bar(n, |t| (t * -12.0).exp()),
        "laplace" => from_alpha_bar(n, |t| {
            let lambda = -0.5 * 1.0_f64.copysign(0.5 - t) * (1.0 - 2.0 * (0.5 - t).abs() + 1e-6).ln();
            let snr = lambda.exp();
            (snr / (1.0 + snr)).sqrt()
        }),
        "sigmoid" => {
            let squash = |x: f32| 1.0 / (1.0 + (-x).exp());
            linspace_f32(-6.0, 6.0, n).into_iter().map(|x| squash(x) * (end - start) as f32 + start as f32).collect()
        }
        other => {
            return Err(SamplerError::new(
                "sampler",
                format!(
                    "scheduler_config.json: beta_schedule {other:?} is not known; known: linear, scaled_linear, \
                     squaredcos_cap_v2, exp, laplace, sigmoid"
                ),
            ));
        }
    })
}

/// torch's `linspace` in f32: counted from both ends, each value with one rounding.
fn linspace_f32(start: f64, end: f64, n: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    let step = if n > 1 { (end - start) / (n - 1) as f32 } else { 0.0 };
    (0..n)
        .map(
            |i| {
                if i < n / 2 || n == 1 {
                    step.mul_add(i as f32, start)
                } else {
                    step.mul_add(-((n - 1 - i) as f32), end)
                }
            },
        )
        .collect()
}

/// diffusers' `betas_for_alpha_bar`: each β from the ratio of a cumulative product at two times, at most 0.999.
fn from_alpha_bar(n: usize, alpha_bar: impl Fn(f64) -> f64) -> Vec<f32> {
    let at = |i: usize| alpha_bar(i as f64 / n as f64);
    (0..n).map(|i| (1.0 - at(i + 1) / at(i)).min(0.999) as f32).collect()
}

/// torch's `cumprod` of 1 - β: accumulated in f64, each value rounded to f32.
fn cumulative_products(betas: &[f32]) -> Vec<f32> {
    betas
        .iter()
        .scan(1.0_f64, |product, beta| {
            *product *= f64::from(1.0 - beta);
            Some(*product as f32)
        })
        .collect()
}

/// Shifts and scales √ᾱ so that the last one is 0 and the first stays (Lin et al., "Common Diffusion Noise
/// Schedules and Sample Steps are Flawed", 2023, algorithm 1).
fn rescale_zero_terminal_snr(betas: &mut [f32]) {
    let roots: Vec<f32> = cumulative_products(betas).into_iter().map(f32::sqrt).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else { return };
    let scale = first / (first - last);
    let bars: Vec<f32> = roots.iter().map(|r| ((r - last) * scale).powi(2)).collect();
    for (i, beta) in betas.iter_mut().enumerate() {
        *beta = 1.0 - if i == 0 { bars[0] } else { bars[i] / bars[i - 1] };
    }
}
