//! Group normalisation: the two kernels of `cuda/group_norm.cu`.

use candle_core::{DType, Result, Tensor};

use super::fill::{File, Grid, Kernel, aligned, blocks, fill, int, wide};
use crate::plain;

/// `GroupNormParameters` of `cuda/group_norm.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Parameters {
    x: u64,
    out: u64,
    moments: u64,
    weight: u64,
    bias: u64,
    positions: i32,
    channels: i32,
    groups: i32,
    chunk: i32,
    eps: f32,
}

const THREADS: usize = 256;

/// Values of a chunk, so that even one image of a UNet gives each multiprocessor something to do ..
const CHUNK: usize = 16384;

/// .. and the most chunks of a row: each block of the second kernel reads the moments of all of them.
const CHUNKS: usize = 256;

/// `x` (b, .., c), `weight` and `bias` (c) in f32; followed by SiLU if `silu`.
pub(crate) fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    silu: bool,
) -> Result<Tensor> {
    let (rows, channels) = (x.dim(0)?, weight.dim(0)?);
    let single = channels % wide(x.dtype()) != 0;
    let together = if single { 1 } else { wide(x.dtype()) };
    // The first kernel keeps two numbers for each channel of each of its lines.
    let lines = (THREADS * together / channels.max(1)).max(1);
    let shared = 2 * lines * channels * size_of::<f32>();
    if x.elem_count() == 0 || shared > super::shared_memory(x)? as usize {
        let y = plain::group_norm(x, weight, bias, groups, eps)?;
        return if silu { plain::silu(&y) } else { Ok(y) };
    }
    let positions = x.elem_count() / rows / channels;
    let chunk = CHUNK.div_ceil(channels).max(positions.div_ceil(CHUNKS));
    let chunks = positions.div_ceil(chunk);
    let x = aligned(&x.contiguous()?, together)?;
    let (weight, bias) = (aligned(weight, 1)?, aligned(bias, 1)?);
    let grid = |shared: usize| -> Result<Grid> {
        let blocks = (blocks(chunks, 1)?, blocks(rows, 1)?, 1);
        Ok(Grid { blocks, threads: THREADS as u32, shared: shared as u32 })
    };
    let parameters = Parameters {
        x: 0,
        out: 0,
        moments: 0,
        weight: 0,
        bias: 0,
        positions: int(positions)?,
        channels: int(channels)?,
        groups: int(groups)?,
        chunk: int(chunk)?,
        eps: eps as f32,
    };
    let kernel =
        |names: [&'static str; 2]| Kernel { file: File::GroupNorm, name: names[usize::from(single)], dtype: x.dtype() };
    let first = kernel(["group_norm_moments", "group_norm_moments_single"]);
    // SAFETY: each block writes the moments of its chunk.
    let moments = unsafe {
        fill(first, grid(shared)?, &[&x], (rows, chunks, groups, 2), DType::F32, |addresses, out| Parameters {
            x: addresses[0],
            out,
            ..parameters
        })?
    };
    let second =
        kernel(if silu { ["group_norm_silu", "group_norm_silu_single"] } else { ["group_norm", "group_norm_single"] });
    let inputs = [&x, &moments, &weight, &bias];
    // SAFETY: each block writes its chunk.
    unsafe {
        fill(second, grid(2 * groups * size_of::<f32>())?, &inputs, x.shape(), x.dtype(), |addresses, out| Parameters {
            x: addresses[0],
            out,
            moments: addresses[1],
            weight: addresses[2],
            bias: addresses[3],
            ..parameters
        })
    }
}
