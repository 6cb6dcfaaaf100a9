//! What holds for every operation and form: the plain form's values, and rows that do not depend on their batch.

use candle_core::{DType, Device, Result, Tensor};

use super::*;

/// Pseudo-random values in about -2..2 (an affine congruence, after Knuth): the same on every machine.
pub(crate) fn noise(seed: u64, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    let values: Vec<f32> = (0..shape.elem_count())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 22) as f32) - 2.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

fn bits(x: &Tensor) -> Result<Vec<u32>> {
    Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

/// The L2 distance of two tensors over the norm of the second.
pub(crate) fn distance(x: &Tensor, reference: &Tensor) -> Result<f64> {
    assert_eq!(x.dims(), reference.dims());
    let (x, reference) = (x.to_dtype(DType::F64)?, reference.to_dtype(DType::F64)?);
    let norm = |x: &Tensor| x.sqr()?.sum_all()?.to_scalar::<f64>();
    Ok((norm(&(x - &reference)?)? / norm(&reference)?).sqrt())
}

type Run = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

/// An operation with its weights, on inputs of given shapes without the first dimension.
struct Case {
    name: String,
    inputs: Vec<Vec<usize>>,
    run: Run,
}

fn case(name: &str, inputs: &[&[usize]], run: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> Case {
    let name = format!("{name} {inputs:?}");
    Case { name, inputs: inputs.iter().map(|shape| shape.to_vec()).collect(), run: Box::new(run) }
}

/// An image (h, w, channels), the channels that come out, the window, its stride, and what is added around the image.
pub(crate) type Convolution = ([usize; 3], usize, (usize, usize), usize, Padding);

/// Convolutions that every form is held to.
pub(crate) fn convolutions() -> Vec<Convolution> {
    let padding = |top, left, bottom, right| Padding { top, left, bottom, right };
    vec![
        ([5, 7, 3], 8, (3, 3), 1, Padding::same(1)),
        ([16, 16, 33], 35, (3, 3), 1, Padding::same(1)),
        ([8, 9, 64], 96, (3, 3), 2, Padding::same(1)),
        ([9, 8, 20], 17, (3, 3), 2, padding(0, 0, 1, 1)),
        ([6, 5, 31], 40, (1, 1), 1, Padding::default()),
        ([6, 5, 31], 40, (1, 1), 2, Padding::default()),
        ([11, 3, 2], 5, (5, 2), 3, padding(2, 0, 1, 3)),
        ([1, 1, 4], 4, (3, 3), 1, Padding::same(1)),
        ([4, 4, 600], 9, (3, 3), 1, Padding::same(1)),
        ([3, 40, 4], 64, (3, 3), 1, Padding::same(1)),
        // Those with sixteen channels or more on both sides are Winograd's on the CPU: images of one pixel and one line, sides that are
        // no multiple of a tile's, and more channels than are summed in one go.
        ([1, 1, 16], 16, (3, 3), 1, Padding::same(1)),
        ([1, 11, 40], 24, (3, 3), 1, Padding::same(1)),
        ([13, 2, 64], 49, (3, 3), 1, padding(2, 0, 1, 3)),
        ([7, 6, 17], 100, (3, 3), 1, Padding::default()),
        ([5, 4, 700], 20, (3, 3), 1, Padding::same(1)),
    ]
}

/// Every operation at odd sizes; layers are made anew, so in the form that is in force.
fn cases() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (n, features, out) in [(1, 1, 1), (1, 320, 129), (7, 5, 3), (77, 33, 70), (130, 257, 67), (16, 700, 64)] {
        let linear = Linear::new(noise(1, (out, features))?, Some(noise(2, out)?))?;
        let free = Linear::new(noise(3, (out, features))?, None)?;
        let (sum, free_sum) = (linear.clone(), free.clone());
        cases.push(case("linear", &[&[n, features]], move |x| linear.forward(&x[0])));
        cases.push(case("linear without bias", &[&[n, features]], move |x| free.forward(&x[0])));
        cases
            .push(case("linear with a residual", &[&[n, features], &[n, out]], move |x| sum.forward_add(&x[0], &x[1])));
        cases.push(case("linear without bias, with a residual", &[&[n, features], &[n, out]], move |x| {
            free_sum.forward_add(&x[0], &x[1])
        }));
        let flat = Linear::new(noise(1, (out, features))?, Some(noise(2, out)?))?;
        cases.push(case("linear of vectors", &[&[features]], move |x| flat.forward(&x[0])));
    }
    for (image, out, kernel, stride, padding) in convolutions() {
        let weight = noise(4, (out, image[2], kernel.0, kernel.1))?;
        let config = Conv2dConfig { stride, padding };
        let conv = Conv2d::new(weight.clone(), Some(noise(5, out)?), config)?;
        let free = Conv2d::new(weight, None, config)?;
        let (h, w) = config.output_size((image[0], image[1]), kernel)?;
        let sum = conv.clone();
        cases.push(case(&format!("conv2d {kernel:?} {config:?} with a residual"), &[&image, &[h, w, out]], move |x| {
            sum.forward_add(&x[0], &x[1])
        }));
        cases.push(case(&format!("conv2d {kernel:?} {config:?}"), &[&image], move |x| conv.forward(&x[0])));
        cases.push(case(&format!("conv2d {kernel:?} without bias"), &[&image], move |x| free.forward(&x[0])));
    }
    for (shape, groups) in [
        (vec![5, 7, 12], 4),
        (vec![35, 6], 3),
        (vec![16, 16, 64], 32),
        (vec![9, 9, 96], 32),
        (vec![1, 1, 4], 2),
        (vec![33, 31, 40], 1),
        (vec![2, 3, 70], 70),
    ] {
        let channels = *shape.last().unwrap_or(&0);
        let norm = GroupNorm::new(noise(6, channels)?, noise(7, channels)?, groups, 1e-5)?;
        let (with_silu, of_sum) = (norm.clone(), norm.clone());
        cases.push(case(&format!("group_norm_silu of a sum {groups}"), &[&shape, &[channels]], move |x| {
            of_sum.forward_sum_silu(&x[0], &x[1])
        }));
        cases.push(case(&format!("group_norm {groups}"), &[&shape], move |x| norm.forward(&x[0])));
        cases.push(case(&format!("group_norm_silu {groups}"), &[&shape], move |x| with_silu.forward_silu(&x[0])));
    }
    for shape in [vec![1, 5], vec![77, 33], vec![3, 4, 768], vec![1, 320], vec![19]] {
        let channels = *shape.last().unwrap_or(&0);
        let norm = LayerNorm::new(Some(noise(8, channels)?), Some(noise(9, channels)?), 1e-5)?;
        let bare = LayerNorm::new(None, None, 1e-6)?;
        let scaled = LayerNorm::new(Some(noise(8, channels)?), None, 1e-5)?;
        let rms = RmsNorm::new(noise(10, channels)?, 1e-6)?;
        cases.push(case("layer_norm", &[&shape], move |x| norm.forward(&x[0])));
        cases.push(case("layer_norm without weights", &[&shape], move |x| bare.forward(&x[0])));
        cases.push(case("layer_norm without bias", &[&shape], move |x| scaled.forward(&x[0])));
        cases.push(case("rms_norm", &[&shape], move |x| rms.forward(&x[0])));
    }
    for (n, m, heads, d) in [
        (1, 1, 1, 1),
        (5, 7, 2, 3),
        (64, 77, 8, 40),
        (33, 33, 1, 65),
        (130, 130, 3, 32),
        (17, 300, 2, 64),
        (9, 2, 4, 160),
        (5, 801, 1, 40),
    ] {
        let (q, kv) = (vec![n, heads * d], vec![m, heads * d]);
        cases.push(case(&format!("attention {heads}"), &[&q, &kv, &kv], move |x| {
            attention(&x[0], &x[1], &x[2], heads, None)
        }));
        cases.push(case(&format!("masked attention {heads}"), &[&q, &kv, &kv, &[1, n, m]], move |x| {
            attention(&x[0], &x[1], &x[2], heads, Some(&x[3]))
        }));
        if n == m {
            let mask = causal_mask(n, &Device::Cpu)?;
            cases.push(case(&format!("causal attention {heads}"), &[&q, &kv, &kv], move |x| {
                attention(&x[0], &x[1], &x[2], heads, Some(&mask))
            }));
        }
    }
    for shape in [vec![1], vec![7, 6], vec![16, 16, 34], vec![33, 200], vec![2000, 130]] {
        cases.push(case("silu", &[&shape], |x| silu(&x[0])));
        cases.push(case("gelu", &[&shape], |x| gelu(&x[0])));
        cases.push(case("gelu_tanh", &[&shape], |x| gelu_tanh(&x[0])));
        cases.push(case("quick_gelu", &[&shape], |x| quick_gelu(&x[0])));
        cases.push(case("add", &[&shape, &shape], |x| add(&x[0], &x[1])));
        let vector = shape[shape.len() - 1..].to_vec();
        cases.push(case("add a vector", &[&shape, &vector], |x| add(&x[0], &x[1])));
        if shape.len() > 1 {
            cases.push(case("geglu", &[&shape], |x| geglu(&x[0])));
        }
    }
    for (n, heads, d) in [(1, 1, 2), (5, 3, 6), (77, 2, 34), (33, 4, 64), (130, 1, 128), (9, 5, 18), (300, 2, 32)] {
        let shape = vec![n, heads * d];
        let vector = vec![heads * d];
        cases.push(case("ada_layer_norm", &[&shape, &vector, &vector], |x| ada_layer_norm(&x[0], &x[1], &x[2], 1e-6)));
        cases.push(case("gated_add", &[&shape, &vector, &shape], |x| gated_add(&x[0], &x[1], &x[2])));
        for pairing in [Pairing::Interleaved, Pairing::Halves] {
            let (cos, sin) = (noise(11, (n, d / 2))?.cos()?, noise(11, (n, d / 2))?.sin()?);
            let norm = RmsNorm::new(noise(12, d)?, 1e-6)?;
            let angles = (cos.clone(), sin.clone());
            cases.push(case(&format!("rms_norm_rope {heads} {pairing:?}"), &[&shape], move |x| {
                rms_norm_rope(&x[0], &norm, &angles.0, &angles.1, heads, pairing)
            }));
            let name = format!("rotary {heads} {pairing:?}");
            cases.push(case(&name, &[&shape], move |x| rotary(&x[0], &cos, &sin, heads, pairing)));
            let angles = vec![n, d / 2];
            cases.push(case(&format!("{name} by row"), &[&shape, &angles, &angles], move |x| {
                rotary(&x[0], &x[1], &x[2], heads, pairing)
            }));
        }
    }
    for (h, w) in [(10, 14), (5, 7), (11, 9), (3, 2), (82, 122)] {
        cases.push(case(&format!("upsample_nearest {h} {w}"), &[&[5, 7, 3]], move |x| upsample_nearest(&x[0], h, w)));
    }
    Ok(cases)
}

/// The inputs of `case` with `rows` rows; the first rows are the same whatever `rows` is.
fn inputs(case: &Case, rows: usize) -> Result<Vec<Tensor>> {
    case.inputs
        .iter()
        .enumerate()
        .map(|(index, shape)| {
            let mut shape = shape.clone();
            shape.insert(0, rows);
            noise(100 + index as u64, shape)
        })
        .collect()
}

fn assert_rows_stand_alone(cases: &[Case], dtype: DType) -> Result<()> {
    for case in cases {
        let all = inputs(case, 8)?.iter().map(|x| x.to_dtype(dtype)).collect::<Result<Vec<_>>>()?;
        let alone = (0..8)
            .map(|row| {
                let row = all.iter().map(|x| x.narrow(0, row, 1)).collect::<Result<Vec<_>>>()?;
                bits(&(case.run)(&row)?)
            })
            .collect::<Result<Vec<_>>>()?;
        for rows in [2, 3, 8] {
            let batch = all.iter().map(|x| x.narrow(0, 8 - rows, rows)).collect::<Result<Vec<_>>>()?;
            let y = (case.run)(&batch)?;
            for row in 0..rows {
                let same = bits(&y.narrow(0, row, 1)?)? == alone[8 - rows + row];
                assert!(same, "{} in {dtype:?}: row {row} of {rows} differs from itself alone", case.name);
            }
        }
    }
    Ok(())
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() -> Result<()> {
    let cases = cases()?;
    assert_rows_stand_alone(&cases, DType::F32)?;
    assert_rows_stand_alone(&cases, DType::BF16)
}

#[test]
fn a_row_of_the_plain_forms_has_the_same_bits_alone_and_in_any_batch() -> Result<()> {
    with_plain_forms(|| assert_rows_stand_alone(&cases()?, DType::F32))
}

#[test]
fn half_precision_gives_what_f32_gives_to_its_precision() -> Result<()> {
    for case in cases()? {
        let x = inputs(&case, 2)?;
        for (dtype, tolerance) in [(DType::F16, 5e-4), (DType::BF16, 4e-3)] {
            let half = x.iter().map(|x| x.to_dtype(dtype)).collect::<Result<Vec<_>>>()?;
            let y = (case.run)(&half)?;
            assert_eq!(y.dtype(), dtype);
            // The same rounded inputs in f32: what remains is the rounding of the result.
            let rounded = half.iter().map(|x| x.to_dtype(DType::F32)).collect::<Result<Vec<_>>>()?;
            let distance = distance(&y, &(case.run)(&rounded)?)?;
            assert!(distance < tolerance, "{} in {dtype:?}: {distance}", case.name);
        }
    }
    Ok(())
}

/// What f32 allows: sums of up to some thousand terms, added up in another order.
const TOLERANCE: f64 = 2e-6;

#[test]
fn every_form_gives_what_the_plain_form_gives() -> Result<()> {
    let (fast, plain) = (cases()?, with_plain_forms(cases)?);
    for (fast, plain) in fast.iter().zip(&plain) {
        for rows in [1, 3] {
            let x = inputs(fast, rows)?;
            let reference = with_plain_forms(|| (plain.run)(&x))?;
            let distance = distance(&(fast.run)(&x)?, &reference)?;
            assert!(distance < TOLERANCE, "{} with {rows} rows: {distance}", fast.name);
        }
    }
    Ok(())
}

#[test]
fn an_input_that_is_not_contiguous_gives_what_its_copy_gives() -> Result<()> {
    for case in cases()? {
        let strided = inputs(&case, 4)?
            .iter()
            .map(|x| {
                // Rows 1 and 3 of a tensor whose first two dimensions lie in memory the other way round.
                let turned = x.transpose(0, 1)?.contiguous()?.transpose(0, 1)?;
                turned.narrow(0, 1, 2)
            })
            .collect::<Result<Vec<_>>>()?;
        let copies = strided.iter().map(Tensor::copy).collect::<Result<Vec<_>>>()?;
        let copies = copies.iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
        let same = bits(&(case.run)(&strided)?)? == bits(&(case.run)(&copies)?)?;
        assert!(same, "{}", case.name);
    }
    Ok(())
}

/// Linear layers and convolutions with bf16 weights, which some processors multiply as they are.
fn bf16_cases() -> Result<Vec<Case>> {
    let half = |x: Tensor| x.to_dtype(DType::BF16);
    let mut cases = Vec::new();
    for (n, features, out) in [(1, 2, 1), (1, 320, 129), (7, 6, 3), (77, 34, 70), (130, 258, 67), (16, 5200, 49)] {
        let linear = Linear::new(half(noise(1, (out, features))?)?, Some(half(noise(2, out)?)?))?;
        cases.push(case("linear", &[&[n, features]], move |x| linear.forward(&x[0])));
    }
    for (image, out, kernel, stride) in [
        ([5, 7, 4], 8, 3, 1),
        ([16, 16, 34], 35, 3, 1),
        ([8, 9, 64], 96, 3, 2),
        ([6, 5, 32], 40, 1, 1),
        ([4, 4, 600], 9, 3, 1),
        // Wide on both sides, and so Winograd's.
        ([6, 7, 128], 130, 3, 1),
        // An odd number of channels does not go in pairs, and is multiplied in f32.
        ([4, 5, 3], 8, 3, 1),
    ] {
        let config = Conv2dConfig { stride, padding: Padding::same(kernel / 2) };
        let weight = half(noise(4, (out, image[2], kernel, kernel))?)?;
        let conv = Conv2d::new(weight, None, config)?;
        cases.push(case(&format!("conv2d {kernel} {stride}"), &[&image], move |x| conv.forward(&x[0])));
    }
    Ok(cases)
}

/// Holds the layers of bf16 weights to the plain form, and each row to itself alone.
fn assert_bf16_products() -> Result<()> {
    let (fast, plain) = (bf16_cases()?, with_plain_forms(bf16_cases)?);
    for (fast, plain) in fast.iter().zip(&plain) {
        let x = inputs(fast, 3)?.iter().map(|x| x.to_dtype(DType::BF16)).collect::<Result<Vec<_>>>()?;
        let reference = with_plain_forms(|| (plain.run)(&x))?;
        let y = (fast.run)(&x)?;
        assert_eq!(y.dtype(), DType::BF16);
        // Both sum in f32 and round once, to 8 bits; where the sums differ in their order, some round to the other side.
        let distance = distance(&y, &reference)?;
        assert!(distance < 1e-3, "{}: {distance}", fast.name);
        for row in 0..3 {
            let alone = (fast.run)(&[x[0].narrow(0, row, 1)?])?;
            let same = bits(&y.narrow(0, row, 1)?)? == bits(&alone)?;
            assert!(same, "{}: row {row} differs from itself alone", fast.name);
        }
    }
    Ok(())
}

#[test]
fn a_product_of_bf16_weights_gives_what_the_plain_form_gives_to_their_precision() -> Result<()> {
    assert_bf16_products()
}

#[test]
fn a_product_of_bf16_weights_in_tiles_gives_what_the_plain_form_gives_to_their_precision() -> Result<()> {
    cpu::with_tiles(assert_bf16_products)
}

#[test]
fn attention_in_tiles_gives_what_f32_gives_to_the_precision_of_bf16() -> Result<()> {
    let cases: Vec<Case> = cases()?.into_iter().filter(|case| case.name.contains("attention")).collect();
    for case in &cases {
        let half = inputs(case, 1)?.iter().map(|x| x.to_dtype(DType::BF16)).collect::<Result<Vec<_>>>()?;
        let y = cpu::with_tiles(|| (case.run)(&half))?;
        let rounded = half.iter().map(|x| x.to_dtype(DType::F32)).collect::<Result<Vec<_>>>()?;
        let distance = distance(&y, &(case.run)(&rounded)?)?;
        assert!(distance < 4e-3, "{}: {distance}", case.name);
    }
    cpu::with_tiles(|| assert_rows_stand_alone(&cases, DType::BF16))
}

#[test]
fn a_residual_is_added_before_the_only_rounding() -> Result<()> {
    assert_residuals()?;
    cpu::with_tiles(assert_residuals)
}

fn assert_residuals() -> Result<()> {
    let half = |x: Tensor| x.to_dtype(DType::BF16);
    let exact = |x: &Tensor| x.to_dtype(DType::F32);
    let config = Conv2dConfig { stride: 1, padding: Padding::same(1) };
    for (features, out) in [(34, 35), (5200, 49), (64, 96)] {
        let (weight, bias) = (half(noise(1, (out, features))?)?, half(noise(2, out)?)?);
        let linear = Linear::new(weight.clone(), Some(bias.clone()))?;
        let reference = Linear::new(exact(&weight)?, Some(exact(&bias)?))?;
        let kernel = half(noise(3, (out, 34, 3, 3))?)?;
        let conv = Conv2d::new(kernel.clone(), Some(bias.clone()), config)?;
        let reference_conv = Conv2d::new(exact(&kernel)?, Some(exact(&bias)?), config)?;
        let (x, residual) = (half(noise(4, (3, 65, features))?)?, half(noise(5, (3, 65, out))?)?);
        let (image, beside) = (half(noise(6, (3, 7, 5, 34))?)?, half(noise(7, (3, 7, 5, out))?)?);
        for (ours, exact) in [
            (linear.forward_add(&x, &residual)?, reference.forward_add(&exact(&x)?, &exact(&residual)?)?),
            (conv.forward_add(&image, &beside)?, reference_conv.forward_add(&exact(&image)?, &exact(&beside)?)?),
        ] {
            let rounded = exact.to_dtype(DType::BF16)?;
            // Sums in another order round to the other side now and then.
            let same = bits(&ours)?.iter().zip(bits(&rounded)?).filter(|(ours, theirs)| **ours == *theirs).count();
            assert!(same * 100 >= ours.elem_count() * 98, "{same} of {}", ours.elem_count());
            assert!(distance(&ours, &exact)? < 2e-3);
        }
        // Rows and values of other layouts.
        let together = linear.forward_add(&x, &residual)?;
        let alone = linear.forward_add(&x.narrow(0, 2, 1)?, &residual.narrow(0, 2, 1)?)?;
        assert_eq!(bits(&together.narrow(0, 2, 1)?)?, bits(&alone)?);
        let turned = residual.transpose(0, 1)?.contiguous()?.transpose(0, 1)?;
        assert_eq!(bits(&linear.forward_add(&x, &turned)?)?, bits(&together)?);
        // A layer of bf16 weights between values in f32 adds what is not rounded to them.
        let (x, residual) = (exact(&x)?, (noise(8, (3, 65, out))? * 1e-3)?);
        let sum = (linear.forward(&x)? + &residual)?;
        assert_eq!(bits(&linear.forward_add(&x, &residual)?)?, bits(&sum)?);
    }
    Ok(())
}

#[test]
fn a_residual_of_another_shape_or_type_is_refused() -> Result<()> {
    let linear = Linear::new(noise(1, (5, 3))?, None)?;
    let x = noise(2, (2, 7, 3))?;
    let error = linear.forward_add(&x, &noise(3, (2, 5, 7))?).unwrap_err().to_string();
    assert!(error.contains("linear: the residual is [2, 5, 7] in F32, but the result [2, 7, 5] in F32"), "{error}");
    assert!(linear.forward_add(&x, &noise(3, (2, 7, 5))?.to_dtype(DType::F16)?).is_err());
    let conv = Conv2d::new(noise(4, (5, 3, 3, 3))?, None, Conv2dConfig::default())?;
    assert!(conv.forward_add(&noise(5, (1, 6, 6, 3))?, &noise(6, (1, 6, 6, 5))?).is_err());
    let norm = GroupNorm::new(noise(7, 6)?, noise(8, 6)?, 3, 1e-5)?;
    assert!(norm.forward_sum_silu(&noise(9, (2, 4, 6))?, &noise(10, (1, 6))?).is_err());
    Ok(())
}

/// Weights in few bits, with the same in f32.
fn quantized(out: usize, features: usize) -> Result<Vec<(Quantized, Tensor)>> {
    use candle_core::quantized::{GgmlDType, QTensor};

    let weight = noise(21, (out, features))?;
    let mut weights = Vec::new();
    for dtype in [GgmlDType::Q4_0, GgmlDType::Q8_0, GgmlDType::Q2K, GgmlDType::Q3K, GgmlDType::Q4K, GgmlDType::Q5K] {
        let stored = QTensor::quantize(&weight, dtype)?;
        let bytes = SharedBytes::owned(stored.data()?.into_owned());
        let shape = [out, features];
        weights.push(Quantized::new(QuantizedFormat::Ggml(dtype), bytes, QuantizedScale::None, shape)?);
    }
    for layout in [Iq4::Nl, Iq4::Xs] {
        let (_, size) = QuantizedFormat::Iq4(layout).block();
        let count = out * QuantizedFormat::Iq4(layout).row_bytes(features).unwrap_or(0);
        // Any bytes are blocks, but for their f16 scales, which are kept small.
        let byte = |i: usize| if i % size == 1 { 0x18 } else { (i * 89 % 251) as u8 };
        let bytes = SharedBytes::owned((0..count).map(byte).collect());
        weights.push(Quantized::new(QuantizedFormat::Iq4(layout), bytes, QuantizedScale::None, [out, features])?);
    }
    let bytes = (0..out * features).map(|i| (i * 89 % 251) as u8 & 0xf7).collect::<Vec<_>>();
    for (format, scale) in [
        (Float8::E4M3, QuantizedScale::None),
        (Float8::E4M3, QuantizedScale::Whole(0.01)),
        (Float8::E5M2, QuantizedScale::Rows((0..out).map(|row| 1e-4 * (row + 1) as f32).collect())),
    ] {
        let bytes = SharedBytes::owned(bytes.iter().map(|byte| byte & 0xbf).collect());
        weights.push(Quantized::new(QuantizedFormat::F8(format), bytes, scale, [out, features])?);
    }
    weights.into_iter().map(|weight| Ok((weight.clone(), weight.dequantize()?))).collect()
}

#[test]
fn a_weight_in_few_bits_gives_the_bits_of_the_same_weight_in_f32() -> Result<()> {
    // More outputs than are spread out at a time, and a width that does not divide them.
    for (out, features, rows) in [(70, 256, 5), (1, 512, 1), (4400, 256, 3)] {
        let (x, bias) = (noise(22, (rows, features))?, noise(23, out)?);
        for (weight, spread) in quantized(out, features)? {
            let same = Linear::new(spread, Some(bias.clone()))?.forward(&x)?;
            let layer = Linear::quantized(&weight, Some(bias.clone()), DType::F32, &Device::Cpu)?;
            assert_eq!(bits(&layer.forward(&x)?)?, bits(&same)?, "{weight:?}");
            let residual = noise(24, (rows, out))?;
            let summed = layer.forward_add(&x, &residual)?;
            assert_eq!(bits(&summed)?, bits(&(&same + &residual)?)?, "{weight:?}");
            let alone = layer.forward(&x.narrow(0, rows - 1, 1)?)?;
            assert_eq!(bits(&alone)?, bits(&same.narrow(0, rows - 1, 1)?)?, "{weight:?}");
            let plain = with_plain_forms(|| {
                Linear::quantized(&weight, Some(bias.clone()), DType::F32, &Device::Cpu)?.forward(&x)
            })?;
            assert!(distance(&plain, &same)? < 1e-5, "{weight:?}");
        }
    }
    Ok(())
}
