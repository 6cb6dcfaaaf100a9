//! Sums: of a block's features with its shortcut, and of a vector with every position.

use candle_core::{Result, Tensor, bail};

use crate::dispatch::form;

/// `x + y`, where `y` has the shape of `x`, (b, .., c), or is (b, c): a vector for each row, added at every position.
///
/// Both are f32, f16 or bf16; the result has the type of `x`, which `y` is rounded to.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let fits = match (x.dims(), y.dims()) {
        (from, to) if from == to => !from.is_empty(),
        ([rows, .., channels], to) => to == [*rows, *channels],
        _ => false,
    };
    if !fits {
        bail!("add: {:?} cannot be added to {:?}, only the same shape or a vector for each row", y.dims(), x.dims());
    }
    form!(x, add in [cpu, cuda])(x, y)
}
