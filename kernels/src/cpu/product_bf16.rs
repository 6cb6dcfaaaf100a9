//! The matrix product of bf16 values with sums in f32, by the instructions of AVX-512 BF16.
//!
//! One instruction multiplies pairs of bf16 values and adds both products to a sum in f32, so it does twice the work
//! of a multiply-add in f32, and the weights take half the memory. The shape of the computation is that of
//! [`super::product`]: packed panels on the right, rows by pointers on the left, one for each tap of a convolution's window. A
//! panel holds pairs of neighbouring depths side by side.
//!
//! An element is summed in pairs over the whole depth in ascending order and rounded to bf16 once, with the bias added
//! before. Its bits therefore depend on its own row and column only.

use std::ops::Range;
use std::sync::LazyLock;

use half::bf16;

use super::{
    buffer::{Target, filled, room},
    convert::round,
    pool::{tasks, threads},
};

/// The values of a vector of sums.
const LANES: usize = 16;
/// The vectors in a panel, at most: as in [`super::product`].
const PANEL_VECTORS: usize = 3;
/// The rows of a tile: with three vectors 24 sums, which leave room for three vectors of weights and a pair.
const TILE_ROWS: usize = 8;
/// The pairs of one pass over the rows of a block: its part of a panel stays in the second cache from row to row.
const PASS_PAIRS: usize = 1280;
/// The rows of one task.
const BLOCK_ROWS: usize = 64;
/// The size, in cache lines, above which packed weights do not stay in a second cache: 4 MiB.
const LARGE_LINES: usize = 1 << 16;

/// Whether this processor has the instructions, and nobody asked for narrower vectors (see [`super::simd`]).
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

/// Whether products with `channels` values behind each pointer can be computed here: they go in pairs.
pub(super) fn takes(channels: usize) -> bool {
    available() && channels > 0 && channels.is_multiple_of(2)
}

/// A cache line of pairs, one a column; it aligns the panels.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([[bf16; 2]; LANES]);

/// The right side (depth, columns) of a product.
#[derive(Debug)]
pub(super) struct PackedBf16 {
    /// Panel after panel; in a panel pair of depths after pair, filled up with zeros to whole vectors.
    lines: Vec<Line>,
    depth: usize,
    columns: usize,
}

/// Where a panel lies, in vectors.
#[derive(Clone, Copy)]
struct Panel {
    first: usize,
    vectors: usize,
}

impl PackedBf16 {
    /// Packs the matrix whose element is `value(depth, column)`; the depth must be even.
    pub(super) fn new(depth: usize, columns: usize, value: impl Fn(usize, usize) -> bf16 + Sync + Send) -> Self {
        let pairs = depth / 2;
        let mut packed = Self::empty(depth, columns);
        let to = Target::of(packed.lines.as_mut_ptr());
        tasks(packed.panels(), depth * columns, |index| {
            let panel = packed.panel(index);
            for pair in 0..pairs {
                for vector in 0..panel.vectors {
                    // SAFETY: the panel's `pairs * vectors` lines are this task's alone.
                    let line = unsafe { &mut *to.at(panel.first * pairs + pair * panel.vectors + vector) };
                    let first = (panel.first + vector) * LANES;
                    for (offset, both) in line.0.iter_mut().enumerate().take(columns.saturating_sub(first)) {
                        *both = [value(2 * pair, first + offset), value(2 * pair + 1, first + offset)];
                    }
                }
            }
        });
        packed
    }

