//! Normalisation of vectors: which kernel of `cuda/norm.cu`, and its teams of threads.

use candle_core::{D, Result, Tensor};

use super::fill::{File, Grid, Kernel, aligned, blocks, fill, int, wide};
use crate::plain;

/// `NormParameters` of `cuda/norm.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Parameters {
    x: u64,
    out: u64,
    weight: u64,
    bias: u64,
    scale: u64,
    shift: u64,
    scale_row: i64,
    shift_row: i64,
    vectors: i32,
    channels: i32,
    team: i32,
    positions: i32,
    eps: f32,
}

const THREADS: u32 = 256;

/// `x` (.., c), with `weight` and `bias` (c) in f32.
pub(crate) fn layer_norm(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    if x.elem_count() == 0 {
        return plain::layer_norm(x, weight, bias, eps);
    }
    normalize(["layer_norm", "layer_norm_single"], x, &[weight, bias], &[], eps)
}

/// `x` (.., c), with `weight` (c) in f32.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if x.elem_count() == 0 {
        return plain::rms_norm(x, weight, eps);
    }
    normalize(["rms_norm", "rms_norm_single"], x, &[Some(weight), None], &[], eps)
}

/// `x` (b, n, c), `scale` and `shift` (b, c).
pub(crate) fn ada_layer_norm(x: &Tensor, scale: &Tensor, shift: &Tensor, eps: f64) -> Result<Tensor> {
    // In one type the kernel reads them as they are; otherwise rounding one to the other's would lose digits.
    if x.elem_count() == 0 || scale.dtype() != x.dtype() || shift.dtype() != x.dtype() {
        return plain::ada_layer_norm(x, scale, shift, eps);
    }
    normalize(["ada_layer_norm", "ada_layer_norm_single"], x, &[], &[scale, shift], eps)
}

/// The kernel that reads 16 bytes at a time is the first of `names`. `weights` are (c) in f32, `of_rows` (b, c).
fn normalize(
    names: [&'static str; 2],
    x: &Tensor,
    weights: &[Option<&Tensor>],
    of_rows: &[&Tensor],
    eps: f64,
) -> Result<Tensor> {
    let (channels, together) = (x.dim(D::Minus1)?, wide(x.dtype()));
    // Whether values are read together depends on the shapes alone, so that the bits do.
    let single = channels % together != 0;
    let together = if single { 1 } else { together };
    let x = aligned(&x.contiguous()?, together)?;
    let weights = weights.iter().map(|weight| weight.map(|weight| aligned(weight, 4)).transpose());
    let weights = weights.collect::<Result<Vec<_>>>()?;
    let of_rows = of_rows.iter().map(|vectors| aligned(vectors, together)).collect::<Result<Vec<_>>>()?;
    let (vectors, team) = (x.elem_count() / channels, team(channels / together));
    let inputs: Vec<_> = [&x].into_iter().chain(weights.iter().flatten()).chain(&of_rows).collect();
    let rows_at = 1 + weights.iter().flatten().count();
    let stride = |index: usize| of_rows.get(index).map_or(0, |vectors: &Tensor| vectors.stride()[0] as i64);
    let (count, size, positions) = (int(vectors)?, int(channels)?, int(vectors / x.dim(0)?.max(1))?);
    let grid = Grid { blocks: (blocks(vectors, THREADS as usize / team)?, 1, 1), threads: THREADS, shared: 0 };
    let kernel = Kernel { file: File::Norm, name: names[usize::from(single)], dtype: x.dtype() };
    // SAFETY: each team writes its vector, and together they write all; the vectors of rows are as many as the rows.
    unsafe {
        fill(kernel, grid, &inputs, x.shape(), x.dtype(), |addresses, out| {
            let mut next = addresses[1..rows_at].iter().copied();
            let mut weight = |index: usize| match weights.get(index) {
                Some(Some(_)) => next.next().unwrap_or(0),
                _ => 0,
            };
            let of_row = |index: usize| addresses.get(rows_at + index).copied().unwrap_or(0);
            Parameters {
                x: addresses[0],
                out,
                weight: weight(0),
                bias: weight(1),
                scale: of_row(0),
                shift: of_row(1),
                scale_row: stride(0),
                shift_row: stride(1),
                vectors: count,
                channels: size,
                team: team as i32,
                positions: positions.max(1),
                eps: eps as f32,
            }
        })
    }
}

/// Threads for one vector of `packs` sets of values: a power of two, so that each has 2 to 4 of them.
fn team(packs: usize) -> usize {
    match packs / 2 {
        0 => 1,
        most => (1 << most.ilog2()).min(THREADS as usize),
    }
}
