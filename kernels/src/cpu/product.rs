//! The matrix product that linear, convolution and attention share.
//!
//! The right side is packed once into panels as wide as a few vectors. The left
//! side is not packed: each of its rows is given by pointers, one for each *tap*
//! of a convolution's window, at `channels` values that lie in a line. So a
//! convolution needs no im2col (after Dukhan, "The Indirect Convolution
//! Algorithm", 2019), and a linear layer is the case of one tap.
//!
//! An element is summed by fused multiply-adds over the whole depth (taps ·
//! channels) in ascending order, in passes that are summed by themselves and
//! then added, whatever tile of the result it falls into. Its bits therefore
//! depend on its own row and column only.

use pulp::{Simd, WithSimd};

use super::{
    buffer::{Target, filled, room},
    pool::{tasks, threads},
    simd::{dispatch, lanes, load, store},
};

/// The vectors in a panel, at most. Eight rows of three vectors are 24 sums, which with three loaded vectors and one
/// broadcast value fill 28 of 32 registers; four rows fill 16 of 16.
pub(super) const PANEL_VECTORS: usize = 3;
/// The depth of one pass over the rows of a block: its part of a panel stays in the second cache from row to row.
pub(super) const PASS_DEPTH: usize = 1280;

/// The rows of one task.
const BLOCK_ROWS: usize = 64;
/// The size, in cache lines, above which packed weights do not stay in a second cache: 4 MiB.
const LARGE_LINES: usize = 1 << 16;

/// A cache line; it aligns the panels.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// What is added to the sums of a product.
#[derive(Clone, Copy)]
pub(super) struct Addends<'a, T> {
    /// Added to each column.
    pub(super) bias: Option<&'a [f32]>,
    /// Added to each element, last: the first row's first column is the first value, and a row has as many as one of the
    /// whole result.
    pub(super) residual: Option<&'a [T]>,
}

impl<T> Addends<'_, T> {
    /// The same for a part of the result that begins at element `place` in a row's first column.
    pub(super) fn behind(self, place: usize) -> Self {
        Self { residual: self.residual.map(|residual| &residual[place..]), ..self }
    }

    /// The same for the columns from `column` on.
    pub(super) fn of_columns(self, column: usize) -> Self {
        Self { bias: self.bias.map(|bias| &bias[column..]), ..self.behind(column) }
    }

    /// Whether there are values enough for `rows` of the result, `stride` apart, with `columns` each.
    pub(super) fn fit(&self, rows: usize, stride: usize, columns: usize) -> bool {
        let least = rows.checked_sub(1).map_or(0, |rows| rows * stride + columns);
        self.bias.is_none_or(|bias| bias.len() == columns) && self.residual.is_none_or(|of| of.len() >= least)
    }
}

/// The right side (depth, columns) of a product, packed for this processor.
#[derive(Debug)]
pub(super) struct Packed {
    /// Panel after panel; in a panel row after row, filled up with zeros to whole vectors.
    lines: Vec<Line>,
    depth: usize,
    columns: usize,
    lanes: usize,
}

/// Where a panel lies, in vectors.
#[derive(Clone, Copy)]
struct Panel {
    first: usize,
    vectors: usize,
}

