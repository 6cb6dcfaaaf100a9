//! diffusers' `Class.from_config(config)`: a scheduler file read as another class would read it.

use super::config::SchedulerConfig;
use super::{SamplerError, Schedule};

/// The diffusers scheduler class whose defaults and rules a sampler follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Ddim,
    Ddpm,
    Pndm,
    Lms,
    Euler,
    EulerAncestral,
    Heun,
    Dpm2,
    Dpm2Ancestral,
    DpmMultistep,
    DpmSinglestep,
    DpmSde,
    Deis,
    UniPc,
    Lcm,
    Tcd,
    FlowEuler,
    FlowHeun,
}

impl Class {
    /// Whether the class looks ᾱ up at whole timesteps instead of working in sigma.
    pub(super) fn is_indexed(self) -> bool {
        matches!(self, Self::Ddim | Self::Ddpm | Self::Pndm | Self::Lcm | Self::Tcd)
    }
}

/// What the model's output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prediction {
    Epsilon,
    Sample,
    Velocity,
    Flow,
}

/// How timesteps are spread over the trained ones (Lin et al., 2023, table 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spacing {
    Linspace,
    Leading,
    Trailing,
}

/// What is done to each estimate of the clean latents.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bound {
    None,
    /// Clamped to ± this.
    Clip(f64),
    /// Dynamic thresholding (Saharia et al., "Photorealistic Text-to-Image Diffusion Models with Deep Language
    /// Understanding", 2022, section 2.3).
    Dynamic {
        /// The quantile of the absolute values that becomes the bound.
        ratio: f64,
        /// The largest bound.
        max: f64,
    },
}

/// A scheduler's configuration with every default filled in.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools, reason = "each mirrors one independent key of the file")]
pub(super) struct Settings {
    pub(super) class: Class,
    pub(super) train_steps: usize,
    pub(super) beta_start: f64,
    pub(super) beta_end: f64,
    pub(super) beta_schedule: String,
    pub(super) trained_betas: Option<Vec<f64>>,
    pub(super) rescale_zero_snr: bool,
    pub(super) prediction: Prediction,
    pub(super) spacing: Spacing,
    pub(super) offset: i64,
    /// Euler's `timestep_type`: timesteps are a quarter of log σ.
    pub(super) continuous: bool,
    /// Euler's `interpolation_type`.
    pub(super) log_linear: bool,
    /// The schedule that the file's flags choose; `Default` without any.
    pub(super) schedule: Schedule,
    pub(super) sigma_min: Option<f64>,
    pub(super) sigma_max: Option<f64>,
    /// The schedule ends at the smallest trained sigma instead of 0.
    pub(super) ends_at_sigma_min: bool,
    pub(super) lambda_min_clipped: f64,
    pub(super) bound: Bound,
    pub(super) alpha_to_one: bool,
    pub(super) skip_prk: bool,
    pub(super) variance: String,
    pub(super) order: usize,
    pub(super) solver: String,
    pub(super) algorithm: String,
    pub(super) lower_order_final: bool,
    pub(super) euler_at_final: bool,
    pub(super) predict_clean: bool,
    pub(super) disable_corrector: Vec<usize>,
    pub(super) original_steps: usize,
    pub(super) timestep_scaling: f64,
    /// Flow models: the sigmas are a flow's, and predictions its velocity.
    pub(super) flow: bool,
    pub(super) shift: f64,
    pub(super) dynamic_shift: bool,
    pub(super) base_shift: f64,
    pub(super) max_shift: f64,
    pub(super) base_tokens: usize,
    pub(super) max_tokens: usize,
    pub(super) shift_terminal: Option<f64>,
    pub(super) linear_shift: bool,
    pub(super) invert: bool,
    pub(super) stochastic: bool,
}

