//! The functions of activations, for vectors of f32.
//!
//! Each is within 1e-6 of the exact value relative to it, where that is no denormal, and an activation of NaN is NaN.
//!
//! Whatever works on vectors must be inlined into the function that `dispatch` enters, since only that one is compiled for
//! them: so there are no closures over vectors and no iterator adapters in inner loops.

use pulp::Simd;

/// The argument below which [`exp`] stays at its smallest, about 2.5e-38.
pub(super) const EXP_LOW: f32 = -86.6;
const EXP_HIGH: f32 = 88.37;

/// `c[0] + c[1] x + c[2] x² + …`, by Horner's rule.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(simd: S, x: S::f32s, coefficients: [f32; N]) -> S::f32s {
    let mut sum = simd.splat_f32s(coefficients[N - 1]);
    for index in (0..N - 1).rev() {
        sum = simd.mul_add_e_f32s(sum, x, simd.splat_f32s(coefficients[index]));
    }
    sum
}

/// e^x, for x clamped to -86.6..=88.37, where the result is a normal number.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // The order of the arguments matters: where one is NaN, x86 takes the second.
    let x = simd.max_f32s(simd.splat_f32s(EXP_LOW), simd.min_f32s(simd.splat_f32s(EXP_HIGH), x));
    // Adding 1.5 · 2^23 rounds x / ln 2 to an integer, which then stands in the lowest bits.
    let magic = 12_582_912.0;
    let shifted = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), simd.splat_f32s(magic));
    let n = simd.sub_f32s(shifted, simd.splat_f32s(magic));
    // ln 2 in two parts, of which the first has few bits, so that its product with n is exact.
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-0.693_359_4), x);
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(2.121_944_4e-4), r);
    // The coefficients of expf in Cephes (Moshier).
    let p = polynomial(simd, r, [0.5, 0.166_666_65, 0.041_665_796, 8.333_452e-3, 1.398_2e-3, 1.987_569_1e-4]);
    let p = simd.mul_add_e_f32s(p, simd.mul_f32s(r, r), simd.add_f32s(r, simd.splat_f32s(1.0)));
    // Times 2^n: n is added to the exponent.
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(p), exponent))
}

/// 1 / (1 + e^-x).
#[inline(always)]
fn sigmoid<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    simd.div_f32s(one, simd.add_f32s(one, exp(simd, simd.neg_f32s(x))))
}

/// x · sigmoid(x).
#[inline(always)]
pub(super) fn silu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    simd.div_f32s(x, simd.add_f32s(one, exp(simd, simd.neg_f32s(x))))
}

/// x · sigmoid(1.702 x).
#[inline(always)]
pub(super) fn quick_gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    simd.mul_f32s(x, sigmoid(simd, simd.mul_f32s(x, simd.splat_f32s(1.702))))
}

/// 0.5 x (1 + tanh(u)) with u = sqrt(2/π) (x + 0.044715 x³), which is x · sigmoid(2u).
#[inline(always)]
pub(super) fn gelu_tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let slope = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
    let square = simd.mul_f32s(x, x);
    let factor = polynomial(simd, square, [slope as f32, (slope * 0.044_715) as f32]);
    simd.mul_f32s(x, sigmoid(simd, simd.mul_f32s(x, factor)))
}

/// x · Φ(x).
///
/// With z = |x| / √2 and t = 1 / (1 + 0.45 z), Φ(-|x|) = erfc(z) / 2 = e^(-z²) · t · P(t), where P is fitted to
/// erfcx(z) / t over z in 0..=9.5 by weighted least squares (relative error 1e-8 before rounding). No digits
/// cancel for negative x, where 1 + erf would lose them.
#[inline(always)]
pub(super) fn gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let size = simd.abs_f32s(x);
    let t = simd.mul_add_e_f32s(size, simd.splat_f32s(0.45 * std::f32::consts::FRAC_1_SQRT_2), simd.splat_f32s(1.0));
    let t = simd.div_f32s(simd.splat_f32s(1.0), t);
    let p = polynomial(
        simd,
        t,
        [
            0.253_866_64,
            0.254_284_26,
            0.224_637_34,
            0.193_499_03,
            0.063_880_49,
            0.087_338_686,
            0.005_279_423_7,
            -0.194_602_35,
            0.144_572_96,
            -0.032_756_51,
        ],
    );
    let e = exp(simd, simd.mul_f32s(simd.mul_f32s(x, x), simd.splat_f32s(-0.5)));
    let tail = simd.mul_f32s(simd.mul_f32s(e, simd.splat_f32s(0.5)), simd.mul_f32s(t, p));
    let upper = simd.sub_f32s(simd.splat_f32s(1.0), tail);
    let positive = simd.greater_than_or_equal_f32s(x, simd.splat_f32s(0.0));
    simd.mul_f32s(x, simd.select_f32s(positive, upper, tail))
}
