//! The kernels against the plain forms, run on the CPU (see [`emulated`]).

pub(super) mod emulated;

use candle_core::{DType, Device, Result, Tensor};

use super::{
    OwnConv2d, ada_layer_norm, add, attention, gated_add, geglu, gelu, gelu_tanh, group_norm, layer_norm, quick_gelu,
    rms_norm, rms_norm_rope, rotary, silu, upsample_nearest,
};
use crate::{
    Conv2dConfig, Padding, Pairing, causal_mask, plain,
    tests::{convolutions, distance, noise},
};

/// The three types, with what rounding to each allows.
const TYPES: [(DType, f64); 3] = [(DType::F32, 2e-6), (DType::F16, 1e-3), (DType::BF16, 8e-3)];

/// Holds `kernel` to `oracle`, which are both given two rows of each of `shapes`, in each type: to what the type allows, and
/// each row among others to itself alone, bit by bit.
fn check(
    name: &str,
    shapes: &[&[usize]],
    kernel: impl Fn(&[Tensor]) -> Result<Tensor>,
    oracle: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    for (dtype, tolerance) in TYPES {
        let inputs = shapes
            .iter()
            .zip(100..)
            .map(|(shape, seed)| noise(seed, [&[2], *shape].concat())?.to_dtype(dtype))
            .collect::<Result<Vec<_>>>()?;
        let y = kernel(&inputs)?;
        assert_eq!(y.dtype(), dtype);
        let distance = distance(&y, &oracle(&inputs)?)?;
        assert!(distance < tolerance, "{name} {shapes:?} in {dtype:?}: {distance}");
        // The last row is the one that starts in the middle of a tensor.
        let alone = inputs.iter().map(|x| x.narrow(0, 1, 1)).collect::<Result<Vec<_>>>()?;
        let (alone, among) = (kernel(&alone)?, y.narrow(0, 1, 1)?);
        assert!(bits(&alone)? == bits(&among)?, "{name} {shapes:?} in {dtype:?}: a row differs alone");
    }
    Ok(())
}