impl Settings {
    /// Reads `config` as `class` does: keys that it has not take this class's defaults, and keys that this class does not
    /// know are without effect.
    pub(super) fn new(class: Class, config: &SchedulerConfig) -> Result<Self, SamplerError> {
        let multistep = matches!(class, Class::DpmMultistep | Class::Deis | Class::UniPc);
        let solver_family = multistep || class == Class::DpmSinglestep;
        let indexed = matches!(class, Class::Ddim | Class::Ddpm | Class::Pndm);
        let distilled = matches!(class, Class::Lcm | Class::Tcd);
        let (beta_start, beta_end) = match class {
            Class::Heun | Class::Dpm2 | Class::Dpm2Ancestral | Class::DpmSde | Class::Lcm | Class::Tcd => {
                (0.00085, 0.012)
            }
            _ => (0.0001, 0.02),
        };
        let flow = matches!(class, Class::FlowEuler | Class::FlowHeun) || (solver_family && config.is_flow());
        let knows_rescale = matches!(
            class,
            Class::Ddim
                | Class::Ddpm
                | Class::Euler
                | Class::EulerAncestral
                | Class::DpmMultistep
                | Class::UniPc
                | Class::Lcm
                | Class::Tcd
        );
        let curved = !(indexed || distilled || class == Class::EulerAncestral || class == Class::FlowHeun);
        let knows_final = matches!(class, Class::Euler | Class::DpmMultistep | Class::DpmSinglestep | Class::UniPc);
        let knows_sigma_range = matches!(class, Class::Euler | Class::UniPc);
        Ok(Self {
            class,
            train_steps: config.num_train_timesteps.unwrap_or(1000),
            beta_start: config.beta_start.unwrap_or(beta_start),
            beta_end: config.beta_end.unwrap_or(beta_end),
            beta_schedule: config
                .beta_schedule
                .clone()
                .unwrap_or_else(|| if distilled { "scaled_linear" } else { "linear" }.into()),
            trained_betas: config.trained_betas.clone(),
            rescale_zero_snr: knows_rescale && config.rescale_betas_zero_snr.unwrap_or(false),
            prediction: prediction(class, flow, config)?,
            spacing: spacing(class, config)?,
            offset: if class == Class::DpmSinglestep { 0 } else { config.steps_offset.unwrap_or(0) },
            continuous: class == Class::Euler && config.timestep_type.as_deref() == Some("continuous"),
            log_linear: class == Class::Euler && config.interpolation_type.as_deref() == Some("log_linear"),
            schedule: if curved { flagged(class, config)? } else { Schedule::Default },
            sigma_min: config.sigma_min.filter(|_| knows_sigma_range),
            sigma_max: config.sigma_max.filter(|_| knows_sigma_range),
            ends_at_sigma_min: match config.final_sigmas_type.as_deref() {
                _ if !knows_final => class == Class::Deis,
                None | Some("zero") => false,
                Some("sigma_min") => true,
                Some(other) => return Err(unknown("final_sigmas_type", other, "zero, sigma_min")),
            },
            lambda_min_clipped: config.lambda_min_clipped.unwrap_or(f64::NEG_INFINITY),
            bound: bound(class, config),
            alpha_to_one: config.set_alpha_to_one.unwrap_or(class != Class::Pndm),
            skip_prk: config.skip_prk_steps.unwrap_or(false),
            variance: config.variance_type.clone().unwrap_or_else(|| "fixed_small".into()),
            order: if class == Class::Lms { 4 } else { config.solver_order.unwrap_or(2) },
            solver: config.solver_type.clone().unwrap_or_default(),
            algorithm: config.algorithm_type.clone().unwrap_or_default(),
            lower_order_final: config.lower_order_final.unwrap_or(class != Class::DpmSinglestep),
            euler_at_final: config.euler_at_final.unwrap_or(false),
            predict_clean: config.predict_x0.unwrap_or(true),
            disable_corrector: config.disable_corrector.clone().unwrap_or_default(),
            original_steps: config.original_inference_steps.unwrap_or(50),
            timestep_scaling: config.timestep_scaling.unwrap_or(10.0),
            flow,
            // The flow classes call it `shift`, the solvers `flow_shift`; a model's file has the one of its own class.
            shift: match class {
                Class::FlowEuler | Class::FlowHeun => config.shift.or(config.flow_shift),
                _ => config.flow_shift.or(config.shift),
            }
            .unwrap_or(1.0),
            dynamic_shift: config.use_dynamic_shifting.unwrap_or(false),
            base_shift: config.base_shift.unwrap_or(0.5),
            max_shift: config.max_shift.unwrap_or(1.15),
            base_tokens: config.base_image_seq_len.unwrap_or(256),
            max_tokens: config.max_image_seq_len.unwrap_or(4096),
            shift_terminal: config.shift_terminal.filter(|v| *v != 0.0 && class != Class::FlowHeun),
            linear_shift: config.time_shift_type.as_deref() == Some("linear"),
            invert: class == Class::FlowEuler && config.invert_sigmas.unwrap_or(false),
            stochastic: class == Class::FlowEuler && config.stochastic_sampling.unwrap_or(false),
        })
    }
}

