//! A request's schedule, worked out: pure numbers, no tensors.

use candle_core::Tensor;

use super::catalogue::{Method, check};
use super::machine::{Reader, Space, Walk, mix};
use super::settings::{Class, Settings};
use super::training::Training;
use super::{Noise, Sampler, SamplerError, SamplerInfo, SamplingSpec, Schedule, SchedulerConfig, schedule, solvers};
use crate::Result;

/// What a schedule depends on besides the request and the scheduler file.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PlanContext {
    /// Tokens of the picture, for flow models whose schedule shifts with the picture's size.
    pub image_tokens: Option<usize>,
    /// The shift's exponent where the family has a rule of its own, instead of the file's.
    pub mu: Option<f64>,
    /// The family's pipeline gives the flow's sigmas as 1, …, 1/n itself (FLUX) instead of leaving them to the
    /// scheduler (SD3).
    pub unit_sigmas: bool,
}

/// How image-to-image turns its strength into a first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrengthRule {
    /// n - int(n · strength): SD and SDXL.
    Truncate,
    /// int(n - n · strength): SD3 and FLUX.
    Fraction,
}

/// One request's schedule and solver.
#[derive(Debug, Clone)]
pub struct Plan {
    info: &'static SamplerInfo,
    settings: Settings,
    training: Option<Training>,
    space: Space,
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
    eta: Option<f64>,
    first: usize,
}

impl Plan {
    /// Works out what `spec` asks of a model with this scheduler file.
    ///
    /// # Errors
    /// When a name is unknown, the combination is impossible, or a number is out of range; the message says what
    /// is possible.
    pub fn new(spec: &SamplingSpec, config: &SchedulerConfig, context: PlanContext) -> Result<Self, SamplerError> {
        let (info, asked) = check(spec.sampler.as_deref(), spec.schedule.as_deref(), config)?;
        let class = info.method.class();
        let mut settings = Settings::new(class, config)?;
        if asked != Schedule::Default {
            settings.schedule = asked;
        }
        if let Some(spacing) = settings.schedule.spacing() {
            settings.spacing = spacing;
            settings.schedule = Schedule::Default;
        }
        let Method::DpmMultistep { order, sde } = info.method else {
            return Self::with(spec, info, settings, context);
        };
        settings.order = order;
        settings.algorithm = if sde { "sde-dpmsolver++" } else { "dpmsolver++" }.into();
        Self::with(spec, info, settings, context)
    }

    fn with(
        spec: &SamplingSpec,
        info: &'static SamplerInfo,
        settings: Settings,
        context: PlanContext,
    ) -> Result<Self, SamplerError> {
        let class = settings.class;
        let _ = context;
        validate(spec, info, &settings)?;
        let space = match class {
            Class::FlowEuler | Class::FlowHeun => Space::Flow,
            _ if settings.flow => Space::Flow,
            Class::Euler | Class::EulerAncestral => Space::Exploding,
            _ => Space::Preserving,
        };
        let finite = !matches!(class, Class::Ddim | Class::Ddpm | Class::Lcm | Class::Tcd);
        let training = Training::new(&settings, finite)?;
        let (timesteps, sigmas): (Vec<f64>, Vec<f64>) = match class {
            Class::Ddim => levels_of_timesteps(&settings, &training, spec.steps),
            Class::Euler | Class::EulerAncestral => levels_in_sigma(&settings, &training, spec)?,
            _ => levels_of_multistep(&settings, &training, spec)?,
        };
        if let Some(t) = timesteps.iter().find(|t| !(0.0..settings.train_steps as f64).contains(*t)) {
            return Err(SamplerError::new(
                "steps",
                format!(
                    "{} steps with steps_offset {} reach timestep {t}, beyond the {} that were trained",
                    spec.steps, settings.offset, settings.train_steps
                ),
            ));
        }
        Ok(Self { info, settings, training: Some(training), space, timesteps, sigmas, eta: spec.eta, first: 0 })
    }

