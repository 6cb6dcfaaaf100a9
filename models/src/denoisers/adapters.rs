//! Side paths that adapters (LoRA and its relatives) hang on a network's projections.
//!
//! Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021. The network's own weights
//! stay as they are: an adapter is an argument of a call, so the same loaded network serves requests
//! with different adapters and nothing has to be merged or undone.

use std::collections::HashMap;

use candle_core::Tensor;
use easel_kernels::Linear;

use crate::weights::Tensors;
use crate::{Error, Result};

/// `scale * up(down(x))`, added to what a projection gives.
#[derive(Clone)]
pub struct LowRank {
    /// The (rank, inputs) map.
    pub down: Linear,
    /// The (outputs, rank) map.
    pub up: Linear,
    /// The path's weight: the request's weight times alpha over rank.
    pub scale: f64,
}

/// The side paths of one model call, by the projection they hang on.
///
/// Made by [`AdapterPoints::adapters`]; the default has none. All rows of a call share them.
#[derive(Clone, Default)]
pub struct Adapters {
    paths: HashMap<usize, Vec<LowRank>>,
}

/// The projections of a network that can carry side paths, by their names in diffusers' layout.
#[derive(Default)]
pub struct AdapterPoints {
    points: HashMap<String, Point>,
}

struct Point {
    slot: usize,
    inputs: usize,
    outputs: usize,
}

impl AdapterPoints {
    /// Takes up the projection of these weights and tells its slot.
    pub(crate) fn register(&mut self, weights: &Tensors, inputs: usize, outputs: usize) -> usize {
        let slot = self.points.len();
        self.points.insert(weights.key(""), Point { slot, inputs, outputs });
        slot
    }

    /// The names of the projections, such as `mid_block.attentions.0.transformer_blocks.0.attn1.to_q`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.points.keys().map(String::as_str)
    }

    /// Binds side paths to the projections they are named after; several may share one and add up.
    ///
    /// # Errors
    /// When there is no such projection, or a path does not fit its sizes.
    pub fn adapters(&self, paths: impl IntoIterator<Item = (String, LowRank)>) -> Result<Adapters> {
        let mut adapters = Adapters::default();
        for (name, path) in paths {
            let Some(point) = self.points.get(&name) else {
                return Err(Error::Unsupported(format!("an adapter names {name}, which the network does not have")));
            };
            let (inputs, outputs) = (path.down.in_features(), path.up.out_features());
            if (inputs, outputs) != (point.inputs, point.outputs) || path.down.out_features() != path.up.in_features() {
                return Err(Error::Unsupported(format!(
                    "an adapter of {name} maps {inputs} to {outputs} features through {} and {}; the network's projection \
                     maps {} to {}",
                    path.down.out_features(),
                    path.up.in_features(),
                    point.inputs,
                    point.outputs
                )));
            }
            adapters.paths.entry(point.slot).or_default().push(path);
        }
        Ok(adapters)
    }
}

/// A linear layer that can carry side paths.
pub(crate) struct Projection {
    linear: Linear,
    slot: usize,
}

impl Projection {
    /// Wraps the layer built from `weights`.
    pub(crate) fn new(linear: Linear, weights: &Tensors, points: &mut AdapterPoints) -> Self {
        let slot = points.register(weights, linear.in_features(), linear.out_features());
        Self { linear, slot }
    }

    /// (.., inputs) to (.., outputs).
    pub(crate) fn forward(&self, x: &Tensor, adapters: &Adapters) -> Result<Tensor> {
        let mut y = self.linear.forward(x)?;
        for path in adapters.paths.get(&self.slot).into_iter().flatten() {
            y = (y + (path.up.forward(&path.down.forward(x)?)? * path.scale)?)?;
        }
        Ok(y)
    }
}
