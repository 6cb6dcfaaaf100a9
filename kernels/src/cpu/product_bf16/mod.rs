//! The matrix product of bf16 values with sums in f32, by the processor's instructions for it.
//!
//! One instruction multiplies pairs of bf16 values and adds both products to a sum in f32: for a vector of columns
//! ([`avx512`], AVX-512 BF16), or for a tile of 16 rows and 16 columns ([`amx`]). The weights take half the memory of those
//! in f32. The shape of the computation is that of [`super::product`]: packed panels on the right, rows by pointers on the
//! left, one for each tap of a convolution's window. A panel holds pairs of neighbouring depths side by side.
//!
//! An element is summed over the whole depth in one order, and rounded to bf16 once, with the bias and the residual added
//! before. The form, and with it the order, is chosen by the number of values behind each pointer alone, when the right
//! side is packed. An element's bits therefore depend on its own row and column only, never on how many rows there are.

#[cfg(any(test, target_arch = "x86_64"))]
mod amx;
mod avx512;
#[cfg(target_arch = "x86_64")]
mod detect;
mod finish;
#[cfg(test)]
mod model;
mod packed;
#[cfg(test)]
mod tests;
#[cfg(any(test, target_arch = "x86_64"))]
mod tiles;

use std::{ops::Range, sync::LazyLock};

use half::bf16;

#[cfg(test)]
pub(crate) use self::model::with_tiles;
pub(super) use self::packed::PackedBf16;
use super::{
    buffer::{Target, filled, room},
    pool::{tasks, threads},
    product::Addends,
};

/// The values behind a pointer from which on tiles are taken: below, more than half of a tile would be filled up.
#[cfg(any(test, target_arch = "x86_64"))]
const TILE_CHANNELS: usize = 16;

/// How a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// By AVX-512 BF16.
    Vectors,
    /// By AMX.
    #[cfg(target_arch = "x86_64")]
    Tiles,
    /// As with AMX, by a model of the tiles.
    #[cfg(test)]
    Model,
}

impl Form {
    /// The vectors in a panel, at most: three, as in [`super::product`], or two tiles.
    fn panel_vectors(self) -> usize {
        if self == Self::Vectors { 3 } else { 2 }
    }

    /// The rows of one task, with packed weights of so many cache lines. Weights too large for the second cache are read once
    /// for each block, so a block then has more rows; and so it has with tiles, which are done with the same weights sooner.
    fn block_rows(self, lines: usize) -> usize {
        let (few, many, large) = if self == Self::Vectors { (64, 256, 1 << 16) } else { (128, 256, 1 << 14) };
        if lines > large { many } else { few }
    }
}

/// Whether this processor has the instructions on vectors, and nobody asked for narrower ones (see [`super::simd`]).
static AVAILABLE: LazyLock<bool> = LazyLock::new(|| {
    let narrow = std::env::var("EASEL_VECTORS").is_ok_and(|asked| matches!(asked.as_str(), "avx2" | "none"));
    !narrow && detected()
});

#[cfg(target_arch = "x86_64")]
fn detected() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn detected() -> bool {
    false
}

/// Whether such products are computed here at all.
pub(super) fn available() -> bool {
    *AVAILABLE
}

/// How products with `channels` values behind each pointer are computed here, if they can be: they go in pairs.
pub(super) fn form(channels: usize) -> Option<Form> {
    if !available() || channels == 0 || !channels.is_multiple_of(2) {
        return None;
    }
    #[cfg(test)]
    if channels >= TILE_CHANNELS && model::forced() {
        return Some(Form::Model);
    }
    #[cfg(target_arch = "x86_64")]
    if channels >= TILE_CHANNELS && detect::tiles() == detect::Tiles::Taken {
        return Some(Form::Tiles);
    }
    Some(Form::Vectors)
}

/// What multiplies bf16 here, in words.
pub(super) fn name() -> &'static str {
    if !available() {
        return "f32";
    }
    #[cfg(target_arch = "x86_64")]
    match detect::tiles() {
        detect::Tiles::Absent => {}
        detect::Tiles::Taken => return "AMX",
        detect::Tiles::Wrong => return "AVX-512 BF16, since AMX gave wrong sums",
    }
    "AVX-512 BF16"
}

/// Some rows of the left side.
struct Rows<'a> {
    /// Row r of tap t is at `table[t * count + r]`.
    table: &'a [*const bf16],
    count: usize,
    taps: usize,
    /// The values at each pointer.
    channels: usize,
}