fn bits(x: &Tensor) -> Result<Vec<u32>> {
    Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

/// Attention without a mask and with one of each shape in `masks`, which broadcasts to what the face gives its forms.
fn check_attention([n, m, heads, d]: [usize; 4], masks: &[&[usize]]) -> Result<()> {
    let (q, kv) = (&[n, heads * d][..], &[m, heads * d][..]);
    let masks = masks.iter().map(|shape| noise(7, *shape).map(Some)).chain([Ok(None)]).collect::<Result<Vec<_>>>()?;
    for mask in masks {
        let of = |x: &Tensor| -> Result<Option<Tensor>> {
            mask.as_ref().map(|mask| mask.broadcast_as((x.dim(0)?, heads, n, m))).transpose()
        };
        check(
            "attention",
            &[q, kv, kv],
            |x| attention(&x[0], &x[1], &x[2], heads, of(&x[0])?.as_ref()),
            |x| plain::attention(&x[0], &x[1], &x[2], heads, of(&x[0])?.as_ref()),
        )?;
    }
    Ok(())
}

#[test]
fn attention_is_the_plain_form_s_for_heads_of_every_size() -> Result<()> {
    // One of each kernel, with the heads that do not fill it, more than a tile of queries and of keys, and less than one.
    for sizes in [
        [1, 1, 1, 8],
        [130, 77, 2, 40],
        [66, 150, 1, 64],
        [5, 3, 3, 5],
        [20, 70, 1, 80],
        [9, 65, 1, 96],
        [66, 33, 1, 128],
        [65, 40, 2, 160],
        [10, 66, 1, 256],
        [10, 34, 1, 512],
        [3, 20, 1, 111],
        [3, 10, 1, 520],
    ] {
        check_attention(sizes, &[&sizes[..2]])?;
    }
    check_attention([20, 70, 3, 24], &[&[1, 1, 20, 70], &[1, 3, 1, 70], &[1, 3, 20, 1]])
}

#[test]
fn attention_of_a_query_without_keys_is_no_number_and_a_mask_of_the_least_number_is_none() -> Result<()> {
    let n = 70;
    for dtype in [DType::F32, DType::BF16] {
        let [q, k, v] = [1, 2, 3].map(|seed| noise(seed, (1, n, 16)).unwrap().to_dtype(dtype).unwrap());
        let mask = causal_mask(n, &Device::Cpu)?.roll(1, 1)?.broadcast_as((1, 1, n, n))?.contiguous()?;
        let y = attention(&q, &k, &v, 1, Some(&mask))?;
        let plain = plain::attention(&q, &k, &v, 1, Some(&mask))?;
        for (query, (y, plain)) in bits(&y)?.chunks(16).zip(bits(&plain)?.chunks(16)).enumerate() {
            let nan = |line: &[u32]| line.iter().all(|bits| f32::from_bits(*bits).is_nan());
            assert_eq!(nan(y), nan(plain), "query {query} in {dtype:?}");
        }
        // All keys are as far away, so that all are as near.
        let far = Tensor::full(f32::MIN, (1, 1, n, n), &Device::Cpu)?;
        let y = attention(&q, &k, &v, 1, Some(&far))?;
        let mean = v.to_dtype(DType::F32)?.mean_keepdim(1)?.broadcast_as((1, n, 16))?;
        assert!(distance(&y, &mean)? < 1e-2);
    }
    Ok(())
}

#[test]
fn attention_reads_the_parts_of_a_wider_projection_in_place() -> Result<()> {
    let (n, width) = (33, 80);
    for dtype in [DType::F32, DType::F16] {
        let all = noise(1, (2, n, 3 * width))?.to_dtype(dtype)?;
        let parts = (0..3).map(|part| all.narrow(2, part * width, width)).collect::<Result<Vec<_>>>()?;
        let copies = parts.iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
        let y = attention(&parts[0], &parts[1], &parts[2], 2, None)?;
        assert!(bits(&y)? == bits(&attention(&copies[0], &copies[1], &copies[2], 2, None)?)?);
    }
    Ok(())
}

#[test]
fn group_norm_is_the_plain_form_s() -> Result<()> {
    for (shape, groups) in [
        (&[5, 7, 12][..], 4),
        (&[35, 6], 3),
        (&[16, 16, 64], 32),
        (&[1, 1, 4], 2),
        (&[33, 31, 40], 1),
        (&[2, 3, 70], 70),
        (&[300, 320], 32),
        (&[7, 2560], 32),
        (&[3, 3000], 30),
    ] {
        let channels = shape[shape.len() - 1];
        let (weight, bias) = (noise(6, channels)?, noise(7, channels)?);
        check(
            "group_norm",
            &[shape],
            |x| group_norm(&x[0], &weight, &bias, groups, 1e-5, false),
            |x| plain::group_norm(&x[0], &weight, &bias, groups, 1e-5),
        )?;
        check(
            "group_norm_silu",
            &[shape],
            |x| group_norm(&x[0], &weight, &bias, groups, 1e-5, true),
            |x| plain::silu(&plain::group_norm(&x[0], &weight, &bias, groups, 1e-5)?),
        )?;
    }
    Ok(())
}

#[test]
fn group_norm_keeps_the_digits_of_a_small_deviation_from_a_large_mean() -> Result<()> {
    let x = (noise(1, (1, 5000, 12))? + 1000.0)?;
    let (weight, bias) = (Tensor::ones(12, DType::F32, &Device::Cpu)?, Tensor::zeros(12, DType::F32, &Device::Cpu)?);
    let exact = plain::group_norm(&x.to_dtype(DType::F64)?, &weight, &bias, 4, 1e-5)?;
    // A mean of 1000 in f32 is itself off by up to 3e-5, and the result with it.
    assert!(distance(&group_norm(&x, &weight, &bias, 4, 1e-5, false)?, &exact)? < 3e-5);
    Ok(())
}

#[test]
fn norms_of_vectors_are_the_plain_forms() -> Result<()> {
    for shape in [&[1, 5][..], &[7, 33], &[3, 4, 768], &[19], &[5, 64], &[2, 3072], &[1, 9000], &[3, 1100]] {
        let channels = shape[shape.len() - 1];
        let (weight, bias) = (noise(8, channels)?, noise(9, channels)?);
        for (weight, bias) in [(Some(&weight), Some(&bias)), (Some(&weight), None), (None, Some(&bias)), (None, None)] {
            check(
                "layer_norm",
                &[shape],
                |x| layer_norm(&x[0], weight, bias, 1e-5),
                |x| plain::layer_norm(&x[0], weight, bias, 1e-5),
            )?;
        }
        check("rms_norm", &[shape], |x| rms_norm(&x[0], &weight, 1e-6), |x| plain::rms_norm(&x[0], &weight, 1e-6))?;
    }
    for (n, channels) in [(1, 2), (5, 18), (77, 68), (3, 256), (2, 3072)] {
        let (shape, vector) = (&[n, channels][..], &[channels][..]);
        check(
            "ada_layer_norm",
            &[shape, vector, vector],
            |x| ada_layer_norm(&x[0], &x[1], &x[2], 1e-6),
            |x| plain::ada_layer_norm(&x[0], &x[1], &x[2], 1e-6),
        )?;
        // The scale, the shift and the gate are parts of one projection.
        check(
            "ada_layer_norm of parts",
            &[shape, &[3 * channels]],
            |x| ada_layer_norm(&x[0], &x[1].narrow(1, 0, channels)?, &x[1].narrow(1, channels, channels)?, 1e-6),
            |x| plain::ada_layer_norm(&x[0], &x[1].narrow(1, 0, channels)?, &x[1].narrow(1, channels, channels)?, 1e-6),
        )?;
        check(
            "gated_add",
            &[shape, &[3 * channels], shape],
            |x| gated_add(&x[0], &x[1].narrow(1, channels, channels)?, &x[2]),
            |x| plain::gated_add(&x[0], &x[1].narrow(1, channels, channels)?, &x[2]),
        )?;
    }
    Ok(())
}

#[test]
fn rotary_and_the_norm_before_it_are_the_plain_forms() -> Result<()> {
    for (n, heads, d) in [(1, 1, 2), (5, 3, 6), (7, 2, 34), (33, 4, 64), (13, 1, 128), (9, 5, 18), (3, 2, 520)] {
        let (shape, angles) = (&[n, heads * d][..], &[n, d / 2][..]);
        let (cos, sin, weight) = (noise(11, (n, d / 2))?.cos()?, noise(11, (n, d / 2))?.sin()?, noise(12, d)?);
        for pairing in [Pairing::Interleaved, Pairing::Halves] {
            check(
                "rotary",
                &[shape],
                |x| rotary(&x[0], &cos, &sin, heads, pairing),
                |x| plain::rotary(&x[0], &cos, &sin, heads, pairing),
            )?;
            check(
                "rotary by row",
                &[shape, angles, angles],
                |x| rotary(&x[0], &x[1], &x[2], heads, pairing),
                |x| plain::rotary(&x[0], &x[1], &x[2], heads, pairing),
            )?;
            check(
                "rms_norm_rope",
                &[&[n, 2 * heads * d]],
                |x| rms_norm_rope(&x[0].narrow(2, heads * d, heads * d)?, &weight, 1e-6, &cos, &sin, heads, pairing),
                |x| {
                    let x = x[0].narrow(2, heads * d, heads * d)?;
                    plain::rms_norm_rope(&x, &weight, 1e-6, &cos, &sin, heads, pairing)
                },
            )?;
        }
    }
    Ok(())
}

#[test]
fn activations_are_the_plain_forms() -> Result<()> {
    type Form = fn(&Tensor) -> Result<Tensor>;
    let forms: [(&str, Form, Form); 5] = [
        ("silu", silu, plain::silu),
        ("gelu", gelu, plain::gelu),
        ("gelu_tanh", gelu_tanh, plain::gelu_tanh),
        ("quick_gelu", quick_gelu, plain::quick_gelu),
        ("geglu", geglu, plain::geglu),
    ];
    for (name, kernel, oracle) in forms {
        for shape in [&[2][..], &[7, 6], &[16, 16, 34], &[33, 200], &[3, 10000]] {
            check(name, &[shape], |x| kernel(&x[0]), |x| oracle(&x[0]))?;
        }
        if name != "geglu" {
            let far = Tensor::new(&[-1e30f32, -200.0, -9.0, 200.0, 1e30, f32::NAN], &Device::Cpu)?;
            let y = kernel(&far)?.to_vec1::<f32>()?;
            assert!(y[0].abs() < 1e-3 && y[1].abs() < 1e-30 && y[2].abs() < 2e-3, "{name}: {y:?}");
            assert!(y[3] == 200.0 && y[4] == 1e30 && y[5].is_nan(), "{name}: {y:?}");
        }
    }
    Ok(())
}

#[test]
fn sums_are_the_plain_form_s() -> Result<()> {
    for shape in [&[1][..], &[5, 3], &[7, 16], &[3, 5, 34], &[9, 11, 64]] {
        let channels = shape[shape.len() - 1];
        check("add", &[shape, shape], |x| add(&x[0], &x[1]), |x| plain::add(&x[0], &x[1]))?;
        check("add by row", &[shape, &[channels]], |x| add(&x[0], &x[1]), |x| plain::add(&x[0], &x[1]))?;
        check(
            "add a part by row",
            &[shape, &[3 * channels]],
            |x| add(&x[0], &x[1].narrow(1, channels, channels)?),
            |x| plain::add(&x[0], &x[1].narrow(1, channels, channels)?),
        )?;
    }
    Ok(())
}

#[test]
fn enlarging_gives_the_plain_form_s_bits() -> Result<()> {
    for (h, w) in [(10, 14), (5, 7), (11, 9), (3, 2), (82, 122)] {
        for channels in [3, 16] {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let x = noise(1, (2, 5, 7, channels))?.to_dtype(dtype)?;
                assert!(bits(&upsample_nearest(&x, h, w)?)? == bits(&plain::upsample_nearest(&x, h, w)?)?);
            }
        }
    }
    Ok(())
}

