//! Products by the instructions of AVX-512 BF16.
//!
//! An element is summed in pairs over the whole depth in ascending order.

use std::ops::Range;

use half::bf16;

use super::{
    Addends, Rows,
    finish::Finish,
    packed::{LANES, PackedBf16, Panel},
};

/// The vectors in a panel, at most: with eight rows 24 sums, which leave room for three vectors of weights and a pair.
const PANEL_VECTORS: usize = 3;
/// The rows of a tile.
const TILE_ROWS: usize = 8;
/// The pairs of one pass over the rows of a block: its part of a panel stays in the second cache from row to row.
const PASS_PAIRS: usize = 1280;

/// Some rows times some panels; `to` is the first row's first column of all.
///
/// # Safety
/// The instructions must be there, every pointer of the table readable for `channels` values, the right side packed for
/// them, and the result writable for the panels' columns of each row.
pub(super) unsafe fn multiply(
    rows: &Rows,
    right: &PackedBf16,
    panels: Range<usize>,
    addends: Addends<'_, bf16>,
    to: *mut bf16,
) {
    const PITCH: usize = PANEL_VECTORS * LANES;
    let mut sums = vec![0_f32; rows.count * PITCH];
    for index in panels {
        let panel = right.panel(index);
        let column = panel.first * LANES;
        let (width, stride) = ((panel.vectors * LANES).min(right.columns() - column), right.columns());
        // SAFETY: the caller's promises, and the sums have room for the widest panel.
        unsafe {
            Block { rows, right }.sums(panel, sums.as_mut_ptr(), PITCH, true);
            let (addends, to) = (addends.of_columns(column), to.add(column));
            Finish { sums: &sums, pitch: PITCH, addends, rows: rows.count, width, to, stride }.run();
        }
    }
}

/// The sums of some rows with the whole right side, see [`super::Sums::add`].
///
/// # Safety
/// As [`multiply`], but for what is written: whole vectors of the columns, for each row.
pub(super) unsafe fn sums(rows: &Rows, right: &PackedBf16, to: *mut f32, pitch: usize, first: bool) {
    for index in 0..right.panels() {
        let panel = right.panel(index);
        // SAFETY: the caller's promises.
        unsafe { Block { rows, right }.sums(panel, to.add(panel.first * LANES), pitch, first) };
    }
}

/// Some rows of the left side, and what they are multiplied with.
struct Block<'a> {
    rows: &'a Rows<'a>,
    right: &'a PackedBf16,
}

/// A part of the depth: some taps, or some pairs of one tap.
#[cfg(target_arch = "x86_64")]
struct Pass {
    taps: Range<usize>,
    pair: usize,
    pairs: usize,
}

