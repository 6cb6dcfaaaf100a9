//! Activations and the resize: every element on its own.

use candle_core::{D, Result, Tensor};
use pulp::{Simd, WithSimd};

use super::{
    buffer::{Target, filled, room},
    element::{Element, in_own_type, load_at},
    math,
    pool::tasks,
    simd::dispatch,
    tensor, with, with_values,
};
use crate::plain::nearest;

/// The values of one task; several times the first cache would not gain anything.
const CHUNK: usize = 1 << 13;
/// What an activation costs in the pool's measure.
const COST: usize = 16;

/// A function of vectors, lane by lane.
trait Function: Copy + Send + Sync {
    fn of<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s;
}

macro_rules! functions {
    ($($operation:ident, $name:ident: $text:literal;)*) => {$(
        #[derive(Clone, Copy)]
        struct $name;

        impl Function for $name {
            #[inline(always)]
            fn of<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
                math::$operation(simd, x)
            }
        }

        #[doc = $text]
        pub(crate) fn $operation(x: &Tensor) -> Result<Tensor> {
            in_own_type!(x, map(x, $name))
        }
    )*};
}

functions! {
    silu, Silu: "x · sigmoid(x).";
    gelu, Gelu: "x · Φ(x).";
    gelu_tanh, GeluTanh: "x · Φ(x) by tanh.";
    quick_gelu, QuickGelu: "x · sigmoid(1.702 x).";
}

fn map<E: Element>(x: &Tensor, function: impl Function) -> Result<Tensor> {
    with(x, |values: &[E]| {
        let mut result = room(values.len());
        let target = Target::new(&mut result);
        tasks(values.len().div_ceil(CHUNK), values.len() * COST, |task| {
            let values = &values[task * CHUNK..values.len().min((task + 1) * CHUNK)];
            // SAFETY: the chunks lie within the result and do not overlap.
            let to = unsafe { target.at(task * CHUNK) };
            dispatch(Map { values, to, function });
        });
        // SAFETY: the chunks cover the result.
        tensor::<E>(unsafe { filled(result) }, x.shape(), x)
    })
}

/// Maps `values` to the room at `to`, which has the same length.
struct Map<'a, E, F> {
    values: &'a [E],
    to: *mut E,
    function: F,
}

impl<E: Element, F: Function> WithSimd for Map<'_, E, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let len = self.values.len();
        for index in (0..len).step_by(S::F32_LANES) {
            // SAFETY: at most `len - index` values are written there.
            unsafe {
                let x = load_at(simd, self.values, index);
                E::store(simd, self.to.add(index), len - index, self.function.of(simd, x));
            }
        }
    }
}

/// hidden · gelu(gate) of `x` (.., 2d).
pub(crate) fn geglu(x: &Tensor) -> Result<Tensor> {
    in_own_type!(x, geglu_of(x))
}

fn geglu_of<E: Element>(x: &Tensor) -> Result<Tensor> {
    let d = x.dim(D::Minus1)? / 2;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = d;
    }
    with(x, |values: &[E]| {
        let mut result = room(values.len() / 2);
        let target = Target::new(&mut result);
        let lines = if d == 0 { 0 } else { values.len() / (2 * d) };
        let chunk = (CHUNK / d.max(1)).max(1);
        tasks(lines.div_ceil(chunk), lines * d * COST, |task| {
            let lines = task * chunk..lines.min((task + 1) * chunk);
            // SAFETY: the lines lie within the result, and no two tasks have one in common.
            let to = unsafe { target.at(lines.start * d) };
            dispatch(Geglu { values: &values[lines.start * 2 * d..lines.end * 2 * d], to, d });
        });
        // SAFETY: the lines cover the result.
        tensor::<E>(unsafe { filled(result) }, shape, x)
    })
}

/// Maps lines of 2d `values` to lines of d at `to`.
struct Geglu<'a, E> {
    values: &'a [E],
    to: *mut E,
    d: usize,
}

impl<E: Element> WithSimd for Geglu<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (index, line) in self.values.chunks_exact(2 * self.d).enumerate() {
            let (hidden, gate) = line.split_at(self.d);
            for channel in (0..self.d).step_by(S::F32_LANES) {
                let left = self.d - channel;
                let gate = math::gelu(simd, load_at(simd, gate, channel));
                let y = simd.mul_f32s(load_at(simd, hidden, channel), gate);
                // SAFETY: at most `left` values are written to the line's result.
                unsafe { E::store(simd, self.to.add(index * self.d + channel), left, y) };
            }
        }
    }
}

/// `x + y`, where `y` has the shape of `x` (b, .., c), or is (b, c).
pub(crate) fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    in_own_type!(x, add_of(x, y))
}