    /// Packs the matrix whose column `index` is `column(index)`, of `depth` values.
    pub(super) fn of_columns<'a>(depth: usize, columns: usize, column: impl Fn(usize) -> &'a [bf16]) -> Self {
        let mut packed = Self::empty(depth, columns);
        let pairs = depth / 2;
        for index in 0..packed.panels() {
            let panel = packed.panel(index);
            let lines = &mut packed.lines[panel.first * pairs..][..panel.vectors * pairs];
            for vector in 0..panel.vectors {
                let first = (panel.first + vector) * LANES;
                for offset in 0..LANES.min(columns - first) {
                    let values = column(first + offset).chunks_exact(2);
                    for (line, both) in lines[vector..].iter_mut().step_by(panel.vectors).zip(values) {
                        line.0[offset] = [both[0], both[1]];
                    }
                }
            }
        }
        packed
    }

    /// Packs the matrix whose row `index` is `row(index)`, of `columns` values; the depth must be even.
    pub(super) fn of_rows<'a>(depth: usize, columns: usize, row: impl Fn(usize) -> &'a [bf16]) -> Self {
        let mut packed = Self::empty(depth, columns);
        let pairs = depth / 2;
        for pair in 0..pairs {
            let (upper, lower) = (row(2 * pair).chunks(LANES), row(2 * pair + 1).chunks(LANES));
            let mut both = upper.zip(lower);
            for index in 0..packed.panels() {
                let panel = packed.panel(index);
                let lines = &mut packed.lines[panel.first * pairs + pair * panel.vectors..][..panel.vectors];
                for (line, (upper, lower)) in lines.iter_mut().zip(&mut both) {
                    for ((to, upper), lower) in line.0.iter_mut().zip(upper).zip(lower) {
                        *to = [*upper, *lower];
                    }
                }
            }
        }
        packed
    }

    fn empty(depth: usize, columns: usize) -> Self {
        let lines = vec![Line([[bf16::ZERO; 2]; LANES]); depth / 2 * columns.div_ceil(LANES)];
        Self { lines, depth, columns }
    }

    /// The values of a row of `columns` sums, rounded up to whole vectors.
    pub(super) fn pitch(columns: usize) -> usize {
        columns.next_multiple_of(LANES)
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    fn panels(&self) -> usize {
        self.columns.div_ceil(LANES).div_ceil(PANEL_VECTORS)
    }

    /// The panels differ by one vector at most, so that none is a thin rest.
    fn panel(&self, index: usize) -> Panel {
        let (vectors, panels) = (self.columns.div_ceil(LANES), self.panels());
        let (each, longer) = (vectors / panels, vectors % panels);
        Panel { first: each * index + index.min(longer), vectors: each + usize::from(index < longer) }
    }
}

/// The whole product of `count` rows, (count, columns), over the pool's threads.
///
/// `fill` writes the pointers of a range of rows: row i of the range and tap t
/// go to element `t * range.len() + i`.
///
/// # Safety
/// [`takes`] must be true of `channels`, each pointer readable for `channels` values, and taps · channels the depth of
/// `right`.
pub(super) unsafe fn multiply(
    count: usize,
    (taps, channels): (usize, usize),
    right: &PackedBf16,
    bias: Option<&[f32]>,
    fill: impl Fn(Range<usize>, &mut [*const bf16]) + Sync + Send,
) -> Vec<bf16> {
    let mut result = room(count * right.columns);
    let target = Target::new(&mut result);
    // Weights too large for the caches are read once for each block, so a block then has more rows.
    let rows = if right.lines.len() > LARGE_LINES { 4 * BLOCK_ROWS } else { BLOCK_ROWS };
    let (blocks, panels) = (count.div_ceil(rows), right.panels());
    // With few rows the columns are split too, so that each thread finds work.
    let parts = (2 * threads()).div_ceil(blocks.max(1)).clamp(1, panels.max(1));
    // A pair costs what one product in f32 does.
    tasks(blocks * parts, count * right.depth / 2 * right.columns, |task| {
        let (block, part) = (task / parts, task % parts);
        let range = block * rows..count.min((block + 1) * rows);
        let mut table = vec![std::ptr::null(); range.len() * taps];
        fill(range.clone(), &mut table);
        let block = Block { table: &table, count: range.len(), taps, channels, right };
        let mut sums = vec![0_f32; range.len() * PANEL_VECTORS * LANES];
        for panel in panels * part / parts..panels * (part + 1) / parts {
            // SAFETY: the instructions are there and the pointers are as the caller promised; the tasks' rows and
            // panels do not overlap.
            unsafe { block.panel(right.panel(panel), bias, &mut sums, target.at(range.start * right.columns)) };
        }
    });
    // SAFETY: the blocks and parts cover the result.
    unsafe { filled(result) }
}

