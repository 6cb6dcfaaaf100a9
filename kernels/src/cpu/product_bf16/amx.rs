//! Products in tiles: 32 rows times 32 columns at a time, in four tiles of sums.
//!
//! A step multiplies 32 depths of two tiles of rows with two of columns, so four products take four loads. Sums stay in their
//! tiles over the whole depth. What is added when within a tile's product, Intel's manual says: the even depths of the step and the
//! odd ones by themselves, each in ascending order, then both together to the sums.
//!
//! A tile of rows is loaded from where the rows are if these are equally far from each other, as the pixels of an image are
//! but at its borders. Otherwise, and where the channels do not fill whole steps, they are copied side by side first, once
//! for all columns.

use std::{mem::MaybeUninit, ops::Range};

use half::bf16;

use super::{
    super::buffer::room,
    Addends, Rows,
    finish::Finish,
    packed::{LANES, Line, PackedBf16, Panel, TILE_PAIRS},
    tiles::{CONFIG, ROW_BYTES, ROWS, Tiles},
};

/// The rows of four tiles of sums, and their columns.
const SQUARE: usize = 2 * ROWS;
/// The depths of a step.
const DEPTHS: usize = 2 * TILE_PAIRS;

/// The tiles of one thread, set up from when this is made until it is dropped, and what is to be multiplied in them.
pub(super) struct Task<T: Tiles> {
    tiles: T,
    /// Tile of rows i of tap t is at `i * taps + t`.
    left: Vec<Strided>,
    taps: usize,
    /// The rows that were copied.
    copies: Vec<MaybeUninit<Line>>,
    /// The sums of a square that cannot be written where they belong.
    square: Box<Square>,
}

/// Rows for a tile, equally far from each other.
#[derive(Clone, Copy)]
struct Strided {
    from: *const u8,
    /// In bytes.
    stride: isize,
}

/// The sums of 32 rows and columns.
#[repr(align(64))]
struct Square([f32; SQUARE * SQUARE]);

impl<T: Tiles> Drop for Task<T> {
    fn drop(&mut self) {
        // SAFETY: the instructions are there, as `new` was promised.
        unsafe { self.tiles.release() };
    }
}

impl<T: Tiles> Task<T> {
    /// # Safety
    /// The instructions must be there.
    pub(super) unsafe fn new() -> Self {
        let mut tiles = T::default();
        // SAFETY: the caller's promise.
        unsafe { tiles.configure(&CONFIG) };
        Self { tiles, left: Vec::new(), taps: 0, copies: Vec::new(), square: Box::new(Square([0.0; SQUARE * SQUARE])) }
    }

    /// Some rows times some panels; `to` is the first row's first column of all.
    ///
    /// # Safety
    /// Every pointer of the table must be readable for `channels` values, the right side packed for them and for tiles, and the
    /// result writable for the panels' columns of each row.
    pub(super) unsafe fn multiply(
        &mut self,
        rows: &Rows,
        right: &PackedBf16,
        panels: Range<usize>,
        addends: Addends<'_, bf16>,
        to: *mut bf16,
    ) {
        // SAFETY: the caller's promise.
        unsafe { self.arrange(rows) };
        for index in panels {
            let panel = right.panel(index);
            let (column, stride) = (panel.first * LANES, right.columns());
            let (width, addends) = ((panel.vectors * LANES).min(stride - column), addends.of_columns(column));
            for row in (0..rows.count).step_by(SQUARE) {
                let count = SQUARE.min(rows.count - row);
                let sums = self.square.0.as_mut_ptr();
                // SAFETY: a square has room for all sums; the result is as the caller promised.
                unsafe {
                    self.square(right, panel, row, count, (sums, SQUARE), true);
                    let (to, addends, sums) =
                        (to.add(row * stride + column), addends.behind(row * stride), &self.square.0);
                    Finish { sums, pitch: SQUARE, addends, rows: count, width, to, stride }.run();
                }
            }
        }
    }

