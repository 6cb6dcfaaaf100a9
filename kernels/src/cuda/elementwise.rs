//! The kernels of `cuda/elementwise.cu`.

use candle_core::{D, Result, Tensor};

use super::fill::{File, Grid, Kernel, aligned, blocks, fill, int, wide};
use crate::plain;

/// `ActivationParameters` of `cuda/elementwise.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct ActivationParameters {
    x: u64,
    out: u64,
    count: i64,
}

/// `GegluParameters`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct GegluParameters {
    x: u64,
    out: u64,
    packs: i32,
    d: i32,
}

/// `GatedAddParameters`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct GatedAddParameters {
    residual: u64,
    gate: u64,
    x: u64,
    out: u64,
    gate_row: i64,
    packs: i32,
    positions: i32,
    channels: i32,
}

/// `AddParameters`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct AddParameters {
    x: u64,
    y: u64,
    out: u64,
    y_row: i64,
    packs: i32,
    positions: i32,
    channels: i32,
}

/// `UpsampleParameters`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct UpsampleParameters {
    x: u64,
    out: u64,
    units: i32,
    from: [i32; 2],
    to: [i32; 2],
    count: i32,
    scale: [f32; 2],
}

const THREADS: usize = 256;

/// The sets of values of each thread.
const AHEAD: usize = 4;

/// The grid for `count` sets of values.
fn grid(count: usize) -> Result<Grid> {
    Ok(Grid { blocks: (blocks(count, THREADS * AHEAD)?, 1, 1), threads: THREADS as u32, shared: 0 })
}

fn activate(name: &'static str, x: &Tensor, plain: fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    if x.elem_count() == 0 {
        return plain(x);
    }
    let (count, wide) = (x.elem_count(), wide(x.dtype()));
    // All values are one vector to the kernel, so only where they start matters.
    let x = aligned(&x.contiguous()?.flatten_all()?, wide)?.reshape(x.shape())?;
    let kernel = Kernel { file: File::Elementwise, name, dtype: x.dtype() };
    // SAFETY: each thread writes its sets, the last one what is left.
    unsafe {
        fill(kernel, grid(count.div_ceil(wide))?, &[&x], x.shape(), x.dtype(), |addresses, out| ActivationParameters {
            x: addresses[0],
            out,
            count: count as i64,
        })
    }
}

pub(crate) fn silu(x: &Tensor) -> Result<Tensor> {
    activate("silu", x, plain::silu)
}

pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    activate("gelu", x, plain::gelu)
}

pub(crate) fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    activate("gelu_tanh", x, plain::gelu_tanh)
}

pub(crate) fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    activate("quick_gelu", x, plain::quick_gelu)
}

/// `x` (.., 2d) to (.., d).
pub(crate) fn geglu(x: &Tensor) -> Result<Tensor> {
    if x.elem_count() == 0 {
        return plain::geglu(x);
    }
    let d = x.dim(D::Minus1)? / 2;
    let single = d % wide(x.dtype()) != 0;
    let together = if single { 1 } else { wide(x.dtype()) };
    let x = aligned(&x.contiguous()?, together)?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = d;
    }
    let packs = x.elem_count() / 2 / together;
    let name = if single { "geglu_single" } else { "geglu" };
    let kernel = Kernel { file: File::Elementwise, name, dtype: x.dtype() };
    let (count, size) = (int(packs)?, int(d)?);
    // SAFETY: each thread writes its sets of the result.
    unsafe {
        fill(kernel, grid(packs)?, &[&x], shape, x.dtype(), |addresses, out| GegluParameters {
            x: addresses[0],
            out,
            packs: count,
            d: size,
        })
    }
}

