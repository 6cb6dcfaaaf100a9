//! Rotary position embedding: each head is read and written once.

use candle_core::{Result, Tensor};
use pulp::{Simd, WithSimd};

use super::{
    buffer::{Target, filled, room},
    element::load_at,
    pool::tasks,
    simd::{dispatch, load, store},
    tensor, with_values,
};
use crate::Pairing;

/// The values of one task.
const CHUNK: usize = 1 << 13;
/// What a value costs in the pool's measure.
const COST: usize = 8;

/// `x` (b, n, heads·d), `cos` and `sin` (n, d/2) or (b, n, d/2).
pub(crate) fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor, heads: usize, pairing: Pairing) -> Result<Tensor> {
    let (_, _, width) = x.dims3()?;
    let pairs = width / (2 * heads);
    let angles = with_values(cos, |cos| with_values(sin, |sin| Ok(together(cos, sin, pairs, pairing))))?;
    with_values(x, |values| {
        let mut result = room(values.len());
        let target = Target::new(&mut result);
        let chunk = (CHUNK / width.max(1)).max(1);
        let lines = values.len() / width.max(1);
        // With angles for all rows, the lines of each row begin with the first angles again.
        let positions = angles.len() / (2 * pairs).max(1);
        tasks(lines.div_ceil(chunk), values.len() * COST, |task| {
            for line in task * chunk..lines.min((task + 1) * chunk) {
                let values = &values[line * width..][..width];
                let angles = &angles[line % positions * 2 * pairs..][..2 * pairs];
                // SAFETY: each line lies within the result and belongs to one task.
                let to = unsafe { target.at(line * width) };
                match pairing {
                    Pairing::Interleaved => dispatch(Neighbours { values, angles, to }),
                    Pairing::Halves => dispatch(Halves { values, angles, to }),
                }
            }
        });
        // SAFETY: the lines cover the result.
        tensor(unsafe { filled(result) }, x.shape(), x)
    })
}

/// The cosines and sines of each position as its channels lie: by turns, or first the ones and then the others.
fn together(cos: &[f32], sin: &[f32], pairs: usize, pairing: Pairing) -> Vec<f32> {
    let positions = cos.chunks_exact(pairs.max(1)).zip(sin.chunks_exact(pairs.max(1)));
    match pairing {
        Pairing::Interleaved => cos.iter().zip(sin).flat_map(|(&cos, &sin)| [cos, sin]).collect(),
        Pairing::Halves => positions.flat_map(|(cos, sin)| cos.iter().chain(sin)).copied().collect(),
    }
}

/// One position's heads, whose pairs (x, y) lie side by side: the product of the complex numbers x + iy and cos + i·sin.
struct Neighbours<'a> {
    values: &'a [f32],
    angles: &'a [f32],
    to: *mut f32,
}

impl WithSimd for Neighbours<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let d = self.angles.len();
        for (head, values) in self.values.chunks_exact(d).enumerate() {
            for channel in (0..d).step_by(2 * S::C32_LANES) {
                // SAFETY: `d - channel` values are there to be read of both, and to be written.
                unsafe {
                    let x = load_pairs(simd, values.as_ptr().add(channel), d - channel);
                    let turn = load_pairs(simd, self.angles.as_ptr().add(channel), d - channel);
                    let y = simd.mul_e_c32s(x, turn);
                    store_pairs(simd, self.to.add(head * d + channel), d - channel, y);
                }
            }
        }
    }
}

/// Loads `count` values as complex numbers, or a whole vector if that is less; the other lanes are 0.
///
/// # Safety
/// That many values must be readable at `from`; the number is even.
#[inline(always)]
unsafe fn load_pairs<S: Simd>(simd: S, from: *const f32, count: usize) -> S::c32s {
    if count >= 2 * S::C32_LANES {
        // SAFETY: the caller's promise; a vector is plain data and needs no alignment here.
        unsafe { from.cast::<S::c32s>().read_unaligned() }
    } else {
        // SAFETY: the mask covers what the caller promised.
        unsafe { simd.mask_load_ptr_c32s(simd.mask_between_m32s(0, count as u32), from.cast()) }
    }
}

/// Stores the first `count` values of complex numbers, or the whole vector if it has fewer.
///
/// # Safety
/// That many values must be writable at `to`; the number is even.
#[inline(always)]
unsafe fn store_pairs<S: Simd>(simd: S, to: *mut f32, count: usize, values: S::c32s) {
    if count >= 2 * S::C32_LANES {
        // SAFETY: the caller's promise; a vector is plain data and needs no alignment here.
        unsafe { to.cast::<S::c32s>().write_unaligned(values) }
    } else {
        // SAFETY: the mask covers what the caller promised.
        unsafe { simd.mask_store_ptr_c32s(simd.mask_between_m32s(0, count as u32), to.cast(), values) }
    }
}

/// One position's heads, each with the first channels of its pairs in its first half.
struct Halves<'a> {
    values: &'a [f32],
    angles: &'a [f32],
    to: *mut f32,
}

impl WithSimd for Halves<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let d = self.angles.len();
        let pairs = d / 2;
        let (cosines, sines) = self.angles.split_at(pairs);
        for (head, values) in self.values.chunks_exact(d).enumerate() {
            let (first, second) = values.split_at(pairs);
            for pair in (0..pairs).step_by(S::F32_LANES) {
                let left = pairs - pair;
                let (cos, sin) = (load_at(simd, cosines, pair), load_at(simd, sines, pair));
                // SAFETY: at most `left` values are read of each half, and written to its result.
                unsafe {
                    let x = load(simd, first.as_ptr().add(pair), left);
                    let y = load(simd, second.as_ptr().add(pair), left);
                    let to = self.to.add(head * d + pair);
                    store(simd, to, left, simd.mul_add_e_f32s(simd.neg_f32s(y), sin, simd.mul_f32s(x, cos)));
                    store(simd, to.add(pairs), left, simd.mul_add_e_f32s(x, sin, simd.mul_f32s(y, cos)));
                }
            }
        }
    }
}

/// [`rotary`] of what [`rms_norm`](super::rms_norm) gives for each head: `weight` (d).
pub(crate) fn rms_norm_rope(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
    cos: &Tensor,
    sin: &Tensor,
    heads: usize,
    pairing: Pairing,
) -> Result<Tensor> {
    let (b, n, width) = x.dims3()?;
    let normed = super::rms_norm(&x.reshape((b, n, heads, width / heads))?, weight, eps)?;
    rotary(&normed.reshape((b, n, width))?, cos, sin, heads, pairing)
}
