//! What a request's pictures are for, and the size that they ask for.

use easel_models::{Fit, ModelCard, Size, Sizes};

use super::fields;
use super::resolve::{Resolver, number};
use super::{GenerationRequest, RequestError};

/// What a model does with the pictures that a request brings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Task {
    /// There are none.
    Draw,
    /// It starts from one; how much of it is drawn anew.
    Start {
        /// diffusers' `strength`.
        strength: f64,
    },
    /// It looks at them.
    Edit,
}

/// What a request brings.
struct Brought {
    images: usize,
    references: usize,
    mask: bool,
}

impl Brought {
    fn by(asked: &GenerationRequest) -> Self {
        let found = &asked.inputs;
        Self {
            images: asked.images.len() + found.images.len(),
            references: asked.references.len(),
            mask: asked.mask.is_some() || found.mask.is_some(),
        }
    }
}

impl Resolver {
    /// Checks whether the model can do with a request's pictures what is asked, before any of them is fetched.
    ///
    /// # Errors
    /// Names the field that the model has no use for, and the models that have.
    pub fn admit(&self, request: &GenerationRequest) -> Result<(), RequestError> {
        let task = || {
            let (model, card) = self.model(request.model.as_deref())?;
            self.task(request, model, card).map(drop)
        };
        task().map_err(|error| error.respelled(&request.spelling))
    }

    /// What the model is to do with the pictures.
    pub(super) fn task(&self, asked: &GenerationRequest, model: &str, card: &ModelCard) -> Result<Task, RequestError> {
        let abilities = &card.abilities;
        let Brought { images, references, mask } = Brought::by(asked);
        let missing = |field: &fields::Field| Err(RequestError::Missing { param: field.name.into() });
        let refuse = |field: &fields::Field, lacks: &str, can: &dyn Fn(&ModelCard) -> bool| {
            let why = format!("{model} {lacks}; {}", self.able(can));
            Err(RequestError::Unsupported { param: field.name.into(), why })
        };
        let strength = number(&fields::STRENGTH, asked.strength)?;
        if images + references == 0 {
            if mask {
                let why = "it says which part of `image` is painted anew, and there is none".into();
                return Err(RequestError::Unsupported { param: fields::MASK.name.into(), why });
            }
            let needs = abilities.needs_image || abilities.needs_mask;
            return if needs { missing(&fields::IMAGE) } else { Ok(Task::Draw) };
        }
        if mask && !abilities.inpaint {
            return refuse(&fields::MASK, "does not paint into pictures", &|card| card.abilities.inpaint);
        }
        if !mask && abilities.needs_mask {
            return missing(&fields::MASK);
        }
        // A model that can do both looks at the picture, unless a strength says that it is to be started from.
        let edits = abilities.edit && !mask && (strength.is_none() || !abilities.image_to_image);
        if edits {
            if strength.is_some() {
                return refuse(&fields::STRENGTH, "looks at `image` instead of starting from it", &|card| {
                    card.abilities.image_to_image
                });
            }
            few_enough(model, card, images, references)?;
            return Ok(Task::Edit);
        }
        // The first picture is painted into, and the model looks at all of them.
        let looks = abilities.edit && mask;
        if looks {
            if images == 0 {
                return missing(&fields::IMAGE);
            }
            few_enough(model, card, images, references)?;
        } else if references > 0 {
            return refuse(&fields::REFERENCE_IMAGES, "does not look at pictures", &|card| card.abilities.edit);
        }
        if !mask && !abilities.image_to_image {
            return refuse(&fields::IMAGE, "does not start from a picture", &|card| {
                card.abilities.image_to_image || card.abilities.edit
            });
        }
        if images > 1 && !looks {
            return Err(too_many(&fields::IMAGE, model, images, 1));
        }
        let strengths = abilities.strengths;
        let default = if mask { strengths.inpaint } else { strengths.image_to_image };
        Ok(Task::Start { strength: strength.unwrap_or(default) })
    }

