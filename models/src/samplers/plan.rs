//! A request's schedule, worked out: pure numbers, no tensors.

use candle_core::Tensor;

use super::catalogue::{Method, check};
use super::levels::{self, Levels};
use super::machine::{Reader, Repainting, Space, Walk, mix};
use super::noise::BrownianTree;
use super::settings::{Class, Prediction, Settings, Spacing};
use super::stage::Until;
use super::training::Training;
use super::{
    Noise, NoiseSource, Repaint, Sampler, SamplerError, SamplerInfo, SamplingSpec, Schedule, SchedulerConfig, solvers,
};
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StrengthRule {
    /// n - int(n · strength): SD and SDXL.
    #[default]
    Truncate,
    /// int(n - n · strength): SD3 and FLUX.
    Fraction,
    /// All n steps, spread over what the strength leaves of the schedule that the model was distilled to: latent
    /// consistency models. Other samplers than their own have no such schedule and truncate.
    Spread,
}

/// One request's schedule and solver.
#[derive(Debug, Clone)]
pub struct Plan {
    info: &'static SamplerInfo,
    pub(super) settings: Settings,
    training: Training,
    space: Space,
    levels: Levels,
    /// Denoising steps as the request counts them.
    steps: usize,
    eta: f64,
    pub(super) noise: NoiseSource,
    pub(super) first: usize,
    /// The timestep below which another model goes on.
    pub(super) end: Option<f64>,
}

impl Plan {
    /// Works out what `spec` asks of a model with this scheduler file.
    ///
    /// # Errors
    /// When a name is unknown, the combination is impossible, or a number is out of range; the message says what
    /// is possible.
    pub fn new(spec: &SamplingSpec, config: &SchedulerConfig, context: PlanContext) -> Result<Self, SamplerError> {
        let (info, asked) = check(spec.sampler.as_deref(), spec.schedule.as_deref(), config)?;
        let flow = config.is_flow();
        let mut settings = Settings::new(info.method.class(flow), config)?;
        validate(spec, info, &settings, asked)?;
        // A name means its own order and form, except where it is the model's: then the file's options stand.
        if SamplerInfo::of_model(config).ok() != Some(info) {
            info.method.fix(&mut settings);
        }
        if let Some(order) = spec.order {
            settings.order = order;
        }
        if let Some(solver) = &spec.solver {
            settings.solver.clone_from(solver);
        }
        if asked != Schedule::Default {
            settings.schedule = asked;
        }
        if let Some(spacing) = settings.schedule.spacing().filter(|_| !flow) {
            settings.spacing = spacing;
            settings.schedule = Schedule::Default;
        }
        check_algorithm(&settings)?;
        let class = settings.class;
        let space = match class {
            _ if settings.flow => Space::Flow,
            Class::Euler
            | Class::EulerAncestral
            | Class::Heun
            | Class::Lms
            | Class::Dpm2
            | Class::Dpm2Ancestral
            | Class::DpmSde => Space::Exploding,
            _ => Space::Preserving,
        };
        let indexed = class.is_indexed();
        let training = Training::new(&settings, !indexed)?;
        let levels = match space {
            Space::Flow => levels::flow(&settings, spec, context)?,
            Space::Exploding => levels::in_sigma(&settings, &training, spec)?,
            Space::Preserving if indexed => levels::indexed(&settings, &training, spec)?,
            Space::Preserving => levels::solver(&settings, &training, spec)?,
        };
        let noise = spec.noise.unwrap_or(if info.method == Method::DpmppSde {
            NoiseSource::Brownian
        } else {
            NoiseSource::TorchCpu
        });
        let eta = spec.eta.unwrap_or(info.method.default_eta());
        Ok(Self { info, settings, training, space, levels, steps: spec.steps, eta, noise, first: 0, end: None })
    }

