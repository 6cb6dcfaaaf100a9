//! The layers: weights, and what was compiled for the sizes that they have met.

use std::{
    ffi::c_int,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{Result, Tensor};
use half::bf16;

use super::{
    ffi,
    handles::{Layout, Layouts, Line, Memory, Plan, Primitive, Stream, Window, lines, with_scratch},
};
use crate::{
    Conv2dConfig,
    cpu::{filled, room, with_bf16, with_values},
};

/// The sizes for which a layer keeps what was compiled; it begins anew beyond that.
const SIZES_KEPT: usize = 16;
/// The positions for which the weights are arranged when a layer is made: other sizes may want another arrangement, which
/// is then made of the first.
const USUAL_POSITIONS: usize = 1024;
/// The side of an image, likewise.
const USUAL_SIDE: usize = 32;

/// Weights in one of the library's arrangements.
#[derive(Debug)]
struct Weights {
    layout: Layout,
    values: Vec<Line>,
}

/// An operation for rows of one size.
#[derive(Debug)]
struct Ready {
    primitive: Primitive,
    weights: Arc<Weights>,
    layouts: Layouts,
    scratch: Layout,
}

/// The weights of a layer, its bias in f32, and what has been compiled for it, by the size of a row.
#[derive(Debug)]
struct Layer<Size> {
    bias: Option<Vec<f32>>,
    outputs: usize,
    state: Mutex<State<Size>>,
}

#[derive(Debug)]
struct State<Size> {
    /// The first one is never dropped.
    weights: Vec<Arc<Weights>>,
    ready: Vec<(Size, Arc<Ready>)>,
}

impl<Size: PartialEq + Copy> Layer<Size> {
    /// Takes weights (`dims`) arranged by `tag`, and arranges them as `plan` wants them; `None` if the library has no fast
    /// form for that.
    fn new(weight: &Tensor, tag: c_int, dims: &[usize], bias: Option<&Tensor>, plan: &Plan) -> Result<Option<Self>> {
        if !["brg", "jit"].iter().any(|fast| plan.implementation().contains(fast)) {
            return Ok(None);
        }
        let layout = Layout::new(dims, ffi::BF16, tag)?;
        let weights = with_bf16(weight, |values| {
            // SAFETY: the values are arranged by the tag, and only read.
            unsafe { arranged(&layout, values.as_ptr().cast(), plan.layout(ffi::QUERY_WEIGHTS)?) }
        })?;
        let bias = bias.map(|bias| with_values(bias, |values| Ok(values.to_vec()))).transpose()?;
        let state = State { weights: vec![Arc::new(weights)], ready: Vec::new() };
        Ok(Some(Self { bias, outputs: weight.dim(0)?, state: Mutex::new(state) }))
    }

    /// What computes rows of this size, compiled if need be; `plan` is asked for its layouts and plan.
    fn ready(&self, size: Size, plan: impl FnOnce() -> Result<(Layouts, Plan)>) -> Result<Arc<Ready>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, ready)) = state.ready.iter().find(|(known, _)| *known == size) {
            return Ok(ready.clone());
        }
        if state.ready.len() >= SIZES_KEPT {
            state.ready.clear();
            state.weights.truncate(1);
        }
        let (layouts, plan) = plan()?;
        let wanted = plan.layout(ffi::QUERY_WEIGHTS)?;
        let known = state.weights.iter().find(|weights| weights.layout == wanted).cloned();
        let weights = match known {
            Some(weights) => weights,
            None => {
                let first = &state.weights[0];
                // SAFETY: the first weights are in their layout, and only read.
                let weights = Arc::new(unsafe { arranged(&first.layout, first.values.as_ptr().cast(), wanted)? });
                state.weights.push(weights.clone());
                weights
            }
        };
        let scratch = plan.layout(ffi::QUERY_SCRATCHPAD)?;
        let ready = Arc::new(Ready { primitive: plan.compile()?, weights, layouts, scratch });
        state.ready.push((size, ready.clone()));
        Ok(ready)
    }

    /// Computes each of `rows` rows by itself, to `result_len` values each.
    fn compute(&self, ready: &Ready, values: &[bf16], rows: usize, result_len: usize) -> Result<Vec<bf16>> {
        let mut result = room::<bf16>(rows * result_len);
        let len = values.len() / rows.max(1);
        let stream = Stream::new()?;
        // SAFETY: each row lies within the values and the result, and is as long as the layouts say; the library only reads
        // the values, the weights and the bias. Every row of the result is written.
        unsafe {
            with_scratch(ready.scratch.bytes(), |scratch| -> Result<()> {
                let from = values.as_ptr().cast_mut();
                let source = Memory::new(&ready.layouts.source, from.cast())?;
                let target = Memory::new(&ready.layouts.result, result.as_mut_ptr().cast())?;
                let weights = Memory::new(&ready.weights.layout, ready.weights.values.as_ptr().cast_mut().cast())?;
                let scratch = Memory::new(&ready.scratch, scratch)?;
                let bias = match (&self.bias, &ready.layouts.bias) {
                    (Some(bias), Some(layout)) => Some(Memory::new(layout, bias.as_ptr().cast_mut().cast())?),
                    _ => None,
                };
                let mut arguments = vec![
                    source.argument(ffi::ARG_SOURCE),
                    target.argument(ffi::ARG_RESULT),
                    weights.argument(ffi::ARG_WEIGHTS),
                    scratch.argument(ffi::ARG_SCRATCHPAD),
                ];
                arguments.extend(bias.iter().map(|bias| bias.argument(ffi::ARG_BIAS)));
                for row in 0..rows {
                    source.move_to(from.add(row * len).cast())?;
                    target.move_to(result.as_mut_ptr().add(row * result_len).cast())?;
                    stream.execute(&ready.primitive, &arguments)?;
                }
                Ok(())
            })?;
            Ok(filled(result))
        }
    }
}