impl Packed {
    /// Packs the matrix whose element is `value(depth, column)`.
    pub(super) fn new(depth: usize, columns: usize, value: impl Fn(usize, usize) -> f32 + Sync + Send) -> Self {
        let lanes = lanes();
        let len = depth * columns.div_ceil(lanes) * lanes;
        let mut packed = Self { lines: vec![Line([0.0; 16]); len.div_ceil(16)], depth, columns, lanes };
        let to = Target::of(packed.lines.as_mut_ptr().cast());
        tasks(packed.panels(), len, |index| {
            let panel = packed.panel(index);
            let (width, column) = (panel.vectors * lanes, panel.first * lanes);
            let used = width.min(columns - column);
            for row in 0..depth {
                // SAFETY: `depth` rows of `width` lie in the panel, which is this task's alone.
                let line = unsafe { std::slice::from_raw_parts_mut(to.at(depth * column + row * width), used) };
                for (offset, element) in line.iter_mut().enumerate() {
                    *element = value(row, column + offset);
                }
            }
        });
        packed
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    pub(super) fn panels(&self) -> usize {
        self.columns.div_ceil(self.lanes).div_ceil(PANEL_VECTORS)
    }

    /// The columns of a panel.
    pub(super) fn columns_of(&self, panel: usize) -> std::ops::Range<usize> {
        let panel = self.panel(panel);
        let first = panel.first * self.lanes;
        first..self.columns.min(first + panel.vectors * self.lanes)
    }

    /// The panels differ by one vector at most, so that none is a thin rest.
    fn panel(&self, index: usize) -> Panel {
        let (vectors, panels) = (self.columns.div_ceil(self.lanes), self.panels());
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
/// Each pointer must be readable for `channels` values, and taps · channels must be the depth of `right`.
pub(super) unsafe fn multiply(
    count: usize,
    (taps, channels): (usize, usize),
    right: &Packed,
    addends: Addends<'_, f32>,
    fill: impl Fn(std::ops::Range<usize>, &mut [*const f32]) + Sync + Send,
) -> Vec<f32> {
    let mut result = room(count * right.columns);
    let target = Target::new(&mut result);
    // SAFETY: the pointers are as the caller promised, and the product covers the result.
    unsafe {
        multiply_into(target, right.columns, count, (taps, channels), right, addends, fill);
        filled(result)
    }
}

/// [`multiply`] with the result's first element at `target` and `stride` values from a row to the next.
///
/// # Safety
/// As [`multiply`]; and the result must be writable for the columns of each row, and nobody else's meanwhile. The residual's
/// rows have the result's stride.
pub(super) unsafe fn multiply_into(
    target: Target,
    stride: usize,
    count: usize,
    (taps, channels): (usize, usize),
    right: &Packed,
    addends: Addends<'_, f32>,
    fill: impl Fn(std::ops::Range<usize>, &mut [*const f32]) + Sync + Send,
) {
    assert!(addends.fit(count, stride, right.columns), "the bias and the residual have the result's sizes");
    // Weights too large for the caches are read once for each block, so a block then has more rows.
    let rows = if right.lines.len() > LARGE_LINES { 4 * BLOCK_ROWS } else { BLOCK_ROWS };
    let (blocks, panels) = (count.div_ceil(rows), right.panels());
    // With few rows the columns are split too, so that each thread finds work.
    let parts = (2 * threads()).div_ceil(blocks.max(1)).clamp(1, panels.max(1));
    tasks(blocks * parts, count * right.depth * right.columns, |task| {
        let (block, part) = (task / parts, task % parts);
        let range = block * rows..count.min((block + 1) * rows);
        let mut table = vec![std::ptr::null(); range.len() * taps];
        fill(range.clone(), &mut table);
        let rows = Rows { table: &table, pitch: range.len(), count: range.len(), taps, channels };
        let panels = panels * part / parts..panels * (part + 1) / parts;
        // SAFETY: the pointers are as the caller promised, and the tasks' rows and panels do not overlap.
        unsafe {
            let column = panels.clone().next().map_or(0, |first| right.columns_of(first).start);
            let place = range.start * stride + column;
            let to = target.at(place);
            let residual = addends.residual.map(|residual| residual[place..].as_ptr());
            let start = Start::Bias(addends.bias);
            Block { rows, right, panels, start, residual, pass: PASS_DEPTH, to, stride }.compute();
        }
    });
}

/// What a sum starts from.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    /// Zero, or the bias of each column.
    Bias(Option<&'a [f32]>),
    /// What stands in the result already.
    Result,
}

/// The rows of a left side: `taps` tables of pointers, each of `pitch` rows.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// Row r of tap t is at `table[t * pitch + r]`.
    pub(super) table: &'a [*const f32],
    pub(super) pitch: usize,
    /// How many rows to compute.
    pub(super) count: usize,
    pub(super) taps: usize,
    /// The values at each pointer.
    pub(super) channels: usize,
}

/// Some rows times some panels.
pub(super) struct Block<'a> {
    pub(super) rows: Rows<'a>,
    pub(super) right: &'a Packed,
    pub(super) panels: std::ops::Range<usize>,
    pub(super) start: Start<'a>,
    /// What is added to the sums last: its first row's first column of the panels', of rows as far apart as the result's.
    pub(super) residual: Option<*const f32>,
    /// The depth of one pass over the rows. Each pass is summed by itself, and added to those before.
    pub(super) pass: usize,
    /// The first row's first column of the panels'.
    pub(super) to: *mut f32,
    /// The values from a row of the result to the next.
    pub(super) stride: usize,
}

impl Block<'_> {
    /// Computes the block.
    ///
    /// # Safety
    /// Every pointer of the rows must be readable for `channels` values, the result writable (and readable, for
    /// [`Start::Result`]) for the columns of each row, as the residual is readable, and taps · channels must be the depth of the right side.
    #[inline]
    pub(super) unsafe fn compute(self) {
        debug_assert_eq!(self.rows.taps * self.rows.channels, self.right.depth);
        dispatch(self);
    }
}

