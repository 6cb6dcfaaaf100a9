//! Operations against their definitions, written out in f64 loops: the plain forms have no other oracle.

use candle_core::{DType, Device, Result, Tensor};

use super::*;
use crate::tests::{distance, noise};

/// Runs `check` with the forms in force, and with the plain forms.
fn in_both_forms(check: impl Fn() -> Result<()>) -> Result<()> {
    check()?;
    with_plain_forms(check)
}

fn values(x: &Tensor) -> Result<Vec<f64>> {
    x.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

fn assert_near(x: &Tensor, expected: Vec<f64>) -> Result<()> {
    let expected = Tensor::from_vec(expected, x.shape(), &Device::Cpu)?;
    let distance = distance(x, &expected)?;
    assert!(distance < 2e-6, "{distance}");
    Ok(())
}

#[test]
fn a_linear_layer_is_the_sum_of_weighted_features() -> Result<()> {
    let (x, weight, bias) = (noise(1, (2, 5, 37))?, noise(2, (50, 37))?, noise(3, 50)?);
    let (xs, w, b) = (values(&x)?, values(&weight)?, values(&bias)?);
    let mut expected = Vec::new();
    for line in xs.chunks(37) {
        for out in 0..50 {
            expected.push(b[out] + (0..37).map(|i| line[i] * w[out * 37 + i]).sum::<f64>());
        }
    }
    in_both_forms(|| assert_near(&Linear::new(weight.clone(), Some(bias.clone()))?.forward(&x)?, expected.clone()))
}

#[test]
fn a_convolution_slides_its_window_over_the_padded_image() -> Result<()> {
    let (h, w, channels, out, kh, kw, stride) = (6, 5, 3, 4, 3, 2, 2);
    let padding = Padding { top: 1, left: 2, bottom: 3, right: 0 };
    let (x, weight, bias) = (noise(1, (2, h, w, channels))?, noise(2, (out, channels, kh, kw))?, noise(3, out)?);
    let (xs, ws, bs) = (values(&x)?, values(&weight)?, values(&bias)?);
    let (out_h, out_w) = ((h + 4 - kh) / stride + 1, (w + 2 - kw) / stride + 1);
    let mut expected = Vec::new();
    for row in 0..2 {
        for (y, x, o) in (0..out_h).flat_map(|y| (0..out_w).flat_map(move |x| (0..out).map(move |o| (y, x, o)))) {
            let mut sum = bs[o];
            for (ky, kx) in (0..kh).flat_map(|ky| (0..kw).map(move |kx| (ky, kx))) {
                let (at_y, at_x) = (y * stride + ky, x * stride + kx);
                if (1..h + 1).contains(&at_y) && (2..w + 2).contains(&at_x) {
                    for c in 0..channels {
                        let pixel = xs[((row * h + at_y - 1) * w + at_x - 2) * channels + c];
                        sum += pixel * ws[((o * channels + c) * kh + ky) * kw + kx];
                    }
                }
            }
            expected.push(sum);
        }
    }
    in_both_forms(|| {
        let conv = Conv2d::new(weight.clone(), Some(bias.clone()), Conv2dConfig { stride, padding })?;
        let y = conv.forward(&x)?;
        assert_eq!(y.dims(), [2, out_h, out_w, out]);
        assert_near(&y, expected.clone())
    })
}

#[test]
fn group_norm_brings_each_group_to_mean_0_and_variance_1() -> Result<()> {
    // A mean a thousand times the deviation, of which a sum of squares in f32 would leave nothing.
    let (x, weight, bias) = ((noise(1, (2, 150, 12))? + 1000.0)?, noise(2, 12)?, noise(3, 12)?);
    let (xs, ws, bs) = (values(&x)?, values(&weight)?, values(&bias)?);
    let mut expected = vec![0.0; xs.len()];
    for (row, group) in (0..2).flat_map(|row| (0..3).map(move |group| (row, group))) {
        let members: Vec<usize> =
            (0..150).flat_map(|n| (0..4).map(move |c| (row * 150 + n) * 12 + group * 4 + c)).collect();
        let mean = members.iter().map(|i| xs[*i]).sum::<f64>() / 600.0;
        let variance = members.iter().map(|i| (xs[*i] - mean).powi(2)).sum::<f64>() / 600.0;
        for i in members {
            expected[i] = (xs[i] - mean) / (variance + 1e-5).sqrt() * ws[i % 12] + bs[i % 12];
        }
    }
    let activated: Vec<f64> = expected.iter().map(|x| x / (1.0 + (-x).exp())).collect();
    let norm = GroupNorm::new(weight, bias, 3, 1e-5)?;
    let near = |y: &Tensor, expected: &[f64]| -> Result<()> {
        let distance = distance(y, &Tensor::from_slice(expected, y.shape(), &Device::Cpu)?)?;
        // The plain form keeps the mean, about 1000, in f32.
        let tolerance = if plain_forms() { 2e-4 } else { 1e-6 };
        assert!(distance < tolerance, "{distance}");
        Ok(())
    };
    in_both_forms(|| {
        near(&norm.forward(&x)?, &expected)?;
        near(&norm.forward_silu(&x)?, &activated)
    })
}

#[test]
fn layer_norm_and_rms_norm_follow_their_definitions() -> Result<()> {
    let (x, weight, bias) = (noise(1, (3, 35))?, noise(2, 35)?, noise(3, 35)?);
    let (xs, ws, bs) = (values(&x)?, values(&weight)?, values(&bias)?);
    let (mut layer, mut rms) = (Vec::new(), Vec::new());
    for line in xs.chunks(35) {
        let mean = line.iter().sum::<f64>() / 35.0;
        let variance = line.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 35.0;
        let square = line.iter().map(|x| x * x).sum::<f64>() / 35.0;
        for (i, x) in line.iter().enumerate() {
            layer.push((x - mean) / (variance + 1e-5).sqrt() * ws[i] + bs[i]);
            rms.push(x / (square + 1e-6).sqrt() * ws[i]);
        }
    }
    in_both_forms(|| {
        let norm = LayerNorm::new(Some(weight.clone()), Some(bias.clone()), 1e-5)?;
        assert_near(&norm.forward(&x)?, layer.clone())?;
        assert_near(&RmsNorm::new(weight.clone(), 1e-6)?.forward(&x)?, rms.clone())
    })
}

#[test]
fn ada_layer_norm_and_the_gate_take_their_row_s_vectors() -> Result<()> {
    let (b, n, c) = (2, 3, 35);
    let (x, y) = (noise(1, (b, n, c))?, noise(2, (b, n, c))?);
    let (scale, shift) = (noise(3, (b, c))?, noise(4, (b, c))?);
    let (xs, ys, scales, shifts) = (values(&x)?, values(&y)?, values(&scale)?, values(&shift)?);
    let (mut normed, mut added) = (Vec::new(), Vec::new());
    for (index, line) in xs.chunks(c).enumerate() {
        let mean = line.iter().sum::<f64>() / c as f64;
        let variance = line.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c as f64;
        for (i, x) in line.iter().enumerate() {
            let vector = index / n * c + i;
            normed.push((x - mean) / (variance + 1e-6).sqrt() * (1.0 + scales[vector]) + shifts[vector]);
            added.push(x + scales[vector] * ys[index * c + i]);
        }
    }
    in_both_forms(|| {
        assert_near(&ada_layer_norm(&x, &scale, &shift, 1e-6)?, normed.clone())?;
        assert_near(&gated_add(&x, &scale, &y)?, added.clone())
    })
}

#[test]
fn a_sum_is_that_of_neighbours_or_of_a_row_s_vector() -> Result<()> {
    let (x, y, vector) = (noise(1, (2, 3, 4, 35))?, noise(2, (2, 3, 4, 35))?, noise(3, (2, 35))?);
    let (xs, ys, vs) = (values(&x)?, values(&y)?, values(&vector)?);
    let sums: Vec<f64> = xs.iter().zip(&ys).map(|(x, y)| x + y).collect();
    let moved: Vec<f64> = xs.iter().enumerate().map(|(i, x)| x + vs[i / (12 * 35) * 35 + i % 35]).collect();
    in_both_forms(|| {
        assert_near(&add(&x, &y)?, sums.clone())?;
        assert_near(&add(&x, &vector)?, moved.clone())
    })
}

#[test]
fn rotary_turns_each_pair_by_its_angle() -> Result<()> {
    let (n, heads, d) = (3, 2, 10);
    let (x, angles) = (noise(1, (2, n, heads * d))?, noise(2, (n, d / 2))?);
    let (cos, sin) = (angles.cos()?, angles.sin()?);
    let (xs, angles) = (values(&x)?, values(&angles)?);
    for pairing in [Pairing::Interleaved, Pairing::Halves] {
        let mut expected = vec![0.0; xs.len()];
        for (start, pair) in (0..xs.len()).step_by(d).flat_map(|start| (0..d / 2).map(move |pair| (start, pair))) {
            let (first, second) = match pairing {
                Pairing::Interleaved => (start + 2 * pair, start + 2 * pair + 1),
                Pairing::Halves => (start + pair, start + pair + d / 2),
            };
            let angle = angles[start / (heads * d) % n * (d / 2) + pair];
            expected[first] = xs[first] * angle.cos() - xs[second] * angle.sin();
            expected[second] = xs[second] * angle.cos() + xs[first] * angle.sin();
        }
        in_both_forms(|| assert_near(&rotary(&x, &cos, &sin, heads, pairing)?, expected.clone()))?;
    }
    Ok(())
}

#[test]
fn attention_is_a_softmax_of_the_keys_for_each_head() -> Result<()> {
    // More keys than a block holds, and the keys of a whole block forbidden to one query.
    let (n, m, heads, d) = (3, 800, 2, 5);
    let (q, k, v) = (noise(1, (1, n, heads * d))?, noise(2, (1, m, heads * d))?, noise(3, (1, m, heads * d))?);
    let mask: Vec<f32> =
        (0..n * m).map(|i| if i / m == 1 && i % m < 500 { f32::NEG_INFINITY } else { (i % 7) as f32 * 0.1 }).collect();
    let mask = Tensor::from_vec(mask, (n, m), &Device::Cpu)?;
    let (qs, ks, vs, ms) = (values(&q)?, values(&k)?, values(&v)?, values(&mask)?);
    let mut expected = vec![0.0; n * heads * d];
    for (i, head) in (0..n).flat_map(|i| (0..heads).map(move |head| (i, head))) {
        let at = |row: usize, c: usize| (row * heads + head) * d + c;
        let weights: Vec<f64> = (0..m)
            .map(|j| {
                let product: f64 = (0..d).map(|c| qs[at(i, c)] * ks[at(j, c)]).sum();
                (product / (d as f64).sqrt() + ms[i * m + j]).exp()
            })
            .collect();
        let total: f64 = weights.iter().sum();
        for c in 0..d {
            expected[at(i, c)] = (0..m).map(|j| weights[j] * vs[at(j, c)]).sum::<f64>() / total;
        }
    }
    in_both_forms(|| assert_near(&attention(&q, &k, &v, heads, Some(&mask))?, expected.clone()))
}

/// erf by its series, to f64's precision for |x| < 3 and to 1e-13 below 5.
fn erf(x: f64) -> f64 {
    let (mut sum, mut term) = (x, x);
    for n in 1..200 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn activations_keep_their_digits_over_the_whole_range() -> Result<()> {
    type Activation = (fn(&Tensor) -> Result<Tensor>, fn(f64) -> f64);
    let activations: [Activation; 4] = [
        (silu, |x| x / (1.0 + (-x).exp())),
        (quick_gelu, |x| x / (1.0 + (-1.702 * x).exp())),
        (gelu_tanh, |x| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())),
        (gelu, |x| 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))),
    ];
    let points: Vec<f32> = (-4000..=4000).map(|i| i as f32 * 1e-3).collect();
    let x = Tensor::from_slice(&points, points.len(), &Device::Cpu)?;
    for (of, exact) in activations {
        in_both_forms(|| {
            for (x, y) in points.iter().zip(values(&of(&x)?)?) {
                let exact = exact(f64::from(*x));
                // 1 + tanh and 1 + erf lose digits where they come near 0, in the plain forms.
                let tolerance =
                    if plain_forms() { 3e-7 * f64::from(x.abs().max(1.0)) } else { 1e-9 + 1e-6 * exact.abs() };
                assert!((y - exact).abs() < tolerance, "of {x}: {y} and not {exact}");
            }
            Ok(())
        })?;
        // Far out every one of them is 0 or the identity, and what is no number stays none.
        let far = Tensor::new(&[-1e30f32, -200.0, 200.0, 1e30, f32::NAN], &Device::Cpu)?;
        let y = of(&far)?.to_vec1::<f32>()?;
        assert!(y[0].abs() < 1e-3 && y[1].abs() < 1e-30, "{y:?}");
        assert!(y[2] == 200.0 && y[3] == 1e30 && y[4].is_nan(), "{y:?}");
    }
    Ok(())
}

