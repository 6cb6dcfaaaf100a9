//! Every sampler by name, and which combinations are possible.

use super::settings::{Class, Settings};
use super::table::{CATALOGUE, FLOW};
use super::{SamplerError, Schedule, SchedulerConfig};

/// The kinds of model that a sampler can be used with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// Models that predict noise, velocity or the clean latents of a diffusion.
    Diffusion,
    /// Models that predict the velocity of a rectified flow.
    Flow,
    /// Both.
    Any,
}

/// A sampler as `/v1/samplers` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[allow(clippy::struct_excessive_bools, reason = "each is one independent yes or no of the public sampler list")]
pub struct SamplerInfo {
    /// The canonical name.
    pub name: &'static str,
    /// The name that A1111's tools show.
    pub title: &'static str,
    /// Other spellings: diffusers' classes, A1111's and ComfyUI's names. Case and punctuation never matter.
    pub aliases: &'static [&'static str],
    /// What it is, in one sentence.
    pub summary: &'static str,
    /// The order of its rule, of the deterministic part where it is stochastic. First and last steps may be of a lower one.
    pub order: usize,
    /// Model calls a step.
    pub calls_per_step: usize,
    /// Whether it draws noise on the way with its default options.
    pub stochastic: bool,
    /// The models that it can be used with.
    pub kind: ModelKind,
    /// The schedules that it can step over on a diffusion model, or on a flow where it is for flows only.
    pub schedules: &'static [Schedule],
    /// Whether a request's `eta`, the share of fresh noise, has an effect.
    pub takes_eta: bool,
    /// Whether a request can give its own timesteps.
    pub takes_timesteps: bool,
    /// Whether a request can give its own sigmas.
    pub takes_sigmas: bool,
    /// The solver orders that a request can choose from; none where the method has one.
    pub orders: &'static [usize],
    /// The solver variants that a request can choose from; none where the method has one.
    pub solvers: &'static [&'static str],
    #[serde(skip)]
    pub(super) method: Method,
}

/// How a sampler steps, with what its name fixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Ddim,
    Ddpm,
    Pndm,
    Lms,
    Euler,
    EulerAncestral,
    Heun,
    Dpm2,
    Dpm2Ancestral,
    DpmMultistep {
        order: usize,
        /// diffusers' `algorithm_type`.
        algorithm: &'static str,
    },
    DpmSinglestep,
    Dpmpp2sAncestral,
    DpmppSde,
    Deis,
    UniPc,
    Lcm,
    Tcd,
    ResMultistep,
    FlowEuler,
    FlowHeun,
}

impl Method {
    /// The diffusers class whose configuration rules apply; for the methods that diffusers lacks, the nearest one's.
    pub(super) fn class(self, flow: bool) -> Class {
        match self {
            Self::Ddim => Class::Ddim,
            Self::Ddpm => Class::Ddpm,
            Self::Pndm => Class::Pndm,
            Self::Lms => Class::Lms,
            Self::ResMultistep if flow => Class::FlowEuler,
            Self::Euler | Self::ResMultistep => Class::Euler,
            Self::EulerAncestral | Self::Dpmpp2sAncestral => Class::EulerAncestral,
            Self::Heun => Class::Heun,
            Self::Dpm2 => Class::Dpm2,
            Self::Dpm2Ancestral => Class::Dpm2Ancestral,
            Self::DpmMultistep { .. } => Class::DpmMultistep,
            Self::DpmSinglestep => Class::DpmSinglestep,
            Self::DpmppSde => Class::DpmSde,
            Self::Deis => Class::Deis,
            Self::UniPc => Class::UniPc,
            Self::Lcm => Class::Lcm,
            Self::Tcd => Class::Tcd,
            Self::FlowEuler => Class::FlowEuler,
            Self::FlowHeun => Class::FlowHeun,
        }
    }

    /// Writes what the sampler's name says over what another class's file says.
    pub(super) fn fix(self, settings: &mut Settings) {
        match self {
            Self::DpmMultistep { order, algorithm } => {
                settings.order = order;
                settings.algorithm = algorithm.into();
                settings.ends_at_sigma_min |= algorithm == "dpmsolver";
            }
            Self::DpmSinglestep => {
                settings.order = 2;
                settings.algorithm = "dpmsolver++".into();
            }
            _ => {}
        }
    }