    /// The sampler in use.
    pub fn sampler(&self) -> &'static SamplerInfo {
        self.info
    }

    /// The noise source that the stream given to [`start`](Self::start) should be opened from.
    pub fn noise(&self) -> NoiseSource {
        self.noise
    }

    /// Steps that will be taken.
    pub fn steps(&self) -> usize {
        let calls = self.levels.timesteps.len();
        (calls - self.first).saturating_sub(calls - self.steps).max(1)
    }

    /// The model's time input at each step that will be taken; where PNDM calls the model more often, at each call.
    pub fn timesteps(&self) -> &[f64] {
        &self.levels.timesteps[self.first..]
    }

    /// The noise level at each of the timesteps, and the last one's end. Infinite where the betas are rescaled to zero
    /// terminal SNR and the sampler works in timesteps.
    pub fn sigmas(&self) -> &[f64] {
        &self.levels.sigmas[self.first..]
    }

    /// The factor on standard normal noise that makes the first latents of text-to-image.
    pub fn init_noise_sigma(&self) -> f64 {
        if self.space != Space::Exploding {
            return 1.0;
        }
        let max = self.levels.sigmas.iter().copied().fold(0.0, f64::max);
        match self.settings.spacing {
            Spacing::Leading => (max * max + 1.0).sqrt(),
            Spacing::Linspace | Spacing::Trailing => max,
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
        let n = self.steps;
        let kept = (n as f64 * strength).min(n as f64);
        let first = match rule {
            StrengthRule::Spread if self.is_distilled() => {
                self.levels = levels::distilled(&self.settings, &self.training, n, strength)?;
                return Ok(());
            }
            StrengthRule::Truncate | StrengthRule::Spread => n - kept as usize,
            StrengthRule::Fraction => (n as f64 - kept) as usize,
        };
        if first >= n {
            return Err(SamplerError::new(
                "strength",
                format!("strength {strength} leaves none of {n} steps; {} leaves one", 1.0 / n as f64),
            ));
        }
        self.first = first;
        Ok(())
    }

    /// Whether the timesteps are those that a consistency model was distilled to, and not a request's own.
    fn is_distilled(&self) -> bool {
        let whole = levels::distilled(&self.settings, &self.training, self.steps, 1.0);
        self.settings.class == Class::Lcm && whole.is_ok_and(|whole| whole == self.levels)
    }

    /// The latents that the first step starts from when `clean` is noised to its level.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn add_noise(&self, clean: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let (alpha, sigma) = self.shares(self.first);
        mix(&[(alpha, clean), (sigma, noise)])
    }

    /// The shares of clean latents and noise at a step's start; past the last one all is clean.
    fn shares(&self, at: usize) -> (f64, f64) {
        match self.levels.timesteps.get(at) {
            None => (1.0, 0.0),
            Some(timestep) if self.settings.class.is_indexed() => {
                let alpha = self.training.alpha(*timestep as usize);
                (alpha.sqrt(), (1.0 - alpha).sqrt())
            }
            Some(_) => self.space.shares(self.levels.sigmas[at]),
        }
    }

    /// The step machine, which starts from these latents, (c, h, w), and draws from this noise.
    ///
    /// # Errors
    /// When the sampler cannot be set up from the scheduler file's options.
    pub fn start(self, latents: Tensor, noise: Box<dyn Noise>) -> Result<Box<dyn Sampler>> {
        self.walk(latents, noise, None)
    }

    /// The step machine of a picture of which only a part is painted: after each model call, what lies outside of the
    /// mask becomes the given picture at the next call's noise level, and after the last the picture itself.
    ///
    /// # Errors
    /// When the sampler cannot be set up from the scheduler file's options.
    pub fn start_repainting(
        self,
        latents: Tensor,
        noise: Box<dyn Noise>,
        repaint: Repaint,
    ) -> Result<Box<dyn Sampler>> {
        let shares = (0..=self.levels.timesteps.len()).map(|at| self.shares(at)).collect();
        self.walk(latents, noise, Some(Repainting { repaint, shares }))
    }

    fn walk(self, latents: Tensor, noise: Box<dyn Noise>, repainting: Option<Repainting>) -> Result<Box<dyn Sampler>> {
        let Self { info, settings, training, space, levels, steps, eta, noise: source, first, end } = self;
        let noise = match source {
            NoiseSource::Brownian => {
                let positive = levels.sigmas.iter().copied().filter(|s| *s > 0.0);
                let (min, max) = positive.fold((f64::INFINITY, 0.0), |(a, b), s| (s.min(a), s.max(b)));
                Box::new(BrownianTree::new(noise.seed(), min, max, noise))
            }
            NoiseSource::TorchCpu | NoiseSource::TorchCuda => noise,
        };
        let reader = Reader { space, prediction: settings.prediction, bound: settings.bound };
        let Levels { timesteps, sigmas } = levels;
        let extra = timesteps.len() - steps;
        let walk = Walk { timesteps, sigmas, first, extra, at: first, latents, denoised: None, noise, repainting };
        // Steps that begin above the end, those of several calls counted once.
        let until = |end: f64| {
            walk.timesteps[first..].iter().filter(|timestep| **timestep >= end).count().saturating_sub(extra)
        };
        let end = end.map(|end| (end, until(end)));
        let sampler: Box<dyn Sampler> = match info.method {
            Method::Ddim => Box::new(solvers::Ddim::new(walk, reader, &settings, &training, eta)),
            Method::Ddpm => Box::new(solvers::Ddpm::new(walk, reader, &settings, &training)?),
            Method::Pndm => Box::new(solvers::Pndm::new(walk, reader, &settings, training)),
            Method::Lms => Box::new(solvers::Lms::new(walk, reader, settings.order)),
            Method::Euler | Method::EulerAncestral => Box::new(solvers::Euler::new(walk, reader, eta)),
            Method::Heun | Method::FlowHeun => Box::new(solvers::Heun::new(walk, reader)),
            Method::Dpm2 | Method::Dpm2Ancestral => Box::new(solvers::Dpm2::new(walk, reader, training, eta)),
            Method::Dpmpp2sAncestral => Box::new(solvers::Dpmpp2sAncestral::new(walk, reader, training, eta)),
            Method::DpmppSde => Box::new(solvers::DpmppSde::new(walk, reader, training, eta)),
            Method::DpmMultistep { .. } => Box::new(solvers::DpmMultistep::new(walk, reader, &settings)),
            Method::DpmSinglestep => Box::new(solvers::DpmSinglestep::new(walk, reader, &settings)),
            Method::Deis => Box::new(solvers::Deis::new(walk, reader, &settings)),
            Method::UniPc => Box::new(solvers::UniPc::new(walk, reader, &settings)),
            Method::Lcm => Box::new(solvers::Lcm::new(walk, reader, &settings, training)),
            Method::Tcd => Box::new(solvers::Tcd::new(walk, reader, training, eta)),
            Method::ResMultistep => Box::new(solvers::ResMultistep::new(walk, reader)),
            Method::FlowEuler => Box::new(solvers::FlowEuler::new(walk, reader, settings.stochastic)),
        };
        Ok(match end {
            Some((end, steps)) => Box::new(Until::new(sampler, end, steps)?),
            None => sampler,
        })
    }
}

