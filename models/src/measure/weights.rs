//! Weights of a network's real shapes, and without meaning.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use crate::weights::{TensorInfo, TensorSource};
use crate::{Error, Result};

/// The shapes of a network's tensors by their keys.
pub(super) type Shapes = BTreeMap<String, Vec<usize>>;

/// Reads a list of shapes: on each line a key with `#` in the place of numbers, its shape (`scalar`, or sides with `x` between
/// them), and the numbers, each a group with dots of which the last may be a range.
///
/// # Errors
/// Names the line that is no such thing.
pub(super) fn shapes(list: &str) -> Result<Shapes> {
    let mut shapes = Shapes::new();
    for line in list.lines() {
        let wrong = || Error::Unsupported(format!("a list of shapes has the line {line:?}"));
        let mut words = line.split(' ');
        let (pattern, size) = words.next().zip(words.next()).ok_or_else(wrong)?;
        let sides = size.split('x').filter(|side| *side != "scalar");
        let shape: Vec<usize> = sides.map(|side| side.parse().map_err(|_| wrong())).collect::<Result<_>>()?;
        let numbers: Vec<&str> = words.collect();
        if numbers.is_empty() {
            shapes.insert(pattern.to_owned(), shape);
            continue;
        }
        for numbers in numbers {
            let (first, last) = numbers.rsplit_once('.').unwrap_or(("", numbers));
            let (from, to) = last.split_once('-').unwrap_or((last, last));
            let (from, to) = from.parse::<usize>().ok().zip(to.parse::<usize>().ok()).ok_or_else(wrong)?;
            shapes.extend((from..=to).map(|last| (fill(pattern, first, last), shape.clone())));
        }
    }
    Ok(shapes)
}

/// The key of a pattern with these numbers in the places of `#`.
fn fill(pattern: &str, first: &str, last: usize) -> String {
    let last = last.to_string();
    let mut numbers = first.split('.').filter(|number| !number.is_empty()).chain([last.as_str()]);
    let words = pattern.split('.').map(|word| if word == "#" { numbers.next().unwrap_or(word) } else { word });
    words.collect::<Vec<_>>().join(".")
}

/// A source of random tensors, made on the device when they are asked for.
///
/// A matrix's values have the variance that keeps its output as large as its input, and vectors are near one, so that
/// nothing grows beyond a type's range on the way through a network.
pub(super) struct RandomWeights {
    shapes: Shapes,
    dtype: DType,
    device: Device,
}

impl RandomWeights {
    pub(super) fn new(shapes: Shapes, dtype: DType, device: &Device) -> Self {
        Self { shapes, dtype, device: device.clone() }
    }
}

impl TensorSource for RandomWeights {
    fn tensor(&self, key: &str) -> Result<Option<Tensor>> {
        let Some(shape) = self.shapes.get(key) else { return Ok(None) };
        let vector = shape.len() < 2;
        let depth: usize = shape.iter().skip(1).product();
        let (mean, deviation) = match key.ends_with("bias") {
            true => (0.0, 0.02),
            false if vector => (1.0, 0.02),
            false => (0.0, (1.0 / depth.max(1) as f32).sqrt()),
        };
        Ok(Some(Tensor::randn(mean, deviation, shape.as_slice(), &self.device)?.to_dtype(self.dtype)?))
    }

    fn info(&self, key: &str) -> Option<TensorInfo> {
        let shape = self.shapes.get(key)?.clone();
        Some(TensorInfo { shape, dtype: "F32".to_owned(), fractional: true })
    }

    fn keys(&self) -> Vec<String> {
        self.shapes.keys().cloned().collect()
    }

    fn file(&self) -> &'static str {
        "random weights"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_every_key_and_its_shape() {
        let list = "conv.weight 4x3x1x1\nblocks.#.norm.weight 8 0-2\nups.#.nets.#.bias 5 1.0-1 2.7\nscale scalar";
        let shapes = shapes(list).unwrap();
        let keys: Vec<&str> = shapes.keys().map(String::as_str).collect();
        let blocks = ["blocks.0.norm.weight", "blocks.1.norm.weight", "blocks.2.norm.weight", "conv.weight", "scale"];
        let ups = ["ups.1.nets.0.bias", "ups.1.nets.1.bias", "ups.2.nets.7.bias"];
        assert_eq!(keys, [blocks.as_slice(), &ups].concat());
        assert_eq!((shapes["conv.weight"].as_slice(), shapes["scale"].len()), ([4, 3, 1, 1].as_slice(), 0));
    }

    #[test]
    fn a_line_without_a_shape_is_named() {
        let error = shapes("conv.weight").unwrap_err().to_string();
        assert!(error.contains("conv.weight"), "{error}");
    }

    #[test]
    fn a_matrix_keeps_the_size_of_what_it_multiplies() {
        let list = shapes("to.weight 300x200\nnorm.weight 51").unwrap();
        let source = RandomWeights::new(list, DType::F32, &Device::Cpu);
        let variance = |key: &str| {
            let values = source.tensor(key).unwrap().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32
        };
        assert!((variance("to.weight") * 200.0 - 1.0).abs() < 0.05);
        assert!((variance("norm.weight") - 1.0).abs() < 0.05);
    }
}
