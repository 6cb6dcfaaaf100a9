//! Tiny networks with weights from a formula, for tests.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use easel_kernels::Linear;

use super::image_prompt::{ImageProjection, ImagePrompt, ImagePrompts};
use crate::weights::{MemorySource, Tensors};
use crate::{Error, Result};

/// Numbers without a pattern between -1 and 1, the same at every run.
pub(crate) fn noise(shape: &[usize], seed: u32) -> Tensor {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        // xorshift32 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A view of tensors in memory.
pub(crate) fn view(tensors: HashMap<String, Tensor>) -> Tensors {
    Tensors::new(Arc::new(MemorySource::new("test/model.safetensors", tensors)), DType::F32, &Device::Cpu)
}

/// Weights for a network of any shape, which is asked for them: the error about each missing tensor
/// names its key and its shape.
pub(crate) fn weights_for<T>(build: impl Fn(&Tensors) -> Result<T>) -> HashMap<String, Tensor> {
    let mut tensors = HashMap::new();
    loop {
        let Err(Error::File { message, .. }) = build(&view(tensors.clone())).map(|_| ()) else { return tensors };
        let (key, rest) = message.split_once(" is missing; a tensor of shape [").expect(&message);
        let shape: Vec<usize> = rest.split_once(']').unwrap().0.split(", ").map(|n| n.parse().unwrap()).collect();
        let fan_in = shape[1..].iter().product::<usize>() as f64;
        let values = noise(&shape, tensors.len() as u32 + 1);
        let scaled = match (shape.len(), key.ends_with("weight")) {
            (1, true) => ((values * 0.2).unwrap() + 1.0).unwrap(), // of a normalisation
            (1, false) => (values * 0.1).unwrap(),
            _ => (values * (3.0 / fan_in).sqrt()).unwrap(),
        };
        assert!(tensors.insert(key.to_owned(), scaled).is_none(), "{key} is asked for twice in different shapes");
    }
}

/// The numbers of a tensor.
pub(crate) fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The relative L2 distance of `a` from `b`.
pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |values: Vec<f32>| values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    norm(numbers(&(a - b).unwrap())) / norm(numbers(b))
}

/// An image prompt for a network of so many places of this width; every seed is another picture, of as many tokens.
pub(crate) fn image_prompt(places: usize, width: usize, seed: u32, scale: f64) -> ImagePrompt {
    let linear = |seed| Linear::new(noise(&[width, 3], seed), None).unwrap();
    let layers: Vec<_> =
        (0..places as u32).map(|at| ImageProjection { to_k: linear(40 + at), to_v: linear(80 + at) }).collect();
    ImagePrompt::new(&noise(&[1, seed as usize, 3], seed), &layers, &vec![scale; places]).unwrap()
}

/// Holds a network to what image prompts promise: rows that look at a picture, at none and at two share a call and nothing
/// else. `prompt` makes a picture of a seed and a scale; `draw` draws so many of three rows from one on.
pub(crate) fn each_row_sees_its_own<P: Clone>(
    prompt: impl Fn(u32, f64) -> P,
    draw: impl Fn(usize, usize, ImagePrompts<P>) -> Result<Tensor>,
) {
    let rows = [vec![prompt(1, 0.7)], Vec::new(), vec![prompt(2, 0.4), prompt(3, -1.5)]];
    let with = |first: usize, count: usize, rows: &[Vec<P>]| draw(first, count, ImagePrompts::by_row(rows.to_vec()));
    let bits = |tensor: &Tensor| numbers(tensor).into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let (plain, together) = (draw(0, 3, ImagePrompts::default()).unwrap(), with(0, 3, &rows).unwrap());
    for (row, own) in rows.iter().enumerate() {
        let cut = |all: &Tensor| all.narrow(0, row, 1).unwrap();
        let alone = with(row, 1, std::slice::from_ref(own)).unwrap();
        assert_eq!(bits(&cut(&together)), bits(&alone), "row {row}");
        if own.is_empty() {
            assert_eq!(bits(&cut(&together)), bits(&cut(&plain)), "row {row}");
        } else {
            assert!(distance(&alone, &cut(&plain)) > 1e-4, "row {row}");
        }
    }
    let unseen = [vec![prompt(1, 0.0)], vec![prompt(2, 0.0), prompt(3, 0.0)], Vec::new()];
    assert_eq!(bits(&with(0, 3, &unseen).unwrap()), bits(&plain));
    let error = with(0, 3, &rows[..2]).unwrap_err().to_string();
    assert_eq!(error, "there are image prompts for 2 rows, but 3 rows in the call");
}