    /// The sampler in use.
    pub fn sampler(&self) -> &'static SamplerInfo {
        self.info
    }

    /// Steps that will be taken.
    pub fn steps(&self) -> usize {
        self.timesteps.len() - self.first
    }

    /// The model's time input at each step that will be taken.
    pub fn timesteps(&self) -> &[f64] {
        &self.timesteps[self.first..]
    }

    /// The noise level at each step that will be taken, and the last one's end.
    pub fn sigmas(&self) -> &[f64] {
        &self.sigmas[self.first..]
    }

    /// The factor on standard normal noise that makes the first latents of text-to-image.
    pub fn init_noise_sigma(&self) -> f64 {
        if self.space != Space::Exploding {
            return 1.0;
        }
        let max = self.sigmas.iter().copied().fold(0.0, f64::max);
        match self.settings.spacing {
            super::settings::Spacing::Leading => (max * max + 1.0).sqrt(),
            _ => max,
        }
    }

    /// Leaves out the first steps, for image-to-image of this strength, in 0..=1.
    ///
    /// # Errors
    /// When the strength is out of range or leaves no step.
    pub fn skip_to_strength(&mut self, strength: f64, rule: StrengthRule) -> Result<(), SamplerError> {
        if !(0.0..=1.0).contains(&strength) {
            return Err(SamplerError::new("strength", format!("strength {strength} is not in 0..=1")));
        }
        let n = self.timesteps.len();
        let first = match rule {
            StrengthRule::Truncate => n - ((n as f64 * strength) as usize).min(n),
            StrengthRule::Fraction => (n as f64 - (n as f64 * strength).min(n as f64)) as usize,
        };
        if first >= n {
            return Err(SamplerError::new(
                "strength",
                format!(
                    "strength {strength} leaves none of {n} steps; the least that leaves one is {}",
                    1.0 / n as f64
                ),
            ));
        }
        self.first = first;
        Ok(())
    }

    /// The latents that the first step starts from when `clean` is noised to its level.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn add_noise(&self, clean: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let (alpha, sigma) = match (self.settings.class, &self.training) {
            (Class::Ddim, Some(training)) => {
                let alpha = training.alpha(self.timesteps[self.first] as usize);
                (alpha.sqrt(), (1.0 - alpha).sqrt())
            }
            _ => self.space.shares(self.sigmas[self.first]),
        };
        mix(&[(alpha, clean), (sigma, noise)])
    }

    /// The step machine, which starts from these latents, (c, h, w), and draws from this noise.
    ///
    /// # Errors
    /// When the sampler cannot be set up on the latents' device.
    pub fn start(self, latents: Tensor, noise: Box<dyn Noise>) -> Result<Box<dyn Sampler>> {
        let Self { info, settings, training, space, timesteps, sigmas, eta, first } = self;
        let reader = Reader { space, prediction: settings.prediction, bound: settings.bound };
        let n = timesteps.len();
        let walk = Walk { timesteps, sigmas, first, at: first, latents, denoised: None, noise };
        Ok(match info.method {
            Method::Ddim => {
                let training = match training {
                    Some(training) => training,
                    None => Training::new(&settings, false)?,
                };
                Box::new(solvers::Ddim::new(walk, reader, &settings, &training, eta.unwrap_or(0.0)))
            }
            Method::Euler => Box::new(solvers::Euler::new(walk, reader, false)),
            Method::EulerAncestral => Box::new(solvers::Euler::new(walk, reader, true)),
            Method::DpmMultistep { .. } => Box::new(solvers::DpmMultistep::new(walk, reader, &settings, n)),
        })
    }
}

