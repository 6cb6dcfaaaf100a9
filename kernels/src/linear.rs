//! The affine map of the last dimension.

use candle_core::{DType, Device, Result, Tensor, bail};

#[cfg(feature = "cuda")]
use crate::cuda;
#[cfg(feature = "onednn")]
use crate::onednn;
use crate::{Quantized, add, count, cpu, gelu_tanh, plain, plain_forms};

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
    #[cfg(feature = "onednn")]
    OneDnn(onednn::Linear),
    PlainQuantized(plain::QuantizedLinear),
    CpuQuantized(cpu::QuantizedLinear),
    #[cfg(feature = "cuda")]
    Cuda(cuda::Linear),
    #[cfg(feature = "cuda")]
    CudaQuantized(plain::QuantizedLinear),
}

impl Form {
    fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        #[cfg(feature = "onednn")]
        if onednn::takes(weight)
            && let Some(form) = onednn::Linear::new(weight, bias)?
        {
            return Ok(Self::OneDnn(form));
        }
        if cpu::takes(weight) && weight.elem_count() > 0 {
            return Ok(Self::Cpu(cpu::Linear::new(weight, bias)?));
        }
        #[cfg(feature = "cuda")]
        if cuda::takes(weight) && weight.elem_count() > 0 {
            return Ok(Self::Cuda(cuda::Linear::new(weight, bias)?));
        }
        Ok(Self::Plain(plain::Linear::new(weight, bias)?))
    }
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
        let form = Form::new(&weight, bias.as_ref())?;
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
            let form = plain::QuantizedLinear::new(weight, bias, dtype, device)?;
            #[cfg(feature = "cuda")]
            if device.is_cuda() && computed && !plain_forms() && weight.elem_count() > 0 {
                return Ok(Self { form: Form::CudaQuantized(form), in_features, out_features });
            }
            Form::PlainQuantized(form)
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

    /// Maps `x` (.., in) to (.., out), then takes GELU by its tanh approximation: [`gelu_tanh`] of [`Linear::forward`], in
    /// one kernel where a device has such a one (and so rounded once, not twice).
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_gelu_tanh(&self, x: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Form::Cuda(form) = &self.form {
            self.check(x)?;
            count::product(x.elem_count() / self.in_features * self.out_features, self.in_features);
            return form.forward_gelu_tanh(x);
        }
        gelu_tanh(&self.forward(x)?)
    }

    fn check(&self, x: &Tensor) -> Result<()> {
        if x.dims().last() != Some(&self.in_features) {
            bail!("linear: the input {:?} must end in {} features", x.dims(), self.in_features);
        }
        Ok(())
    }

    /// Maps `x` (.., in) to (.., out).
    ///
    /// # Errors
    /// If the last dimension of `x` is not `in`, or candle fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, None)
    }

    /// Maps `x` (.., in) to (.., out) and adds the residual, which has the shape and the type of the result: [`add`] of
    /// [`Linear::forward`] and the residual, in one operation where a device has such a one (and so rounded once, not twice).
    ///
    /// # Errors
    /// As [`Linear::forward`], or if the residual is of another shape or type.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.apply(x, Some(residual))
    }

    fn apply(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        self.check(x)?;
        if let Some(residual) = residual {
            let mut shape = x.dims().to_vec();
            shape.pop();
            shape.push(self.out_features);
            check_residual(residual, &shape, x.dtype(), "linear")?;
        }
        count::product(x.elem_count() / self.in_features * self.out_features, self.in_features);
        let (within, behind) = match &self.form {
            Form::Cpu(form) if form.adds(x) => (residual, None),
            Form::CpuQuantized(_) => (residual, None),
            _ => (None, residual),
        };
        let y = match &self.form {
            Form::Plain(form) => form.forward(x),
            Form::Cpu(form) => form.forward(x, within),
            #[cfg(feature = "onednn")]
            Form::OneDnn(form) => form.forward(x),
            Form::PlainQuantized(form) => form.forward(x),
            Form::CpuQuantized(form) => form.forward(x, within),
            #[cfg(feature = "cuda")]
            Form::Cuda(form) => form.forward(x),
            #[cfg(feature = "cuda")]
            Form::CudaQuantized(form) => cuda::Linear::new(&form.weight()?, form.bias())?.forward(x),
        }?;
        match behind {
            Some(residual) => add(&y, residual),
            None => Ok(y),
        }
    }
}

/// Fails if a residual has not the shape and the type of the result.
pub(crate) fn check_residual(residual: &Tensor, shape: &[usize], dtype: DType, operation: &str) -> Result<()> {
    if (residual.dims(), residual.dtype()) != (shape, dtype) {
        let (dims, own) = (residual.dims(), residual.dtype());
        bail!("{operation}: the residual is {dims:?} in {own:?}, but the result {shape:?} in {dtype:?}");
    }
    Ok(())
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
