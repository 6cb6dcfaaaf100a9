//! The transforms of one tile, along both sides.

use std::marker::PhantomData;

use pulp::{Simd, WithSimd};

use super::{
    super::{element::Element, simd::load},
    transform::Filter,
};

/// The transform of one tile's pixels.
///
/// The pixels must be readable for the channels, and the result writable for IN · IN places of whole vectors.
pub(super) struct Input<E, F, const IN: usize, const OUT: usize> {
    pub(super) pixels: [[*const E; IN]; IN],
    pub(super) channels: usize,
    pub(super) to: *mut f32,
    /// The values from a place to the next.
    pub(super) pitch: usize,
    pub(super) filter: PhantomData<F>,
}

impl<E: Element, F: Filter<IN, OUT>, const IN: usize, const OUT: usize> WithSimd for Input<E, F, IN, OUT> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for channel in (0..self.channels).step_by(S::F32_LANES) {
            let left = self.channels - channel;
            let mut rows = [[simd.splat_f32s(0.0); IN]; IN];
            for x in 0..IN {
                // SAFETY: the pixels are readable, as promised.
                let column = std::array::from_fn(|y| unsafe { E::load(simd, self.pixels[y][x].add(channel), left) });
                for (row, value) in rows.iter_mut().zip(F::input(simd, column)) {
                    row[x] = value;
                }
            }
            for (y, row) in rows.into_iter().enumerate() {
                for (x, value) in F::input(simd, row).into_iter().enumerate() {
                    // SAFETY: the result is writable, as promised.
                    unsafe {
                        self.to.add((y * IN + x) * self.pitch + channel).cast::<S::f32s>().write_unaligned(value);
                    }
                }
            }
        }
    }
}

/// The transform of one tile's sums to its results.
///
/// The sums must be readable for IN · IN places of whole vectors, the result writable for `columns` values of each pixel,
/// and the residual readable.
pub(super) struct Output<'a, E, F, const IN: usize, const OUT: usize> {
    pub(super) sums: *const f32,
    /// The values from a place to the next.
    pub(super) pitch: usize,
    pub(super) bias: Option<&'a [f32]>,
    /// What is added last, of the result's arrangement.
    pub(super) residual: Option<*const E>,
    pub(super) columns: usize,
    pub(super) to: *mut E,
    /// The values from a pixel to the one below, and to the next.
    pub(super) strides: (usize, usize),
    /// The pixels that the result has here, down and across.
    pub(super) size: (usize, usize),
    pub(super) filter: PhantomData<F>,
}

impl<E: Element, F: Filter<IN, OUT>, const IN: usize, const OUT: usize> WithSimd for Output<'_, E, F, IN, OUT> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for column in (0..self.columns).step_by(S::F32_LANES) {
            let left = self.columns - column;
            let bias = match self.bias {
                // SAFETY: there are as many values as columns.
                Some(bias) => unsafe { load(simd, bias.as_ptr().add(column), left) },
                None => simd.splat_f32s(0.0),
            };
            let mut rows = [[simd.splat_f32s(0.0); IN]; OUT];
            for x in 0..IN {
                let sums = std::array::from_fn(|y| {
                    // SAFETY: the sums are readable, as promised.
                    unsafe { self.sums.add((y * IN + x) * self.pitch + column).cast::<S::f32s>().read_unaligned() }
                });
                for (row, value) in rows.iter_mut().zip(F::output(simd, sums)) {
                    row[x] = value;
                }
            }
            for (y, row) in rows.into_iter().enumerate().take(self.size.0) {
                for (x, value) in F::output(simd, row).into_iter().enumerate().take(self.size.1) {
                    // SAFETY: the result is writable and the residual readable, as promised.
                    unsafe {
                        let place = y * self.strides.0 + x * self.strides.1 + column;
                        let mut sum = simd.add_f32s(value, bias);
                        if let Some(residual) = self.residual {
                            sum = simd.add_f32s(sum, E::load(simd, residual.add(place), left));
                        }
                        E::store(simd, self.to.add(place), left, sum);
                    }
                }
            }
        }
    }
}