/// A copy of weights in another arrangement.
///
/// # Safety
/// The values must be readable in their layout.
unsafe fn arranged(layout: &Layout, values: *const u8, to: Layout) -> Result<Weights> {
    let plan = Plan::reorder(layout, &to)?;
    let scratch_layout = plan.layout(ffi::QUERY_SCRATCHPAD)?;
    let primitive = plan.compile()?;
    let mut result = lines(to.bytes());
    with_scratch(scratch_layout.bytes(), |scratch| {
        // SAFETY: the values are as promised, and only read; the result has room for its layout.
        unsafe {
            let from = Memory::new(layout, values.cast_mut())?;
            let target = Memory::new(&to, result.as_mut_ptr().cast())?;
            let scratch = Memory::new(&scratch_layout, scratch)?;
            let arguments = [
                from.argument(ffi::ARG_SOURCE),
                target.argument(ffi::ARG_RESULT),
                scratch.argument(ffi::ARG_SCRATCHPAD),
            ];
            Stream::new()?.execute(&primitive, &arguments)
        }
    })?;
    Ok(Weights { layout: to, values: result })
}

/// The affine map: each row's positions times the weight.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    layer: Arc<Layer<usize>>,
    features: usize,
}

impl Linear {
    /// Arranges the weight (out, in); `None` if the library has no fast form for it.
    pub(crate) fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Option<Self>> {
        let (outputs, features) = weight.dims2()?;
        let (_, plan) = Self::plan(USUAL_POSITIONS, (features, outputs), bias.is_some())?;
        let layer = Layer::new(weight, ffi::TAG_BA, &[features, outputs], bias, &plan)?;
        Ok(layer.map(|layer| Self { layer: Arc::new(layer), features }))
    }