/// Refuses the forms of DPM-Solver that a scheduler file may ask for and that are not made here.
fn check_algorithm(settings: &Settings) -> Result<(), SamplerError> {
    let possible = match settings.class {
        Class::DpmMultistep => "dpmsolver++, sde-dpmsolver++, dpmsolver",
        Class::DpmSinglestep => "dpmsolver++",
        _ => return Ok(()),
    };
    let algorithm = settings.algorithm.as_str();
    // diffusers reads "deis", which another class writes, as dpmsolver++.
    if !matches!(algorithm, "" | "deis") && !possible.split(", ").any(|known| known == algorithm) {
        return Err(SamplerError::new(
            "sampler",
            format!("scheduler_config.json: algorithm_type {algorithm:?} is not possible; possible: {possible}"),
        ));
    }
    if algorithm == "dpmsolver" && !settings.ends_at_sigma_min {
        return Err(SamplerError::new(
            "sampler",
            "scheduler_config.json: final_sigmas_type \"zero\" is not possible with algorithm_type \"dpmsolver\"; \
             possible: sigma_min",
        ));
    }
    Ok(())
}

/// Checks the request's numbers against what the sampler has a use for.
fn validate(spec: &SamplingSpec, info: &SamplerInfo, settings: &Settings, asked: Schedule) -> Result<(), SamplerError> {
    let train = settings.train_steps;
    if spec.steps == 0 || spec.steps > train {
        return Err(SamplerError::new("steps", format!("steps {} is not in 1..={train}", spec.steps)));
    }
    if info.method == Method::Pndm && settings.prediction == Prediction::Sample {
        return Err(SamplerError::new(
            "sampler",
            "sampler pndm cannot be used with prediction_type \"sample\"; possible: epsilon, v_prediction",
        ));
    }
    if let Some(eta) = spec.eta {
        if !info.takes_eta {
            return Err(no_use("eta", info, |other| other.takes_eta));
        }
        if !(0.0..=1.0).contains(&eta) {
            return Err(SamplerError::new("eta", format!("eta {eta} is not in 0..=1")));
        }
    }
    if let Some(order) = spec.order {
        if info.orders.is_empty() {
            return Err(no_use("order", info, |other| !other.orders.is_empty()));
        }
        if !info.orders.contains(&order) {
            return Err(SamplerError::new(
                "order",
                format!("order {order} is not possible with {}; possible: {:?}", info.name, info.orders),
            ));
        }
    }
    if let Some(solver) = &spec.solver
        && !info.solvers.contains(&solver.as_str())
    {
        if info.solvers.is_empty() {
            return Err(no_use("solver", info, |other| !other.solvers.is_empty()));
        }
        return Err(SamplerError::new(
            "solver",
            format!("solver {solver:?} is not possible with {}; possible: {}", info.name, info.solvers.join(", ")),
        ));
    }
    if spec.shift.is_some() && !settings.flow {
        return Err(SamplerError::new("shift", "shift is for flow models; this one is a diffusion model"));
    }
    explicit(spec, info, settings, asked)
}