    /// The sums of some rows with the whole right side, see [`super::Sums::add`].
    ///
    /// # Safety
    /// As [`Task::multiply`], but for what is written: whole vectors of the columns, for each row.
    pub(super) unsafe fn sums(&mut self, rows: &Rows, right: &PackedBf16, to: *mut f32, pitch: usize, first: bool) {
        // SAFETY: the caller's promise.
        unsafe { self.arrange(rows) };
        for panel in (0..right.panels()).map(|index| right.panel(index)) {
            let width = panel.vectors * LANES;
            for row in (0..rows.count).step_by(SQUARE) {
                let count = SQUARE.min(rows.count - row);
                // SAFETY: whole tiles are written where the caller promised room; other rows by way of the square.
                unsafe {
                    let to = to.add(row * pitch + panel.first * LANES);
                    if count.is_multiple_of(ROWS) {
                        self.square(right, panel, row, count, (to, pitch), first);
                        continue;
                    }
                    let sums = self.square.0.as_mut_ptr();
                    let line = |row: usize| (to.add(row * pitch), sums.add(row * SQUARE));
                    if !first {
                        (0..count).map(line).for_each(|(to, sums)| to.copy_to_nonoverlapping(sums, width));
                    }
                    self.square(right, panel, row, count, (sums, SQUARE), first);
                    (0..count).map(line).for_each(|(to, sums)| sums.copy_to_nonoverlapping(to, width));
                }
            }
        }
    }

    /// Finds out how tiles of these rows are loaded, and copies the rows that cannot be from where they are.
    ///
    /// # Safety
    /// Every pointer of the table must be readable for `channels` values.
    unsafe fn arrange(&mut self, rows: &Rows) {
        let steps = rows.channels.div_ceil(DEPTHS);
        // An odd number of lines from row to row, for strides of large powers of two fall on few sets of the first cache.
        let pitch = steps | 1;
        let whole = rows.channels.is_multiple_of(DEPTHS);
        // A tile that the rows do not fill repeats the last one: nobody looks at its sums.
        let row = |tile: usize, tap: usize, row: usize| {
            rows.table[tap * rows.count + (tile * ROWS + row).min(rows.count - 1)].cast::<u8>()
        };
        let places = (0..rows.count.div_ceil(ROWS)).flat_map(|tile| (0..rows.taps).map(move |tap| (tile, tap)));
        self.taps = rows.taps;
        self.left.clear();
        self.left.extend(places.clone().map(|(tile, tap)| {
            let from = row(tile, tap, 0);
            let distance = |index| row(tile, tap, index).addr().wrapping_sub(row(tile, tap, index - 1).addr()) as isize;
            let stride = distance(1);
            let even = whole && (2..ROWS).all(|index| distance(index) == stride);
            Strided { from: if even { from } else { std::ptr::null() }, stride }
        }));
        let copied = self.left.iter().filter(|left| left.from.is_null()).count();
        self.copies = room(copied * ROWS * pitch);
        let copies = self.copies.chunks_exact_mut(ROWS * pitch);
        let uneven = self.left.iter_mut().zip(places).filter(|(left, _)| left.from.is_null());
        for ((left, (tile, tap)), lines) in uneven.zip(copies) {
            *left = Strided { from: lines.as_ptr().cast(), stride: (pitch * ROW_BYTES) as isize };
            for (index, line) in lines.chunks_exact_mut(pitch).enumerate() {
                let (to, values) = (line.as_mut_ptr().cast::<u8>(), rows.channels * size_of::<bf16>());
                // SAFETY: that much is readable, as promised, and the row's lines have room for all steps.
                unsafe {
                    row(tile, tap, index).copy_to_nonoverlapping(to, values);
                    to.add(values).write_bytes(0, steps * ROW_BYTES - values);
                }
            }
        }
    }