fn add_of<E: Element>(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    with(x, |values: &[E]| {
        with(y, |others: &[E]| {
            let mut result = room(values.len());
            let target = Target::new(&mut result);
            // Of each row's vector, the values of `x` that it is added to; all of a tensor are added to its like.
            let (line, repeats) = match (x.dims(), y.dims()) {
                (from, to) if from == to => (CHUNK, 1),
                (from, to) => {
                    let c = to.last().copied().unwrap_or(1);
                    (c, from[1..].iter().product::<usize>() / c.max(1))
                }
            };
            let lines = values.len().div_ceil(line.max(1));
            let chunk = (CHUNK / line.max(1)).max(1);
            tasks(lines.div_ceil(chunk), values.len() * 4, |task| {
                for index in task * chunk..lines.min((task + 1) * chunk) {
                    let start = index * line;
                    let values = &values[start..values.len().min(start + line)];
                    let others = &others[index / repeats * line..][..values.len()];
                    // SAFETY: each line lies within the result and belongs to one task.
                    let to = unsafe { target.at(start) };
                    dispatch(Sum { values, others, to });
                }
            });
            // SAFETY: the lines cover the result.
            tensor::<E>(unsafe { filled(result) }, x.shape(), x)
        })
    })
}

/// `values + others`, of one length, as is the room at `to`.
struct Sum<'a, E> {
    values: &'a [E],
    others: &'a [E],
    to: *mut E,
}

impl<E: Element> WithSimd for Sum<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let len = self.values.len();
        for index in (0..len).step_by(S::F32_LANES) {
            let y = simd.add_f32s(load_at(simd, self.values, index), load_at(simd, self.others, index));
            // SAFETY: at most `len - index` values are written there.
            unsafe { E::store(simd, self.to.add(index), len - index, y) };
        }
    }
}

/// `residual + gate · x`: (b, n, c) both, `gate` (b, c).
pub(crate) fn gated_add(residual: &Tensor, gate: &Tensor, x: &Tensor) -> Result<Tensor> {
    in_own_type!(residual, gated_add_of(residual, gate, x))
}

fn gated_add_of<E: Element>(residual: &Tensor, gate: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (_, n, channels) = x.dims3()?;
    with(residual, |residuals: &[E]| {
        with_values(gate, |gates| {
            with(x, |values: &[E]| {
                let mut result = room(values.len());
                let target = Target::new(&mut result);
                let lines = values.len() / channels.max(1);
                let chunk = (CHUNK / channels.max(1)).max(1);
                tasks(lines.div_ceil(chunk), values.len() * 4, |task| {
                    for line in task * chunk..lines.min((task + 1) * chunk) {
                        let part = line * channels..(line + 1) * channels;
                        let gate = &gates[line / n * channels..][..channels];
                        // SAFETY: each line lies within the result and belongs to one task.
                        let to = unsafe { target.at(part.start) };
                        dispatch(Gated { residual: &residuals[part.clone()], gate, values: &values[part], to });
                    }
                });
                // SAFETY: the lines cover the result.
                tensor::<E>(unsafe { filled(result) }, x.shape(), residual)
            })
        })
    })
}

/// One line: `residual + gate · values`, all of one length, as is the room at `to`.
struct Gated<'a, E> {
    residual: &'a [E],
    gate: &'a [f32],
    values: &'a [E],
    to: *mut E,
}

impl<E: Element> WithSimd for Gated<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let len = self.values.len();
        for index in (0..len).step_by(S::F32_LANES) {
            let (gate, x) = (load_at(simd, self.gate, index), load_at(simd, self.values, index));
            let y = simd.mul_add_e_f32s(gate, x, load_at(simd, self.residual, index));
            // SAFETY: at most `len - index` values are written there.
            unsafe { E::store(simd, self.to.add(index), len - index, y) };
        }
    }
}

/// `x` (b, h0, w0, c) to (b, h, w, c), pixel by pixel.
pub(crate) fn upsample_nearest(x: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    in_own_type!(x, upsample_of(x, h, w))
}

fn upsample_of<E: Element>(x: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    let (b, height, width, channels) = x.dims4()?;
    let (rows, columns): (Vec<_>, Vec<_>) = (nearest(height, h).collect(), nearest(width, w).collect());
    with(x, |values: &[E]| {
        let mut result = room(b * h * w * channels);
        let line = w * channels;
        let target = Target::new(&mut result);
        tasks(b * h, b * h * line, |task| {
            let source = &values[(task / h * height + rows[task % h]) * width * channels..][..width * channels];
            for (index, column) in columns.iter().enumerate() {
                let pixel = &source[column * channels..][..channels];
                // SAFETY: each task has its own line of the result, of as many pixels as there are columns.
                unsafe {
                    let to: *mut E = target.at(task * line + index * channels);
                    to.copy_from_nonoverlapping(pixel.as_ptr(), channels);
                }
            }
        });
        // SAFETY: the lines cover the result.
        tensor::<E>(unsafe { filled(result) }, (b, h, w, channels), x)
    })
}
