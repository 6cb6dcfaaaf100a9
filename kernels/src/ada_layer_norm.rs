//! What conditions a diffusion transformer's blocks: adaptive layer normalisation, and the gate before a residual
//! (Peebles and Xie, "Scalable Diffusion Models with Transformers", 2023, section 3.2).

use candle_core::{Result, Tensor, bail};

use crate::dispatch::form;

/// LayerNorm without weights of its own, then `x · (1 + scale) + shift` with a scale and a shift for each row.
///
/// `x` is (b, n, c) in f32, f16 or bf16, as is the result; `scale` and `shift` are (b, c). All is computed in f32 at
/// least, and rounded once.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn ada_layer_norm(x: &Tensor, scale: &Tensor, shift: &Tensor, eps: f64) -> Result<Tensor> {
    check_rows(x, scale, "ada_layer_norm", "scale")?;
    check_rows(x, shift, "ada_layer_norm", "shift")?;
    form!(x, ada_layer_norm in [cpu, cuda])(x, scale, shift, eps)
}

/// `residual + gate · x`, with a gate for each row.
///
/// `residual` and `x` are (b, n, c) in f32, f16 or bf16; the result has the residual's type. `gate` is (b, c). All is
/// computed in f32 at least, and rounded once.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn gated_add(residual: &Tensor, gate: &Tensor, x: &Tensor) -> Result<Tensor> {
    check_rows(residual, gate, "gated_add", "gate")?;
    if residual.dims() != x.dims() {
        bail!("gated_add: the residual {:?} and the input {:?} must have one shape", residual.dims(), x.dims());
    }
    form!(residual, gated_add in [cpu, cuda])(residual, gate, x)
}

/// Fails if `x` is not (b, n, c), or `vectors` not (b, c).
fn check_rows(x: &Tensor, vectors: &Tensor, operation: &str, name: &str) -> Result<()> {
    let (rows, _, channels) = x.dims3()?;
    if vectors.dims() != [rows, channels] {
        bail!("{operation}: the {name} {:?} must be ({rows}, {channels}) for {:?}", vectors.dims(), x.dims());
    }
    Ok(())
}
