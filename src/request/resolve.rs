//! From what was asked to what is understood: validation against the model's card and the limits.

use std::collections::BTreeMap;
use std::sync::Arc;

use easel_models::samplers::{self, Plan, PlanContext, SamplerInfo, Schedule};
use easel_models::{Fit, ModelCard, Size};

use super::fields::{self, Kind};
use super::task::{self, Task};
use super::values::quoted;
use super::{
    GenerationRequest, LongPrompt, Priority, RequestError, ResolvedRequest, SamplingOptions, SizeAsked, names,
};
use crate::config::{Limits, ModelsConfig};

/// Pixels a side that a token of most flow models stands for.
const TOKEN_PIXELS: usize = 16;

/// Checks requests and fills in their defaults. Clones share one table.
#[derive(Debug, Clone)]
pub struct Resolver {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    models: Vec<(String, ModelCard)>,
    default: usize,
    aliases: BTreeMap<String, usize>,
    any_name: bool,
    limits: Limits,
}

/// The configuration names a model that is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct ResolverError {
    /// The key of the configuration.
    pub key: String,
    /// What is wrong.
    pub message: String,
}

impl Resolver {
    /// Puts the served models' cards and the operator's names and limits together.
    ///
    /// # Errors
    /// When there is no model, or `models.default` or one of `models.aliases` names a model that is not served.
    pub fn new(
        models: Vec<(String, ModelCard)>,
        limits: Limits,
        configured: &ModelsConfig,
    ) -> Result<Self, ResolverError> {
        let place = |key: String, name: &str| {
            let found = models.iter().position(|(served, _)| served == name);
            found.ok_or_else(|| ResolverError {
                key,
                message: format!("no model {name:?} is served; served are {}", listing(&models)),
            })
        };
        if models.is_empty() {
            return Err(ResolverError { key: "models.sources".into(), message: "there is no model".into() });
        }
        let default = match &configured.default {
            Some(name) => place("models.default".into(), name)?,
            None => 0,
        };
        let aliases = configured
            .aliases
            .iter()
            .map(|(alias, name)| Ok((alias.clone(), place(format!("models.aliases.{alias}"), name)?)))
            .collect::<Result<_, ResolverError>>()?;
        Ok(Self { inner: Arc::new(Inner { models, default, aliases, any_name: configured.any_name, limits }) })
    }

    /// The limits that requests are held to.
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// The served models in registry order.
    pub fn models(&self) -> &[(String, ModelCard)] {
        &self.inner.models
    }

    /// The name of the model of requests that name none.
    pub fn default_model(&self) -> &str {
        &self.inner.models[self.inner.default].0
    }

    /// The operator's further names of a model.
    pub fn aliases<'a>(&'a self, model: &'a str) -> impl Iterator<Item = &'a str> {
        let place = self.inner.models.iter().position(|(name, _)| name == model);
        self.inner.aliases.iter().filter(move |(_, at)| Some(**at) == place).map(|(alias, _)| alias.as_str())
    }

    /// The model that a request means by `name`: a served name or an alias, as written or as the `name` of
    /// `owner/name`; or a well-known vendor name, which is the default model's.
    ///
    /// # Errors
    /// [`RequestError::UnknownModel`].
    pub fn model(&self, name: Option<&str>) -> Result<(&str, &ModelCard), RequestError> {
        let inner = &*self.inner;
        let at = match name {
            None => Some(inner.default),
            Some(name) => inner
                .named(name)
                .or_else(|| inner.named(names::second(name)?))
                .or_else(|| (inner.any_name && names::well_known(name)).then_some(inner.default)),
        };
        let Some((name, card)) = at.and_then(|at| inner.models.get(at)) else {
            return Err(RequestError::UnknownModel {
                asked: quoted(name.unwrap_or_default()),
                known: listing(&inner.models),
            });
        };
        Ok((name, card))
    }

    /// Checks a request and fills in its defaults. The second part is what the caller should know.
    ///
    /// # Errors
    /// When the request can never succeed.
    pub fn resolve(&self, request: GenerationRequest) -> Result<(ResolvedRequest, Vec<String>), RequestError> {
        let spelling = request.spelling.clone();
        self.check(request).map_err(|error| error.respelled(&spelling))
    }

