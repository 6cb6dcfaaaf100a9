//! Normalisations of the last dimension: LayerNorm (Ba et al., 2016) and RMSNorm (Zhang and Sennrich, 2019).

use candle_core::{DType, Result, Tensor, bail};

use crate::dispatch::form;

/// Brings the last dimension to mean 0 and variance 1, then scales and shifts it.
///
/// `x` is (.., c) in f32, f16 or bf16; the statistics are at least f32.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Option<Tensor>,
    bias: Option<Tensor>,
    eps: f64,
}

impl LayerNorm {
    /// Takes the scale (c) and the shift (c), each only if the model has it.
    ///
    /// # Errors
    /// If they are not vectors of one size.
    pub fn new(weight: Option<Tensor>, bias: Option<Tensor>, eps: f64) -> Result<Self> {
        let sizes = [weight.as_ref(), bias.as_ref()].map(|tensor| tensor.map(Tensor::dims1).transpose());
        if let [Ok(Some(weight)), Ok(Some(bias))] = &sizes
            && weight != bias
        {
            bail!("layer_norm: the weight has {weight} channels, the bias {bias}");
        }
        for size in sizes {
            size?;
        }
        Ok(Self { weight: as_f32(weight)?, bias: as_f32(bias)?, eps })
    }

    /// Normalises `x` (.., c).
    ///
    /// # Errors
    /// If c is not the size of the scale and the shift.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        for vector in [&self.weight, &self.bias].into_iter().flatten() {
            check_channels(x, vector, "layer_norm")?;
        }
        form!(x, layer_norm in [cpu, cuda, metal])(x, self.weight.as_ref(), self.bias.as_ref(), self.eps)
    }
}

/// Divides the last dimension by its root mean square, then scales it.
///
/// `x` is (.., c) in f32, f16 or bf16; the mean square is at least f32.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    pub(crate) weight: Tensor,
    pub(crate) eps: f64,
}

impl RmsNorm {
    /// Takes the scale (c).
    ///
    /// # Errors
    /// If it is no vector.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the layer owns its weights, so that packing them frees the tensors"
    )]
    pub fn new(weight: Tensor, eps: f64) -> Result<Self> {
        weight.dims1()?;
        Ok(Self { weight: weight.to_dtype(DType::F32)?.contiguous()?, eps })
    }

    /// Normalises `x` (.., c).
    ///
    /// # Errors
    /// If c is not the size of the scale.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_channels(x, &self.weight, "rms_norm")?;
        form!(x, rms_norm in [cpu, cuda, metal])(x, &self.weight, self.eps)
    }
}

fn as_f32(tensor: Option<Tensor>) -> Result<Option<Tensor>> {
    tensor.map(|tensor| tensor.to_dtype(DType::F32)?.contiguous()).transpose()
}

fn check_channels(x: &Tensor, vector: &Tensor, operation: &str) -> Result<()> {
    let channels = vector.dim(0)?;
    if x.dims().last() != Some(&channels) {
        bail!("{operation}: the input {:?} must end in {channels} channels", x.dims());
    }
    Ok(())
}