/// A part of the depth: some taps, or some channels of one tap.
struct Pass {
    taps: std::ops::Range<usize>,
    channel: usize,
    channels: usize,
    last: bool,
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (taps, channels) = (self.rows.taps, self.rows.channels);
        let taps_per_pass = (self.pass / channels.max(1)).max(1);
        let mut start = self.start;
        for tap in (0..taps).step_by(taps_per_pass) {
            let taps = tap..taps.min(tap + taps_per_pass);
            for channel in (0..channels).step_by(self.pass) {
                let count = self.pass.min(channels - channel);
                let last = taps.end == self.rows.taps && channel + count == channels;
                let pass = Pass { taps: taps.clone(), channel, channels: count, last };
                self.pass(simd, &pass, start);
                start = Start::Result;
            }
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn pass<S: Simd>(&self, simd: S, pass: &Pass, start: Start) {
        let many = if S::REGISTER_COUNT >= 32 { 8 } else { 4 };
        let origin = self.panels.clone().next().map_or(0, |first| self.right.panel(first).first);
        for index in self.panels.clone() {
            let panel = self.right.panel(index);
            let column = (panel.first - origin) * S::F32_LANES;
            let residual = self.residual.filter(|_| pass.last);
            // SAFETY: the panel's columns lie in the result's rows, and in the residual's.
            let to = unsafe { (self.to.add(column), residual.map(|residual| residual.add(column))) };
            let mut row = 0;
            while row < self.rows.count {
                let left = self.rows.count - row;
                let rows = if left >= many { many } else { 1 << left.ilog2().min(2) };
                // SAFETY: `compute` was promised what `tile` asks for, and `row + rows` is within the rows.
                unsafe {
                    match (rows, panel.vectors) {
                        (8, 3) => self.tile::<S, 8, 3>(simd, pass, panel, row, to, start),
                        (8, 2) => self.tile::<S, 8, 2>(simd, pass, panel, row, to, start),
                        (8, _) => self.tile::<S, 8, 1>(simd, pass, panel, row, to, start),
                        (4, 3) => self.tile::<S, 4, 3>(simd, pass, panel, row, to, start),
                        (4, 2) => self.tile::<S, 4, 2>(simd, pass, panel, row, to, start),
                        (4, _) => self.tile::<S, 4, 1>(simd, pass, panel, row, to, start),
                        (2, 3) => self.tile::<S, 2, 3>(simd, pass, panel, row, to, start),
                        (2, 2) => self.tile::<S, 2, 2>(simd, pass, panel, row, to, start),
                        (2, _) => self.tile::<S, 2, 1>(simd, pass, panel, row, to, start),
                        (_, 3) => self.tile::<S, 1, 3>(simd, pass, panel, row, to, start),
                        (_, 2) => self.tile::<S, 1, 2>(simd, pass, panel, row, to, start),
                        _ => self.tile::<S, 1, 1>(simd, pass, panel, row, to, start),
                    }
                }
                row += rows;
            }
        }
    }

    /// R rows times a panel of V vectors, all sums in registers; `to` is the first row's first column of the panel, and so is what
    /// is to be added to it.
    ///
    /// # Safety
    /// As [`Block::compute`]; the rows `row..row + R` must exist.
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const V: usize>(
        &self,
        simd: S,
        pass: &Pass,
        panel: Panel,
        row: usize,
        (to, residual): (*mut f32, Option<*const f32>),
        start: Start,
    ) {
        let column = panel.first * S::F32_LANES;
        let columns = self.right.columns - column;
        // SAFETY: the pointers stay in the panel, the rows' values, the bias and the result, as promised; a broken
        // vector of the bias, the residual or the result is read and written only as far as there are columns.
        unsafe {
            let place = |r: usize, v: usize| (row + r) * self.stride + v * S::F32_LANES;
            let mut sums = [[simd.splat_f32s(0.0); V]; R];
            for v in 0..V {
                let left = columns - v * S::F32_LANES;
                if let Start::Bias(Some(bias)) = start {
                    let bias = load(simd, bias.as_ptr().add(column + v * S::F32_LANES), left);
                    for sums in &mut sums {
                        sums[v] = bias;
                    }
                }
            }
            let sums = self.add_products::<S, R, V>(simd, pass, column, row, sums);
            for (r, sums) in sums.into_iter().enumerate() {
                for (v, mut sum) in sums.into_iter().enumerate() {
                    let left = columns - v * S::F32_LANES;
                    if let Start::Result = start {
                        sum = simd.add_f32s(sum, load(simd, to.add(place(r, v)), left));
                    }
                    if let Some(residual) = residual {
                        sum = simd.add_f32s(sum, load(simd, residual.add(place(r, v)), left));
                    }
                    store(simd, to.add(place(r, v)), left, sum);
                }
            }
        }
    }

    /// The inner loop: adds the products of a pass to `sums`, taken and given by value so that they stay in registers.
    ///
    /// # Safety
    /// As [`Block::compute`]; the rows `row..row + R` must exist, and a panel of V vectors begin at `column`.
    #[inline(always)]
    unsafe fn add_products<S: Simd, const R: usize, const V: usize>(
        &self,
        simd: S,
        pass: &Pass,
        column: usize,
        row: usize,
        mut sums: [[S::f32s; V]; R],
    ) -> [[S::f32s; V]; R] {
        let width = V * S::F32_LANES;
        let depth = pass.taps.start * self.rows.channels + pass.channel;
        // SAFETY: the pointers stay in the panel and in the rows' values, as promised.
        unsafe {
            let mut right = self.right.lines.as_ptr().cast::<f32>().add(self.right.depth * column + depth * width);
            for tap in pass.taps.clone() {
                let table = self.rows.table.as_ptr().add(tap * self.rows.pitch + row);
                let rows: [*const f32; R] = std::array::from_fn(|r| (*table.add(r)).add(pass.channel));
                for channel in 0..pass.channels {
                    let vectors: [S::f32s; V] =
                        std::array::from_fn(|v| right.add(v * S::F32_LANES).cast::<S::f32s>().read_unaligned());
                    right = right.add(width);
                    for r in 0..R {
                        let value = simd.splat_f32s(*rows[r].add(channel));
                        for v in 0..V {
                            sums[r][v] = simd.mul_add_e_f32s(value, vectors[v], sums[r][v]);
                        }
                    }
                }
            }
        }
        sums
    }
}