#[cfg(not(target_arch = "x86_64"))]
impl Block<'_> {
    /// Never called, because there is no [`super::form`] here.
    unsafe fn sums(&self, _: Panel, _: *mut f32, _: usize, _: bool) {}
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::{Block, LANES, PASS_PAIRS, Panel, Pass, TILE_ROWS};

    impl Block<'_> {
        /// The sums of all rows with one panel: row r's begin at `to + r * pitch`.
        ///
        /// # Safety
        /// As [`super::multiply`], but for what is written: whole vectors of the panel, for each row.
        #[target_feature(enable = "avx512f,avx512bf16")]
        pub(super) unsafe fn sums(&self, panel: Panel, to: *mut f32, pitch: usize, first: bool) {
            let pairs = self.rows.channels / 2;
            let taps_per_pass = (PASS_PAIRS / pairs).max(1);
            let mut first = first;
            for tap in (0..self.rows.taps).step_by(taps_per_pass) {
                for pair in (0..pairs).step_by(PASS_PAIRS) {
                    let taps = tap..self.rows.taps.min(tap + taps_per_pass);
                    let pass = Pass { taps, pair, pairs: PASS_PAIRS.min(pairs - pair) };
                    // SAFETY: the caller's promises.
                    unsafe { self.pass(&pass, panel, to, pitch, first) };
                    first = false;
                }
            }
        }

        /// Adds a pass to the sums, or begins them.
        ///
        /// # Safety
        /// As [`Block::sums`].
        #[target_feature(enable = "avx512f,avx512bf16")]
        unsafe fn pass(&self, pass: &Pass, panel: Panel, to: *mut f32, pitch: usize, first: bool) {
            let mut row = 0;
            while row < self.rows.count {
                let left = self.rows.count - row;
                let rows = if left >= TILE_ROWS { TILE_ROWS } else { 1 << left.ilog2().min(2) };
                // SAFETY: the caller's promises, and `row + rows` is within the rows.
                unsafe {
                    let to = to.add(row * pitch);
                    match (rows, panel.vectors) {
                        (8, 3) => self.tile::<8, 3>(pass, panel, row, to, pitch, first),
                        (8, 2) => self.tile::<8, 2>(pass, panel, row, to, pitch, first),
                        (8, _) => self.tile::<8, 1>(pass, panel, row, to, pitch, first),
                        (4, 3) => self.tile::<4, 3>(pass, panel, row, to, pitch, first),
                        (4, 2) => self.tile::<4, 2>(pass, panel, row, to, pitch, first),
                        (4, _) => self.tile::<4, 1>(pass, panel, row, to, pitch, first),
                        (2, 3) => self.tile::<2, 3>(pass, panel, row, to, pitch, first),
                        (2, 2) => self.tile::<2, 2>(pass, panel, row, to, pitch, first),
                        (2, _) => self.tile::<2, 1>(pass, panel, row, to, pitch, first),
                        (_, 3) => self.tile::<1, 3>(pass, panel, row, to, pitch, first),
                        (_, 2) => self.tile::<1, 2>(pass, panel, row, to, pitch, first),
                        _ => self.tile::<1, 1>(pass, panel, row, to, pitch, first),
                    }
                }
                row += rows;
            }
        }

        /// R rows times a panel of V vectors, all sums in registers.
        ///
        /// # Safety
        /// As [`Block::sums`]; the rows `row..row + R` must exist, and `to` be the first of them.
        #[target_feature(enable = "avx512f,avx512bf16")]
        unsafe fn tile<const R: usize, const V: usize>(
            &self,
            pass: &Pass,
            panel: Panel,
            row: usize,
            to: *mut f32,
            pitch: usize,
            first: bool,
        ) {
            let mut sums = [[_mm512_setzero_ps(); V]; R];
            // SAFETY: the pointers stay in the panel, in the rows' values and in the sums, as promised.
            unsafe {
                if !first {
                    for (r, sums) in sums.iter_mut().enumerate() {
                        for (v, sum) in sums.iter_mut().enumerate() {
                            *sum = _mm512_loadu_ps(to.add(r * pitch + v * LANES));
                        }
                    }
                }
                let pairs = self.rows.channels / 2;
                let lines = panel.first * self.right.pairs() + (pass.taps.start * pairs + pass.pair) * V;
                let mut right = self.right.lines().as_ptr().add(lines).cast::<__m512i>();
                for tap in pass.taps.clone() {
                    let table = self.rows.table.as_ptr().add(tap * self.rows.count + row);
                    let rows: [*const i32; R] = std::array::from_fn(|r| (*table.add(r)).cast::<i32>().add(pass.pair));
                    for pair in 0..pass.pairs {
                        let mut weights = [bits(right.read()); V];
                        for weights in weights.iter_mut().skip(1) {
                            right = right.add(1);
                            *weights = bits(right.read());
                        }
                        right = right.add(1);
                        for r in 0..R {
                            let values = bits(_mm512_set1_epi32(rows[r].add(pair).read_unaligned()));
                            for v in 0..V {
                                sums[r][v] = _mm512_dpbf16_ps(sums[r][v], values, weights[v]);
                            }
                        }
                    }
                }
                for (r, sums) in sums.iter().enumerate() {
                    for (v, sum) in sums.iter().enumerate() {
                        _mm512_storeu_ps(to.add(r * pitch + v * LANES), *sum);
                    }
                }
            }
        }
    }

    /// The same bits as pairs of bf16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bits(vector: __m512i) -> __m512bh {
        // SAFETY: both are 512 bits without a meaning of their own.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(vector) }
    }
}
