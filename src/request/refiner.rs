//! A second model that draws the end of the schedule, as SDXL's refiner does after its base.

use easel_models::{ModelCard, Size};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::fields;
use super::resolve::{Resolver, number};
use super::values::quoted;
use super::{GenerationRequest, RequestError};

/// diffusers' example of `denoising_end` and `denoising_start`, which is what the refiner was trained for.
const START: f64 = 0.8;

/// The second model of a request as understood.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Refiner {
    /// Its name in `/v1/models`.
    pub model: String,
    /// diffusers' `denoising_start`: from which share of the schedule on it draws.
    pub start: f64,
    /// The sampler that it is drawn with.
    pub sampler: String,
}

impl Resolver {
    /// The second model that a request asks for.
    pub(super) fn refiner(
        &self,
        asked: &GenerationRequest,
        (model, card): (&str, &ModelCard),
        rendered: Size,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Refiner>, RequestError> {
        let start = number(&fields::REFINER_START, asked.refiner_start)?;
        let Some(name) = asked.refiner.as_deref() else {
            if start.is_some() {
                warnings.push("`refiner_start` has no effect without `refiner`".into());
            }
            return Ok(None);
        };
        let invalid = |field: &fields::Field, wanted: String, asked: String| {
            Err(RequestError::InvalidValue { param: field.name.into(), wanted, asked })
        };
        let start = start.unwrap_or(START);
        if start <= 0.0 || start >= 1.0 {
            return invalid(&fields::REFINER_START, "a number between 0 and 1".into(), start.to_string());
        }
        let sdxl = |card: &ModelCard| card.family.starts_with("sdxl") && !card.abilities.needs_mask;
        let wanted = || format!("another model of SDXL's; {}", self.able(&sdxl));
        let Ok((second, second_card)) = self.model(Some(name)) else {
            return invalid(&fields::REFINER, wanted(), format!("{:?}", quoted(name)));
        };
        // The second goes on with the first one's latents, so both must have learnt the same ones.
        if !sdxl(card) {
            let why = format!("nothing goes on from where {model} ends; {}", self.able(&sdxl));
            return Err(RequestError::Unsupported { param: fields::REFINER.name.into(), why });
        }
        if second == model || !sdxl(second_card) {
            return invalid(&fields::REFINER, wanted(), format!("{:?}", quoted(name)));
        }
        if !second_card.sizes.contains(rendered) {
            let wanted =
                format!("a size that {second} makes, too; the nearest is {}", second_card.sizes.nearest(rendered));
            return invalid(&fields::SIZE, wanted, rendered.to_string());
        }
        let sampler = asked.sampler.as_deref().and_then(|name| usable(name, second_card));
        let sampler = sampler.unwrap_or(&second_card.sampler).to_owned();
        Ok(Some(Refiner { model: second.to_owned(), start, sampler }))
    }
}

/// The asked sampler's name, where the model can be drawn with it.
fn usable(name: &str, card: &ModelCard) -> Option<&'static str> {
    let (info, _) = easel_models::samplers::find_styled(name)?;
    card.samplers.iter().any(|known| known == info.name).then_some(info.name)
}

#[cfg(test)]
mod tests {
    use easel_models::{Abilities, Fit, Sizes};

    use super::*;
    use crate::config::{Limits, ModelsConfig};
    use crate::request::ResolvedRequest;

    fn card(family: &str) -> ModelCard {
        ModelCard {
            family: family.into(),
            description: String::new(),
            subjects: Vec::new(),
            native: Size { width: 1024, height: 1024 },
            sizes: Sizes::Any { multiple: 8, min: 64, max: if family == "sdxl" { 2048 } else { 1024 } },
            fit: Fit::Exact,
            steps: 20,
            guidance: 5.0,
            sampler: "euler".into(),
            samplers: vec!["euler".into(), "ddim".into()],
            abilities: Abilities { image_to_image: true, ..Abilities::default() },
            context_tokens: 77,
            clip_layers: 12,
            parameters: 1,
            dtype: "f32".into(),
            scheduler: easel_models::samplers::SchedulerConfig::default(),
        }
    }

    fn ask(change: impl FnOnce(&mut GenerationRequest)) -> Result<ResolvedRequest, RequestError> {
        let models = ["sdxl", "sdxl_refiner", "sd1"].map(|family| (family.to_owned(), card(family)));
        let resolver = Resolver::new(models.into(), Limits::default(), &ModelsConfig::default()).unwrap();
        let mut request = GenerationRequest {
            prompt: Some("p".into()),
            refiner: Some("sdxl_refiner".into()),
            ..GenerationRequest::default()
        };
        change(&mut request);
        resolver.resolve(request).map(|(resolved, _)| resolved)
    }

    #[test]
    fn the_second_model_begins_where_the_first_ends() {
        let resolved = ask(|_| {}).unwrap();
        let refiner = Refiner { model: "sdxl_refiner".into(), start: 0.8, sampler: "euler".into() };
        assert_eq!(resolved.refiner, Some(refiner));
        assert!(matches!(resolved.specs()[0].stage, easel_models::Stage::First { until } if until == 0.8));
        let resolved = ask(|r| (r.sampler, r.refiner_start) = (Some("ddim".into()), Some(0.5))).unwrap();
        assert_eq!(resolved.refiner.as_ref().map(|r| (r.start, r.sampler.as_str())), Some((0.5, "ddim")));
        assert_eq!(resolved.refiner_specs().len(), 1);
    }

    #[test]
    fn a_model_that_cannot_go_on_is_refused_by_name() {
        type Change = fn(&mut GenerationRequest);
        let cases: [(Change, &str); 7] = [
            (|r| r.refiner = Some("nobody".into()), "refiner"),
            (|r| r.refiner = Some("sd1".into()), "refiner"),
            (|r| r.refiner = Some("sdxl".into()), "refiner"),
            (|r| r.model = Some("sd1".into()), "refiner"),
            (|r| r.refiner_start = Some(1.0), "refiner_start"),
            (|r| r.refiner_start = Some(7.0), "refiner_start"),
            (|r| r.size = crate::request::SizeAsked::Exact(Size { width: 2048, height: 1024 }), "size"),
        ];
        for (change, param) in cases {
            assert_eq!(ask(change).unwrap_err().param(), param);
        }
    }
}
