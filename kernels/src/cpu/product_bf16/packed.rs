//! The right side of a product of bf16, packed.

use half::bf16;

use super::{
    super::{buffer::Target, pool::tasks},
    Form,
};

/// The values of a vector of sums, and of a row of a tile of sums.
pub(super) const LANES: usize = 16;
/// The pairs of depths of a tile.
pub(super) const TILE_PAIRS: usize = 16;

/// A cache line of pairs, one a column; it aligns the panels.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [[bf16; 2]; LANES]);

/// The right side (taps · channels, columns) of a product, for one form.
#[derive(Debug)]
pub(in crate::cpu) struct PackedBf16 {
    /// Panel after panel; in a panel tap after tap, and in that pair of depths after pair, filled up with zeros to whole
    /// vectors.
    lines: Vec<Line>,
    form: Form,
    taps: usize,
    channels: usize,
    columns: usize,
}

/// Where a panel lies, in vectors.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    pub(super) first: usize,
    pub(super) vectors: usize,
}

impl PackedBf16 {
    /// Packs the matrix whose element is `value(depth, column)`; the channels of each tap must be even.
    pub(in crate::cpu) fn new(
        form: Form,
        (taps, channels): (usize, usize),
        columns: usize,
        value: impl Fn(usize, usize) -> bf16 + Sync + Send,
    ) -> Self {
        let mut packed = Self::empty(form, (taps, channels), columns);
        let (pairs, all) = (packed.tap_pairs(), packed.pairs());
        let to = Target::of(packed.lines.as_mut_ptr());
        tasks(packed.panels(), taps * channels * columns, |index| {
            let panel = packed.panel(index);
            for (tap, pair) in (0..taps).flat_map(|tap| (0..channels / 2).map(move |pair| (tap, pair))) {
                let depth = tap * channels + 2 * pair;
                for vector in 0..panel.vectors {
                    let line = panel.first * all + (tap * pairs + pair) * panel.vectors + vector;
                    // SAFETY: the panel's `all * vectors` lines are this task's alone.
                    let line = unsafe { &mut *to.at(line) };
                    let first = (panel.first + vector) * LANES;
                    for (offset, both) in line.0.iter_mut().enumerate().take(columns.saturating_sub(first)) {
                        *both = [value(depth, first + offset), value(depth + 1, first + offset)];
                    }
                }
            }
        });
        packed
    }

    /// Packs the matrix whose column `index` is `column(index)`, of `depth` values.
    pub(in crate::cpu) fn of_columns<'a>(
        form: Form,
        depth: usize,
        columns: usize,
        column: impl Fn(usize) -> &'a [bf16],
    ) -> Self {
        let mut packed = Self::empty(form, (1, depth), columns);
        let pairs = packed.pairs();
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
    pub(in crate::cpu) fn of_rows<'a>(
        form: Form,
        depth: usize,
        columns: usize,
        row: impl Fn(usize) -> &'a [bf16],
    ) -> Self {
        let mut packed = Self::empty(form, (1, depth), columns);
        let pairs = packed.pairs();
        for pair in 0..depth / 2 {
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

    fn empty(form: Form, (taps, channels): (usize, usize), columns: usize) -> Self {
        let mut packed = Self { lines: Vec::new(), form, taps, channels, columns };
        packed.lines = vec![Line([[bf16::ZERO; 2]; LANES]); packed.pairs() * columns.div_ceil(LANES)];
        packed
    }

    /// The values of a row of `columns` sums, rounded up to whole vectors.
    pub(in crate::cpu) fn pitch(columns: usize) -> usize {
        columns.next_multiple_of(LANES)
    }

    pub(in crate::cpu) fn columns(&self) -> usize {
        self.columns
    }

    pub(in crate::cpu) fn depth(&self) -> usize {
        self.taps * self.channels
    }

    pub(super) fn form(&self) -> Form {
        self.form
    }

    pub(super) fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// The pairs of a tap as they are packed: whole tiles of them for tiles, which have no rests then.
    pub(super) fn tap_pairs(&self) -> usize {
        let pairs = self.channels / 2;
        if self.form == Form::Vectors { pairs } else { pairs.next_multiple_of(TILE_PAIRS) }
    }

    /// The pairs of all taps.
    pub(super) fn pairs(&self) -> usize {
        self.taps * self.tap_pairs()
    }

    pub(super) fn panels(&self) -> usize {
        self.columns.div_ceil(LANES).div_ceil(self.form.panel_vectors())
    }

    /// The panels differ by one vector at most, so that none is a thin rest.
    pub(super) fn panel(&self, index: usize) -> Panel {
        let (vectors, panels) = (self.columns.div_ceil(LANES), self.panels());
        let (each, longer) = (vectors / panels, vectors % panels);
        Panel { first: each * index + index.min(longer), vectors: each + usize::from(index < longer) }
    }
}