    /// The share of fresh noise where a request names none.
    pub(super) fn default_eta(self) -> f64 {
        match self {
            Self::EulerAncestral | Self::Dpm2Ancestral | Self::Dpmpp2sAncestral | Self::DpmppSde => 1.0,
            // TCD's class says 0.3, but the pipelines hand it their own default.
            _ => 0.0,
        }
    }
}

/// Every sampler.
pub fn catalogue() -> &'static [SamplerInfo] {
    CATALOGUE
}

/// A name without case and punctuation; "+" reads as "p", so that "DPM++ 2M" and "dpmpp_2m" are one.
pub(super) fn plain(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_alphanumeric() || *c == '+')
        .map(|c| if c == '+' { 'p' } else { c.to_ascii_lowercase() })
        .collect()
}

/// The sampler of this canonical name, title or alias.
pub fn find(name: &str) -> Option<&'static SamplerInfo> {
    let wanted = plain(name);
    CATALOGUE.iter().find(|info| [info.name, info.title].iter().chain(info.aliases).any(|known| plain(known) == wanted))
}

/// Like [`find`], and understands A1111's older names that end in a schedule, such as "DPM++ 2M Karras".
pub fn find_styled(name: &str) -> Option<(&'static SamplerInfo, Option<Schedule>)> {
    if let Some(info) = find(name) {
        return Some((info, None));
    }
    let (head, tail) = name.trim().rsplit_once([' ', '_'])?;
    Some((find(head)?, Some(Schedule::find(tail)?)))
}

impl SamplerInfo {
    /// The sampler that a model's scheduler file stands for.
    ///
    /// # Errors
    /// When the file's class is not known.
    pub fn of_model(config: &SchedulerConfig) -> Result<&'static Self, SamplerError> {
        let Some(class) = config.class_name.as_deref() else {
            return named(if config.is_flow() { "flow_euler" } else { "ddim" });
        };
        if class != "DPMSolverMultistepScheduler" {
            return named(class);
        }
        let order = config.solver_order.unwrap_or(2);
        named(match (config.algorithm_type.as_deref(), order) {
            _ if config.is_flow() => "flow_dpmpp_2m",
            (Some("dpmsolver"), _) => "dpm_2m",
            (Some("sde-dpmsolver++"), 3) => "dpmpp_3m_sde",
            (Some("sde-dpmsolver++"), _) => "dpmpp_2m_sde",
            (_, 3) => "dpmpp_3m",
            _ => "dpmpp_2m",
        })
    }

    /// The schedules that it can step over on a flow model, or on a diffusion model.
    pub fn schedules_on(&self, flow: bool) -> &'static [Schedule] {
        if flow { FLOW } else { self.schedules }
    }
}

/// The sampler and the schedule that these names mean for a model with this scheduler file; `None` is the model's own.
///
/// # Errors
/// When a name is unknown or the combination is impossible; the message says what is possible.
pub fn check(
    sampler: Option<&str>,
    schedule: Option<&str>,
    config: &SchedulerConfig,
) -> Result<(&'static SamplerInfo, Schedule), SamplerError> {
    let (info, styled) = match sampler {
        None => (SamplerInfo::of_model(config)?, None),
        Some(name) => find_styled(name).ok_or_else(|| unknown_sampler(name, config))?,
    };
    let fits = |info: &SamplerInfo| match info.kind {
        ModelKind::Any => true,
        ModelKind::Flow => config.is_flow(),
        ModelKind::Diffusion => !config.is_flow(),
    };
    // On a flow model, "euler" can only mean the flow's Euler.
    let info = if fits(info) { info } else { find(&format!("flow_{}", info.name)).filter(|i| fits(i)).unwrap_or(info) };
    if !fits(info) {
        let kind = if config.is_flow() { "flow" } else { "diffusion" };
        return Err(SamplerError::new(
            "sampler",
            format!("sampler {:?} cannot be used with a {kind} model; possible: {}", info.name, names(config)),
        ));
    }
    let schedules = info.schedules_on(config.is_flow());
    let schedule = match schedule {
        None => styled.unwrap_or_default(),
        Some(name) => Schedule::find(name).ok_or_else(|| {
            let known: Vec<&str> = schedules.iter().map(|s| s.name()).collect();
            SamplerError::new(
                "schedule",
                format!("unknown schedule {name:?}; possible with {}: {}", info.name, known.join(", ")),
            )
        })?,
    };
    if !schedules.contains(&schedule) {
        let possible: Vec<&str> = schedules.iter().map(|s| s.name()).collect();
        let takers: Vec<&str> = CATALOGUE
            .iter()
            .filter(|other| fits(other) && other.schedules_on(config.is_flow()).contains(&schedule))
            .map(|other| other.name)
            .collect();
        let takers = if takers.is_empty() {
            String::new()
        } else {
            format!("; {} goes with {}", schedule.name(), takers.join(", "))
        };
        return Err(SamplerError::new(
            "schedule",
            format!(
                "sampler {} cannot step over schedule {:?}; possible: {}{takers}",
                info.name,
                schedule.name(),
                possible.join(", ")
            ),
        ));
    }
    Ok((info, schedule))
}

