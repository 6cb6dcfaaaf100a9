//! Every sampler by name, and which combinations are possible.

use super::settings::Class;
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
pub struct SamplerInfo {
    /// The canonical name.
    pub name: &'static str,
    /// The name that A1111's tools show.
    pub title: &'static str,
    /// Other spellings: diffusers' classes, A1111's and ComfyUI's names. Case and punctuation never matter.
    pub aliases: &'static [&'static str],
    /// What it is, in one sentence.
    pub summary: &'static str,
    /// The order of its error per step size, of its deterministic part where it is stochastic.
    pub order: usize,
    /// Model calls a step.
    pub calls_per_step: usize,
    /// Whether it draws noise on the way with its default options.
    pub stochastic: bool,
    /// The models that it can be used with.
    pub kind: ModelKind,
    /// The schedules that it can step over.
    pub schedules: &'static [Schedule],
    #[serde(skip)]
    pub(super) method: Method,
}

/// How a sampler steps, with what its name fixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Ddim,
    Euler,
    EulerAncestral,
    /// DPM-Solver++ multistep of this order; stochastic or not.
    DpmMultistep {
        order: usize,
        sde: bool,
    },
}

impl Method {
    /// The diffusers class whose configuration rules apply.
    pub(super) fn class(self) -> Class {
        match self {
            Self::Ddim => Class::Ddim,
            Self::Euler => Class::Euler,
            Self::EulerAncestral => Class::EulerAncestral,
            Self::DpmMultistep { .. } => Class::DpmMultistep,
        }
    }
}

/// For samplers that work in whole trained timesteps.
const INDEXED: &[Schedule] =
    &[Schedule::Default, Schedule::Normal, Schedule::Simple, Schedule::SgmUniform, Schedule::DdimUniform];

/// For samplers that work in sigma.
const SIGMA: &[Schedule] = &[
    Schedule::Default,
    Schedule::Normal,
    Schedule::Simple,
    Schedule::SgmUniform,
    Schedule::DdimUniform,
    Schedule::Karras,
    Schedule::Exponential,
    Schedule::Beta,
    Schedule::LinearQuadratic,
    Schedule::KlOptimal,
    Schedule::AlignYourSteps,
    Schedule::AlignYourStepsSdxl,
];

/// For DPM-Solver's multistep family, which knows its authors' schedule too.
const SIGMA_LU: &[Schedule] = &[
    Schedule::Default,
    Schedule::Normal,
    Schedule::Simple,
    Schedule::SgmUniform,
    Schedule::DdimUniform,
    Schedule::Karras,
    Schedule::Exponential,
    Schedule::Beta,
    Schedule::Lu,
    Schedule::LinearQuadratic,
    Schedule::KlOptimal,
    Schedule::AlignYourSteps,
    Schedule::AlignYourStepsSdxl,
];

static CATALOGUE: &[SamplerInfo] = &[
    SamplerInfo {
        name: "ddim",
        title: "DDIM",
        aliases: &["DDIMScheduler"],
        summary: "First order, deterministic unless eta is above 0.",
        order: 1,
        calls_per_step: 1,
        stochastic: false,
        kind: ModelKind::Diffusion,
        schedules: INDEXED,
        method: Method::Ddim,
    },
    SamplerInfo {
        name: "euler",
        title: "Euler",
        aliases: &["EulerDiscreteScheduler", "k_euler"],
        summary: "Euler's method on the probability-flow ODE.",
        order: 1,
        calls_per_step: 1,
        stochastic: false,
        kind: ModelKind::Diffusion,
        schedules: SIGMA,
        method: Method::Euler,
    },
    SamplerInfo {
        name: "euler_a",
        title: "Euler a",
        aliases: &["EulerAncestralDiscreteScheduler", "euler_ancestral", "k_euler_ancestral", "k_euler_a"],
        summary: "Euler's method with fresh noise at every step.",
        order: 1,
        calls_per_step: 1,
        stochastic: true,
        kind: ModelKind::Diffusion,
        schedules: SIGMA,
        method: Method::EulerAncestral,
    },
    SamplerInfo {
        name: "dpmpp_2m",
        title: "DPM++ 2M",
        aliases: &["DPMSolverMultistepScheduler", "k_dpmpp_2m"],
        summary: "DPM-Solver++, second order, from the last two estimates.",
        order: 2,
        calls_per_step: 1,
        stochastic: false,
        kind: ModelKind::Diffusion,
        schedules: SIGMA_LU,
        method: Method::DpmMultistep { order: 2, sde: false },
    },
];

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
        named(class)
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
    let schedule = match schedule {
        None => styled.unwrap_or_default(),
        Some(name) => Schedule::find(name).ok_or_else(|| {
            let known: Vec<&str> = info.schedules.iter().map(|s| s.name()).collect();
            SamplerError::new(
                "schedule",
                format!("unknown schedule {name:?}; possible with {}: {}", info.name, known.join(", ")),
            )
        })?,
    };
    if !info.schedules.contains(&schedule) {
        let possible: Vec<&str> = info.schedules.iter().map(|s| s.name()).collect();
        let takers: Vec<&str> = CATALOGUE
            .iter()
            .filter(|other| fits(other) && other.schedules.contains(&schedule))
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