#[test]
fn convolution_is_the_plain_form_s() -> Result<()> {
    // So many positions that blocks are large and sums have one part.
    let large = ([100, 100, 8], 72, (1, 1), 1, Padding::default());
    for (image, out, kernel, stride, padding) in convolutions().into_iter().chain([large]) {
        let config = Conv2dConfig { stride, padding };
        for dtype in [DType::F16, DType::BF16] {
            let weight = noise(4, (out, image[2], kernel.0, kernel.1))?.to_dtype(dtype)?;
            let bias = noise(5, out)?.to_dtype(dtype)?;
            for bias in [Some(&bias), None] {
                let conv = OwnConv2d::new(&weight, bias, config)?;
                let plain = plain::Conv2d::new(&weight, bias, config)?;
                let x = noise(6, [&[2], &image[..]].concat())?.to_dtype(dtype)?;
                let (y, oracle) = (conv.forward(&x)?, plain.forward(&x)?);
                assert_eq!(y.dtype(), dtype);
                let (distance, allowed) = (distance(&y, &oracle)?, if dtype == DType::F16 { 1e-3 } else { 8e-3 });
                assert!(distance < allowed, "{image:?} to {out} in {dtype:?}: {distance}");
                let alone = conv.forward(&x.narrow(0, 1, 1)?)?;
                assert!(bits(&alone)? == bits(&y.narrow(0, 1, 1)?)?, "{image:?} in {dtype:?}: a row differs alone");
            }
        }
    }
    Ok(())
}
