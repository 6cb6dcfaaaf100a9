//! The affine map: the product of one tap.

use std::{ops::Range, sync::Arc};

use candle_core::{DType, Result, Tensor};
use half::bf16;

use super::{
    buffer::{Target, filled, room},
    pool::collect,
    product::{Addends, Packed, multiply, multiply_into},
    product_bf16::{self, PackedBf16},
    tensor, with_bf16, with_some, with_values,
};
use crate::Quantized;

/// The values of a quantised weight that are spread out at a time, about 4 MiB on each thread.
const SPREAD_VALUES: usize = 1 << 20;
/// What the outputs of such a part are a multiple of: whole panels of the product, for all widths of vectors.
const SPREAD_OUTPUTS: usize = 96;

/// The packed weight (in, out) and the bias (out).
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Right,
    bias: Option<Vec<f32>>,
}

/// The right side of a product, in the type that is multiplied in.
#[derive(Debug, Clone)]
pub(super) enum Right {
    F32(Arc<Packed>),
    Bf16(Arc<PackedBf16>),
}

impl Right {
    /// Packs the matrix (depth, columns) of the values of `weight`, the element at `place(depth, column)`; there are `channels`
    /// values behind each pointer of the left side.
    pub(super) fn new(
        weight: &Tensor,
        channels: usize,
        (depth, columns): (usize, usize),
        place: impl Fn(usize, usize) -> usize + Sync + Send,
    ) -> Result<Self> {
        if weight.dtype() == DType::BF16
            && let Some(form) = product_bf16::form(channels)
        {
            let taps = depth / channels;
            let pack = |w: &[bf16]| Ok(PackedBf16::new(form, (taps, channels), columns, |k, n| w[place(k, n)]));
            return Ok(Self::Bf16(Arc::new(with_bf16(weight, pack)?)));
        }
        let pack = |w: &[f32]| Ok(Packed::new(depth, columns, |depth, column| w[place(depth, column)]));
        Ok(Self::F32(Arc::new(with_values(weight, pack)?)))
    }

    /// Whether the product adds a residual like `x` itself, so that it is not rounded more than once.
    pub(super) fn adds(&self, x: &Tensor) -> bool {
        matches!(self, Self::F32(_)) || x.dtype() == DType::BF16
    }

    pub(super) fn depth(&self) -> usize {
        match self {
            Self::F32(packed) => packed.depth(),
            Self::Bf16(packed) => packed.depth(),
        }
    }

    pub(super) fn columns(&self) -> usize {
        match self {
            Self::F32(packed) => packed.columns(),
            Self::Bf16(packed) => packed.columns(),
        }
    }
}

impl Linear {
    /// Whether a residual like `x` can be added by the product itself: one of bf16 values takes no others.
    pub(crate) fn adds(&self, x: &Tensor) -> bool {
        self.weight.adds(x)
    }

    /// Packs the weight (out, in).
    pub(crate) fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (out, features) = weight.dims2()?;
        let weight = Right::new(weight, features, (features, out), |depth, column| column * features + depth)?;
        let bias = bias.map(|bias| with_values(bias, |values| Ok(values.to_vec()))).transpose()?;
        Ok(Self { weight, bias })
    }

    /// `x` (.., in) to (.., out), with the residual of the same shape added.
    pub(crate) fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let features = self.weight.depth();
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.weight.columns();
        }
        let bias = self.bias.as_deref();
        match &self.weight {
            Right::F32(weight) => with_values(x, |values| {
                with_some(residual, |residual| {
                    let (rows, addends) = (values.len() / features, Addends { bias, residual });
                    // SAFETY: each pointer is at a line of `features` values, the depth of the weight.
                    let y = unsafe { multiply(rows, (1, features), weight, addends, lines(values, features)) };
                    tensor(y, shape, x)
                })
            }),
            Right::Bf16(weight) => with_bf16(x, |values| {
                with_some(residual, |residual| {
                    let (rows, addends) = (values.len() / features, Addends { bias, residual });
                    let fill = lines(values, features);
                    // SAFETY: as above, and bf16 was chosen because such products are taken.
                    let y = unsafe { product_bf16::multiply(rows, (1, features), weight, addends, fill) };
                    Tensor::from_vec(y, shape, x.device())?.to_dtype(x.dtype())
                })
            }),
        }
    }
}

/// What writes the pointers to lines of `features` values.
fn lines<T: Sync>(values: &[T], features: usize) -> impl Fn(Range<usize>, &mut [*const T]) + Sync + Send {
    move |range, table| {
        let lines = values[range.start * features..range.end * features].chunks_exact(features);
        for (pointer, line) in table.iter_mut().zip(lines) {
            *pointer = line.as_ptr();
        }
    }
}

/// The weight (out, in) in few bits, and the bias (out).
///
/// At each call it is spread out part by part, so that no more than [`SPREAD_VALUES`] a thread are there in f32. The sums are
/// those of [`Linear`] with the spread out weight, to the last bit.
#[derive(Debug, Clone)]
pub(crate) struct QuantizedLinear {
    weight: Quantized,
    bias: Option<Vec<f32>>,
}

impl QuantizedLinear {
    /// Keeps a copy of the weight (out, in).
    pub(crate) fn new(weight: &Quantized, bias: Option<&Tensor>) -> Result<Self> {
        let bias = bias.map(|bias| with_values(bias, |values| Ok(values.to_vec()))).transpose()?;
        Ok(Self { weight: weight.to_owned_bytes(), bias })
    }

    /// `x` (.., in) to (.., out), with the residual of the same shape added.
    pub(crate) fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let (out, features) = (self.weight.dims()[0], self.weight.elem_count() / self.weight.dims()[0]);
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = out;
        }
        let each = (SPREAD_VALUES / features / SPREAD_OUTPUTS).max(1) * SPREAD_OUTPUTS;
        with_values(x, |values| {
            with_some(residual, |residual| {
                let rows = values.len() / features;
                let mut result = room(rows * out);
                let target = Target::new(&mut result);
                let work = self.weight.elem_count() * (rows + 1);
                let parts = collect(out.div_ceil(each), work, |part| {
                    let outputs = part * each..out.min((part + 1) * each);
                    let weight = self.weight.rows(outputs.clone())?;
                    let packed =
                        Packed::new(features, outputs.len(), |depth, column| weight[column * features + depth]);
                    drop(weight);
                    let bias = self.bias.as_ref().map(|bias| &bias[outputs.clone()]);
                    let addends = Addends { bias, residual: residual.map(|all| &all[outputs.start.min(all.len())..]) };
                    // SAFETY: each pointer is at a line of `features` values, the depth of the weight; the outputs of the
                    // parts do not overlap.
                    unsafe {
                        let to = target.from(outputs.start);
                        multiply_into(to, out, rows, (1, features), &packed, addends, lines(values, features));
                    }
                    Ok(())
                });
                parts.into_iter().collect::<Result<()>>()?;
                // SAFETY: the parts cover all outputs of all rows.
                tensor(unsafe { filled(result) }, shape, x)
            })
        })
    }
}