    fn plan(positions: usize, (features, outputs): (usize, usize), bias: bool) -> Result<(Layouts, Plan)> {
        let bias = bias.then(|| Layout::new(&[1, outputs], ffi::F32, ffi::TAG_AB)).transpose()?;
        let layouts = Layouts {
            source: Layout::new(&[positions, features], ffi::BF16, ffi::TAG_AB)?,
            weights: Layout::new(&[features, outputs], ffi::BF16, ffi::TAG_ANY)?,
            bias,
            result: Layout::new(&[positions, outputs], ffi::BF16, ffi::TAG_AB)?,
        };
        let plan = Plan::matmul(&layouts)?;
        Ok((layouts, plan))
    }

    /// `x` (b, .., in) to (b, .., out).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (features, outputs) = (self.features, self.layer.outputs);
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = outputs;
        }
        // A lone vector is a row of one position.
        let rows = if shape.len() > 1 { shape[0] } else { 1 };
        let y = with_bf16(x, |values| {
            let positions = values.len() / features / rows.max(1);
            if positions == 0 {
                return Ok(Vec::new());
            }
            let bias = self.layer.bias.is_some();
            let ready = self.layer.ready(positions, || Self::plan(positions, (features, outputs), bias))?;
            self.layer.compute(&ready, values, rows, positions * outputs)
        })?;
        Tensor::from_vec(y, shape, x.device())?.to_dtype(x.dtype())
    }
}

/// The convolution of each row.
#[derive(Debug, Clone)]
pub(crate) struct Conv2d {
    layer: Arc<Layer<(usize, usize)>>,
    config: Conv2dConfig,
    channels: usize,
    kernel: (usize, usize),
}

impl Conv2d {
    /// Arranges the weight (out, in, kh, kw); `None` if the library has no fast form for it.
    pub(crate) fn new(weight: &Tensor, bias: Option<&Tensor>, config: Conv2dConfig) -> Result<Option<Self>> {
        let dims @ (_, channels, kh, kw) = weight.dims4()?;
        let sides = (USUAL_SIDE.max(kh), USUAL_SIDE.max(kw));
        let (_, plan) = Self::plan(sides, dims, config, bias.is_some())?;
        let layer = Layer::new(weight, ffi::TAG_ABCD, weight.dims(), bias, &plan)?;
        Ok(layer.map(|layer| Self { layer: Arc::new(layer), config, channels, kernel: (kh, kw) }))
    }

    fn plan(
        (height, width): (usize, usize),
        (outputs, channels, kh, kw): (usize, usize, usize, usize),
        config: Conv2dConfig,
        bias: bool,
    ) -> Result<(Layouts, Plan)> {
        let bias = bias.then(|| Layout::new(&[outputs], ffi::F32, ffi::TAG_A)).transpose()?;
        let (h, w) = config.output_size((height, width), (kh, kw))?;
        let layouts = Layouts {
            source: Layout::new(&[1, channels, height, width], ffi::BF16, ffi::TAG_ACDB)?,
            weights: Layout::new(&[outputs, channels, kh, kw], ffi::BF16, ffi::TAG_ANY)?,
            bias,
            result: Layout::new(&[1, outputs, h, w], ffi::BF16, ffi::TAG_ACDB)?,
        };
        let (padding, stride) = (config.padding, config.stride as i64);
        let window = Window {
            strides: [stride, stride],
            first: [padding.top as i64, padding.left as i64],
            last: [padding.bottom as i64, padding.right as i64],
        };
        let plan = Plan::convolution(&layouts, &window)?;
        Ok((layouts, plan))
    }

    /// `x` (b, h, w, in) to (b, h', w', out).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, height, width, _) = x.dims4()?;
        let (h, w) = self.config.output_size((height, width), self.kernel)?;
        let outputs = self.layer.outputs;
        let y = with_bf16(x, |values| {
            if values.is_empty() {
                return Ok(Vec::new());
            }
            let ready = self.layer.ready((height, width), || {
                let dims = (outputs, self.channels, self.kernel.0, self.kernel.1);
                Self::plan((height, width), dims, self.config, self.layer.bias.is_some())
            })?;
            self.layer.compute(&ready, values, rows, h * w * outputs)
        })?;
        Tensor::from_vec(y, (rows, h, w, outputs), x.device())?.to_dtype(x.dtype())
    }
}
