//! The affine map of a weight in few bits: spread out as a whole, then multiplied.

use std::{borrow::Cow, sync::Arc};

use candle_core::{
    DType, Device, Result, Tensor, bail,
    quantized::{QStorage, QTensor},
};

use super::{Linear, product_dtype};
use crate::{Iq4, Quantized, QuantizedFormat, QuantizedScale};

/// The weight (out, in) as it is stored, on the device that computes, and the bias.
#[derive(Debug, Clone)]
pub(crate) struct QuantizedLinear {
    weight: Stored,
    /// What the weight is multiplied by: (1, 1), or (out, 1) in f32.
    scale: Option<Tensor>,
    bias: Option<Tensor>,
    shape: (usize, usize),
    dtype: DType,
}

/// The stored values.
#[derive(Debug, Clone)]
enum Stored {
    /// ggml's blocks.
    Blocks(Arc<QTensor>),
    /// Bytes (out, in), and the value that each stands for (256).
    Bytes { bytes: Tensor, table: Tensor },
    /// Codes, two a byte (groups, 16), the pair that each byte stands for (256, 2), and the groups' scales (groups, 1, 1).
    Codes { codes: Tensor, table: Tensor, scales: Tensor },
}

impl QuantizedLinear {
    pub(crate) fn new(weight: &Quantized, bias: Option<Tensor>, dtype: DType, device: &Device) -> Result<Self> {
        let (bytes, scale) = weight.parts();
        let shape = weight.dims();
        let stored = match weight.format() {
            QuantizedFormat::Ggml(format) => {
                // candle reads blocks in place and insists on their alignment, which a file's offsets need not have.
                let storage = QStorage::from_data(Cow::Owned(bytes.to_vec()), device, format)?;
                Stored::Blocks(Arc::new(QTensor::new(storage, shape)?))
            }
            QuantizedFormat::Iq4(layout) => {
                let (codes, scales) = layout.split(bytes);
                let groups = scales.len();
                Stored::Codes {
                    codes: Tensor::from_vec(codes, (groups, 16), device)?,
                    table: Tensor::from_vec(Iq4::pairs(), (256, 2), device)?,
                    scales: Tensor::from_vec(scales, (groups, 1, 1), device)?,
                }
            }
            QuantizedFormat::F8(format) => Stored::Bytes {
                bytes: Tensor::from_slice(bytes, shape, device)?,
                table: Tensor::new(format.table().as_slice(), device)?,
            },
        };
        let scale = match scale {
            QuantizedScale::None => None,
            QuantizedScale::Whole(scale) => Some(Tensor::new(&[[*scale]], device)?),
            QuantizedScale::Rows(scales) => Some(Tensor::new(scales.as_slice(), device)?.unsqueeze(1)?),
        };
        let [out, features] = *shape else { bail!("a weight (out, in) is expected, not {shape:?}") };
        Ok(Self { weight: stored, scale, bias, shape: (out, features), dtype: product_dtype(dtype, device) })
    }

    /// The weight (out, in), in the type of the product.
    pub(crate) fn weight(&self) -> Result<Tensor> {
        let values = match &self.weight {
            Stored::Blocks(blocks) => blocks.dequantize(&blocks.device())?,
            Stored::Bytes { bytes, table } => table.index_select(&bytes.flatten_all()?, 0)?.reshape(bytes.shape())?,
            Stored::Codes { codes, table, scales } => {
                let pairs = table.index_select(&codes.flatten_all()?, 0)?.reshape((codes.dim(0)?, 16, 2))?;
                // All lower halves of a group come before its upper ones.
                pairs.transpose(1, 2)?.broadcast_mul(scales)?.reshape(self.shape)?
            }
        };
        let weight = match &self.scale {
            Some(scale) => values.broadcast_mul(scale)?,
            None => values,
        };
        weight.to_dtype(self.dtype)
    }

    /// The bias (out), if there is one.
    #[cfg(feature = "cuda")]
    pub(crate) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// `x` (.., in) to (.., out).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Linear::new(&self.weight()?, self.bias.as_ref())?.forward(x)
    }
}