    fn check(&self, mut asked: GenerationRequest) -> Result<(ResolvedRequest, Vec<String>), RequestError> {
        let limits = &self.inner.limits;
        let mut warnings = std::mem::take(&mut asked.warnings);
        let (model, card) = self.model(asked.model.as_deref())?;
        let task = self.task(&asked, model, card)?;
        task::fit_to_look_at(&asked, task, card)?;
        if task == Task::Draw && asked.strength.is_some() {
            warnings.push("`strength` has no effect without `image`".into());
        }
        let prompt = asked.prompt.take().ok_or_else(|| RequestError::Missing { param: fields::PROMPT.name.into() })?;
        bounded_text(fields::PROMPT.name, &prompt, limits.max_prompt_chars)?;

        let asked_guidance = number(&fields::GUIDANCE, asked.guidance)?;
        if asked_guidance.is_some() && card.abilities.fixed_guidance {
            warnings.push(format!("`guidance` has no effect: {model} was distilled to need none"));
        }
        let guidance = asked_guidance.unwrap_or(card.guidance);
        let negative_prompt = asked.negative_prompt.take();
        if let Some(negative) = negative_prompt.as_deref().filter(|text| !text.is_empty()) {
            bounded_text(fields::NEGATIVE_PROMPT.name, negative, limits.max_prompt_chars)?;
            if !card.abilities.negative_prompt {
                return Err(unsupported(fields::NEGATIVE_PROMPT.name, model, "has no negative prompt"));
            }
            let from = if card.abilities.guided_from_zero { 0.0 } else { 1.0 };
            if guidance <= from && !card.abilities.true_guidance {
                warnings.push(format!("`negative_prompt` has no effect at guidance {guidance}; it has above {from}"));
            }
        }
        let true_guidance = number(&fields::TRUE_GUIDANCE, asked.true_guidance)?;
        if let Some(scale) = true_guidance {
            if !card.abilities.true_guidance {
                let why =
                    format!("{model} is guided by `guidance`; {}", self.able(&|card| card.abilities.true_guidance));
                return Err(RequestError::Unsupported { param: fields::TRUE_GUIDANCE.name.into(), why });
            }
            if scale > 1.0 && negative_prompt.is_none() {
                warnings.push("`true_guidance` has no effect without `negative_prompt`".into());
            }
        }
        let guided = true_guidance.is_some_and(|scale| scale > 1.0);
        if card.abilities.true_guidance && !guided && negative_prompt.as_deref().is_some_and(|text| !text.is_empty()) {
            warnings.push("`negative_prompt` has no effect without `true_guidance` above 1".into());
        }
        if asked.sampling.guidance_rescale.is_some_and(|share| share > 0.0) && !card.abilities.guidance_rescale {
            return Err(unsupported(fields::GUIDANCE_RESCALE.name, model, "does not rescale its guidance"));
        }
        let (prompt_weighting, long_prompt) =
            (asked.prompt_weighting.unwrap_or(false), asked.long_prompt.unwrap_or_default());
        for (field, asked) in
            [(&fields::PROMPT_WEIGHTING, prompt_weighting), (&fields::LONG_PROMPT, long_prompt == LongPrompt::Chunk)]
        {
            if asked && !card.abilities.prompt_weighting {
                return Err(unsupported(field.name, model, "reads its prompt as it stands"));
            }
        }
        if asked.clip_skip.is_some_and(|skip| skip > 0) && !card.abilities.clip_skip {
            return Err(unsupported(fields::CLIP_SKIP.name, model, "has no CLIP layers to skip"));
        }
        let clip_skip = whole(&fields::CLIP_SKIP, asked.clip_skip, card.clip_layers as u64)?.unwrap_or(0);

        let image = asked.inputs.images.first().map(|image| Size { width: image.width, height: image.height });
        let (delivered, rendered) = match image {
            Some(image) if asked.size == SizeAsked::Native => {
                let (delivered, rendered) = task::size_of(image, task, card, limits.max_pixels);
                warn_of_resampling(model, delivered, rendered, &mut warnings);
                (delivered, rendered)
            }
            _ => self.size(asked.size, model, card, &mut warnings)?,
        };
        let refiner = self.refiner(&asked, (model, card), rendered, &mut warnings)?;
        let n = whole(&fields::N, asked.n, u64::from(limits.max_n))?.unwrap_or(1);
        let sampling_options = asked.sampling;
        let steps = steps(asked.steps, &sampling_options, card.scheduler.is_flow(), limits)?;
        let steps = steps.unwrap_or_else(|| own_steps(card, task).min(limits.max_steps));
        let (sampler, schedule) = sampling(asked.sampler.as_deref(), asked.schedule.as_deref(), model, card)?;
        let output_compression = whole(&fields::OUTPUT_COMPRESSION, asked.output_compression, 100)?;
        let partial_images = whole(&fields::PARTIAL_IMAGES, asked.partial_images, 3)?;

        let resolved = ResolvedRequest {
            model: model.to_owned(),
            prompt,
            negative_prompt,
            n: narrow(n),
            width: delivered.width,
            height: delivered.height,
            rendered,
            steps,
            guidance,
            seed: asked.seed.unwrap_or_else(random_seed),
            sampler,
            schedule,
            sampling: sampling_options,
            clip_skip: usize::try_from(clip_skip).unwrap_or(usize::MAX),
            true_guidance,
            prompt_weighting,
            long_prompt,
            refiner,
            images: asked.inputs.images,
            mask: asked.inputs.mask,
            strength: match task {
                Task::Start { strength } => Some(strength),
                Task::Draw | Task::Edit => None,
            },
            output_format: asked.output_format.unwrap_or_default(),
            output_compression: narrow(output_compression.unwrap_or(100)),
            partial_images: narrow(partial_images.unwrap_or(0)),
            priority: asked.priority.unwrap_or(Priority::Normal),
            user: asked.user,
        };
        number(&fields::GUIDANCE_RESCALE, resolved.sampling.guidance_rescale)?;
        // What the numbers may be is the sampler's to say; asked here, so that a request that cannot be is no job. How many
        // tokens a picture has is the family's to say, and moves a flow's sigmas, but it forbids none.
        let Size { width, height } = resolved.rendered;
        let tokens = (width as usize / TOKEN_PIXELS * (height as usize / TOKEN_PIXELS)).max(1);
        let context = PlanContext { image_tokens: Some(tokens), ..PlanContext::default() };
        Plan::new(&resolved.sampling_spec(), &card.scheduler, context)
            .and_then(|mut plan| {
                let rule = card.abilities.strengths.rule(resolved.mask.is_some());
                resolved.strength.map_or(Ok(()), |strength| plan.skip_to_strength(strength, rule))
            })
            .map_err(|error| RequestError::Sampling { param: error.param.into(), message: error.message })?;
        Ok((resolved, warnings))
    }