#[test]
fn geglu_multiplies_the_first_half_by_the_second_half_s_gelu() -> Result<()> {
    let x = noise(1, (3, 4, 34))?;
    in_both_forms(|| {
        let (hidden, gate) = (x.narrow(2, 0, 17)?, x.narrow(2, 17, 17)?);
        let expected = (hidden * gelu(&gate)?)?;
        assert!(distance(&geglu(&x)?, &expected)? < 1e-6);
        Ok(())
    })
}

#[test]
fn enlarging_repeats_pixels_as_pytorch_does() -> Result<()> {
    let x = Tensor::arange(0f32, 6.0, &Device::Cpu)?.reshape((1, 2, 3, 1))?;
    in_both_forms(|| {
        let y = upsample_nearest(&x, 3, 5)?.reshape((3, 5))?.to_vec2::<f32>()?;
        assert_eq!(y, [[0., 0., 1., 1., 2.], [0., 0., 1., 1., 2.], [3., 3., 4., 4., 5.]]);
        // torch.nn.functional.interpolate from 2 to 82 gives 1 from index 41 on, although 41 · (2 / 82) is 1 exactly:
        // in f32 the quotient is a little less, so index 41 is still 0.
        let line = Tensor::arange(0f32, 2.0, &Device::Cpu)?.reshape((1, 2, 1, 1))?;
        let y = upsample_nearest(&line, 82, 1)?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(y.iter().filter(|value| **value == 0.0).count(), 42);
        Ok(())
    })
}