fn no_use(param: &'static str, info: &SamplerInfo, fits: impl Fn(&SamplerInfo) -> bool) -> SamplerError {
    let takers: Vec<&str> = super::catalogue().iter().filter(|other| fits(other)).map(|other| other.name).collect();
    SamplerError::new(param, format!("sampler {} takes no {param}; it goes with {}", info.name, takers.join(", ")))
}

/// Checks explicit timesteps and sigmas.
fn explicit(spec: &SamplingSpec, info: &SamplerInfo, settings: &Settings, asked: Schedule) -> Result<(), SamplerError> {
    let lists = [("timesteps", &spec.timesteps, info.takes_timesteps), ("sigmas", &spec.sigmas, info.takes_sigmas)];
    for (param, list, taken) in lists {
        let Some(list) = list else { continue };
        if !taken {
            let fits = |other: &SamplerInfo| if param == "sigmas" { other.takes_sigmas } else { other.takes_timesteps };
            return Err(no_use(param, info, fits));
        }
        if asked != Schedule::Default {
            return Err(SamplerError::new(
                param,
                format!("explicit {param} and schedule {} exclude each other", asked.name()),
            ));
        }
        if spec.timesteps.is_some() && spec.sigmas.is_some() {
            return Err(SamplerError::new(param, "timesteps and sigmas exclude each other"));
        }
        let wanted = spec.steps + usize::from(param == "sigmas" && !settings.flow);
        if list.len() != wanted {
            return Err(SamplerError::new(
                param,
                format!("{} {param} for {} steps; {wanted} are needed", list.len(), spec.steps),
            ));
        }
        let falling = list.windows(2).all(|pair| pair[0] > pair[1]);
        let least = if param == "sigmas" && settings.flow { f64::MIN_POSITIVE } else { 0.0 };
        if !falling || !list.iter().all(|v| v.is_finite() && *v >= least) {
            return Err(SamplerError::new(param, format!("{param} must be finite, not negative, and fall")));
        }
        let whole = info.method.class(settings.flow).is_indexed();
        if param == "timesteps" && whole && list.iter().any(|t| t.fract() != 0.0) {
            return Err(SamplerError::new(param, format!("sampler {} needs whole timesteps", info.name)));
        }
        let top = if settings.flow { 1.0 } else { f64::INFINITY };
        if param == "sigmas" && list[0] > top {
            return Err(SamplerError::new(param, format!("a flow's sigmas are at most 1, not {}", list[0])));
        }
        if param == "timesteps" && list[0] > settings.train_steps as f64 {
            return Err(SamplerError::new(param, format!("timesteps are at most {}", settings.train_steps)));
        }
    }
    Ok(())
}