    /// The delivered and the rendered size.
    fn size(
        &self,
        asked: SizeAsked,
        model: &str,
        card: &ModelCard,
        warnings: &mut Vec<String>,
    ) -> Result<(Size, Size), RequestError> {
        let native = card.native;
        let (delivered, param) = match asked {
            SizeAsked::Native => (native, fields::SIZE.name),
            SizeAsked::Exact(size) => (size, fields::SIZE.name),
            SizeAsked::Width(width) => (Size { width, ..native }, fields::WIDTH.name),
            SizeAsked::Height(height) => (Size { height, ..native }, fields::HEIGHT.name),
            SizeAsked::Aspect(across, down) => (of_aspect(across, down, model, card)?, fields::ASPECT_RATIO.name),
        };
        let pixels = u64::from(delivered.width) * u64::from(delivered.height);
        if pixels == 0 || pixels > self.inner.limits.max_pixels {
            return Err(RequestError::InvalidValue {
                param: param.into(),
                wanted: format!("a size of 1 to {} pixels in all", self.inner.limits.max_pixels),
                asked: delivered.to_string(),
            });
        }
        if card.sizes.contains(delivered) {
            return Ok((delivered, delivered));
        }
        let nearest = card.sizes.nearest(delivered);
        if card.fit == Fit::Exact {
            return Err(RequestError::UnsupportedSize {
                param: param.into(),
                asked: delivered,
                model: model.into(),
                nearest,
            });
        }
        warn_of_resampling(model, delivered, nearest, warnings);
        Ok((delivered, nearest))
    }
}

