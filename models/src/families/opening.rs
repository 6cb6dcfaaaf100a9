//! What opening a model takes in every family: its parts, where they go, and what its card says of them.

use std::sync::Arc;

use super::parts::{Lazy, Turns};
use super::schedulers::Schedulers;
use super::{Placement, card_file};
use crate::samplers::PlanContext;
use crate::weights::{Repository, Tensors};
use crate::{Error, ModelCard, Part, Result};

/// A model that is being opened: its files, and where its networks will be.
#[derive(Clone, Copy)]
pub(super) struct Opening<'a> {
    pub(super) repository: &'a Repository,
    pub(super) placement: &'a Placement,
}

impl Opening<'_> {
    /// The part in this folder, of which everything is loaded.
    ///
    /// # Errors
    /// When weights are missing or damaged.
    pub(super) fn part(&self, folder: &str) -> Result<Part> {
        self.repository.part(folder, |shape| self.placement.weight_bytes(shape))
    }

    /// The part in this folder, of which a network loads those tensors whose keys `loads` names.
    ///
    /// # Errors
    /// When weights are missing or damaged.
    pub(super) fn part_of(&self, folder: &str, loads: impl Fn(&str) -> bool) -> Result<Part> {
        self.repository.part_of(folder, |shape| self.placement.weight_bytes(shape), loads)
    }

    /// The network that `build` makes of a part's weights, once it is needed.
    pub(super) fn lazy<T: Send + Sync + 'static>(
        &self,
        part: Part,
        turns: &Arc<Turns>,
        build: impl Fn(&Tensors) -> Result<T> + Send + Sync + 'static,
    ) -> Lazy<T> {
        let (repository, placement, folder) = (self.repository.clone(), self.placement.clone(), part.name.clone());
        Lazy::new(part, turns, move || build(&repository.tensors(&folder, placement.dtype, &placement.device)?))
    }

    /// Completes a card by what the parts and the model's own card file say; `context` is that of a picture as the card
    /// then has it.
    ///
    /// # Errors
    /// Names the file and the key where the card file or the scheduler's cannot be.
    pub(super) fn complete(
        &self,
        mut card: ModelCard,
        parts: &[&Part],
        schedulers: &Schedulers,
        context: impl FnOnce(&ModelCard) -> PlanContext,
    ) -> Result<ModelCard> {
        card.parameters = parts.iter().map(|part| part.parameters).sum();
        self.placement.dtype.as_str().clone_into(&mut card.dtype);
        card_file::apply(self.repository, &mut card)?;
        schedulers.check(&card.sampler, card.steps, context(&card))?;
        Ok(card)
    }
}

/// Refuses what is not `right` of a file.
///
/// # Errors
/// The message, with the file's name.
pub(super) fn check(right: bool, file: &str, message: impl std::fmt::Display) -> Result<()> {
    if right { Ok(()) } else { Err(Error::file(file, message)) }
}

/// Refuses a tokenizer, by its file and its largest id, that has ids without an embedding in the text encoder of this
/// configuration file.
///
/// # Errors
/// Names both files.
pub(super) fn check_vocabulary((file, largest): (&str, u32), encoder: &str, vocabulary: usize) -> Result<()> {
    let message = format_args!("has ids up to {largest}, but {encoder} has vocab_size {vocabulary}");
    check((largest as usize) < vocabulary, file, message)
}
