//! Side paths that adapters (LoRA and its relatives) hang on a network's projections.
//!
//! Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021. The network's own weights
//! stay as they are: an adapter is an argument of a call, so the same loaded network serves requests
//! with different adapters and nothing has to be merged or undone.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::Tensor;
use easel_kernels::{Linear, gelu_tanh};

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

/// Side paths by the projection they hang on.
type Paths = HashMap<usize, Vec<LowRank>>;

/// The side paths of one model call: the same for all rows, or each row's own.
///
/// Made by [`AdapterPoints::adapters`]; the default has none.
#[derive(Clone, Default)]
pub struct Adapters {
    shared: Arc<Paths>,
    /// What each row has; empty where all share the same.
    rows: Vec<Arc<Paths>>,
}

impl Adapters {
    /// The paths of a call whose row i has what `rows[i]` has, so that requests with different adapters, and with none,
    /// share a model call.
    ///
    /// # Errors
    /// When one of them has rows of its own already.
    pub fn by_row(rows: &[Self]) -> Result<Self> {
        if rows.iter().any(|row| !row.rows.is_empty()) {
            return Err(Error::Unsupported("a row's adapters cannot have rows of their own".to_owned()));
        }
        Ok(Self { shared: Arc::default(), rows: rows.iter().map(|row| Arc::clone(&row.shared)).collect() })
    }

    /// Whether no projection has a side path.
    pub(crate) fn is_empty(&self) -> bool {
        self.shared.is_empty() && self.rows.iter().all(|row| row.is_empty())
    }
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
        let mut bound = Paths::new();
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
            bound.entry(point.slot).or_default().push(path);
        }
        Ok(Adapters { shared: Arc::new(bound), rows: Vec::new() })
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

    /// (b, .., inputs) to (b, .., outputs).
    pub(crate) fn forward(&self, x: &Tensor, adapters: &Adapters) -> Result<Tensor> {
        self.beside(self.linear.forward(x)?, x, adapters)
    }

    /// [`Projection::forward`] and a residual (b, .., outputs), which the layer adds itself.
    pub(crate) fn forward_add(&self, x: &Tensor, residual: &Tensor, adapters: &Adapters) -> Result<Tensor> {
        // The side paths come last, so that a row which has none is the same in a call in which others have some.
        self.beside(self.linear.forward_add(x, residual)?, x, adapters)
    }

    /// Adds what the side paths of each row make of `x` to `y`.
    fn beside(&self, y: Tensor, x: &Tensor, adapters: &Adapters) -> Result<Tensor> {
        if adapters.rows.is_empty() {
            return self.add(y, x, &adapters.shared);
        }
        if adapters.rows.iter().all(|paths| !paths.contains_key(&self.slot)) {
            return Ok(y);
        }
        let (rows, count) = (adapters.rows.len(), x.dim(0)?);
        if rows != count {
            return Err(Error::Unsupported(format!(
                "there are adapters for {rows} rows, but {count} rows in the call"
            )));
        }
        let with_paths =
            |(row, paths): (usize, &Arc<Paths>)| self.add(y.narrow(0, row, 1)?, &x.narrow(0, row, 1)?, paths);
        let parts = adapters.rows.iter().enumerate().map(with_paths).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// [`Projection::forward`], then GELU's tanh approximation; both at once where nothing comes between them.
    pub(crate) fn forward_gelu_tanh(&self, x: &Tensor, adapters: &Adapters) -> Result<Tensor> {
        let mut paths = adapters.rows.iter().chain(adapters.rows.is_empty().then_some(&adapters.shared));
        if paths.any(|paths| paths.contains_key(&self.slot)) {
            return Ok(gelu_tanh(&self.forward(x, adapters)?)?);
        }
        Ok(self.linear.forward_gelu_tanh(x)?)
    }

    /// Adds what the side paths make of `x` to `y`.
    fn add(&self, mut y: Tensor, x: &Tensor, paths: &Paths) -> Result<Tensor> {
        for path in paths.get(&self.slot).into_iter().flatten() {
            y = (y + (path.up.forward(&path.down.forward(x)?)? * path.scale)?)?;
        }
        Ok(y)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::weights::MemorySource;

    #[test]
    fn a_row_has_its_own_adapters_whatever_its_neighbours_have() {
        let ramp = |shape: (usize, usize), step: f32| {
            let values: Vec<f32> = (0..shape.0 * shape.1).map(|i| (i as f32 * step).sin()).collect();
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        };
        let source = MemorySource::new("memory", HashMap::new());
        let weights = Tensors::new(Arc::new(source), DType::F32, &Device::Cpu).pp("block").pp("to_q");
        let mut points = AdapterPoints::default();
        let linear = Linear::new(ramp((5, 4), 0.3), None).unwrap();
        let projection = Projection::new(linear, &weights, &mut points);
        let adapters = |step: f32| {
            let (down, up) = (ramp((2, 4), step), ramp((5, 2), step + 0.1));
            let path =
                LowRank { down: Linear::new(down, None).unwrap(), up: Linear::new(up, None).unwrap(), scale: 0.7 };
            let name = points.names().next().unwrap().to_owned();
            points.adapters([(name, path)]).unwrap()
        };
        let x = ramp((9, 4), 0.9).reshape((3, 3, 4)).unwrap();
        let rows = [adapters(0.5), Adapters::default(), adapters(0.8)];
        let bits = |y: &Tensor| y.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let together = projection.forward(&x, &Adapters::by_row(&rows).unwrap()).unwrap();
        for (row, own) in rows.iter().enumerate() {
            let alone = projection.forward(&x.narrow(0, row, 1).unwrap(), own).unwrap();
            assert_eq!(bits(&together.narrow(0, row, 1).unwrap()), bits(&alone), "row {row}");
        }
        let residual = ramp((9, 5), 1.3).reshape((3, 3, 5)).unwrap();
        let together = projection.forward_add(&x, &residual, &Adapters::by_row(&rows).unwrap()).unwrap();
        for (row, own) in rows.iter().enumerate() {
            let of_row = |x: &Tensor| x.narrow(0, row, 1).unwrap();
            let alone = projection.forward_add(&of_row(&x), &of_row(&residual), own).unwrap();
            assert_eq!(bits(&of_row(&together)), bits(&alone), "row {row} with a residual");
        }
        let plain = projection.forward(&x, &Adapters::default()).unwrap();
        assert_ne!(bits(&plain.narrow(0, 0, 1).unwrap()), bits(&together.narrow(0, 0, 1).unwrap()));
        let few = Adapters::by_row(&rows[..2]).unwrap();
        let error = projection.forward(&x, &few).unwrap_err().to_string();
        assert_eq!(error, "there are adapters for 2 rows, but 3 rows in the call");
        assert!(Adapters::by_row(&[few]).is_err());
    }
}