fn named(class: &str) -> Result<&'static SamplerInfo, SamplerError> {
    find(class).ok_or_else(|| {
        let known: Vec<&str> = CATALOGUE
            .iter()
            .flat_map(|info| info.aliases)
            .copied()
            .filter(|alias| alias.ends_with("Scheduler"))
            .collect();
        SamplerError::new(
            "sampler",
            format!("scheduler_config.json: _class_name {class:?} is not known; known: {}", known.join(", ")),
        )
    })
}

fn unknown_sampler(name: &str, config: &SchedulerConfig) -> SamplerError {
    SamplerError::new("sampler", format!("unknown sampler {name:?}; possible: {}", names(config)))
}

/// The names of the samplers that a model can be used with.
fn names(config: &SchedulerConfig) -> String {
    let names: Vec<&str> = catalogue()
        .iter()
        .filter(|info| info.kind == ModelKind::Any || (info.kind == ModelKind::Flow) == config.is_flow())
        .map(|info| info.name)
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_means_exactly_one_sampler() {
        let mut seen = std::collections::BTreeMap::new();
        for info in catalogue() {
            let spellings: std::collections::BTreeSet<String> =
                [info.name, info.title].iter().chain(info.aliases).map(|s| plain(s)).collect();
            for spelling in spellings {
                assert_eq!(seen.insert(spelling.clone(), info.name), None, "{spelling} is ambiguous");
            }
            assert!(info.schedules.contains(&Schedule::Default));
        }
        for schedule in Schedule::ALL {
            assert_eq!(Schedule::find(schedule.name()), Some(schedule));
            for alias in schedule.aliases() {
                assert_eq!(Schedule::find(alias), Some(schedule));
            }
        }
    }

    #[test]
    fn names_of_other_tools_are_understood() {
        for (name, expected) in [
            ("DPM++ 2M", "dpmpp_2m"),
            ("dpmpp_2m", "dpmpp_2m"),
            ("DPMSolverMultistepScheduler", "dpmpp_2m"),
            ("Euler a", "euler_a"),
            ("euler_ancestral", "euler_a"),
            ("EulerDiscreteScheduler", "euler"),
        ] {
            assert_eq!(find(name).map(|info| info.name), Some(expected), "{name}");
        }
        let (info, schedule) = find_styled("DPM++ 2M Karras").unwrap();
        assert_eq!((info.name, schedule), ("dpmpp_2m", Some(Schedule::Karras)));
        assert!(find("warp").is_none() && find_styled("Euler Warp").is_none());
    }

    #[test]
    fn an_impossible_combination_is_refused_with_what_is_possible() {
        let config = SchedulerConfig::default();
        let error = check(Some("ddim"), Some("karras"), &config).unwrap_err();
        assert_eq!(error.param, "schedule");
        assert!(error.message.contains("sgm_uniform") && error.message.contains("euler"), "{error}");
        let error = check(Some("warp"), None, &config).unwrap_err();
        assert!(error.param == "sampler" && error.message.contains("dpmpp_2m"), "{error}");
        let error = check(Some("euler"), Some("warp"), &config).unwrap_err();
        assert!(error.param == "schedule" && error.message.contains("karras"), "{error}");
        let odd = SchedulerConfig { class_name: Some("WarpScheduler".into()), ..SchedulerConfig::default() };
        let error = check(None, None, &odd).unwrap_err();
        assert!(error.message.contains("_class_name") && error.message.contains("DDIMScheduler"), "{error}");
    }
}
