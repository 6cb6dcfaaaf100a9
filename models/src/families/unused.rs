//! Requests for what a family has no use for.

use crate::{Error, Prompt, RenderSpec, Result, Stage};

/// The fields of a request, beyond size, steps and seed, that a family has a use for.
#[derive(Debug, Clone, Copy, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is one independent field")]
pub(super) struct Uses {
    pub(super) image: bool,
    pub(super) mask: bool,
    pub(super) references: bool,
    pub(super) guidance_rescale: bool,
    pub(super) true_guidance: bool,
    pub(super) stage: bool,
}

impl Uses {
    /// Refuses a request that asks for anything else.
    ///
    /// # Errors
    /// Names the field.
    pub(super) fn check(self, spec: &RenderSpec) -> Result<()> {
        let asked = [
            ("image", spec.init.is_some() && !self.image, "cannot start from a picture"),
            ("mask", spec.mask.is_some() && !self.mask, "cannot paint a part of a picture"),
            ("references", !spec.references.is_empty() && !self.references, "does not look at pictures"),
            (
                "guidance_rescale",
                spec.guidance_rescale > 0.0 && !self.guidance_rescale,
                "does not rescale its guidance",
            ),
            ("true_guidance", spec.true_guidance > 1.0 && !self.true_guidance, "has no guidance beside guidance"),
            (
                "stage",
                !matches!(spec.stage, Stage::Whole) && !self.stage,
                "denoises pictures alone, without a second model",
            ),
        ];
        match asked.into_iter().find(|(_, wrong, _)| *wrong) {
            Some((param, _, message)) => Err(Error::Request { param, message: format!("this model {message}") }),
            None => Ok(()),
        }
    }
}

/// Refuses what only CLIP's prompts can have.
///
/// # Errors
/// Names the field.
pub(super) fn check_prompt(prompt: &Prompt) -> Result<()> {
    let asked =
        [("clip_skip", prompt.clip_skip > 0), ("prompt_weighting", prompt.weighting), ("long_prompt", prompt.long)];
    match asked.into_iter().find(|(_, wrong)| *wrong) {
        Some((param, _)) => {
            let message = "it is for models that CLIP's states condition; this one has no use for it".to_owned();
            Err(Error::Request { param, message })
        }
        None => Ok(()),
    }
}