#[test]
fn shapes_that_do_not_fit_are_errors() -> Result<()> {
    let conv = Conv2d::new(noise(1, (4, 3, 3, 3))?, None, Conv2dConfig::default())?;
    assert!(conv.forward(&noise(2, (1, 8, 8, 4))?).is_err());
    assert!(conv.forward(&noise(2, (1, 2, 8, 3))?).is_err(), "the window is larger than the image");
    let still = Conv2dConfig { stride: 0, padding: Padding::default() };
    assert!(Conv2d::new(noise(1, (4, 3, 3, 3))?, None, still).is_err());
    assert!(Linear::new(noise(1, (4, 3))?, Some(noise(2, 3)?)).is_err());
    assert!(Linear::new(noise(1, (4, 3))?, None)?.forward(&noise(2, (2, 4))?).is_err());
    assert!(GroupNorm::new(noise(1, 10)?, noise(2, 10)?, 3, 1e-5).is_err());
    assert!(LayerNorm::new(Some(noise(1, 4)?), Some(noise(2, 5)?), 1e-5).is_err());
    let (q, k) = (noise(1, (1, 3, 8))?, noise(2, (1, 4, 8))?);
    assert!(attention(&q, &k, &k, 3, None).is_err());
    assert!(attention(&q, &k, &q, 2, None).is_err());
    assert!(geglu(&noise(1, (2, 3))?).is_err());
    assert!(add(&noise(1, (2, 3, 4))?, &noise(2, (1, 4))?).is_err());
    assert!(add(&noise(1, (2, 3, 4))?, &noise(2, (2, 1, 4))?).is_err());
    let (x, vector) = (noise(1, (2, 3, 8))?, noise(2, (1, 8))?);
    assert!(ada_layer_norm(&x, &vector, &vector, 1e-6).is_err());
    assert!(gated_add(&x, &noise(2, (2, 8))?, &q).is_err());
    let angles = noise(1, (3, 2))?;
    assert!(rotary(&x, &angles, &angles, 4, Pairing::Halves).is_err());
    assert!(rotary(&x, &angles, &angles, 8, Pairing::Halves).is_err(), "a head of one channel has no pair");
    Ok(())
}

#[test]
fn empty_tensors_pass_through() -> Result<()> {
    in_both_forms(|| {
        let linear = Linear::new(noise(1, (4, 3))?, None)?;
        assert_eq!(linear.forward(&noise(2, (0, 5, 3))?)?.dims(), [0, 5, 4]);
        let conv = Conv2d::new(noise(1, (4, 3, 3, 3))?, None, Conv2dConfig::default())?;
        assert_eq!(conv.forward(&noise(2, (0, 8, 8, 3))?)?.dims(), [0, 6, 6, 4]);
        assert_eq!(silu(&noise(2, (0, 8))?)?.dims(), [0, 8]);
        let (x, vector) = (noise(2, (0, 5, 8))?, noise(2, (0, 8))?);
        assert_eq!(add(&x, &vector)?.dims(), [0, 5, 8]);
        assert_eq!(ada_layer_norm(&x, &vector, &vector, 1e-6)?.dims(), [0, 5, 8]);
        assert_eq!(gated_add(&x, &vector, &x)?.dims(), [0, 5, 8]);
        assert_eq!(rotary(&x, &noise(3, (5, 2))?, &noise(3, (5, 2))?, 2, Pairing::Halves)?.dims(), [0, 5, 8]);
        Ok(())
    })
}
