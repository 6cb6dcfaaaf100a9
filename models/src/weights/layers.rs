//! The layers that every network is made of, built from their named weights.

use candle_core::Tensor;
use easel_kernels::{Conv2d, Conv2dConfig, GroupNorm, LayerNorm, Linear};

use super::Tensors;
use crate::Result;

/// A linear layer with a bias: `weight` (outputs, inputs) and `bias` (outputs).
///
/// # Errors
/// When a tensor is missing or of another shape.
pub fn linear(weights: &Tensors, inputs: usize, outputs: usize) -> Result<Linear> {
    let bias = weights.get("bias", &[outputs])?;
    with_bias(weights, inputs, outputs, Some(bias))
}

/// A linear layer without a bias: `weight` (outputs, inputs).
///
/// # Errors
/// When the weight is missing or of another shape.
pub fn linear_no_bias(weights: &Tensors, inputs: usize, outputs: usize) -> Result<Linear> {
    with_bias(weights, inputs, outputs, None)
}

/// A weight in few bits stays so in memory; any other is kept in the type that is computed in.
fn with_bias(weights: &Tensors, inputs: usize, outputs: usize, bias: Option<Tensor>) -> Result<Linear> {
    if let Some(weight) = weights.try_quantized("weight", outputs, inputs)? {
        return Ok(Linear::quantized(&weight, bias, weights.dtype(), weights.device())?);
    }
    Ok(Linear::new(weights.get("weight", &[outputs, inputs])?, bias)?)
}

/// A linear layer with a bias whose weight may also be stored as that of a 1x1 convolution,
/// (outputs, inputs, 1, 1): on channels-last images both are the same product.
///
/// # Errors
/// When a tensor is missing or of another shape.
pub fn pointwise(weights: &Tensors, inputs: usize, outputs: usize) -> Result<Linear> {
    let bias = Some(weights.get("bias", &[outputs])?);
    if let Some(weight) = weights.try_quantized("weight", outputs, inputs)? {
        return Ok(Linear::quantized(&weight, bias, weights.dtype(), weights.device())?);
    }
    let weight = match weights.try_get_any("weight")? {
        Some(weight) if weight.dims() == [outputs, inputs, 1, 1] => weight.squeeze(3)?.squeeze(2)?,
        _ => weights.get("weight", &[outputs, inputs])?,
    };
    Ok(Linear::new(weight, bias)?)
}

/// A convolution with a square window and a bias: `weight` (outputs, inputs, kernel, kernel) and `bias` (outputs).
///
/// # Errors
/// When a tensor is missing or of another shape.
pub fn conv2d(weights: &Tensors, inputs: usize, outputs: usize, kernel: usize, config: Conv2dConfig) -> Result<Conv2d> {
    let bias = weights.get("bias", &[outputs])?;
    Ok(Conv2d::new(weights.get("weight", &[outputs, inputs, kernel, kernel])?, Some(bias), config)?)
}

/// A group normalisation: `weight` and `bias` (channels).
///
/// # Errors
/// When a tensor is missing or of another shape, or `groups` does not divide `channels`.
pub fn group_norm(weights: &Tensors, channels: usize, groups: usize, eps: f64) -> Result<GroupNorm> {
    let bias = weights.get("bias", &[channels])?;
    Ok(GroupNorm::new(weights.get("weight", &[channels])?, bias, groups, eps)?)
}

/// A layer normalisation: `weight` and `bias` (channels).
///
/// # Errors
/// When a tensor is missing or of another shape.
pub fn layer_norm(weights: &Tensors, channels: usize, eps: f64) -> Result<LayerNorm> {
    let bias = weights.get("bias", &[channels])?;
    Ok(LayerNorm::new(Some(weights.get("weight", &[channels])?), Some(bias), eps)?)
}