/// The whole product of `count` rows, (count, columns), over the pool's threads.
///
/// `fill` writes the pointers of a range of rows: row i of the range and tap t
/// go to element `t * range.len() + i`.
///
/// # Safety
/// `right` must be packed for these taps and channels, in a [`form`] for the channels, and each pointer be readable for
/// `channels` values.
pub(super) unsafe fn multiply(
    count: usize,
    (taps, channels): (usize, usize),
    right: &PackedBf16,
    addends: Addends<'_, bf16>,
    fill: impl Fn(Range<usize>, &mut [*const bf16]) + Sync + Send,
) -> Vec<bf16> {
    assert!(addends.fit(count, right.columns(), right.columns()), "the bias and the residual have the result's sizes");
    let mut result = room(count * right.columns());
    let target = Target::new(&mut result);
    let rows = right.form().block_rows(right.lines().len());
    let (blocks, panels) = (count.div_ceil(rows), right.panels());
    // With few rows the columns are split too, so that each thread finds work.
    let parts = (2 * threads()).div_ceil(blocks.max(1)).clamp(1, panels.max(1));
    // A pair costs what one product in f32 does, and in tiles much less.
    let work = count * right.pairs() * right.columns() / if right.form() == Form::Vectors { 1 } else { 8 };
    tasks(blocks * parts, work, |task| {
        let (block, part) = (task / parts, task % parts);
        let range = block * rows..count.min((block + 1) * rows);
        let mut table = vec![std::ptr::null(); range.len() * taps];
        fill(range.clone(), &mut table);
        let rows = Rows { table: &table, count: range.len(), taps, channels };
        let panels = panels * part / parts..panels * (part + 1) / parts;
        // SAFETY: the instructions are there and the pointers are as the caller promised; the tasks' rows and panels do not
        // overlap.
        unsafe {
            let start = range.start * right.columns();
            let to = target.at(start);
            let addends = addends.behind(start);
            match right.form() {
                Form::Vectors => avx512::multiply(&rows, right, panels, addends, to),
                #[cfg(target_arch = "x86_64")]
                Form::Tiles => amx::Task::<tiles::Amx>::new().multiply(&rows, right, panels, addends, to),
                #[cfg(test)]
                Form::Model => amx::Task::<model::Model>::new().multiply(&rows, right, panels, addends, to),
            }
        }
    });
    // SAFETY: the blocks and parts cover the result.
    unsafe { filled(result) }
}

/// Computes sums on this thread, one product after the other: tiles are set up once for all of them.
pub(super) struct Sums(By);

enum By {
    Vectors,
    #[cfg(target_arch = "x86_64")]
    Tiles(amx::Task<tiles::Amx>),
    #[cfg(test)]
    Model(amx::Task<model::Model>),
}

impl Sums {
    /// # Safety
    /// The form must be one that [`form`] gave.
    pub(super) unsafe fn new(form: Form) -> Self {
        Self(match form {
            Form::Vectors => By::Vectors,
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the caller's promise.
            Form::Tiles => By::Tiles(unsafe { amx::Task::new() }),
            #[cfg(test)]
            // SAFETY: as above.
            Form::Model => By::Model(unsafe { amx::Task::new() }),
        })
    }

    /// The sums of the products of some rows, each given by one pointer, with the whole right side; in f32, to go on computing
    /// with.
    ///
    /// Row r begins at `to + r * pitch`, and is written in whole vectors. `first` begins the sums, otherwise the products are
    /// added to what stands there.
    ///
    /// # Safety
    /// `right` must be packed for one tap in the form that was given, each pointer be readable for its depth, and the result for
    /// each row's columns, rounded up to whole vectors.
    pub(super) unsafe fn add(
        &mut self,
        rows: &[*const bf16],
        right: &PackedBf16,
        to: *mut f32,
        pitch: usize,
        first: bool,
    ) {
        let rows = Rows { table: rows, count: rows.len(), taps: 1, channels: right.depth() };
        // SAFETY: the instructions are there, and the pointers are as the caller promised.
        unsafe {
            match &mut self.0 {
                By::Vectors => avx512::sums(&rows, right, to, pitch, first),
                #[cfg(target_arch = "x86_64")]
                By::Tiles(task) => task.sums(&rows, right, to, pitch, first),
                #[cfg(test)]
                By::Model(task) => task.sums(&rows, right, to, pitch, first),
            }
        }
    }
}
