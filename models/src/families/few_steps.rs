//! Models that were distilled to draw in a few steps, as far as their files say so.
//!
//! Such a model has the configuration of the one that it was distilled from. By the defaults of diffusers' pipelines it
//! would take fifty guided steps, which is slow, and its pictures are burnt. So what its authors publish takes their place
//! where the files leave no doubt: the scheduler is one that was made for distilled models, or the model has the name that
//! it was published under and the schedule that goes with it.

use serde::Deserialize;

use crate::samplers::SchedulerConfig;
use crate::weights::{MODEL_INDEX, Repository};
use crate::{ModelCard, Result};

/// A model by its name.
struct Published {
    /// How the names of its folders and files begin, in lower case and with hyphens.
    name: &'static str,
    steps: usize,
    guidance: f64,
}

/// The models that only their names tell from those that they were distilled from, with what their authors' own pages say.
const PUBLISHED: [Published; 8] = [
    // Sauer et al., "Adversarial Diffusion Distillation", 2023.
    Published { name: "sd-turbo", steps: 1, guidance: 0.0 },
    Published { name: "sdxl-turbo", steps: 1, guidance: 0.0 },
    Published { name: "sd-xl-turbo", steps: 1, guidance: 0.0 },
    // Sauer et al., "Fast High-Resolution Image Synthesis with Latent Adversarial Diffusion Distillation", 2024.
    Published { name: "stable-diffusion-3.5-large-turbo", steps: 4, guidance: 0.0 },
    Published { name: "sd3.5-large-turbo", steps: 4, guidance: 0.0 },
    // Lin et al., "SDXL-Lightning: Progressive Adversarial Diffusion Distillation", 2024.
    Published { name: "sdxl-lightning-2step", steps: 2, guidance: 0.0 },
    Published { name: "sdxl-lightning-4step", steps: 4, guidance: 0.0 },
    Published { name: "sdxl-lightning-8step", steps: 8, guidance: 0.0 },
];

/// What `model_index.json` says of where the model came from.
#[derive(Default, Deserialize)]
struct Index {
    _name_or_path: Option<String>,
}

/// Gives `card` the steps and the guidance of a distilled model, if the files are those of one. `told` is whether the
/// network is told its guidance as a number.
///
/// # Errors
/// When `model_index.json` cannot be read.
pub(super) fn apply(repository: &Repository, told: bool, card: &mut ModelCard) -> Result<()> {
    let index: Index = repository.try_json(MODEL_INDEX)?.unwrap_or_default();
    let origins = [Some(repository.origin()), index._name_or_path];
    let known = made_for_few(&card.scheduler, told).or_else(|| {
        // With another schedule a single step would begin where it should end.
        let trailing = card.scheduler.timestep_spacing.as_deref() == Some("trailing") || card.scheduler.is_flow();
        origins.iter().flatten().filter(|_| trailing).find_map(|origin| published(origin))
    });
    if let Some((steps, guidance)) = known {
        (card.steps, card.guidance) = (steps, guidance);
    }
    Ok(())
}

/// Steps and guidance of models with a scheduler that nothing else is used with.
fn made_for_few(scheduler: &SchedulerConfig, told: bool) -> Option<(usize, f64)> {
    match scheduler.class_name.as_deref() {
        // Luo et al., "Latent Consistency Models", 2023: told its guidance, or merged with a LoRA that has it built in.
        Some("LCMScheduler") => Some((4, if told { 8.5 } else { 1.0 })),
        // Zheng et al., "Trajectory Consistency Distillation", 2024.
        Some("TCDScheduler") => Some((4, 0.0)),
        _ => None,
    }
}

/// Steps and guidance of the model that was published as `origin`: a path, whose last part may be the name, or a name on
/// the hub, which the hub's cache writes as `models--OWNER--NAME/snapshots/COMMIT`.
fn published(origin: &str) -> Option<(usize, f64)> {
    let mut parts = origin.trim_end_matches(['/', '\\']).rsplit(['/', '\\']);
    let last = parts.next().unwrap_or_default();
    let cached = parts.find_map(|part| part.strip_prefix("models--")?.split("--").nth(1));
    let named = |name: &str| {
        let name = name.to_ascii_lowercase().replace('_', "-");
        PUBLISHED.iter().find(|known| {
            let rest = name.strip_prefix(known.name);
            rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_alphanumeric()))
        })
    };
    [Some(last), cached].into_iter().flatten().find_map(named).map(|known| (known.steps, known.guidance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_known_by_its_name_on_the_hub_in_the_cache_or_in_a_folder() {
        for origin in [
            "stabilityai/sdxl-turbo",
            "/models/SDXL_Turbo/",
            "/home/a/.cache/huggingface/hub/models--stabilityai--sdxl-turbo/snapshots/71153311d3dbb46851df1931d3ca6e939de83304",
            "C:\\models\\sdxl-turbo-fp16",
        ] {
            assert_eq!(published(origin), Some((1, 0.0)), "{origin}");
        }
        assert_eq!(published("stabilityai/stable-diffusion-3.5-large-turbo"), Some((4, 0.0)));
        assert_eq!(published("/models/sd3.5_large_turbo.safetensors"), Some((4, 0.0)));
        assert_eq!(published("sdxl_lightning_8step"), Some((8, 0.0)));
        for other in [
            "",
            "/",
            "Lykon/dreamshaper-xl-turbo",
            "stabilityai/stable-diffusion-3.5-large",
            "sdxl-lightning",
            "sdxl-turbo/unet",
            "sd-turbot",
            "models--sdxl-turbo",
        ] {
            assert_eq!(published(other), None, "{other}");
        }
    }

    #[test]
    fn a_scheduler_for_distilled_models_tells_by_itself() {
        let class = |name: &str| SchedulerConfig { class_name: Some(name.into()), ..SchedulerConfig::default() };
        assert_eq!(made_for_few(&class("LCMScheduler"), true), Some((4, 8.5)));
        assert_eq!(made_for_few(&class("LCMScheduler"), false), Some((4, 1.0)));
        assert_eq!(made_for_few(&class("TCDScheduler"), false), Some((4, 0.0)));
        assert_eq!(made_for_few(&class("EulerDiscreteScheduler"), false), None);
    }
}
