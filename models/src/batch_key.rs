//! Which rows may share a model call.

/// Everything that the rows of one model call must agree on.
///
/// Anything else (prompt, steps, sampler, seed, guidance) may differ from row to row.
/// [`BatchKey::mismatch`] takes both keys apart field by field, so a field added here does not
/// compile until it has its own reason to refuse a merge.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BatchKey {
    /// The loaded model, by the name it is served under.
    pub model: String,
    /// The latent's shape, (c, h, w).
    pub latent: [usize; 3],
    /// Tokens of conditioning a row.
    pub context: usize,
    /// Shapes of the reference pictures that a row carries besides its latents, (c, h, w) each, of editing models.
    pub references: Vec<[usize; 3]>,
}

/// Why two rows may not share a model call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mismatch {
    /// Different models.
    Model,
    /// Different latent shapes.
    LatentShape,
    /// Different context lengths.
    ContextLength,
    /// Different reference pictures.
    References,
}

impl Mismatch {
    /// Every reason, for metrics that start at zero.
    pub const ALL: [Self; 4] = [Self::Model, Self::LatentShape, Self::ContextLength, Self::References];

    /// The reason's name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::LatentShape => "latent_shape",
            Self::ContextLength => "context_length",
            Self::References => "references",
        }
    }
}

impl BatchKey {
    /// The first reason for which rows of these keys may not be merged; `None` when they may.
    pub fn mismatch(&self, other: &Self) -> Option<Mismatch> {
        let Self { model, latent, context, references } = self;
        if *model != other.model {
            Some(Mismatch::Model)
        } else if *latent != other.latent {
            Some(Mismatch::LatentShape)
        } else if *context != other.context {
            Some(Mismatch::ContextLength)
        } else if *references != other.references {
            Some(Mismatch::References)
        } else {
            None
        }
    }
}
