//! The logarithm, sine and cosine that torch's vectorised normal transform computes with.
//!
//! torch does not call the C library there: it evaluates Cephes' single-precision polynomials
//! (ATen/native/cpu/avx_mathfun.h, after S. Moshier), and its compiler fuses multiplications and
//! additions. The last bit of a picture's noise depends on both, so the fusing is spelt out here.

#![allow(clippy::excessive_precision, reason = "the coefficients are given with their source's digits")]

/// Natural logarithm of `x` in 0 < x <= 1.
fn ln(x: f32) -> f32 {
    const P: [f32; 9] = [
        7.037_683_629_2e-2,
        -1.151_461_031_0e-1,
        1.167_699_874_0e-1,
        -1.242_014_084_6e-1,
        1.424_932_278_7e-1,
        -1.666_805_766_5e-1,
        2.000_071_476_5e-1,
        -2.499_999_399_3e-1,
        3.333_333_117_4e-1,
    ];
    let bits = x.max(f32::MIN_POSITIVE).to_bits();
    let exponent = (bits >> 23) as i32 - 126;
    // The mantissa as a number in 0.5..1.
    let m = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000);
    let (m, e) = if m < std::f32::consts::FRAC_1_SQRT_2 {
        ((m - 1.0) + m, (exponent - 1) as f32)
    } else {
        (m - 1.0, exponent as f32)
    };
    let z = m * m;
    let y = P[1..].iter().fold(P[0], |y, p| y.mul_add(m, *p)) * m;
    let y = y.mul_add(z, e * -2.121_944_40e-4);
    let y = z.mul_add(-0.5, y);
    e.mul_add(0.693_359_375, m + y)
}

/// Sine and cosine of `x` in 0 <= x <= 2π.
fn sin_cos(x: f32) -> (f32, f32) {
    let j = ((x * 1.273_239_544_735_16) as i32 + 1) & !1;
    let y = j as f32;
    // π/4 in three parts, so that the remainder keeps its precision.
    let x = y.mul_add(-0.785_156_25, x);
    let x = y.mul_add(-2.418_756_484_985_351_562_5e-4, x);
    let x = y.mul_add(-3.774_894_977_445_941_08e-8, x);
    let z = x * x;
    let cos =
        2.443_315_711_809_948e-5_f32.mul_add(z, -1.388_731_625_493_765e-3).mul_add(z, 4.166_664_568_298_827e-2) * z;
    let cos = cos.mul_add(z, -(z * 0.5)) + 1.0;
    let sin = (-1.951_529_589_1e-4_f32).mul_add(z, 8.332_160_873_6e-3).mul_add(z, -1.666_665_461_1e-1) * z;
    let sin = sin.mul_add(x, x);
    let (s, c) = if j & 2 == 0 { (sin, cos) } else { (cos, sin) };
    let flip = |value: f32, bit: i32| f32::from_bits(value.to_bits() ^ ((bit as u32) << 29));
    (flip(s, j & 4), flip(c, !(j - 2) & 4))
}

/// Turns 16 numbers, uniform in 0..1, into 16 standard normal ones in place: the first eight are
/// radii, the last eight angles (Box and Muller, 1958).
pub(super) fn transform(block: &mut [f32]) {
    let (radii, angles) = block.split_at_mut(8);
    for (a, b) in radii.iter_mut().zip(angles) {
        let radius = (-2.0 * ln(1.0 - *a)).sqrt();
        let (sin, cos) = sin_cos(std::f32::consts::TAU * *b);
        (*a, *b) = (radius * cos, radius * sin);
    }
}
