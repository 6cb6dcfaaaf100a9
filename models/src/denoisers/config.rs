//! Reading a network's `config.json`, with errors that name the file and the key.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::{Error, Result};

/// A number for every level of a network, or one for each.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum PerLevel<T> {
    /// One value a level, from the widest image to the narrowest.
    Each(Vec<T>),
    /// The same value on every level.
    Same(T),
}

impl<T: Clone> PerLevel<T> {
    /// The value of level `level`; `None` when the list is too short.
    pub fn at(&self, level: usize) -> Option<T> {
        match self {
            Self::Each(values) => values.get(level).cloned(),
            Self::Same(value) => Some(value.clone()),
        }
    }

    /// Whether this has a value for each of `levels` levels and no more.
    pub fn fits(&self, levels: usize) -> bool {
        match self {
            Self::Each(values) => values.len() == levels,
            Self::Same(_) => true,
        }
    }
}

/// `sample_size`: the native size of what a network takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum SampleSize {
    /// One number for both sides.
    Square(usize),
    /// Height and width.
    Sides([usize; 2]),
}

impl SampleSize {
    /// (height, width).
    pub fn sides(self) -> (usize, usize) {
        match self {
            Self::Square(side) => (side, side),
            Self::Sides([height, width]) => (height, width),
        }
    }
}

/// A key whose every value but a few asks for something that easel does not run.
pub(crate) type Neutral = (&'static str, &'static [&'static str]);

/// Parses `json`, refusing values of the `neutral` keys that are not among those listed, as JSON text.
///
/// Keys that nothing reads are ignored, as diffusers does.
pub(crate) fn parse<T: DeserializeOwned>(file: &str, json: &str, neutral: &[Neutral]) -> Result<T> {
    let value: Value = serde_json::from_str(json).map_err(|error| Error::file(file, error))?;
    for (key, allowed) in neutral {
        let Some(found) = value.get(key) else { continue };
        let is_allowed = |found: &Value| allowed.contains(&found.to_string().as_str());
        // A list has one value a level.
        if !found.as_array().map_or_else(|| is_allowed(found), |values| values.iter().all(is_allowed)) {
            let known = allowed.join(" or ");
            return Err(Error::file(file, format_args!("{key} is {found}; easel runs models where it is {known}")));
        }
    }
    serde_path_to_error::deserialize(value)
        .map_err(|error| Error::file(file, format_args!("{}: {}", error.path(), error.inner())))
}

/// Reads a key whose `null` means the same as its type's default.
pub(crate) fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    value: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

/// Fails with an error about `key` unless `right`.
pub(crate) fn check(file: &str, key: &str, right: bool, message: impl std::fmt::Display) -> Result<()> {
    if right { Ok(()) } else { Err(Error::file(file, format_args!("{key}: {message}"))) }
}
