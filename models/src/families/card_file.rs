//! `easel.json`: what the people who made a model want said of it.

use serde::Deserialize;

use crate::weights::Repository;
use crate::{Error, Fit, ModelCard, Result, Size, Sizes};

/// The file's name, beside `model_index.json`.
const CARD_FILE: &str = "easel.json";

/// What of a model's card its folder overrides; anything absent stays as the family found it.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct CardFile {
    description: Option<String>,
    subjects: Option<Vec<String>>,
    native: Option<Size>,
    sizes: Option<Sizes>,
    fit: Option<Fit>,
    steps: Option<usize>,
    guidance: Option<f64>,
    sampler: Option<String>,
}

/// Overrides `card` by the model's `easel.json`, if it has one.
///
/// # Errors
/// Names the file and the key where a value cannot be: an unknown key, a sampler that is none of the card's, a size that
/// the family cannot make.
pub(super) fn apply(repository: &Repository, card: &mut ModelCard) -> Result<()> {
    let file: CardFile = repository.try_json(CARD_FILE)?.unwrap_or_default();
    let possible = card.sizes.clone();
    let fault = |message: String| Err(Error::file(CARD_FILE, message));
    let CardFile { description, subjects, native, sizes, fit, steps, guidance, sampler } = file;
    if let Some(sizes) = sizes {
        let impossible = match &sizes {
            Sizes::List(list) if list.is_empty() => return fault("sizes.list is empty".to_owned()),
            Sizes::List(list) => list.iter().copied().find(|&size| !possible.contains(size)),
            Sizes::Any { multiple: 0, .. } => return fault("sizes.any.multiple is 0".to_owned()),
            Sizes::Any { multiple, min, max } => {
                let (low, high) = (min.next_multiple_of(*multiple), max - max % multiple);
                if low > high {
                    return fault(format!("sizes.any has no multiple of {multiple} from {min} to {max}"));
                }
                let sides = [low, high, low + (high - low).min(*multiple)];
                sides.map(|side| Size { width: side, height: side }).into_iter().find(|&size| !possible.contains(size))
            }
        };
        if let Some(size) = impossible {
            return fault(format!("sizes: {size} cannot be made; the nearest that can is {}", possible.nearest(size)));
        }
        card.sizes = sizes;
    }
    card.native = native.unwrap_or(card.native);
    if !card.sizes.contains(card.native) {
        return fault(format!("native is {}, which is none of the sizes", card.native));
    }
    if let Some(sampler) = sampler {
        if !card.samplers.contains(&sampler) {
            return fault(format!("sampler is {sampler:?}; known: {}", card.samplers.join(", ")));
        }
        card.sampler = sampler;
    }
    card.steps = steps.unwrap_or(card.steps);
    if card.steps == 0 {
        return fault("steps is 0; at least 1 is needed".to_owned());
    }
    card.guidance = guidance.unwrap_or(card.guidance);
    if !card.guidance.is_finite() || card.guidance < 0.0 {
        return fault(format!("guidance is {}; 0 or more is expected", card.guidance));
    }
    card.fit = fit.unwrap_or(card.fit);
    card.description = description.unwrap_or_else(|| std::mem::take(&mut card.description));
    card.subjects = subjects.unwrap_or_else(|| std::mem::take(&mut card.subjects));
    Ok(())
}