    /// Adds the products of the rows from `row` on, 32 of them at most, with a panel to the sums at `to`, which are `pitch` from
    /// row to row, or begins them.
    ///
    /// # Safety
    /// The rows must be arranged, the right side packed for them, and whole tiles be readable and writable at `to`.
    unsafe fn square(
        &mut self,
        right: &PackedBf16,
        panel: Panel,
        row: usize,
        count: usize,
        to: (*mut f32, usize),
        first: bool,
    ) {
        let left = row / ROWS * self.taps..(row + count).div_ceil(ROWS) * self.taps;
        // SAFETY: the caller's promises.
        unsafe {
            match (count > ROWS, panel.vectors > 1) {
                (true, true) => self.tiles::<2, 2>(right, panel, left, to, first),
                (true, false) => self.tiles::<2, 1>(right, panel, left, to, first),
                (false, true) => self.tiles::<1, 2>(right, panel, left, to, first),
                (false, false) => self.tiles::<1, 1>(right, panel, left, to, first),
            }
        }
    }

    /// R tiles of rows times V of columns: tiles 0 to 3 are sums, row by row, 4 and 5 rows, 6 and 7 columns.
    ///
    /// # Safety
    /// As [`Task::square`].
    unsafe fn tiles<const R: usize, const V: usize>(
        &mut self,
        right: &PackedBf16,
        panel: Panel,
        left: Range<usize>,
        (to, pitch): (*mut f32, usize),
        first: bool,
    ) {
        let (upper, lower) = self.left[left].split_at(self.taps);
        // With one tile of rows there is no lower one, and the upper one is not loaded twice.
        let lower = if R > 1 { lower } else { upper };
        let tiles = &mut self.tiles;
        let stride = (pitch * size_of::<f32>()) as isize;
        let sums = |row: usize, column: usize| to.wrapping_add(row * ROWS * pitch + column * LANES).cast::<u8>();
        let width = (V * ROW_BYTES) as isize;
        let steps = right.tap_pairs() / TILE_PAIRS;
        // SAFETY: the pointers stay in the rows, in the panel, and in the sums, as promised.
        unsafe {
            if first {
                tiles.zero::<0>();
                if V > 1 {
                    tiles.zero::<1>();
                }
                if R > 1 {
                    tiles.zero::<2>();
                }
                if R > 1 && V > 1 {
                    tiles.zero::<3>();
                }
            } else {
                tiles.load::<0>(sums(0, 0), stride);
                if V > 1 {
                    tiles.load::<1>(sums(0, 1), stride);
                }
                if R > 1 {
                    tiles.load::<2>(sums(1, 0), stride);
                }
                if R > 1 && V > 1 {
                    tiles.load::<3>(sums(1, 1), stride);
                }
            }
            let mut columns = right.lines().as_ptr().add(panel.first * right.pairs()).cast::<u8>();
            for (upper, lower) in upper.iter().zip(lower) {
                for step in 0..steps {
                    tiles.load::<4>(upper.from.add(step * ROW_BYTES), upper.stride);
                    tiles.load::<6>(columns, width);
                    tiles.multiply::<0, 4, 6>();
                    if V > 1 {
                        tiles.load::<7>(columns.add(ROW_BYTES), width);
                        tiles.multiply::<1, 4, 7>();
                    }
                    if R > 1 {
                        tiles.load::<5>(lower.from.add(step * ROW_BYTES), lower.stride);
                        tiles.multiply::<2, 5, 6>();
                    }
                    if R > 1 && V > 1 {
                        tiles.multiply::<3, 5, 7>();
                    }
                    columns = columns.add(TILE_PAIRS * V * ROW_BYTES);
                }
            }
            tiles.store::<0>(sums(0, 0), stride);
            if V > 1 {
                tiles.store::<1>(sums(0, 1), stride);
            }
            if R > 1 {
                tiles.store::<2>(sums(1, 0), stride);
            }
            if R > 1 && V > 1 {
                tiles.store::<3>(sums(1, 1), stride);
            }
        }
    }
}
