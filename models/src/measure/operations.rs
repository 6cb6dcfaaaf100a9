//! Each operation's fast form against its plain form in f32, and against itself in another company.

use std::time::Duration;

use candle_core::{D, DType, Device, Tensor};
use easel_kernels::{
    Conv2d, Conv2dConfig, GroupNorm, LayerNorm, Linear, Padding, Pairing, RmsNorm, ada_layer_norm, add, attention,
    gated_add, geglu, gelu, gelu_tanh, rms_norm_rope, rotary, silu, upsample_nearest, with_plain_forms,
};

use super::median_time;
use crate::Result;

/// How an operation's fast form did.
#[derive(Debug, Clone)]
pub struct OperationCheck {
    /// The operation and its shape.
    pub name: &'static str,
    /// The type that it ran in.
    pub dtype: DType,
    /// The distance to the plain form in f32 on the same values, relative to that result's length (both Euclidean). NaN
    /// where either gave one.
    pub error: f64,
    /// The largest error that passes.
    pub tolerance: f64,
    /// Whether each row, alone and among fewer, gave the same bits as among all.
    pub invariant: bool,
    /// The time of a call in this type.
    pub fast: Duration,
    /// The time of a call of the plain form in this type.
    pub plain: Duration,
}

impl OperationCheck {
    /// Whether the fast form is right.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.error <= self.tolerance && self.invariant
    }
}

/// A call of an operation: its inputs, each with the rows first.
type Call = Box<dyn Fn(&[Tensor]) -> candle_core::Result<Tensor>>;

/// An operation at one shape.
struct Case {
    name: &'static str,
    /// The shapes of its inputs, each with the rows first.
    inputs: Vec<Vec<usize>>,
    /// The shapes of its weights.
    weights: Vec<Vec<usize>>,
    /// Makes the operation of weights in the type that it computes in.
    make: fn(&[Tensor]) -> candle_core::Result<Call>,
}

/// Rows of a case: odd, and more than two.
const ROWS: usize = 5;

/// Checks every operation in every type on `device`, at shapes of models divided by `shrink` (1 for the real ones) and at
/// awkward ones; `calls` of each are timed. `report` is given each result as it comes.
///
/// # Errors
/// When the device fails.
pub fn check_operations(
    device: &Device,
    shrink: usize,
    calls: usize,
    mut report: impl FnMut(OperationCheck),
) -> Result<()> {
    for case in cases(shrink.max(1)) {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            report(check(&case, dtype, device, calls)?);
        }
    }
    Ok(())
}

fn check(case: &Case, dtype: DType, device: &Device, calls: usize) -> Result<OperationCheck> {
    let random = |shape: &Vec<usize>| Tensor::randn(0_f32, 1.0, shape.as_slice(), device)?.to_dtype(dtype);
    // As large as keeps the output near one, as in a trained network.
    let scaled = |shape: &Vec<usize>| -> candle_core::Result<Tensor> {
        let depth: usize = shape.iter().skip(1).product();
        random(shape)? * (1.0 / depth as f64).sqrt()
    };
    let inputs = case.inputs.iter().map(random).collect::<candle_core::Result<Vec<_>>>()?;
    let weights = case.weights.iter().map(scaled).collect::<candle_core::Result<Vec<_>>>()?;
    let exact =
        |tensors: &[Tensor]| tensors.iter().map(|t| t.to_dtype(DType::F32)).collect::<candle_core::Result<Vec<_>>>();

    let truth = with_plain_forms(|| (case.make)(&exact(&weights)?)?(&exact(&inputs)?))?;
    let operation = (case.make)(&weights)?;
    let result = operation(&inputs)?;
    let error = relative_error(&result, &truth)?;

    let mut invariant = true;
    for (first, count) in [(0, 1), (ROWS - 1, 1), (1, 3)] {
        let some = inputs.iter().map(|input| input.narrow(0, first, count)).collect::<candle_core::Result<Vec<_>>>()?;
        let alone = operation(&some)?;
        invariant &= same_bits(&alone, &result.narrow(0, first, count)?)?;
    }

    let fast = median_time(device, calls, || Ok(operation(&inputs).map(drop)?))?;
    let plain = with_plain_forms(|| -> Result<_> {
        let operation = (case.make)(&weights)?;
        median_time(device, calls, || Ok(operation(&inputs).map(drop)?))
    })?;
    let tolerance = match dtype {
        DType::F32 => 1e-4,
        DType::F16 => 2e-3,
        _ => 1e-2,
    };
    Ok(OperationCheck { name: case.name, dtype, error, tolerance, invariant, fast, plain })
}

/// ‖result - truth‖ / ‖truth‖.
fn relative_error(result: &Tensor, truth: &Tensor) -> Result<f64> {
    // On the host, since not every device has f64.
    let norm =
        |x: &Tensor| x.flatten_all()?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar();
    let distance: f64 = norm(&(result.to_dtype(DType::F32)? - truth)?)?;
    Ok((distance / norm(truth)?).sqrt())
}

