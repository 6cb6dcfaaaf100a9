//! A model's scheduler file, as diffusers' pipelines read it.

use super::opening::check;
use crate::samplers::{ModelKind, Plan, PlanContext, SamplerInfo, SamplingSpec, SchedulerConfig, catalogue, find};
use crate::weights::Repository;
use crate::{Abilities, Error, Fit, ModelCard, Result, Size, Sizes};

/// Where the file is.
const SCHEDULER: &str = "scheduler/scheduler_config.json";

/// The sampler for models whose own is not available.
const OTHERWISE: &str = "ddim";

/// Which of diffusers' pipelines corrects the file, by the class that the model was published as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Corrections {
    /// A `steps_offset` of 1 and no `clip_sample`.
    StableDiffusion,
    /// A `steps_offset` of 1 and PNDM's start without Runge-Kutta steps.
    Inpainting,
}

/// The scheduler file twice, because diffusers' Stable Diffusion pipelines correct two keys of it.
///
/// Whatever the file says, their own scheduler has a `steps_offset` of 1 and what else [`Corrections`] names. A sampler that is chosen
/// instead, by `Class.from_config(pipe.scheduler.config)`, sees the correction only of the keys that stand in the
/// file: `from_config` drops what the pipeline's scheduler had by default, corrected or not.
pub(super) struct Schedulers {
    own: SchedulerConfig,
    chosen: SchedulerConfig,
}

impl Schedulers {
    /// Reads the file as it stands, which is what the pipelines of most families do.
    ///
    /// # Errors
    /// Names the file and the key when it cannot be read.
    pub(super) fn read(repository: &Repository) -> Result<Self> {
        let file = SchedulerConfig::from_json(&repository.text(SCHEDULER)?).map_err(|e| Error::file(SCHEDULER, e))?;
        Ok(Self { own: file.clone(), chosen: file })
    }

    /// Reads the file of a model that is a flow, whose scheduler must be for flows.
    ///
    /// # Errors
    /// Names the file and the key when it cannot be read, or is for diffusion models.
    pub(super) fn read_flow(repository: &Repository) -> Result<Self> {
        let schedulers = Self::read(repository)?;
        let class = schedulers.own.class_name.as_deref().unwrap_or_default();
        let message = format_args!(
            "_class_name is {class:?}, for diffusion models; a scheduler for flows is expected, such as \
             FlowMatchEulerDiscreteScheduler"
        );
        check(schedulers.own.is_flow(), SCHEDULER, message)?;
        Ok(schedulers)
    }

    /// Reads the file with the corrections of the Stable Diffusion 1.x and 2.x pipelines.
    ///
    /// # Errors
    /// Names the file and the key when it cannot be read.
    pub(super) fn read_corrected(repository: &Repository, corrections: Corrections) -> Result<Self> {
        let Self { own: file, .. } = Self::read(repository)?;
        let steps_offset = file.steps_offset.map(|_| 1);
        let (chosen, own) = match corrections {
            Corrections::StableDiffusion => {
                let chosen = SchedulerConfig { steps_offset, clip_sample: file.clip_sample.map(|_| false), ..file };
                let own = SchedulerConfig { clip_sample: Some(false), ..chosen.clone() };
                (chosen, own)
            }
            Corrections::Inpainting => {
                let chosen =
                    SchedulerConfig { steps_offset, skip_prk_steps: file.skip_prk_steps.map(|_| true), ..file };
                let own = SchedulerConfig { skip_prk_steps: Some(true), ..chosen.clone() };
                (chosen, own)
            }
        };
        Ok(Self { own: SchedulerConfig { steps_offset: Some(1), ..own }, chosen })
    }

    /// The file as the model's own scheduler reads it.
    pub(super) fn own(&self) -> &SchedulerConfig {
        &self.own
    }

