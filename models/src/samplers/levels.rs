//! Timesteps and noise levels of a whole schedule, as each family of diffusers' classes works them out.

use super::schedule::{self, Schedule};
use super::settings::{Class, Settings, Spacing};
use super::solvers::pndm_calls;
use super::training::Training;
use super::{PlanContext, SamplerError, SamplingSpec};

/// A schedule in numbers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Levels {
    /// The model's time input at each step's start (for PNDM at each call).
    pub(super) timesteps: Vec<f64>,
    /// The noise level there, and the last step's end.
    pub(super) sigmas: Vec<f64>,
}

/// torch keeps timesteps and sigmas in f32.
fn round(values: Vec<f64>) -> Vec<f64> {
    values.into_iter().map(|v| f64::from(v as f32)).collect()
}

/// For the samplers that look ᾱ up at whole timesteps.
pub(super) fn indexed(settings: &Settings, training: &Training, spec: &SamplingSpec) -> Result<Levels, SamplerError> {
    let train = settings.train_steps;
    let timesteps = match (&spec.timesteps, settings.class) {
        (Some(timesteps), _) => timesteps.clone(),
        (None, Class::Lcm | Class::Tcd) => return distilled(settings, training, spec.steps, 1.0),
        (None, _) => schedule::spread(settings.spacing, train, spec.steps, settings.offset, true),
    };
    at(
        settings,
        training,
        if settings.class == Class::Pndm { pndm_calls(settings, &timesteps)? } else { timesteps },
        spec.steps,
    )
}

/// The levels at whole timesteps.
fn at(settings: &Settings, training: &Training, timesteps: Vec<f64>, n: usize) -> Result<Levels, SamplerError> {
    within(&timesteps, settings, n)?;
    let mut sigmas: Vec<f64> = timesteps.iter().map(|t| training.sigma(*t)).collect();
    sigmas.push(0.0);
    Ok(Levels { timesteps, sigmas })
}

/// Every so many of the timesteps that a distilled model was trained at, from the share `strength` of them on.
pub(super) fn distilled(
    settings: &Settings,
    training: &Training,
    n: usize,
    strength: f64,
) -> Result<Levels, SamplerError> {
    let (train, original) = (settings.train_steps, settings.original_steps);
    if n > original || original > train {
        return Err(SamplerError::new(
            "steps",
            format!("steps {n} is not in 1..={original}, the model's original_inference_steps"),
        ));
    }
    let left = (original as f64 * strength) as usize;
    if n > left {
        return Err(SamplerError::new(
            "strength",
            format!(
                "strength {strength} leaves {left} of the model's {original} original_inference_steps, fewer than steps {n}; \
                 {} leaves enough",
                n as f64 / original as f64
            ),
        ));
    }
    let stride = train / original;
    let place = |i: usize| (left as f64 / n as f64 * i as f64).floor() as usize;
    at(settings, training, (0..n).map(|i| ((left - place(i)) * stride) as f64 - 1.0).collect(), n)
}

/// For the samplers in sigma (Euler and its kin).
pub(super) fn in_sigma(settings: &Settings, training: &Training, spec: &SamplingSpec) -> Result<Levels, SamplerError> {
    let n = spec.steps;
    if let Some(sigmas) = &spec.sigmas {
        let sigmas = round(sigmas.clone());
        return Ok(Levels { timesteps: round(timesteps_of(training, &sigmas[..n])), sigmas });
    }
    let spread = match &spec.timesteps {
        Some(timesteps) => timesteps.clone(),
        None => schedule::spread(settings.spacing, settings.train_steps, n, settings.offset, false),
    };
    let double = settings.class == Class::DpmSde;
    let timesteps = if double { spread } else { round(spread) };
    let mut sigmas: Vec<f64> = timesteps.iter().map(|t| training.sigma(*t)).collect();
    if settings.log_linear {
        // One level more than steps, over the whole trained range.
        let last = training.log_sigmas.len() - 1;
        let (max, min) = (f64::from(training.log_sigmas[last]), f64::from(training.log_sigmas[0]));
        sigmas = schedule::linspace(max, min, n + 1).into_iter().map(f64::exp).collect();
    }
    let max = settings.sigma_max.unwrap_or(sigmas[0]);
    let min = settings.sigma_min.unwrap_or(sigmas[sigmas.len() - 1]);
    let (mut timesteps, mut sigmas) = match curve(settings.schedule, training, max, min, n) {
        None => {
            within(&timesteps, settings, n)?;
            (timesteps, sigmas)
        }
        Some(sigmas) => (timesteps_of(training, &sigmas), sigmas),
    };
    if settings.schedule == Schedule::Karras && matches!(settings.class, Class::Dpm2 | Class::Dpm2Ancestral) {
        timesteps.iter_mut().for_each(|t| *t = t.round_ties_even());
    }
    sigmas.push(if settings.ends_at_sigma_min { f64::from(training.sigmas[0]) } else { 0.0 });
    let sigmas = round(sigmas);
    if settings.continuous {
        timesteps = sigmas[..n].iter().map(|s| 0.25 * s.ln()).collect();
    }
    Ok(Levels { timesteps: if double { timesteps } else { round(timesteps) }, sigmas })
}