/// Whether two tensors hold the same values; NaN is like nothing.
fn same_bits(a: &Tensor, b: &Tensor) -> Result<bool> {
    let a = a.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(a == b.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?)
}

/// An operation without weights.
fn call(f: impl Fn(&[Tensor]) -> candle_core::Result<Tensor> + 'static) -> candle_core::Result<Call> {
    Ok(Box::new(f))
}

fn conv(weights: &[Tensor], stride: usize, padding: Padding) -> candle_core::Result<Call> {
    let layer = Conv2d::new(weights[0].clone(), weights.get(1).cloned(), Conv2dConfig { stride, padding })?;
    call(move |x| layer.forward(&x[0]))
}

fn linear(weights: &[Tensor]) -> candle_core::Result<Call> {
    let layer = Linear::new(weights[0].clone(), weights.get(1).cloned())?;
    call(move |x| layer.forward(&x[0]))
}

/// Angles of `x`'s positions for `pairs` pairs of channels.
fn angles(x: &Tensor, pairs: usize) -> candle_core::Result<(Tensor, Tensor)> {
    let positions = x.dim(1)?;
    let angle = Tensor::arange(0_f32, (positions * pairs) as f32, x.device())?.reshape((positions, pairs))?;
    let angle = (angle * 0.01)?;
    Ok((angle.cos()?, angle.sin()?))
}