    /// The card of a model of this family, native size and sizes, with what its scheduler file says; the rest is the
    /// family's to say, and what no file does.
    pub(super) fn card(&self, family: &str, native: Size, sizes: Sizes) -> ModelCard {
        let (sampler, samplers, description) = self.describe();
        ModelCard {
            family: family.to_owned(),
            description,
            subjects: Vec::new(),
            native,
            sizes,
            fit: Fit::Exact,
            steps: 0,
            guidance: 0.0,
            sampler,
            samplers,
            abilities: Abilities::default(),
            context_tokens: 0,
            clip_layers: 0,
            parameters: 0,
            dtype: String::new(),
            scheduler: self.own.clone(),
        }
    }

    /// What the scheduler file says of a model's card: the sampler that requests have unless they name one, every sampler
    /// they may name, and a sentence where the model's own is not written yet, which is no reason to refuse a model that
    /// any sampler can draw with.
    fn describe(&self) -> (String, Vec<String>, String) {
        let kind = if self.own.is_flow() { ModelKind::Flow } else { ModelKind::Diffusion };
        let fits = |info: &&SamplerInfo| info.kind == ModelKind::Any || info.kind == kind;
        let samplers = catalogue().iter().filter(fits).map(|info| info.name.to_owned()).collect();
        match SamplerInfo::of_model(&self.own) {
            Ok(info) => (info.name.to_owned(), samplers, String::new()),
            Err(_) => {
                let class = self.own.class_name.as_deref().unwrap_or_default();
                let description = format!(
                    "Its own scheduler, {class}, is not available here; {OTHERWISE} is used unless a request names another."
                );
                (OTHERWISE.to_owned(), samplers, description)
            }
        }
    }

    /// Refuses values in the file that `sampler`, the model's default one, cannot be set up with for that many steps of a
    /// picture of the native size.
    ///
    /// # Errors
    /// Names the file and the key.
    pub(super) fn check(&self, sampler: &str, steps: usize, context: PlanContext) -> Result<()> {
        let spec = SamplingSpec::steps(steps).with_sampler(sampler);
        self.plan(&spec, context).map(|_| ()).map_err(|error| Error::file(SCHEDULER, error))
    }

    /// The plan of a request; one that names no sampler gets the model's own.
    ///
    /// # Errors
    /// When the combination is impossible; the message says what is possible.
    pub(super) fn plan(&self, spec: &SamplingSpec, context: PlanContext) -> Result<Plan> {
        let asked = spec.sampler.as_deref().and_then(find).map(|info| info.name);
        let own = SamplerInfo::of_model(&self.own).ok().map(|info| info.name);
        let config = if asked == own { &self.own } else { &self.chosen };
        Ok(Plan::new(spec, config, context)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The timesteps of two steps with this sampler and this scheduler file.
    fn timesteps(sampler: &str, keys: &str) -> Vec<f64> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model_index.json"), "{}").unwrap();
        std::fs::create_dir(dir.path().join("scheduler")).unwrap();
        let json = format!(r#"{{"_class_name": "DDIMScheduler", "timestep_spacing": "leading"{keys}}}"#);
        std::fs::write(dir.path().join(SCHEDULER), json).unwrap();
        let schedulers =
            Schedulers::read_corrected(&Repository::folder(dir.path()).unwrap(), Corrections::StableDiffusion).unwrap();
        schedulers
            .plan(&SamplingSpec::steps(2).with_sampler(sampler), PlanContext::default())
            .unwrap()
            .timesteps()
            .to_vec()
    }

    #[test]
    fn the_models_own_scheduler_is_corrected_and_another_only_where_the_file_has_the_key() {
        assert_eq!(timesteps("ddim", ""), [501.0, 1.0]);
        assert_eq!(timesteps("ddim", r#", "steps_offset": 0"#), [501.0, 1.0]);
        assert_eq!(timesteps("euler", ""), [500.0, 0.0]);
        assert_eq!(timesteps("euler", r#", "steps_offset": 0"#), [501.0, 1.0]);
    }
}