/// For DPM-Solver, DEIS and UniPC, which spread one step more and curve over the whole trained range.
pub(super) fn solver(settings: &Settings, training: &Training, spec: &SamplingSpec) -> Result<Levels, SamplerError> {
    let n = spec.steps;
    if let Some(sigmas) = &spec.sigmas {
        let sigmas = round(sigmas.clone());
        return Ok(Levels { timesteps: timesteps_of(training, &sigmas[..n]), sigmas });
    }
    let whole = training.sigmas.len();
    let (trained_max, trained_min) = (f64::from(training.sigmas[whole - 1]), f64::from(training.sigmas[0]));
    let (max, min) = (settings.sigma_max.unwrap_or(trained_max), settings.sigma_min.unwrap_or(trained_min));
    let curved = curve(settings.schedule, training, max, min, n);
    let is_curved = curved.is_some();
    let (timesteps, mut sigmas) = match curved {
        None => {
            let clipped =
                training.log_sigmas.iter().rev().take_while(|s| -f64::from(**s) < settings.lambda_min_clipped).count();
            let last = settings.train_steps - clipped;
            let timesteps = match &spec.timesteps {
                Some(timesteps) => timesteps.clone(),
                None => schedule::spread_open(settings.spacing, settings.train_steps, last, n, settings.offset),
            };
            within(&timesteps, settings, n)?;
            let sigmas = timesteps.iter().map(|t| training.sigma(*t)).collect();
            (timesteps, sigmas)
        }
        Some(sigmas) => {
            let timesteps = timesteps_of(training, &sigmas).into_iter();
            // diffusers rounds Karras' and Lu's timesteps and truncates the others'; our own lists keep their fractions.
            let timesteps = match settings.schedule {
                Schedule::Karras | Schedule::Lu
                    if settings.class == Class::DpmMultistep && settings.beta_schedule == "squaredcos_cap_v2" =>
                {
                    timesteps.map(f64::trunc).collect()
                }
                Schedule::Karras | Schedule::Lu => timesteps.map(f64::round_ties_even).collect(),
                Schedule::Exponential | Schedule::Beta => timesteps.map(f64::trunc).collect(),
                _ => timesteps.collect(),
            };
            (timesteps, sigmas)
        }
    };
    // DEIS always ends above 0. On a curve, it and UniPC repeat the curve's last level.
    let repeats = is_curved && matches!(settings.class, Class::Deis | Class::UniPc);
    sigmas.push(match (settings.ends_at_sigma_min, repeats) {
        (false, _) => 0.0,
        (true, false) => trained_min,
        (true, true) => sigmas[n - 1],
    });
    Ok(Levels { timesteps, sigmas: round(sigmas) })
}

/// For rectified flows: levels from 1 down to 0, shifted towards noise, and timesteps that are the levels' thousandfold.
pub(super) fn flow(settings: &Settings, spec: &SamplingSpec, context: PlanContext) -> Result<Levels, SamplerError> {
    let (n, train) = (spec.steps, settings.train_steps as f64);
    let shift = Shift::new(settings, spec, context)?;
    let solver = matches!(settings.class, Class::DpmMultistep | Class::DpmSinglestep | Class::Deis | Class::UniPc);
    let base: Vec<f64> = match (&spec.sigmas, &spec.timesteps, settings.schedule) {
        (Some(sigmas), ..) => sigmas.clone(),
        (_, Some(timesteps), _) => timesteps.iter().map(|t| t / train).collect(),
        (_, _, Schedule::LinearQuadratic) => schedule::linear_quadratic(1.0, n),
        (_, _, Schedule::Simple) => (0..n).map(|i| (train - (i as f64 * train / n as f64).floor()) / train).collect(),
        (_, _, Schedule::SgmUniform) => open(schedule::linspace(1.0, 1.0 / train, n + 1)),
        (_, _, Schedule::Normal) => schedule::linspace(1.0, 1.0 / train, n),
        // The solvers' own: even from 1 (UniPC) or from just below it, one step more than asked for.
        _ if settings.class == Class::UniPc => open(schedule::linspace(1.0, 1.0 / train, n + 1)),
        _ if solver => {
            let rising = schedule::linspace(1.0, 1.0 / train, n + 1).into_iter().map(|alpha| 1.0 - alpha);
            let mut falling: Vec<f64> = rising.collect();
            falling.reverse();
            open(falling)
        }
        _ if context.unit_sigmas => schedule::linspace(1.0, 1.0 / n as f64, n),
        // diffusers takes the ends from its shifted table and shifts them again.
        _ => {
            let least = if settings.dynamic_shift { 1.0 / train } else { shift.apply(1.0 / train) };
            schedule::linspace(train, f64::from(least as f32) * train, n).into_iter().map(|t| t / train).collect()
        }
    };
    let mut sigmas: Vec<f64> = match settings.schedule {
        Schedule::LinearQuadratic => base,
        _ => base.into_iter().map(|s| shift.apply(s)).collect(),
    };
    if let Some(terminal) = settings.shift_terminal {
        let scale = (1.0 - sigmas[n - 1]) / (1.0 - terminal);
        sigmas.iter_mut().for_each(|s| *s = 1.0 - (1.0 - *s) / scale);
    }
    let (max, min) = (sigmas[0], sigmas[n - 1]);
    sigmas = match settings.schedule {
        Schedule::Karras => schedule::karras(max, min, n),
        Schedule::Exponential => schedule::exponential(max, min, n),
        Schedule::Beta => schedule::beta(max, min, n),
        _ => sigmas,
    };
    if settings.class == Class::UniPc && (sigmas[0] - 1.0).abs() < 1e-6 {
        // At exactly 1 nothing of the picture is left, and the log-SNR is infinite.
        sigmas[0] -= 1e-6;
    }
    let mut timesteps: Vec<f64> = match &spec.timesteps {
        Some(timesteps) => timesteps.clone(),
        None if solver => sigmas.iter().map(|s| (s * train).trunc()).collect(),
        None => sigmas.iter().map(|s| f64::from((*s as f32) * train as f32)).collect(),
    };
    if settings.invert {
        sigmas.iter_mut().for_each(|s| *s = 1.0 - *s);
        timesteps = sigmas.iter().map(|s| s * train).collect();
    }
    sigmas.push(match settings.class {
        _ if settings.invert => 1.0,
        Class::Deis => sigmas[n - 1],
        Class::UniPc if settings.ends_at_sigma_min => sigmas[n - 1],
        _ => 0.0,
    });
    Ok(Levels { timesteps, sigmas: round(sigmas) })
}