fn cases(shrink: usize) -> Vec<Case> {
    // Tokens and pixels shrink; channels must keep to groups and heads.
    let few = |count: usize| (count / shrink).max(2);
    let side = few(64);
    let case = |name, inputs: &[&[usize]], weights: &[&[usize]], make| Case {
        name,
        inputs: inputs.iter().map(|shape| [&[ROWS], *shape].concat()).collect(),
        weights: weights.iter().map(|shape| shape.to_vec()).collect(),
        make,
    };
    let attend = |name, tokens: usize, keys: usize, width: usize, make| {
        case(name, &[&[tokens, width], &[keys, width], &[keys, width]], &[], make)
    };
    vec![
        case("linear 640 to 5120", &[&[few(1024), 640]], &[&[5120, 640], &[5120]], linear),
        case("linear 1280, one token, no bias", &[&[1280]], &[&[1280, 1280]], linear),
        case("linear 37 to 21", &[&[7, 37]], &[&[21, 37], &[21]], linear),
        case("linear 3072 to 12288, gelu (tanh)", &[&[few(512), 3072]], &[&[12288, 3072], &[12288]], |weights| {
            let layer = Linear::new(weights[0].clone(), weights.get(1).cloned())?;
            call(move |x| layer.forward_gelu_tanh(&x[0]))
        }),
        case("conv 3x3, 320 channels", &[&[side, side, 320]], &[&[320, 320, 3, 3], &[320]], |weights| {
            conv(weights, 1, Padding::same(1))
        }),
        case("conv 3x3, 4 to 320 channels", &[&[side, side, 4]], &[&[320, 4, 3, 3], &[320]], |weights| {
            conv(weights, 1, Padding::same(1))
        }),
        case("conv 3x3, 320 to 4 channels", &[&[side, side, 320]], &[&[4, 320, 3, 3], &[4]], |weights| {
            conv(weights, 1, Padding::same(1))
        }),
        case("conv 3x3, stride 2, zeros after", &[&[side, side, 128]], &[&[128, 128, 3, 3], &[128]], |weights| {
            conv(weights, 2, Padding { top: 0, left: 0, bottom: 1, right: 1 })
        }),
        case("conv 1x1, 960 to 640 channels", &[&[side / 2, side / 2, 960]], &[&[640, 960, 1, 1], &[640]], |weights| {
            conv(weights, 1, Padding::default())
        }),
        case("conv 3x3, 37 to 21 channels, 7x9", &[&[7, 9, 37]], &[&[21, 37, 3, 3]], |weights| {
            conv(weights, 1, Padding::same(1))
        }),
        case("group_norm + silu, 320 channels", &[&[side, side, 320]], &[&[320], &[320]], |weights| {
            let norm = GroupNorm::new(weights[0].clone(), weights[1].clone(), 32, 1e-5)?;
            call(move |x| norm.forward_silu(&x[0]))
        }),
        case("group_norm, 48 channels, 5 pixels", &[&[5, 48]], &[&[48], &[48]], |weights| {
            let norm = GroupNorm::new(weights[0].clone(), weights[1].clone(), 16, 1e-6)?;
            call(move |x| norm.forward(&x[0]))
        }),
        attend("attention, heads of 40", few(4096), few(4096), 320, |_| {
            call(|x| attention(&x[0], &x[1], &x[2], 8, None))
        }),
        attend("attention to 77 tokens, heads of 64", few(1024), 77, 640, |_| {
            call(|x| attention(&x[0], &x[1], &x[2], 10, None))
        }),
        attend("attention, heads of 128", few(1536), few(1536), 3072, |_| {
            call(|x| attention(&x[0], &x[1], &x[2], 24, None))
        }),
        attend("attention, one head of 512", few(1024), few(1024), 512, |_| {
            call(|x| attention(&x[0], &x[1], &x[2], 1, None))
        }),
        attend("attention with a mask, heads of 64", few(512), 77, 768, |_| {
            call(|x| {
                let (queries, keys) = (x[0].dim(1)?, x[1].dim(1)?);
                let far = Tensor::arange(0_f32, (queries * keys) as f32, x[0].device())?;
                let mask = (far.reshape((queries, keys))? * -0.003)?.to_dtype(x[0].dtype())?;
                attention(&x[0], &x[1], &x[2], 12, Some(&mask))
            })
        }),
        case("ada_layer_norm, 3072 channels", &[&[few(1536), 3072], &[3072], &[3072]], &[], |_| {
            call(|x| ada_layer_norm(&x[0], &x[1], &x[2], 1e-6))
        }),
        case("gated_add, 3072 channels", &[&[few(1536), 3072], &[3072], &[few(1536), 3072]], &[], |_| {
            call(|x| gated_add(&x[0], &x[1], &x[2]))
        }),
        case("layer_norm, 1280 channels", &[&[few(1024), 1280]], &[&[1280], &[1280]], |weights| {
            let norm = LayerNorm::new(Some(weights[0].clone()), Some(weights[1].clone()), 1e-5)?;
            call(move |x| norm.forward(&x[0]))
        }),
        case("rms_norm, heads of 128", &[&[few(1536), 24, 128]], &[&[128]], |weights| {
            let norm = RmsNorm::new(weights[0].clone(), 1e-6)?;
            call(move |x| norm.forward(&x[0]))
        }),
        case("rotary, neighbours", &[&[few(1536), 3072]], &[], |_| {
            call(|x| {
                let (cos, sin) = angles(&x[0], 64)?;
                rotary(&x[0], &cos, &sin, 24, Pairing::Interleaved)
            })
        }),
        case("rotary, halves", &[&[few(512), 2560]], &[], |_| {
            call(|x| {
                let (cos, sin) = angles(&x[0], 64)?;
                rotary(&x[0], &cos, &sin, 20, Pairing::Halves)
            })
        }),
        case("rms_norm_rope, heads of 128", &[&[few(1536), 3072]], &[&[128]], |weights| {
            let norm = RmsNorm::new(weights[0].clone(), 1e-6)?;
            call(move |x| {
                let (cos, sin) = angles(&x[0], 64)?;
                rms_norm_rope(&x[0], &norm, &cos, &sin, 24, Pairing::Interleaved)
            })
        }),
        case("add, a shortcut", &[&[side, side, 320], &[side, side, 320]], &[], |_| call(|x| add(&x[0], &x[1]))),
        case("add, a vector for each row", &[&[side, side, 320], &[320]], &[], |_| call(|x| add(&x[0], &x[1]))),
        case("geglu, 2 x 2560 channels", &[&[few(4096), 5120]], &[], |_| call(|x| geglu(&x[0]))),
        case("gelu (erf)", &[&[few(1024), 3072]], &[], |_| call(|x| gelu(&x[0]))),
        case("gelu (tanh)", &[&[few(1024), 3072]], &[], |_| call(|x| gelu_tanh(&x[0]))),
        case("silu, not contiguous", &[&[few(1024), 320]], &[], |_| {
            call(|x| silu(&x[0].transpose(D::Minus1, D::Minus2)?))
        }),
        case("upsample to twice the size", &[&[side, side, 320]], &[], |_| {
            call(|x| {
                let (_, h, w, _) = x[0].dims4()?;
                upsample_nearest(&x[0], 2 * h, 2 * w)
            })
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_passes_on_the_cpu_at_small_shapes() {
        let mut failed = Vec::new();
        let mut count = 0;
        check_operations(&Device::Cpu, 64, 1, |check| {
            count += 1;
            if !check.passed() {
                failed.push(check);
            }
        })
        .unwrap();
        assert!(failed.is_empty(), "{failed:?}");
        assert_eq!(count, cases(1).len() * 3);
    }

    #[test]
    fn a_wrong_result_is_far_and_a_nan_passes_nowhere() {
        let truth = Tensor::new(&[3_f32, 4.0], &Device::Cpu).unwrap();
        let wrong = Tensor::new(&[3_f32, 9.0], &Device::Cpu).unwrap();
        assert!((relative_error(&wrong, &truth).unwrap() - 1.0).abs() < 1e-9);
        let nan = Tensor::new(&[f32::NAN, 4.0], &Device::Cpu).unwrap();
        let error = relative_error(&nan, &truth).unwrap();
        let check = OperationCheck {
            name: "nan",
            dtype: DType::F32,
            error,
            tolerance: 1e-4,
            invariant: true,
            fast: Duration::ZERO,
            plain: Duration::ZERO,
        };
        assert!(!check.passed() && !same_bits(&nan, &nan).unwrap());
    }
}