    /// Which of the served models can do what another cannot, for a message.
    pub(super) fn able(&self, can: &dyn Fn(&ModelCard) -> bool) -> String {
        let able: Vec<&str> =
            self.models().iter().filter(|(_, card)| can(card)).map(|(name, _)| name.as_str()).collect();
        if able.is_empty() {
            "no model that is served here can".into()
        } else {
            format!("of the served models {} can", able.join(", "))
        }
    }
}

/// Refuses pictures whose sides an editing model cannot look at.
pub(super) fn fit_to_look_at(asked: &GenerationRequest, task: Task, card: &ModelCard) -> Result<(), RequestError> {
    let sides = card.abilities.reference_sides;
    // The first is brought to the rendered size where it is started from.
    let started = match task {
        Task::Draw => return Ok(()),
        Task::Start { .. } => 1,
        Task::Edit => 0,
    };
    let looked_at = asked.inputs.images.iter().skip(started);
    for size in looked_at.map(|image| Size { width: image.width, height: image.height }) {
        if !sides.take(size) {
            let wanted = format!("a picture {sides}");
            return Err(RequestError::InvalidValue {
                param: fields::IMAGE.name.into(),
                wanted,
                asked: format!("one of {size}"),
            });
        }
    }
    Ok(())
}

/// Refuses more pictures than an editing model looks at.
fn few_enough(model: &str, card: &ModelCard, images: usize, references: usize) -> Result<(), RequestError> {
    let most = card.abilities.references.max(1);
    let field = if images > 0 { &fields::IMAGE } else { &fields::REFERENCE_IMAGES };
    if images + references > most { Err(too_many(field, model, images + references, most)) } else { Ok(()) }
}

fn too_many(field: &fields::Field, model: &str, asked: usize, most: usize) -> RequestError {
    let wanted =
        if most == 1 { format!("one picture for {model}") } else { format!("at most {most} pictures for {model}") };
    RequestError::InvalidValue { param: field.name.into(), wanted, asked: format!("{asked} of them") }
}

/// The size of the picture that is made from another one when none is asked for: the other one's, brought to what the
/// model makes as diffusers' pipelines do, with sides cut down to multiples. The delivered and the rendered size.
pub(super) fn size_of(image: Size, task: Task, card: &ModelCard, max_pixels: u64) -> (Size, Size) {
    let native = u64::from(card.native.width) * u64::from(card.native.height);
    // FLUX.2's pipeline brings what it looks at to the native number of pixels where it has more.
    let most = if task == Task::Edit { native.min(max_pixels) } else { max_pixels };
    let image = within(image, most);
    if card.fit == Fit::Resize {
        let rendered = if card.sizes.contains(image) { image } else { card.sizes.nearest(image) };
        return (image, rendered);
    }
    let size = match &card.sizes {
        Sizes::Any { multiple, min, max } => {
            let (low, high) = (min.next_multiple_of(*multiple), max - max % multiple);
            let longest = image.width.max(image.height).max(1);
            let shrunk = if longest > high { scaled(image, f64::from(high) / f64::from(longest)) } else { image };
            let side = |side: u32| (side - side % multiple).clamp(low, high.max(low));
            Size { width: side(shrunk.width), height: side(shrunk.height) }
        }
        sizes @ Sizes::List(_) => sizes.nearest(image),
    };
    (size, size)
}

/// The size, or the one of its shape with as many pixels as may be.
fn within(size: Size, pixels: u64) -> Size {
    let has = u64::from(size.width) * u64::from(size.height);
    if has <= pixels { size } else { scaled(size, (pixels as f64 / has as f64).sqrt()) }
}

fn scaled(size: Size, by: f64) -> Size {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a side that only shrinks")]
    let side = |side: u32| ((f64::from(side) * by) as u32).max(1);
    Size { width: side(size.width), height: side(size.height) }
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
