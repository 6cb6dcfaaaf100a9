//! Convolution by `cuda/conv2d.cu`, for where cuDNN is not: which of its kernels, and how many parts.

use candle_core::{D, DType, Result, Tensor};

use super::fill::{File, Grid, Kernel, aligned, blocks, fill, int};
use crate::Conv2dConfig;

/// `Conv2dParameters` of `cuda/conv2d.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Parameters {
    x: u64,
    weight: u64,
    bias: u64,
    out: u64,
    image: [i32; 3],
    result: [i32; 3],
    window: [i32; 2],
    stride: i32,
    top: i32,
    left: i32,
    positions: i32,
    steps: i32,
}

/// `SumParameters`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct SumParameters {
    parts: u64,
    bias: u64,
    out: u64,
    count: i64,
    channels: i32,
    number: i32,
}

/// Values that go up in the input's channels, so that 16 bytes are of one pixel.
const TOGETHER: usize = 8;

/// Values in the sums' direction that a block multiplies at a time, and how many of these tiles it holds.
const DEPTH: usize = 32;
const STAGES: usize = 4;

/// Blocks that keep a GPU busy: fewer are cut into parts, each of which multiplies this many tiles at least.
const BUSY: usize = 128;
const PART: usize = 16;

/// The weight (out, kh, kw, in) in f16 or bf16, the channels filled up with zeros, and the bias (out) in f32.
#[derive(Debug, Clone)]
pub(crate) struct OwnConv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    config: Conv2dConfig,
}

impl OwnConv2d {
    /// Whether there are kernels for weights of `dtype`.
    pub(crate) fn takes(dtype: DType) -> bool {
        matches!(dtype, DType::F16 | DType::BF16)
    }

    /// Takes the weight (out, in, kh, kw).
    pub(crate) fn new(weight: &Tensor, bias: Option<&Tensor>, config: Conv2dConfig) -> Result<Self> {
        let weight = fill_up(&weight.permute((0, 2, 3, 1))?)?.contiguous()?;
        let bias = bias.map(|bias| bias.to_dtype(DType::F32)?.contiguous()).transpose()?;
        Ok(Self { weight, bias, config })
    }

    /// `x` (b, h, w, in) to (b, h', w', out).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let dtype = self.weight.dtype();
        let input = aligned(&fill_up(&x.to_dtype(dtype)?)?.contiguous()?, TOGETHER)?;
        let (rows, h, w, channels) = input.dims4()?;
        let (out, kh, kw, _) = self.weight.dims4()?;
        let (out_h, out_w) = self.config.output_size((h, w), (kh, kw))?;
        let shape = (rows, out_h, out_w, out);
        let positions = rows * out_h * out_w;
        if positions * out == 0 {
            return Tensor::zeros(shape, x.dtype(), x.device());
        }
        let steps = (kh * kw * channels).div_ceil(DEPTH);
        // How many parts the sums have must be the same for every number of rows; the size of a block changes no bit.
        let alone = |size: usize| (out_h * out_w).div_ceil(size) * out.div_ceil(size);
        let parts = (BUSY / alone(64)).clamp(1, steps.div_ceil(PART));
        let steps_of_part = steps.div_ceil(parts);
        let parts = steps.div_ceil(steps_of_part);
        let (size, threads, name) = match parts {
            1 if positions.div_ceil(128) * out.div_ceil(128) >= BUSY => (128, 256, "conv2d_128"),
            1 => (64, 128, "conv2d_64"),
            _ => (64, 128, "conv2d_parts"),
        };
        // The tiles, whose memory then takes the result; rows are 16 bytes longer than their values.
        let shared = (STAGES * 2 * size * (DEPTH + 8)).max(size * (size + 8)) * dtype.size_in_bytes();
        // Blocks of one set of positions are neighbours: they gather the same pixels.
        let grid = Grid {
            blocks: (blocks(out, size)?, blocks(positions, size)?, blocks(parts, 1)?),
            threads,
            shared: shared as u32,
        };
        let padding = self.config.padding;
        let parameters = Parameters {
            x: 0,
            weight: 0,
            bias: 0,
            out: 0,
            image: [int(h)?, int(w)?, int(channels)?],
            result: [int(out_h)?, int(out_w)?, int(out)?],
            window: [int(kh)?, int(kw)?],
            stride: int(self.config.stride)?,
            top: int(padding.top)?,
            left: int(padding.left)?,
            positions: int(positions)?,
            steps: int(steps_of_part)?,
        };
        let kernel = |name: &'static str| Kernel { file: File::Conv2d, name, dtype };
        if parts == 1 {
            let mut inputs = vec![&input, &self.weight];
            inputs.extend(&self.bias);
            // SAFETY: each block writes its positions' channels, and together they write all.
            let y = unsafe {
                fill(kernel(name), grid, &inputs, shape, dtype, |addresses, out| Parameters {
                    x: addresses[0],
                    weight: addresses[1],
                    bias: addresses.get(2).copied().unwrap_or(0),
                    out,
                    ..parameters
                })?
            };
            return y.to_dtype(x.dtype());
        }
        // SAFETY: each block writes its part of its positions' channels, and together they write all.
        let sums = unsafe {
            fill(kernel(name), grid, &[&input, &self.weight], (parts, positions, out), DType::F32, |addresses, out| {
                Parameters { x: addresses[0], weight: addresses[1], out, ..parameters }
            })?
        };
        let mut inputs = vec![&sums];
        inputs.extend(&self.bias);
        let (count, channels, number) = (positions * out, int(out)?, int(parts)?);
        let grid = Grid { blocks: (blocks(count, 256)?, 1, 1), threads: 256, shared: 0 };
        // SAFETY: each thread writes one value.
        let y = unsafe {
            fill(kernel("conv2d_sum"), grid, &inputs, shape, dtype, |addresses, out| SumParameters {
                parts: addresses[0],
                bias: addresses.get(1).copied().unwrap_or(0),
                out,
                count: count as i64,
                channels,
                number,
            })?
        };
        y.to_dtype(x.dtype())
    }
}

/// `x` (.., c) with zeros behind its channels, so that they go up in sets of 16 bytes.
fn fill_up(x: &Tensor) -> Result<Tensor> {
    let channels = x.dim(D::Minus1)?;
    x.pad_with_zeros(D::Minus1, 0, channels.next_multiple_of(TOGETHER) - channels)
}
