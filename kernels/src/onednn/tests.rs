//! The library's layers against the plain forms, which hold whether or not they are the ones that models get here.

use candle_core::{DType, Result, Tensor};

use super::*;
use crate::{
    Conv2dConfig, Padding,
    tests::{distance, noise},
    with_plain_forms,
};

type Forward = Box<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>;

/// A layer of the library, the same in its plain form, and the shape of a row.
struct Case {
    name: String,
    ours: Forward,
    plain: Forward,
    row: Vec<usize>,
}

fn half(seed: u64, shape: &[usize]) -> Result<Tensor> {
    noise(seed, shape)?.to_dtype(DType::BF16)
}

/// Layers at sizes of models and at odd ones. Those that the library has no fast form for are left out, but no size of
/// `models` may be one of them where the processor multiplies bf16.
fn cases() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (n, features, out, bias) in
        [(1, 320, 1280, true), (77, 768, 320, false), (1025, 64, 96, true), (130, 258, 67, true), (7, 6, 3, false)]
    {
        let weight = half(1, &[out, features])?;
        let bias = if bias { Some(half(2, &[out])?) } else { None };
        let name = format!("linear {n} {features} {out}");
        let Some(ours) = Linear::new(&weight, bias.as_ref())? else {
            assert!(!has(ffi::ISA_BF16) || features % 32 != 0, "{name} has no fast form");
            continue;
        };
        let plain = with_plain_forms(|| crate::Linear::new(weight, bias))?;
        cases.push(Case {
            name,
            ours: Box::new(move |x| ours.forward(x)),
            plain: Box::new(move |x| plain.forward(x)),
            row: vec![n, features],
        });
    }
    for (image, out, kernel, stride, padding) in [
        ([16, 16, 64], 96, 3, 1, Padding::same(1)),
        ([8, 9, 320], 320, 3, 2, Padding::same(1)),
        ([9, 8, 64], 32, 3, 2, Padding { bottom: 1, right: 1, ..Padding::default() }),
        ([6, 5, 96], 160, 1, 1, Padding::default()),
        ([12, 12, 4], 64, 3, 1, Padding::same(1)),
        ([5, 7, 33], 35, 3, 1, Padding::same(1)),
    ] {
        let config = Conv2dConfig { stride, padding };
        let (weight, bias) = (half(3, &[out, image[2], kernel, kernel])?, half(4, &[out])?);
        let name = format!("conv2d {image:?} {out} {kernel} {stride}");
        let Some(ours) = Conv2d::new(&weight, Some(&bias), config)? else {
            assert!(!has(ffi::ISA_BF16) || image[2] % 32 != 0, "{name} has no fast form");
            continue;
        };
        let plain = with_plain_forms(|| crate::Conv2d::new(weight, Some(bias), config))?;
        cases.push(Case {
            name,
            ours: Box::new(move |x| ours.forward(x)),
            plain: Box::new(move |x| plain.forward(x)),
            row: image.to_vec(),
        });
    }
    Ok(cases)
}

/// Some rows for `case`.
fn rows(case: &Case, count: usize) -> Result<Tensor> {
    half(5, &[&[count], &*case.row].concat())
}

#[test]
fn a_layer_of_the_library_gives_what_the_plain_form_gives_to_bf16_s_precision() -> Result<()> {
    for case in cases()? {
        let x = rows(&case, 3)?;
        let (y, expected) = ((case.ours)(&x)?, with_plain_forms(|| (case.plain)(&x))?);
        assert_eq!(y.dtype(), DType::BF16);
        let distance = distance(&y, &expected)?;
        // Both sum in f32 and round once; where the sums differ in their order, some round to the other side.
        assert!(distance < 1e-3, "{}: {distance}", case.name);
    }
    Ok(())
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_company_also_from_many_threads() -> Result<()> {
    let values = |y: &Tensor| y.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>();
    for case in cases()? {
        let x = rows(&case, 5)?;
        let together = crate::on_pool(|| (case.ours)(&x))?;
        for row in 0..5 {
            let alone = (case.ours)(&x.narrow(0, row, 1)?)?;
            let same = values(&alone)? == values(&together.narrow(0, row, 1)?)?;
            assert!(same, "{}: row {row} differs from itself alone", case.name);
        }
    }
    Ok(())
}

#[test]
fn a_layer_meets_more_sizes_than_it_keeps() -> Result<()> {
    let (weight, bias) = (half(1, &[64, 96])?, half(2, &[64])?);
    let Some(ours) = Linear::new(&weight, Some(&bias))? else { return Ok(()) };
    let plain = with_plain_forms(|| crate::Linear::new(weight, Some(bias)))?;
    for positions in (1..60).chain([1, 2, 3]) {
        let x = half(3, &[2, positions, 96])?;
        let distance = distance(&ours.forward(&x)?, &with_plain_forms(|| plain.forward(&x))?)?;
        assert!(distance < 1e-3, "{positions} positions: {distance}");
    }
    // A lone vector, no rows at all, and rows without positions.
    assert_eq!(ours.forward(&half(3, &[96])?)?.dims(), [64]);
    assert_eq!(ours.forward(&half(3, &[0, 4, 96])?)?.dims(), [0, 4, 64]);
    assert_eq!(ours.forward(&half(3, &[2, 0, 96])?)?.dims(), [2, 0, 64]);
    Ok(())
}