fn validate(spec: &SamplingSpec, info: &SamplerInfo, settings: &Settings) -> Result<(), SamplerError> {
    let train = settings.train_steps;
    if spec.steps == 0 || spec.steps > train {
        return Err(SamplerError::new("steps", format!("steps {} is not in 1..={train}", spec.steps)));
    }
    let given = [
        ("timesteps", spec.timesteps.is_some()),
        ("sigmas", spec.sigmas.is_some()),
        ("order", spec.order.is_some()),
        ("solver", spec.solver.is_some()),
        ("shift", spec.shift.is_some()),
    ];
    if let Some((param, _)) = given.into_iter().find(|(_, given)| *given) {
        return Err(SamplerError::new(param, format!("sampler {} takes no {param}", info.name)));
    }
    if let Some(eta) = spec.eta {
        if info.method != Method::Ddim {
            return Err(SamplerError::new("eta", format!("sampler {} has no eta; ddim has", info.name)));
        }
        if !(0.0..=1.0).contains(&eta) {
            return Err(SamplerError::new("eta", format!("eta {eta} is not in 0..=1")));
        }
    }
    Ok(())
}

fn round(values: Vec<f64>) -> Vec<f64> {
    values.into_iter().map(|v| f64::from(v as f32)).collect()
}

/// Timesteps and levels of the samplers that look ᾱ up at whole timesteps.
fn levels_of_timesteps(settings: &Settings, training: &Training, n: usize) -> (Vec<f64>, Vec<f64>) {
    let timesteps = schedule::spread(settings.spacing, settings.train_steps, n, settings.offset, true);
    let mut sigmas: Vec<f64> = timesteps.iter().map(|t| training.sigma(*t)).collect();
    sigmas.push(0.0);
    (timesteps, sigmas)
}

/// Timesteps and levels of the samplers in sigma (Euler and its kin).
fn levels_in_sigma(
    settings: &Settings,
    training: &Training,
    spec: &SamplingSpec,
) -> Result<(Vec<f64>, Vec<f64>), SamplerError> {
    let n = spec.steps;
    let timesteps = round(schedule::spread(settings.spacing, settings.train_steps, n, settings.offset, false));
    let spread: Vec<f64> = timesteps.iter().map(|t| training.sigma(*t)).collect();
    let max = settings.sigma_max.unwrap_or(spread[0]);
    let min = settings.sigma_min.unwrap_or(spread[n - 1]);
    let curved = curve(settings.schedule, training, max, min, n);
    let (timesteps, mut sigmas) = match curved {
        None => (timesteps, spread),
        Some(sigmas) => (round(sigmas.iter().map(|s| training.timestep(*s)).collect()), sigmas),
    };
    sigmas.push(if settings.ends_at_sigma_min { f64::from(training.sigmas[0]) } else { 0.0 });
    Ok((timesteps, round(sigmas)))
}

/// Timesteps and levels of the multistep solvers, which spread one step more and curve over the whole trained range.
fn levels_of_multistep(
    settings: &Settings,
    training: &Training,
    spec: &SamplingSpec,
) -> Result<(Vec<f64>, Vec<f64>), SamplerError> {
    let n = spec.steps;
    let whole = training.sigmas.len();
    let (max, min) = (f64::from(training.sigmas[whole - 1]), f64::from(training.sigmas[0]));
    let (timesteps, mut sigmas) = match curve(settings.schedule, training, max, min, n) {
        None => {
            let clipped =
                training.log_sigmas.iter().rev().take_while(|s| -f64::from(**s) < settings.lambda_min_clipped).count();
            let last = settings.train_steps - clipped;
            let timesteps = schedule::spread_open(settings.spacing, settings.train_steps, last, n, settings.offset);
            let sigmas = timesteps.iter().map(|t| training.sigma(*t)).collect();
            (timesteps, sigmas)
        }
        Some(sigmas) => {
            let timesteps = sigmas.iter().map(|s| training.timestep(*s));
            // diffusers rounds Karras' and Lu's timesteps and truncates the others'.
            let timesteps = match settings.schedule {
                Schedule::Karras | Schedule::Lu => timesteps.map(f64::round_ties_even).collect(),
                _ => timesteps.map(f64::trunc).collect(),
            };
            (timesteps, sigmas)
        }
    };
    sigmas.push(if settings.ends_at_sigma_min { min } else { 0.0 });
    Ok((timesteps, round(sigmas)))
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