/// A list without its last value.
fn open(mut values: Vec<f64>) -> Vec<f64> {
    values.pop();
    values
}

/// How a flow's levels are pushed towards noise: by a factor, which for dynamic shifting grows with the picture
/// (Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024, section 5.3.2).
struct Shift {
    factor: f64,
}

impl Shift {
    fn new(settings: &Settings, spec: &SamplingSpec, context: PlanContext) -> Result<Self, SamplerError> {
        if let Some(factor) = spec.shift {
            if !(factor > 0.0 && factor.is_finite()) {
                return Err(SamplerError::new("shift", format!("shift {factor} is not above 0")));
            }
            return Ok(Self { factor });
        }
        if !settings.dynamic_shift {
            return Ok(Self { factor: settings.shift });
        }
        let mu = match (context.mu, context.image_tokens) {
            (Some(mu), _) => mu,
            (None, Some(tokens)) => {
                let slope = (settings.max_shift - settings.base_shift)
                    / (settings.max_tokens as f64 - settings.base_tokens as f64);
                tokens as f64 * slope + settings.base_shift - slope * settings.base_tokens as f64
            }
            (None, None) => {
                return Err(SamplerError::new(
                    "sampler",
                    "scheduler_config.json: use_dynamic_shifting needs the picture's number of tokens",
                ));
            }
        };
        Ok(Self { factor: if settings.linear_shift { mu } else { mu.exp() } })
    }

    fn apply(&self, sigma: f64) -> f64 {
        self.factor * sigma / (1.0 + (self.factor - 1.0) * sigma)
    }
}

fn timesteps_of(training: &Training, sigmas: &[f64]) -> Vec<f64> {
    sigmas.iter().map(|s| training.timestep(*s)).collect()
}

/// Refuses timesteps that the model was not trained for.
fn within(timesteps: &[f64], settings: &Settings, n: usize) -> Result<(), SamplerError> {
    let train = settings.train_steps;
    match timesteps.iter().find(|t| !(0.0..train as f64).contains(*t)) {
        None => Ok(()),
        Some(t) => Err(SamplerError::new(
            "steps",
            format!(
                "{n} steps with {} spacing and steps_offset {} reach timestep {t}, beyond the {train} that were trained; \
                 fewer steps do not",
                match settings.spacing {
                    Spacing::Linspace => "linspace",
                    Spacing::Leading => "leading",
                    Spacing::Trailing => "trailing",
                },
                settings.offset
            ),
        )),
    }
}

/// The levels of a schedule that is a curve between two of them; `None` for those that are spread over timesteps.
fn curve(schedule: Schedule, training: &Training, max: f64, min: f64, n: usize) -> Option<Vec<f64>> {
    Some(match schedule {
        Schedule::Karras => schedule::karras(max, min, n),
        Schedule::Exponential => schedule::exponential(max, min, n),
        Schedule::Beta => schedule::beta(max, min, n),
        Schedule::Lu => schedule::lu(training, n),
        Schedule::KlOptimal => schedule::kl_optimal(max, min, n),
        Schedule::LinearQuadratic => schedule::linear_quadratic(max, n),
        Schedule::AlignYourSteps => schedule::align_your_steps(false, n),
        Schedule::AlignYourStepsSdxl => schedule::align_your_steps(true, n),
        Schedule::Default | Schedule::Normal | Schedule::Simple | Schedule::SgmUniform | Schedule::DdimUniform => {
            return None;
        }
    })
}
