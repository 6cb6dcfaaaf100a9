//! The transforms of Winograd's minimal filtering, along one side.
//!
//! The filters are Toom and Cook's: a tile's values are a polynomial's coefficients, and the transforms take it to its
//! values at some points and back. Points of nearly the same size keep the sums' errors small (Barabasz et al., "Error
//! Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", 2018): with ±5/8 and ±3/2 the
//! error is less than half of that with the usual ±1 and ±2. Every coefficient for the values is exact in f32.

use pulp::Simd;

/// F(OUT, 3): OUT neighbouring results of a window of three, from IN = OUT + 2 values by IN multiplications.
pub(super) trait Filter<const IN: usize, const OUT: usize> {
    /// What takes a window of three weights to the IN factors.
    const WEIGHT: [[f64; 3]; IN];

    /// Takes IN neighbouring values to the other factors.
    fn input<S: Simd>(simd: S, values: [S::f32s; IN]) -> [S::f32s; IN];

    /// Takes the IN products, or sums of such, to OUT neighbouring results.
    fn output<S: Simd>(simd: S, products: [S::f32s; IN]) -> [S::f32s; OUT];
}

/// F(2, 3) at the points 0, 1, -1 and infinity: only additions.
pub(super) struct Two;

impl Filter<4, 2> for Two {
    const WEIGHT: [[f64; 3]; 4] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];

    #[inline(always)]
    fn input<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 4] {
        [simd.sub_f32s(a, c), simd.add_f32s(b, c), simd.sub_f32s(c, b), simd.sub_f32s(b, d)]
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 2] {
        [simd.add_f32s(a, simd.add_f32s(b, c)), simd.sub_f32s(simd.sub_f32s(b, c), d)]
    }
}

/// F(4, 3) at the points 0, ±[`NEAR`], ±[`FAR`] and infinity.
pub(super) struct Four;

/// The points' squares multiply to about 1, and so do the sums of large and of small values.
const NEAR: f64 = 0.625;
const FAR: f64 = 1.5;
const NEAR_2: f64 = NEAR * NEAR;
const FAR_2: f64 = FAR * FAR;

/// The row of the weights' transform for a point whose square is `square`, when the other pair's is `other`.
const fn weight_at(point: f64, square: f64, other: f64) -> [f64; 3] {
    let scale = 1.0 / (2.0 * square * (square - other));
    [scale, point * scale, square * scale]
}

impl Filter<6, 4> for Four {
    const WEIGHT: [[f64; 3]; 6] = [
        [1.0 / (NEAR_2 * FAR_2), 0.0, 0.0],
        weight_at(NEAR, NEAR_2, FAR_2),
        weight_at(-NEAR, NEAR_2, FAR_2),
        weight_at(FAR, FAR_2, NEAR_2),
        weight_at(-FAR, FAR_2, NEAR_2),
        [0.0, 0.0, 1.0],
    ];

    #[inline(always)]
    fn input<S: Simd>(simd: S, [a, b, c, d, e, f]: [S::f32s; 6]) -> [S::f32s; 6] {
        let splat = |value: f64| simd.splat_f32s(value as f32);
        let fma = |factor, x, y| simd.mul_add_e_f32s(factor, x, y);
        // x (x² - p²) (x² - q²) without the factor of each point: one polynomial for both signs of the other pair.
        let (product, sum) = (splat(NEAR_2 * FAR_2), splat(-(NEAR_2 + FAR_2)));
        let (near_2, far_2) = (splat(-NEAR_2), splat(-FAR_2));
        let (near_even, near_odd) = (fma(far_2, c, e), fma(far_2, b, d));
        let (far_even, far_odd) = (fma(near_2, c, e), fma(near_2, b, d));
        [
            fma(product, a, fma(sum, c, e)),
            fma(splat(NEAR), near_odd, near_even),
            fma(splat(-NEAR), near_odd, near_even),
            fma(splat(FAR), far_odd, far_even),
            fma(splat(-FAR), far_odd, far_even),
            fma(product, b, fma(sum, d, f)),
        ]
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, [a, b, c, d, e, f]: [S::f32s; 6]) -> [S::f32s; 4] {
        let splat = |value: f64| simd.splat_f32s(value as f32);
        let fma = |factor, x, y| simd.mul_add_e_f32s(factor, x, y);
        let (near_even, near_odd) = (simd.add_f32s(b, c), simd.sub_f32s(b, c));
        let (far_even, far_odd) = (simd.add_f32s(d, e), simd.sub_f32s(d, e));
        [
            simd.add_f32s(a, simd.add_f32s(near_even, far_even)),
            fma(splat(NEAR), near_odd, simd.mul_f32s(splat(FAR), far_odd)),
            fma(splat(NEAR_2), near_even, simd.mul_f32s(splat(FAR_2), far_even)),
            fma(splat(NEAR * NEAR_2), near_odd, fma(splat(FAR * FAR_2), far_odd, f)),
        ]
    }
}
