//! The affine map of the last dimension.

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::{Quantized, cpu, plain, plain_forms};

/// `y = x · Wᵀ + bias`, with the weight as PyTorch stores it.
///
/// `x` is (.., in) in f32, f16 or bf16, the result (.., out) in the same type.
#[derive(Debug, Clone)]
pub struct Linear {
    form: Form,
    in_features: usize,
    out_features: usize,
}

/// The weights, as the form that was chosen when the layer was made keeps them.
#[derive(Debug, Clone)]
enum Form {
    Plain(plain::Linear),
    Cpu(cpu::Linear),
    PlainQuantized(plain::QuantizedLinear),
    CpuQuantized(cpu::QuantizedLinear),
}

impl Linear {
    /// Takes the weight (out, in) and the bias (out).
    ///
    /// # Errors
    /// If the shapes do not fit each other.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the layer owns its weights, so that packing them frees the tensors"
    )]
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let (out_features, in_features) = weight.dims2()?;
        check_bias(bias.as_ref(), out_features, "linear")?;
        let form = if cpu::takes(&weight) && weight.elem_count() > 0 {
            Form::Cpu(cpu::Linear::new(&weight, bias.as_ref())?)
        } else {
            Form::Plain(plain::Linear::new(&weight, bias.as_ref())?)
        };
        Ok(Self { form, in_features, out_features })
    }

    /// Takes a weight (out, in) in few bits, which stay so in memory: at each call they are spread out to `dtype`, the type that
    /// is computed in. The bias (out) is on `device`.
    ///
    /// # Errors
    /// If the shapes do not fit each other, or the device has no room.
    pub fn quantized(weight: &Quantized, bias: Option<Tensor>, dtype: DType, device: &Device) -> Result<Self> {
        let [out_features, in_features] = *weight.dims() else {
            bail!("linear: a weight (out, in) is expected, not {weight:?}")
        };
        check_bias(bias.as_ref(), out_features, "linear")?;
        let computed = matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
        let form = if device.is_cpu() && computed && !plain_forms() && weight.elem_count() > 0 {
            Form::CpuQuantized(cpu::QuantizedLinear::new(weight, bias.as_ref())?)
        } else {
            Form::PlainQuantized(plain::QuantizedLinear::new(weight, bias, dtype, device)?)
        };
        Ok(Self { form, in_features, out_features })
    }

    /// The size of the input's last dimension.
    #[must_use]
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// The size of the result's last dimension.
    #[must_use]
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Maps `x` (.., in) to (.., out).
    ///
    /// # Errors
    /// If the last dimension of `x` is not `in`, or candle fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if x.dims().last() != Some(&self.in_features) {
            bail!("linear: the input {:?} must end in {} features", x.dims(), self.in_features);
        }
        match &self.form {
            Form::Plain(form) => form.forward(x),
            Form::Cpu(form) => form.forward(x),
            Form::PlainQuantized(form) => form.forward(x),
            Form::CpuQuantized(form) => form.forward(x),
        }
    }
}

/// Fails if a bias is there and is not (channels).
pub(crate) fn check_bias(bias: Option<&Tensor>, channels: usize, operation: &str) -> Result<()> {
    match bias {
        Some(bias) if bias.dims() != [channels] => {
            bail!("{operation}: the bias is {:?}, but the weight makes {channels} channels", bias.dims())
        }
        _ => Ok(()),
    }
}