/// `residual + gate · x`: (b, n, c) both, `gate` (b, c).
pub(crate) fn gated_add(residual: &Tensor, gate: &Tensor, x: &Tensor) -> Result<Tensor> {
    let dtype = residual.dtype();
    // In one type the kernel reads them as they are; otherwise rounding one to the other's would lose digits.
    if residual.elem_count() == 0 || gate.dtype() != dtype || x.dtype() != dtype {
        return plain::gated_add(residual, gate, x);
    }
    let (_, positions, channels) = residual.dims3()?;
    let single = channels % wide(dtype) != 0;
    let together = if single { 1 } else { wide(dtype) };
    let gate = aligned(gate, together)?;
    let (residual, x) = (aligned(&residual.contiguous()?, together)?, aligned(&x.contiguous()?, together)?);
    let packs = x.elem_count() / together;
    let name = if single { "gated_add_single" } else { "gated_add" };
    let kernel = Kernel { file: File::Elementwise, name, dtype };
    let (count, positions, channels) = (int(packs)?, int(positions)?, int(channels)?);
    // SAFETY: each thread writes its sets of the result.
    unsafe {
        fill(kernel, grid(packs)?, &[&residual, &gate, &x], x.shape(), dtype, |addresses, out| GatedAddParameters {
            residual: addresses[0],
            gate: addresses[1],
            x: addresses[2],
            out,
            gate_row: gate.stride()[0] as i64,
            packs: count,
            positions,
            channels,
        })
    }
}

/// `x` (b, .., c) and `y` of the same shape or (b, c).
pub(crate) fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    // In one type the kernel reads them as they are; otherwise rounding one to the other's would lose digits.
    if x.elem_count() == 0 || y.dtype() != x.dtype() {
        return plain::add(x, y);
    }
    let (rows, channels) = (x.dim(0)?, x.dim(D::Minus1)?);
    let of_rows = y.dims() != x.dims();
    // What is added value by value is one vector to the kernel.
    let whole = if of_rows { channels } else { x.elem_count() };
    let single = whole % wide(x.dtype()) != 0;
    let together = if single { 1 } else { wide(x.dtype()) };
    let x = aligned(&x.contiguous()?.flatten_all()?, together)?.reshape(x.shape())?;
    let y = if of_rows { aligned(y, together)? } else { aligned(&y.contiguous()?.flatten_all()?, together)? };
    let packs = x.elem_count() / together;
    let name = match (of_rows, single) {
        (false, false) => "add",
        (false, true) => "add_single",
        (true, false) => "add_rows",
        (true, true) => "add_rows_single",
    };
    let kernel = Kernel { file: File::Elementwise, name, dtype: x.dtype() };
    let (count, positions, channels) = (int(packs)?, int(x.elem_count() / rows / channels)?, int(channels)?);
    // SAFETY: each thread writes its sets of the result; the vectors are as many as the rows.
    unsafe {
        fill(kernel, grid(packs)?, &[&x, &y], x.shape(), x.dtype(), |addresses, out| AddParameters {
            x: addresses[0],
            y: addresses[1],
            out,
            y_row: y.stride()[0] as i64,
            packs: count,
            positions,
            channels,
        })
    }
}

/// `x` (b, h0, w0, c) to (b, h, w, c).
pub(crate) fn upsample_nearest(x: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    let (rows, from_h, from_w, channels) = x.dims4()?;
    if x.elem_count() == 0 {
        return plain::upsample_nearest(x, h, w);
    }
    let single = channels % wide(x.dtype()) != 0;
    let together = if single { 1 } else { wide(x.dtype()) };
    let x = aligned(&x.contiguous()?, together)?;
    let count = rows * h * w * channels / together;
    let name = if single { "upsample_single" } else { "upsample_wide" };
    let kernel = Kernel { file: File::Elementwise, name, dtype: x.dtype() };
    let (units, packs) = (int(channels / together)?, int(count)?);
    let (from, to) = ([int(from_h)?, int(from_w)?], [int(h)?, int(w)?]);
    let scale = [from_h as f32 / h as f32, from_w as f32 / w as f32];
    // SAFETY: each thread writes its sets of the result, and reads pixels whose place is cut off at the last one.
    unsafe {
        fill(kernel, grid(count)?, &[&x], (rows, h, w, channels), x.dtype(), |addresses, out| UpsampleParameters {
            x: addresses[0],
            out,
            units,
            from,
            to,
            count: packs,
            scale,
        })
    }
}