fn unknown(key: &str, value: &str, known: &str) -> SamplerError {
    SamplerError::new("sampler", format!("scheduler_config.json: {key} {value:?} is not known; known: {known}"))
}

fn prediction(class: Class, flow: bool, config: &SchedulerConfig) -> Result<Prediction, SamplerError> {
    if flow {
        return Ok(Prediction::Flow);
    }
    match config.prediction_type.as_deref() {
        None | Some("epsilon") => Ok(Prediction::Epsilon),
        Some("v_prediction") => Ok(Prediction::Velocity),
        Some("sample") => Ok(Prediction::Sample),
        Some("original_sample") if class == Class::Euler => Ok(Prediction::Sample),
        Some("flow_prediction") => Ok(Prediction::Flow),
        Some(other) => Err(unknown("prediction_type", other, "epsilon, v_prediction, sample, flow_prediction")),
    }
}

fn spacing(class: Class, config: &SchedulerConfig) -> Result<Spacing, SamplerError> {
    if class == Class::DpmSinglestep {
        return Ok(Spacing::Linspace);
    }
    match config.timestep_spacing.as_deref() {
        None => Ok(match class {
            Class::Ddim | Class::Ddpm | Class::Pndm | Class::Lcm | Class::Tcd => Spacing::Leading,
            _ => Spacing::Linspace,
        }),
        Some("linspace") => Ok(Spacing::Linspace),
        Some("leading") => Ok(Spacing::Leading),
        Some("trailing") => Ok(Spacing::Trailing),
        Some(other) => Err(unknown("timestep_spacing", other, "linspace, leading, trailing")),
    }
}

/// The schedule that `use_…_sigmas` of the file chooses.
fn flagged(class: Class, config: &SchedulerConfig) -> Result<Schedule, SamplerError> {
    let lu = class == Class::DpmMultistep && config.use_lu_lambdas == Some(true);
    let flags = [
        (config.use_karras_sigmas == Some(true), Schedule::Karras),
        (config.use_exponential_sigmas == Some(true), Schedule::Exponential),
        (config.use_beta_sigmas == Some(true), Schedule::Beta),
    ];
    let mut chosen = flags.iter().filter(|(on, _)| *on).map(|(_, schedule)| *schedule);
    match (chosen.next(), chosen.next()) {
        (Some(_), Some(_)) => Err(SamplerError::new(
            "sampler",
            "scheduler_config.json: only one of use_karras_sigmas, use_exponential_sigmas and use_beta_sigmas can be true",
        )),
        (Some(Schedule::Karras), None) => Ok(Schedule::Karras),
        (_, None) if lu => Ok(Schedule::Lu),
        (schedule, None) => Ok(schedule.unwrap_or_default()),
        (None, Some(_)) => Ok(Schedule::Default),
    }
}

fn bound(class: Class, config: &SchedulerConfig) -> Bound {
    let thresholds = matches!(
        class,
        Class::Ddim
            | Class::Ddpm
            | Class::DpmMultistep
            | Class::DpmSinglestep
            | Class::Deis
            | Class::UniPc
            | Class::Lcm
    );
    let clips = match class {
        Class::Ddim | Class::Ddpm => config.clip_sample.unwrap_or(true),
        Class::Heun | Class::Lcm => config.clip_sample.unwrap_or(false),
        _ => false,
    };
    if thresholds && config.thresholding == Some(true) {
        Bound::Dynamic {
            ratio: config.dynamic_thresholding_ratio.unwrap_or(0.995),
            max: config.sample_max_value.unwrap_or(1.0),
        }
    } else if clips {
        Bound::Clip(config.clip_sample_range.unwrap_or(1.0))
    } else {
        Bound::None
    }
}
