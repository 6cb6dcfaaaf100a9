//! What a ControlNet adds to the picture's tokens in FLUX's transformers.
//!
//! Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models", 2023; the places are those of
//! `FluxTransformer2DModel` of diffusers. Its `Flux2Transformer2DModel` (0.42) takes nothing of the kind, so FLUX.2 has
//! FLUX.1's places: behind every block, at the picture's tokens.

use candle_core::Tensor;

use crate::Result;

/// What a ControlNet adds to the picture's tokens, (b, n, width) each; n counts what is drawn and then what is looked at.
#[derive(Debug, Clone, Default)]
pub struct FluxResiduals {
    /// Added after the blocks with two streams; fewer than there are blocks are shared by neighbours.
    pub double: Vec<Tensor>,
    /// Added after the blocks with one.
    pub single: Vec<Tensor>,
    /// Whether those of the first kind go round instead of being shared by neighbours.
    pub repeat: bool,
}

impl FluxResiduals {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.double.is_empty() && self.single.is_empty()
    }

    /// The picture (b, n, width) behind block `at` of so many blocks with two streams.
    pub(super) fn after_double(&self, picture: Tensor, at: usize, blocks: usize) -> Result<Tensor> {
        let turn = if self.repeat { Turn::Round } else { Turn::Neighbours };
        add(picture, turn.of(&self.double, at, blocks))
    }

    /// Text and picture, (b, l + n, width), behind block `at` of so many with one stream; `length` is l.
    pub(super) fn after_single(&self, both: Tensor, length: usize, at: usize, blocks: usize) -> Result<Tensor> {
        let residual = Turn::Neighbours.of(&self.single, at, blocks);
        if residual.is_none() {
            return Ok(both);
        }
        let (text, picture) = (both.narrow(1, 0, length)?, both.narrow(1, length, both.dim(1)? - length)?);
        Ok(Tensor::cat(&[text, add(picture, residual)?], 1)?)
    }
}

fn add(picture: Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
    match residual {
        Some(residual) => Ok((&picture + residual.to_dtype(picture.dtype())?)?),
        None => Ok(picture),
    }
}

/// Which of fewer residuals than blocks a block gets.
enum Turn {
    Neighbours,
    Round,
}

impl Turn {
    fn of(self, residuals: &[Tensor], at: usize, blocks: usize) -> Option<&Tensor> {
        let count = residuals.len();
        match self {
            _ if count == 0 => None,
            Self::Neighbours => residuals.get(at / blocks.div_ceil(count)),
            Self::Round => residuals.get(at % count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denoisers::testing::{noise, numbers};

    #[test]
    fn every_block_gets_its_residual_in_diffusers_order() {
        let shares = |turn: fn() -> Turn, count: usize, blocks: usize| {
            let residuals: Vec<Tensor> = (0..count).map(|seed| noise(&[1], seed as u32 + 1)).collect();
            let found = |at| turn().of(&residuals, at, blocks).map(|found| numbers(found) == numbers(&residuals[0]));
            (0..blocks).map(found).collect::<Vec<_>>()
        };
        let (own, other) = (Some(true), Some(false));
        // 19 blocks and 5 residuals are in fours in diffusers, so 5 blocks and 2 residuals in threes.
        assert_eq!(shares(|| Turn::Neighbours, 2, 5), [own, own, own, other, other]);
        assert_eq!(shares(|| Turn::Round, 2, 5), [own, other, own, other, own]);
        assert_eq!(shares(|| Turn::Neighbours, 0, 2), [None, None]);
    }
}
