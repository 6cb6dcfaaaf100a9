//! Stable Diffusion 1.x, and 2.x, which differs in its configuration only; their inpainting models; latent consistency
//! models.
//!
//! Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022; Luo et al., "Latent Consistency
//! Models", 2023. The reference is diffusers' `StableDiffusion…Pipeline` and `LatentConsistencyModel…Pipeline`.

use std::sync::Arc;

use candle_core::Tensor;
use serde::Deserialize;

use super::clip::{ClipEncoder, ClipFiles, Layer};
use super::latent_space::latents_become_pictures;
use super::opening::Opening;
use super::parts::{AnyPart, Turns, parts_come_and_go};
use super::rows::Guided;
use super::schedulers::{Corrections, Schedulers};
use super::unet_files::{Defaults, Files};
use super::unet_model::UNetModel;
use super::unused::Uses;
use super::{Family, Placement};
use crate::samplers::StrengthRule;
use crate::text::equal_lengths;
use crate::weights::{MODEL_INDEX, Repository};
use crate::{Conditioning, ModelCard, Pipeline, Prompt, RenderSpec, Result, Strengths, Trajectory};

/// The family's line in the list of families.
pub(super) const FAMILY: Family = Family {
    classes: &[
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        INPAINT,
        "LatentConsistencyModelPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
    ],
    open,
};

const INPAINT: &str = "StableDiffusionInpaintPipeline";

/// The key of `model_index.json` that says which pipeline the model was published for.
#[derive(Deserialize)]
struct Index {
    _class_name: String,
}

/// A Stable Diffusion model, ready to render.
struct StableDiffusion {
    model: UNetModel,
    text: ClipEncoder,
    turns: Arc<Turns>,
}

/// Opens a model of the family.
fn open(repository: &Repository, placement: &Placement, name: &str) -> Result<Arc<dyn Pipeline>> {
    let Index { _class_name: class } = repository.json(MODEL_INDEX)?;
    let consistency = class.starts_with("LatentConsistency");
    let schedulers = match class.as_str() {
        _ if consistency => Schedulers::read(repository)?,
        INPAINT => Schedulers::read_corrected(repository, Corrections::Inpainting)?,
        _ => Schedulers::read_corrected(repository, Corrections::StableDiffusion)?,
    };
    let files = Files::read(repository, schedulers)?;
    let text = ClipFiles::read(repository, "text_encoder", "tokenizer")?;
    files.check_context(text.config().hidden_size, "text_encoder/config.json has hidden_size")?;

    let opening = Opening { repository, placement };
    let (text_part, unet_part, vae_part) = (opening.part("text_encoder")?, opening.part("unet")?, opening.part("vae")?);
    let parts = [&text_part, &unet_part, &vae_part];
    let mut card = files.card(Defaults {
        // 2.x is told by the linear layers that replaced the 1x1 convolutions around its transformers.
        family: if files.unet.use_linear_projection { "sd2" } else { "sd1" },
        steps: if consistency { 4 } else { 50 },
        guidance: if consistency { 8.5 } else { 7.5 },
        // The pipelines of consistency models spread the steps over what the strength leaves of the schedule.
        strengths: Strengths {
            rule: if consistency { StrengthRule::Spread } else { StrengthRule::Truncate },
            ..Strengths::default()
        },
        side: None,
    })?;
    card.context_tokens = text.context();
    card.clip_layers = text.config().num_hidden_layers;
    let card = files.complete(card, opening, &parts)?;

    let turns = Turns::new(&parts, placement.memory);
    let model = UNetModel::new(opening, (name, card), files, [unet_part, vae_part], &turns);
    let text = text.encoder(opening, text_part, &turns);
    Ok(Arc::new(StableDiffusion { model, text, turns }))
}

impl StableDiffusion {
    /// Its parts, in the order in which a picture needs them.
    fn all(&self) -> [&dyn AnyPart; 3] {
        [self.text.part(), &self.model.unet, self.model.latents.part()]
    }
}

impl Pipeline for StableDiffusion {
    fn card(&self) -> &ModelCard {
        &self.model.card
    }

    parts_come_and_go!();

    latents_become_pictures!(model.latents);

    fn guided(&self, spec: &RenderSpec) -> bool {
        self.model.guided(spec)
    }

    fn encode(&self, prompt: &Prompt) -> Result<Conditioning> {
        let encoded = self.text.encode(prompt, Layer::Last)?;
        let (tokens, truncated) = (encoded.tokens, encoded.truncated);
        Ok(Conditioning { states: encoded.states, pooled: None, mask: None, tokens, truncated })
    }

    fn begin(
        &self,
        spec: &RenderSpec,
        positive: Arc<Conditioning>,
        negative: Option<Arc<Conditioning>>,
    ) -> Result<Trajectory> {
        Uses { image: true, mask: true, guidance_rescale: true, ..Uses::default() }.check(spec)?;
        let start = self.model.start(spec)?;
        let (states, negative_states) = match negative.as_deref() {
            Some(negative) => {
                let empty = || Ok(self.encode(&Prompt::new(""))?.states);
                let (positive, negative) = equal_lengths(&positive.states, &negative.states, empty)?;
                (positive, Some(negative))
            }
            None => (positive.states.clone(), None),
        };
        let tell = |states: &Tensor, guidance| self.model.tell(&start, states, None, guidance);
        let told = Guided {
            negative: negative_states.map(|states| tell(&states, None)).transpose()?,
            positive: tell(&states, Some(spec.guidance))?,
        };
        Ok(self.model.row(spec, start, (positive, negative), told, states.dim(0)?))
    }

    fn denoise(&self, rows: &mut [&mut Trajectory]) -> Result<()> {
        self.model.denoise(rows)
    }

    fn row_bytes(&self, width: u32, height: u32) -> u64 {
        self.model.row_bytes(width, height)
    }
}

#[cfg(test)]
mod tests;