/// The sums of the products of some rows, each given by one pointer, with the whole right side; in f32, to go on computing with.
///
/// Row r begins at `to + r * pitch`, and is written in whole vectors. `first` begins the sums, otherwise the products are
/// added to what stands there.
///
/// # Safety
/// [`takes`] must be true of the depth of `right`, each pointer be readable for that many values, and the result for each
/// row's columns, rounded up to whole vectors.
pub(super) unsafe fn sums(rows: &[*const bf16], right: &PackedBf16, to: *mut f32, pitch: usize, first: bool) {
    let block = Block { table: rows, count: rows.len(), taps: 1, channels: right.depth, right };
    for index in 0..right.panels() {
        let panel = right.panel(index);
        // SAFETY: the instructions are there, and the pointers are as the caller promised.
        unsafe { block.sums(panel, to.add(panel.first * LANES), pitch, first) };
    }
}

/// Some rows of the left side, and what they are multiplied with.
struct Block<'a> {
    /// Row r of tap t is at `table[t * count + r]`.
    table: &'a [*const bf16],
    count: usize,
    taps: usize,
    /// The values at each pointer.
    channels: usize,
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
    /// Never called, because [`takes`] is never true here.
    unsafe fn panel(&self, _: Panel, _: Option<&[f32]>, _: &mut [f32], _: *mut bf16) {}

    /// As little as this one.
    unsafe fn sums(&self, _: Panel, _: *mut f32, _: usize, _: bool) {}
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::{Block, LANES, PANEL_VECTORS, PASS_PAIRS, Panel, Pass, TILE_ROWS, bf16, round};

    impl Block<'_> {
        /// All rows times one panel; `to` is the first row's first column of all.
        ///
        /// # Safety
        /// The instructions must be there, every pointer of the table readable for `channels` values, the result writable
        /// for the columns of each row, and `sums` as long as the rows times the widest panel.
        #[target_feature(enable = "avx512f,avx512bf16")]
        pub(super) unsafe fn panel(&self, panel: Panel, bias: Option<&[f32]>, sums: &mut [f32], to: *mut bf16) {
            debug_assert!(sums.len() >= self.count * PANEL_VECTORS * LANES);
            // SAFETY: the caller's promises.
            unsafe { self.sums(panel, sums.as_mut_ptr(), PANEL_VECTORS * LANES, true) };
            let column = panel.first * LANES;
            let width = (panel.vectors * LANES).min(self.right.columns - column);
            for row in 0..self.count {
                let sums = &sums[row * PANEL_VECTORS * LANES..][..width];
                // SAFETY: the row's columns of this panel are writable, as promised, and nobody else's.
                let to = unsafe { std::slice::from_raw_parts_mut(to.add(row * self.right.columns + column), width) };
                match bias {
                    Some(bias) => {
                        for ((to, sum), bias) in to.iter_mut().zip(sums).zip(&bias[column..]) {
                            *to = round(sum + bias);
                        }
                    }
                    None => to.iter_mut().zip(sums).for_each(|(to, sum)| *to = round(*sum)),
                }
            }
        }

        /// The sums of all rows with one panel: row r's begin at `to + r * pitch`.
        ///
        /// # Safety
        /// As [`Block::panel`], but for what is written: whole vectors of the panel, for each row.
        #[target_feature(enable = "avx512f,avx512bf16")]
        pub(super) unsafe fn sums(&self, panel: Panel, to: *mut f32, pitch: usize, first: bool) {
            let pairs = self.channels / 2;
            let taps_per_pass = (PASS_PAIRS / pairs).max(1);
            let mut first = first;
            for tap in (0..self.taps).step_by(taps_per_pass) {
                for pair in (0..pairs).step_by(PASS_PAIRS) {
                    let taps = tap..self.taps.min(tap + taps_per_pass);
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
            while row < self.count {
                let left = self.count - row;
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
                let pairs = self.channels / 2;
                let lines = panel.first * (self.right.depth / 2) + (pass.taps.start * pairs + pass.pair) * V;
                let mut right = self.right.lines.as_ptr().add(lines).cast::<__m512i>();
                for tap in pass.taps.clone() {
                    let table = self.table.as_ptr().add(tap * self.count + row);
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
