//! Group normalisation (Wu and He, 2018), alone and followed by SiLU.

use candle_core::{DType, Result, Tensor, bail};

use crate::{add, cpu, cuda, plain};

/// Normalises each group of channels over a row's positions, then scales and shifts each channel.
///
/// `x` is (b, h, w, c) or (b, n, c) in f32, f16 or bf16; the statistics are
/// at least f32.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
    packed: Option<cpu::GroupNorm>,
}

impl GroupNorm {
    /// Takes the scale (c) and the shift (c); `groups` must divide c.
    ///
    /// # Errors
    /// If the shapes do not fit each other or `groups`.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the layer owns its weights, so that packing them frees the tensors"
    )]
    pub fn new(weight: Tensor, bias: Tensor, groups: usize, eps: f64) -> Result<Self> {
        let channels = weight.dims1()?;
        if bias.dims() != [channels] {
            bail!("group_norm: the weight has {channels} channels, the bias {:?}", bias.dims());
        }
        if groups == 0 || channels % groups != 0 {
            bail!("group_norm: {channels} channels cannot be split into {groups} groups");
        }
        let (weight, bias) = (weight.to_dtype(DType::F32)?.contiguous()?, bias.to_dtype(DType::F32)?.contiguous()?);
        let packed = cpu::takes(&weight).then(|| cpu::GroupNorm::new(&weight, &bias, groups, eps)).transpose()?;
        Ok(Self { weight, bias, groups, eps, packed })
    }

    /// Normalises `x`.
    ///
    /// # Errors
    /// If `x` has another number of channels, or another rank than 3 or 4.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, None, false)
    }

    /// Normalises `x`, then applies SiLU.
    ///
    /// # Errors
    /// As [`GroupNorm::forward`].
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, None, true)
    }

    /// Normalises the sum of `x` and a vector (b, c) for each row, which is added at every position, then applies SiLU:
    /// [`GroupNorm::forward_silu`] of [`add`], in one operation where a device has such a one (and so with no rounding of
    /// the sum).
    ///
    /// # Errors
    /// As [`GroupNorm::forward`], or if the vectors are of another shape or type.
    pub fn forward_sum_silu(&self, x: &Tensor, vector: &Tensor) -> Result<Tensor> {
        self.apply(x, Some(vector), true)
    }

    fn apply(&self, x: &Tensor, vector: Option<&Tensor>, silu: bool) -> Result<Tensor> {
        let channels = self.weight.dim(0)?;
        if !(3..=4).contains(&x.rank()) || x.dims().last() != Some(&channels) {
            bail!("group_norm: the input {:?} must be (b, h, w, {channels}) or (b, n, {channels})", x.dims());
        }
        if let Some(vector) = vector
            && (vector.dims(), vector.dtype()) != (&[x.dim(0)?, channels], x.dtype())
        {
            let dtype = x.dtype();
            bail!("group_norm: the vectors {vector:?} must be ({}, {channels}) in {dtype:?}", x.dim(0)?);
        }
        if let (true, Some(packed)) = (cpu::takes(x), &self.packed) {
            return packed.forward(x, vector, silu);
        }
        let sum = vector.map(|vector| add(x, vector)).transpose()?;
        let x = sum.as_ref().unwrap_or(x);
        if cuda::takes(x) {
            return cuda::group_norm(x, &self.weight, &self.bias, self.groups, self.eps, silu);
        }
        let y = plain::group_norm(x, &self.weight, &self.bias, self.groups, self.eps)?;
        if silu { plain::silu(&y) } else { Ok(y) }
    }
}
