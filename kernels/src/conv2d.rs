//! Two-dimensional convolution of channels-last images.

use candle_core::{Result, Tensor, bail};

#[cfg(feature = "onednn")]
use crate::onednn;
use crate::{
    add, count, cpu, cuda,
    linear::{check_bias, check_residual},
    plain,
};

/// Zeros around an image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Columns to the left.
    pub left: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// The same number of zeros on each side.
    #[must_use]
    pub fn same(pixels: usize) -> Self {
        Self { top: pixels, left: pixels, bottom: pixels, right: pixels }
    }
}

/// How the window moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// The step of the window in both directions, in pixels; at least 1.
    pub stride: usize,
    /// The zeros around the image.
    pub padding: Padding,
}

impl Default for Conv2dConfig {
    fn default() -> Self {
        Self { stride: 1, padding: Padding::default() }
    }
}

impl Conv2dConfig {
    /// The size (h, w) of the result for an image of `height` by `width`.
    ///
    /// # Errors
    /// If the window of `kernel` (h, w) is larger than the padded image.
    pub fn output_size(&self, (height, width): (usize, usize), kernel: (usize, usize)) -> Result<(usize, usize)> {
        let padded = (height + self.padding.top + self.padding.bottom, width + self.padding.left + self.padding.right);
        if padded.0 < kernel.0 || padded.1 < kernel.1 {
            bail!("conv2d: the window {kernel:?} is larger than the padded image {padded:?}");
        }
        Ok(((padded.0 - kernel.0) / self.stride + 1, (padded.1 - kernel.1) / self.stride + 1))
    }
}

/// A convolution (cross-correlation, as in PyTorch) with its weights.
///
/// `x` is (b, h, w, in) in f32, f16 or bf16, the result (b, h', w', out) in
/// the same type.
#[derive(Debug, Clone)]
pub struct Conv2d {
    form: Form,
    in_channels: usize,
    out_channels: usize,
    config: Conv2dConfig,
    /// The sides (h, w) of the window, in pixels.
    kernel: (usize, usize),
}

/// The weights, as the form that was chosen when the layer was made keeps them.
#[derive(Debug, Clone)]
enum Form {
    Plain(plain::Conv2d),
    Cpu(cpu::Conv2d),
    #[cfg(feature = "onednn")]
    OneDnn(onednn::Conv2d),
    /// By cuDNN.
    #[cfg(feature = "cuda")]
    Cuda(cuda::Conv2d),
    /// Where cuDNN is not.
    CudaOwn(cuda::OwnConv2d),
}

impl Form {
    fn new(weight: &Tensor, bias: Option<&Tensor>, config: Conv2dConfig) -> Result<Self> {
        #[cfg(feature = "onednn")]
        if onednn::takes(weight)
            && let Some(form) = onednn::Conv2d::new(weight, bias, config)?
        {
            return Ok(Self::OneDnn(form));
        }
        if cpu::takes(weight) && weight.elem_count() > 0 {
            return Ok(Self::Cpu(cpu::Conv2d::new(weight, bias, config)?));
        }
        #[cfg(feature = "cuda")]
        if cuda::takes(weight) && weight.elem_count() > 0 && cuda::Conv2d::available() {
            return Ok(Self::Cuda(cuda::Conv2d::new(weight, bias, config)?));
        }
        if cuda::takes(weight) && weight.elem_count() > 0 && cuda::OwnConv2d::takes(weight.dtype()) {
            return Ok(Self::CudaOwn(cuda::OwnConv2d::new(weight, bias, config)?));
        }
        Ok(Self::Plain(plain::Conv2d::new(weight, bias, config)?))
    }
}

impl Conv2d {
    /// Takes the weight (out, in, kh, kw), as PyTorch stores it, and the bias (out).
    ///
    /// # Errors
    /// If the shapes do not fit each other, or the stride is 0.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the layer owns its weights, so that packing them frees the tensors"
    )]
    pub fn new(weight: Tensor, bias: Option<Tensor>, config: Conv2dConfig) -> Result<Self> {
        let (out_channels, in_channels, height, width) = weight.dims4()?;
        check_bias(bias.as_ref(), out_channels, "conv2d")?;
        if config.stride == 0 {
            bail!("conv2d: the stride must be at least 1");
        }
        let form = Form::new(&weight, bias.as_ref(), config)?;
        Ok(Self { form, in_channels, out_channels, config, kernel: (height, width) })
    }

    /// The number of channels of the input.
    #[must_use]
    pub fn in_channels(&self) -> usize {
        self.in_channels
    }

    /// The number of channels of the result.
    #[must_use]
    pub fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// Convolves `x` (b, h, w, in) to (b, h', w', out).
    ///
    /// # Errors
    /// If `x` has another number of channels, or is smaller than the window.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, None)
    }

    /// Convolves `x` and adds the residual, which has the shape and the type of the result: [`add`] of [`Conv2d::forward`] and
    /// the residual, in one operation where a device has such a one (and so rounded once, not twice).
    ///
    /// # Errors
    /// As [`Conv2d::forward`], or if the residual is of another shape or type.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.apply(x, Some(residual))
    }

    fn apply(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let (b, h, w, channels) = x.dims4()?;
        if channels != self.in_channels {
            bail!("conv2d: the input {:?} must end in {} channels", x.dims(), self.in_channels);
        }
        if let Some(residual) = residual {
            let (h, w) = self.config.output_size((h, w), self.kernel)?;
            check_residual(residual, &[b, h, w, self.out_channels], x.dtype(), "conv2d")?;
        }
        let (within, behind) = match &self.form {
            Form::Cpu(form) if form.adds(x) => (residual, None),
            _ => (None, residual),
        };
        let y = match &self.form {
            Form::Plain(form) => form.forward(x),
            Form::Cpu(form) => form.forward(x, within),
            #[cfg(feature = "onednn")]
            Form::OneDnn(form) => form.forward(x),
            #[cfg(feature = "cuda")]
            Form::Cuda(form) => form.forward(x),
            Form::CudaOwn(form) => form.forward(x),
        }?;
        count::product(y.elem_count(), self.in_channels * self.kernel.0 * self.kernel.1);
        match behind {
            Some(residual) => add(&y, residual),
            None => Ok(y),
        }
    }
}