impl Inner {
    fn named(&self, name: &str) -> Option<usize> {
        self.models.iter().position(|(served, _)| served == name).or_else(|| self.aliases.get(name).copied())
    }
}

/// The size of this ratio with the model's own pixel count: one that the model makes, unless it resizes anyway.
fn of_aspect(across: f64, down: f64, model: &str, card: &ModelCard) -> Result<Size, RequestError> {
    let pixels = f64::from(card.native.width) * f64::from(card.native.height);
    let ratio = across / down;
    let (width, height) = ((pixels * ratio).sqrt().round(), (pixels / ratio).sqrt().round());
    // A ratio outside of this is a line, and would overflow before any limit sees it.
    if !(1.0 / 64.0..=64.0).contains(&ratio) {
        return Err(RequestError::InvalidValue {
            param: fields::ASPECT_RATIO.name.into(),
            wanted: "a ratio from 1:64 to 64:1".into(),
            asked: format!("{across}:{down}"),
        });
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rounded side of bounded size")]
    let ideal = Size { width: (width as u32).max(1), height: (height as u32).max(1) };
    let nearest = card.sizes.nearest(ideal);
    let got = f64::from(nearest.width) / f64::from(nearest.height.max(1));
    // Rounding to the model's multiple may move the ratio a little; a ratio that it cannot make moves it a lot.
    let close = (got / ratio).ln().abs() < 0.15;
    match card.fit {
        _ if close => Ok(nearest),
        Fit::Resize => Ok(ideal),
        Fit::Exact => Err(RequestError::UnsupportedSize {
            param: fields::ASPECT_RATIO.name.into(),
            asked: ideal,
            model: model.into(),
            nearest,
        }),
    }
}

/// The sampler's canonical name and the schedule's: every spelling of the catalogue is understood, and a combination
/// that cannot be stepped over is refused.
fn sampling(
    sampler: Option<&str>,
    schedule: Option<&str>,
    model: &str,
    card: &ModelCard,
) -> Result<(String, String), RequestError> {
    let refuse = |field: &fields::Field, wanted: String, asked: &str| RequestError::InvalidValue {
        param: field.name.into(),
        wanted,
        asked: format!("{:?}", quoted(asked)),
    };
    let name = sampler.unwrap_or(&card.sampler);
    let unknown = || {
        let wanted = format!("one of {model}'s samplers: {}", card.samplers.join(", "));
        refuse(&fields::SAMPLER, wanted, name)
    };
    // A1111's older names end in a schedule: "DPM++ 2M Karras".
    let (info, styled) = samplers::find_styled(name).ok_or_else(unknown)?;
    // On a flow model "euler" can only mean the flow's own.
    let flow = || samplers::find(&format!("flow_{}", info.name));
    let usable = |info: &SamplerInfo| card.samplers.iter().any(|name| name == info.name);
    let info = if usable(info) { info } else { flow().filter(|info| usable(info)).ok_or_else(unknown)? };

    let schedules = info.schedules_on(card.scheduler.is_flow());
    let possible = || {
        let names: Vec<&str> = schedules.iter().map(|schedule| schedule.name()).collect();
        format!("a schedule that goes with {}: {}", info.name, names.join(", "))
    };
    let schedule = match schedule {
        None => styled.unwrap_or_default(),
        Some(name) => Schedule::find(name).ok_or_else(|| refuse(&fields::SCHEDULE, possible(), name))?,
    };
    if !schedules.contains(&schedule) {
        return Err(refuse(&fields::SCHEDULE, possible(), schedule.name()));
    }
    Ok((info.name.to_owned(), schedule.name().to_owned()))
}

/// The steps of a request that names none: the model's own, or as many as it takes for the strength to leave one, of a model
/// that draws in so few.
fn own_steps(card: &ModelCard, task: Task) -> usize {
    match task {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a large number saturates")]
        Task::Start { strength } if card.steps as f64 * strength < 1.0 => (1.0 / strength).ceil() as usize,
        _ => card.steps,
    }
}

/// The number of steps, where it is asked for: explicit timesteps and sigmas say it, too.
fn steps(
    asked: Option<u64>,
    options: &SamplingOptions,
    flow: bool,
    limits: &Limits,
) -> Result<Option<usize>, RequestError> {
    let asked = whole(&fields::STEPS, asked, limits.max_steps as u64)?;
    let asked = asked.map(|steps| usize::try_from(steps).unwrap_or(usize::MAX));
    let (field, listed) = match (&options.timesteps, &options.sigmas) {
        (None, None) => return Ok(asked),
        (Some(_), Some(_)) => {
            return Err(RequestError::Contradiction {
                param: fields::SIGMAS.name.into(),
                other: fields::TIMESTEPS.name.into(),
                hint: "each is a whole schedule; send one".into(),
            });
        }
        (Some(timesteps), None) => (&fields::TIMESTEPS, timesteps.len()),
        // A diffusion model's sigmas end with the last step's end, a flow model's do not.
        (None, Some(sigmas)) => (&fields::SIGMAS, sigmas.len() - usize::from(!flow).min(sigmas.len())),
    };
    if !(1..=limits.max_steps).contains(&listed) {
        return Err(RequestError::InvalidValue {
            param: field.name.into(),
            wanted: format!("a list for 1 to {} steps", limits.max_steps),
            asked: format!("one for {listed}"),
        });
    }
    match asked {
        Some(steps) if steps != listed => Err(RequestError::Contradiction {
            param: fields::STEPS.name.into(),
            other: field.name.into(),
            hint: format!("the list is for {listed} steps; leave `steps` out"),
        }),
        _ => Ok(Some(listed)),
    }
}

fn bounded_text(param: &'static str, text: &str, most: usize) -> Result<(), RequestError> {
    let chars = text.chars().count();
    if chars > most {
        return Err(RequestError::InvalidValue {
            param: param.into(),
            wanted: format!("at most {most} characters"),
            asked: format!("{chars} characters"),
        });
    }
    Ok(())
}

/// A whole number within its field's range; `most` is the server's own bound.
fn whole(field: &fields::Field, asked: Option<u64>, most: u64) -> Result<Option<u64>, RequestError> {
    let Kind::Integer { min, max } = field.kind else { return Ok(asked) };
    let most = max.unwrap_or(most).min(most);
    match asked {
        Some(number) if !(min..=most).contains(&number) => Err(RequestError::InvalidValue {
            param: field.name.into(),
            wanted: format!("a whole number from {min} to {most}"),
            asked: number.to_string(),
        }),
        fine => Ok(fine),
    }
}

pub(super) fn number(field: &fields::Field, asked: Option<f64>) -> Result<Option<f64>, RequestError> {
    let Kind::Number { min, max } = field.kind else { return Ok(asked) };
    match asked {
        Some(number) if !(min..=max).contains(&number) => Err(RequestError::InvalidValue {
            param: field.name.into(),
            wanted: format!("a number from {min} to {max}"),
            asked: number.to_string(),
        }),
        fine => Ok(fine),
    }
}

fn warn_of_resampling(model: &str, delivered: Size, rendered: Size, warnings: &mut Vec<String>) {
    if rendered != delivered {
        warnings
            .push(format!("{model} does not make {delivered}; rendered at {rendered} and resampled to {delivered}"));
    }
}

fn unsupported(param: &'static str, model: &str, lacks: &str) -> RequestError {
    RequestError::Unsupported { param: param.into(), why: format!("{model} {lacks}; leave it out") }
}

/// A number that was checked to fit.
fn narrow<T: TryFrom<u64> + Default>(number: u64) -> T {
    T::try_from(number).unwrap_or_default()
}

/// A seed that every JSON client reads exactly, with room for the seeds of the request's other pictures.
fn random_seed() -> u64 {
    rand::random::<u64>() >> 12
}

fn listing(models: &[(String, ModelCard)]) -> String {
    models.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
