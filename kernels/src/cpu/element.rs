//! The types that values are kept in; what is computed with is f32.

use candle_core::WithDType;
use half::bf16;
use pulp::Simd;

use super::convert::{round, widen};

/// The lanes of the widest vector.
const MOST_LANES: usize = 16;

/// f32, or bf16, whose values become f32 when they are loaded and are rounded when they are stored.
pub(super) trait Element: WithDType {
    /// Loads `count` values, or a whole vector if that is less; the other lanes are 0.
    ///
    /// # Safety
    /// That many values must be readable at `from`.
    unsafe fn load<S: Simd>(simd: S, from: *const Self, count: usize) -> S::f32s;

    /// Stores the first `count` lanes, or the whole vector if it has fewer.
    ///
    /// # Safety
    /// That many values must be writable at `to`.
    unsafe fn store<S: Simd>(simd: S, to: *mut Self, count: usize, values: S::f32s);

    /// The value in f32.
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const Self, count: usize) -> S::f32s {
        // SAFETY: the caller's promise.
        unsafe { super::simd::load(simd, from, count) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, to: *mut Self, count: usize, values: S::f32s) {
        // SAFETY: the caller's promise.
        unsafe { super::simd::store(simd, to, count, values) }
    }

    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(_: S, from: *const Self, count: usize) -> S::f32s {
        let mut lanes = [0_f32; MOST_LANES];
        // SAFETY: the caller's promise; the lanes are as many as the widest vector's, and vectors are plain data.
        unsafe {
            if count >= S::F32_LANES {
                // A loop of a known length, which becomes a vector's instructions.
                for (index, lane) in lanes.iter_mut().enumerate().take(S::F32_LANES) {
                    *lane = widen(*from.add(index));
                }
            } else {
                for (index, lane) in lanes.iter_mut().enumerate().take(count) {
                    *lane = widen(*from.add(index));
                }
            }
            lanes.as_ptr().cast::<S::f32s>().read_unaligned()
        }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(_: S, to: *mut Self, count: usize, values: S::f32s) {
        let mut lanes = [0_f32; MOST_LANES];
        // SAFETY: as above.
        unsafe {
            lanes.as_mut_ptr().cast::<S::f32s>().write_unaligned(values);
            if count >= S::F32_LANES {
                for (index, lane) in lanes.iter().enumerate().take(S::F32_LANES) {
                    to.add(index).write(round(*lane));
                }
            } else {
                for (index, lane) in lanes.iter().enumerate().take(count) {
                    to.add(index).write(round(*lane));
                }
            }
        }
    }

    fn to_f32(self) -> f32 {
        widen(self)
    }
}

/// Loads what a vector holds of `values` from `index` on; lanes beyond the values are 0.
#[inline(always)]
pub(super) fn load_at<S: Simd, E: Element>(simd: S, values: &[E], index: usize) -> S::f32s {
    let rest = &values[index..];
    // SAFETY: that many values are there.
    unsafe { E::load(simd, rest.as_ptr(), rest.len()) }
}

/// Calls a function with the type that the values of a tensor are read and written in: bf16 as it is, all others as f32.
macro_rules! in_own_type {
    ($x:expr, $function:ident($($argument:expr),*)) => {
        if $x.dtype() == candle_core::DType::BF16 {
            $function::<half::bf16>($($argument),*)
        } else {
            $function::<f32>($($argument),*)
        }
    };
}
pub(super) use in_own_type;
