//! Rotary position embedding: which kernel of `cuda/rope.cu`, and its teams of threads.

use candle_core::{DType, Result, Tensor};

use super::fill::{File, Grid, Kernel, aligned, blocks, fill, int, wide};
use crate::{Pairing, plain};

/// `RopeParameters` of `cuda/rope.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Parameters {
    x: u64,
    out: u64,
    cosines: u64,
    sines: u64,
    weight: u64,
    x_row: i64,
    x_step: i64,
    angles_row: i64,
    rows: i32,
    positions: i32,
    heads: i32,
    d: i32,
    team: i32,
    eps: f32,
}

const THREADS: usize = 256;

/// `x` (b, n, heads·d), `cos` and `sin` (n, d/2) or (b, n, d/2).
pub(crate) fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor, heads: usize, pairing: Pairing) -> Result<Tensor> {
    if x.elem_count() == 0 {
        return plain::rotary(x, cos, sin, heads, pairing);
    }
    turn(x, None, cos, sin, heads, pairing)
}

/// [`rotary`] of what an RMSNorm of each head gives: `weight` (d) in f32.
pub(crate) fn rms_norm_rope(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
    cos: &Tensor,
    sin: &Tensor,
    heads: usize,
    pairing: Pairing,
) -> Result<Tensor> {
    if x.elem_count() == 0 {
        return plain::rms_norm_rope(x, weight, eps, cos, sin, heads, pairing);
    }
    turn(x, Some((weight, eps)), cos, sin, heads, pairing)
}

fn turn(
    x: &Tensor,
    norm: Option<(&Tensor, f64)>,
    cos: &Tensor,
    sin: &Tensor,
    heads: usize,
    pairing: Pairing,
) -> Result<Tensor> {
    let (rows, positions, width) = x.dims3()?;
    let d = width / heads;
    let (wide, half) = (wide(x.dtype()), d / 2);
    // How many values are read together, for each pairing: the channels must go up in them.
    let (together, single, names) = match pairing {
        Pairing::Interleaved if d.is_multiple_of(wide) => (wide, false, NEIGHBOURS),
        Pairing::Interleaved => (2, true, NEIGHBOURS),
        Pairing::Halves if half.is_multiple_of(wide) => (wide, false, HALVES),
        Pairing::Halves => (1, true, HALVES),
    };
    let x = aligned(x, together)?;
    let angles = |angles: &Tensor| aligned(&angles.to_dtype(DType::F32)?.contiguous()?, 4);
    let (cos, sin) = (angles(cos)?, angles(sin)?);
    // A set of values for each thread, or of two halves; the norm sums what is read the same way.
    let sets = if pairing == Pairing::Halves { half / together } else { d / together };
    let team = sets.max(1).next_power_of_two().min(32);
    let weight = norm.map(|(weight, _)| aligned(weight, 1)).transpose()?;
    let mut inputs = vec![&x, &cos, &sin];
    inputs.extend(&weight);
    let grid =
        Grid { blocks: (blocks(rows * positions * heads, THREADS / team)?, 1, 1), threads: THREADS as u32, shared: 0 };
    let name = names[usize::from(norm.is_some())][usize::from(single)];
    let kernel = Kernel { file: File::Rope, name, dtype: x.dtype() };
    let counts = [rows, positions, heads, d, team].map(int);
    let [rows, positions, heads, d, team] = counts;
    let (rows, positions, heads, d, team) = (rows?, positions?, heads?, d?, team?);
    // SAFETY: each team writes its head of its position, and together they write all; the strides are the tensor's own.
    unsafe {
        fill(kernel, grid, &inputs, x.shape(), x.dtype(), |addresses, out| Parameters {
            x: addresses[0],
            out,
            cosines: addresses[1],
            sines: addresses[2],
            weight: addresses.get(3).copied().unwrap_or(0),
            x_row: x.stride()[0] as i64,
            x_step: x.stride()[1] as i64,
            angles_row: if cos.rank() == 3 { cos.stride()[0] as i64 } else { 0 },
            rows,
            positions,
            heads,
            d,
            team,
            eps: norm.map_or(0.0, |(_, eps)| eps as f32),
        })
    }
}

/// The kernels of a pairing: without and with the norm, of wide and of single readings.
type Names = [[&'static str; 2]; 2];

const NEIGHBOURS: Names =
    [["rotary_neighbours", "rotary_neighbours_single"], ["rms_norm_neighbours", "rms_norm_neighbours_single"]];
const HALVES: Names = [["rotary_halves", "rotary_halves_single"], ["rms_norm_halves", "rms_norm_halves_single"]];
