//! What becomes of sums: they are rounded to bf16, with all that is to be added.

use half::bf16;

use super::{
    super::convert::{round, widen},
    Addends,
};

/// The sums of some rows, and the columns of the result that they go to.
pub(super) struct Finish<'a> {
    /// Row r begins at `r * pitch`.
    pub(super) sums: &'a [f32],
    pub(super) pitch: usize,
    /// The bias of these columns and of later ones; the residual from the first row's first column on, arranged as the result is.
    pub(super) addends: Addends<'a, bf16>,
    pub(super) rows: usize,
    pub(super) width: usize,
    /// The first row's first column, and how far the next row is.
    pub(super) to: *mut bf16,
    pub(super) stride: usize,
}

impl Finish<'_> {
    /// Rounds to the nearest, halves to even.
    ///
    /// # Safety
    /// The result must be writable for `width` values of each row.
    pub(super) unsafe fn run(self) {
        #[cfg(target_arch = "x86_64")]
        if super::available() {
            // SAFETY: the instructions are there, and the result is as the caller promised.
            return unsafe { self.by_vectors() };
        }
        // SAFETY: the caller's promise.
        unsafe { self.one_by_one() };
    }

    /// The same on any processor: for a model of the instructions, and to compare with.
    ///
    /// # Safety
    /// As [`Finish::run`].
    pub(super) unsafe fn one_by_one(self) {
        for (row, column) in (0..self.rows).flat_map(|row| (0..self.width).map(move |column| (row, column))) {
            let place = row * self.stride + column;
            let mut sum = self.sums[row * self.pitch + column];
            if let Some(bias) = self.addends.bias {
                sum += bias[column];
            }
            if let Some(residual) = self.addends.residual {
                sum += widen(residual[place]);
            }
            // SAFETY: the row's columns are writable, as promised.
            unsafe { *self.to.add(place) = round(sum) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256bh, __m256i, _mm256_mask_storeu_epi16, _mm256_maskz_loadu_epi16, _mm512_add_ps, _mm512_castsi512_ps,
        _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh, _mm512_maskz_loadu_ps, _mm512_slli_epi32,
    };

    use super::{super::packed::LANES, Finish};

    impl Finish<'_> {
        /// Numbers too small for f32's full precision become zeros, as in the products.
        ///
        /// # Safety
        /// The instructions must be there, see [`super::super::available`], and the result be writable for `width` values of
        /// each row.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
        pub(super) unsafe fn by_vectors(self) {
            for row in 0..self.rows {
                for column in (0..self.width).step_by(LANES) {
                    let left = LANES.min(self.width - column);
                    let mask = u16::MAX >> (LANES - left);
                    let sums = &self.sums[row * self.pitch + column..][..left];
                    let place = row * self.stride + column;
                    // SAFETY: no more is read than was sliced, and the row's columns are writable, as promised.
                    unsafe {
                        let mut sum = _mm512_maskz_loadu_ps(mask, sums.as_ptr());
                        if let Some(bias) = self.addends.bias {
                            sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, bias[column..][..left].as_ptr()));
                        }
                        if let Some(residual) = self.addends.residual {
                            let residual = _mm256_maskz_loadu_epi16(mask, residual[place..][..left].as_ptr().cast());
                            // A bf16 is the upper half of an f32.
                            let residual = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(residual));
                            sum = _mm512_add_ps(sum, _mm512_castsi512_ps(residual));
                        }
                        let rounded = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(sum));
                        _mm256_mask_storeu_epi16(self.to.add(place).cast(), mask, rounded);
                    }
                }
            }
        }
    }
}
