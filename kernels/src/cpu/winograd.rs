//! Convolution of 3x3 windows with fewer multiplications.
//!
//! Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015: F(2x2, 3x3) makes a tile of 2x2 results from
//! 4x4 pixels with 16 multiplications instead of 36, F(4x4, 3x3) one of 4x4 from 6x6 with 36 instead of 144. Pixels
//! and weights are transformed before (the weights once, when the layer is made) and the sums over the channels
//! after; what is left between is a matrix product for each of the 16 or 36 places.
//!
//! With few channels a task takes a block of tiles all the way, and their transformed values stay in its second cache. With
//! more channels that block would be so small that the weights were read too often, so a group of tiles is transformed by all
//! threads, and stays in the third cache while they multiply. The products of some tiles with one panel of all places stay in
//! the second, and are transformed back at once.
//!
//! The bits of a pixel depend on its place in its own image and on the layer, because a tile never lies on two images.

#[cfg(test)]
mod tests;
mod tile;
mod transform;

use std::{marker::PhantomData, ops::Range};

use candle_core::{Result, Tensor};

use self::{
    tile::{Input, Output},
    transform::{Filter, Four, Two},
};
use super::{
    buffer::{Target, filled, room},
    element::Element,
    pool::{tasks, threads},
    product::{Addends, Block, PANEL_VECTORS, Packed, Rows, Start},
    simd::{dispatch, lanes},
    with_values,
};

/// The tiles of a block, at most, and those that fill the rows of the product's tiles.
const BLOCK: usize = 24;
const FEWEST: usize = 8;
/// The transformed values of a block, at most: 512 KiB.
const BLOCK_VALUES: usize = 1 << 17;
/// The tiles of one task that transforms a group's pixels.
const TRANSFORMED: usize = 4;
/// The tiles of one task that multiplies a group's.
const MULTIPLIED: usize = 64;
/// The transformed values of a group, for each thread: 2 MiB.
const GROUP_VALUES: usize = 1 << 19;
/// What is between tiles, and places, besides their values, lest all begin at the same place of the first cache.
const GAP: usize = 16;
/// The products that transforming a value takes as long as.
const TRANSFORM_WORK: usize = 8;
/// The channels that are summed in one go, at most. A shorter sum errs less, which makes up for what the transforms enlarge.
const SUMMED: usize = 320;
/// With fewer channels than these, on either side, the transforms cost what the products save.
const FEWEST_CHANNELS: usize = 16;
/// The largest product of both sides' channels for tiles of 4x4, whose weights take four times the memory of the direct
/// form's: there 151 MB. Above it tiles of 2x2 are taken, whose weights take 16/9 of it.
const LARGEST_FOUR: usize = 1 << 20;

/// The side of a tile of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tile {
    Two,
    Four,
}

impl Tile {
    /// The tile that a layer with a weight of this shape (out, in, kh, kw) and this stride is computed by, in f32;
    /// `None` where the direct form is as fast.
    pub(super) fn of(shape: &[usize], stride: usize) -> Option<Self> {
        match *shape {
            [out, channels, 3, 3] if stride == 1 && out.min(channels) >= FEWEST_CHANNELS => {
                Some(if out * channels <= LARGEST_FOUR { Self::Four } else { Self::Two })
            }
            _ => None,
        }
    }

    /// The transformed weights that are kept instead of nine.
    pub(super) fn places(self) -> usize {
        match self {
            Self::Two => 16,
            Self::Four => 36,
        }
    }
}

/// The sizes of one convolution.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    /// The images.
    pub(super) images: usize,
    /// The height and width of an image, and of its result.
    pub(super) image: (usize, usize),
    pub(super) result: (usize, usize),
    /// The zeros above and to the left of an image.
    pub(super) padding: (usize, usize),
}

/// The transformed weights (in, out) of each place of a tile, row by row.
#[derive(Debug)]
pub(super) struct Winograd {
    tile: Tile,
    places: Vec<Packed>,
}

impl Winograd {
    /// Transforms and packs the weight (out, in, 3, 3).
    pub(super) fn new(weight: &Tensor, tile: Tile) -> Result<Self> {
        let (out, channels, _, _) = weight.dims4()?;
        let places = with_values(weight, |weight| {
            Ok(match tile {
                Tile::Two => places::<Two, 4, 2>(weight, (channels, out)),
                Tile::Four => places::<Four, 6, 4>(weight, (channels, out)),
            })
        })?;
        Ok(Self { tile, places })
    }

    /// Convolves the images (images, h, w, in) to (images, h', w', out), and adds what is to be added.
    pub(super) fn convolve<E: Element>(&self, values: &[E], sizes: Sizes, addends: Addends<'_, E>) -> Vec<E> {
        match self.tile {
            Tile::Two => Convolution::<E, Two, 4, 2>::new(&self.places, values, sizes, addends).compute(),
            Tile::Four => Convolution::<E, Four, 6, 4>::new(&self.places, values, sizes, addends).compute(),
        }
    }

    pub(super) fn columns(&self) -> usize {
        self.places[0].columns()
    }
}

/// The weights' transform along both sides, in f64 and rounded once.
fn places<F: Filter<IN, OUT>, const IN: usize, const OUT: usize>(
    weight: &[f32],
    (channels, out): (usize, usize),
) -> Vec<Packed> {
    let place = |index: usize| {
        let (rows, columns) = (F::WEIGHT[index / IN], F::WEIGHT[index % IN]);
        let factors: [f64; 9] = std::array::from_fn(|tap| rows[tap / 3] * columns[tap % 3]);
        Packed::new(channels, out, |channel, column| {
            let taps = &weight[(column * channels + channel) * 9..][..9];
            factors.iter().zip(taps).map(|(factor, tap)| factor * f64::from(*tap)).sum::<f64>() as f32
        })
    };
    (0..IN * IN).map(place).collect()
}

/// One convolution by the filter F.
struct Convolution<'a, E, F, const IN: usize, const OUT: usize> {
    places: &'a [Packed],
    values: &'a [E],
    addends: Addends<'a, E>,
    sizes: Sizes,
    channels: usize,
    /// The tiles of an image, down and across.
    tiles: (usize, usize),
    /// The transformed values from a place of a tile to the next, whole vectors.
    pitch: usize,
    /// A pixel beyond the image.
    beyond: Vec<E>,
    filter: PhantomData<fn() -> F>,
}

/// Where a tile of results lies.
struct Place {
    image: usize,
    y: usize,
    x: usize,
}

impl<'a, E: Element, F: Filter<IN, OUT>, const IN: usize, const OUT: usize> Convolution<'a, E, F, IN, OUT> {
    fn new(places: &'a [Packed], values: &'a [E], sizes: Sizes, addends: Addends<'a, E>) -> Self {
        let channels = places[0].depth();
        let tiles = (sizes.result.0.div_ceil(OUT), sizes.result.1.div_ceil(OUT));
        let pitch = channels.next_multiple_of(16) + GAP;
        let beyond = vec![E::zero(); channels];
        Self { places, values, addends, sizes, channels, tiles, pitch, beyond, filter: PhantomData }
    }

    fn compute(&self) -> Vec<E> {
        let columns = self.places[0].columns();
        let (h, w) = self.sizes.result;
        let pixels = self.sizes.images * h * w;
        assert!(self.addends.fit(pixels, columns, columns), "the bias and the residual have the result's sizes");
        let mut result = room(pixels * columns);
        let target = Target::new(&mut result);
        let count = self.sizes.images * self.tiles.0 * self.tiles.1;
        if BLOCK * self.tile_pitch() <= BLOCK_VALUES {
            self.by_blocks(count, target);
        } else {
            self.by_groups(count, target);
        }
        // SAFETY: the tiles cover the images.
        unsafe { filled(result) }
    }

    /// Computes `count` tiles, a block a task.
    fn by_blocks(&self, count: usize, result: Target<E>) {
        let each = count.div_ceil(2 * threads()).next_multiple_of(FEWEST).clamp(FEWEST, BLOCK);
        tasks(count.div_ceil(each), self.products(count), |task| {
            let tiles = task * each..count.min((task + 1) * each);
            let mut block = room(tiles.len() * self.tile_pitch());
            for (index, tile) in tiles.clone().enumerate() {
                // SAFETY: the block has room for the tiles.
                unsafe { self.transform(tile, Target::new(&mut block).at(index * self.tile_pitch())) };
            }
            for panel in 0..self.places[0].panels() {
                // SAFETY: the tiles' values were just written, and nobody else writes these tiles' results.
                unsafe { self.multiply(tiles.clone(), panel, block.as_ptr().cast(), result) };
            }
        });
    }

    /// Computes `count` tiles, a group after the other.
    fn by_groups(&self, count: usize, result: Target<E>) {
        let each = (GROUP_VALUES * threads() / self.tile_pitch()).next_multiple_of(MULTIPLIED).min(count);
        let mut group = room(each * self.tile_pitch());
        let values = Target::new(&mut group);
        for first in (0..count).step_by(each.max(1)) {
            let tiles = each.min(count - first);
            let work = TRANSFORM_WORK * tiles * IN * IN * self.channels;
            tasks(tiles.div_ceil(TRANSFORMED), work, |task| {
                for index in task * TRANSFORMED..tiles.min((task + 1) * TRANSFORMED) {
                    // SAFETY: the group has room for the tiles, and this one is this task's alone.
                    unsafe { self.transform(first + index, values.at(index * self.tile_pitch())) };
                }
            });
            let parts = tiles.div_ceil(MULTIPLIED);
            tasks(self.places[0].panels() * parts, self.products(tiles), |task| {
                // Neighbouring tasks read the same weights.
                let (panel, part) = (task / parts, task % parts);
                let part = part * MULTIPLIED..tiles.min((part + 1) * MULTIPLIED);
                // SAFETY: the tiles' values were just written; the parts and panels do not overlap.
                unsafe {
                    let values = values.at(part.start * self.tile_pitch());
                    self.multiply(first + part.start..first + part.end, panel, values, result);
                }
            });
        }
    }

    /// The products of so many tiles.
    fn products(&self, tiles: usize) -> usize {
        tiles * IN * IN * self.channels * self.places[0].columns()
    }

    /// The transformed values from a tile to the next.
    fn tile_pitch(&self) -> usize {
        IN * IN * self.pitch + GAP
    }

    fn place(&self, tile: usize) -> Place {
        let (line, column) = (tile / self.tiles.1, tile % self.tiles.1);
        Place { image: line / self.tiles.0, y: line % self.tiles.0 * OUT, x: column * OUT }
    }

    /// Transforms the pixels of a tile.
    ///
    /// # Safety
    /// `to` must be writable for the tile's values.
    unsafe fn transform(&self, tile: usize, to: *mut f32) {
        let (pixels, channels, pitch) = (self.pixels(tile), self.channels, self.pitch);
        dispatch(Input::<E, F, IN, OUT> { pixels, channels, to, pitch, filter: PhantomData });
    }

    /// Where the pixels are that a tile of results is made from.
    fn pixels(&self, tile: usize) -> [[*const E; IN]; IN] {
        let Place { image, y, x } = self.place(tile);
        let (h, w) = self.sizes.image;
        std::array::from_fn(|dy| {
            std::array::from_fn(|dx| {
                // Above the image the subtraction wraps to a number beyond any height, and so to the left.
                let at_y = (y + dy).wrapping_sub(self.sizes.padding.0);
                let at_x = (x + dx).wrapping_sub(self.sizes.padding.1);
                if at_y < h && at_x < w {
                    self.values[((image * h + at_y) * w + at_x) * self.channels..][..self.channels].as_ptr()
                } else {
                    self.beyond.as_ptr()
                }
            })
        })
    }

    /// Multiplies some tiles' values with one panel of the weights, and writes the results.
    ///
    /// # Safety
    /// The tiles' values must be at `values`, and the result writable for all images, and these tiles' columns of the panel
    /// nobody else's.
    unsafe fn multiply(&self, tiles: Range<usize>, panel: usize, values: *const f32, result: Target<E>) {
        let count = tiles.len();
        let width = PANEL_VECTORS * lanes();
        let mut sums = room::<f32>(count * IN * IN * width);
        let mut table = vec![std::ptr::null(); count];
        let pass = self.channels.div_ceil(self.channels.div_ceil(SUMMED));
        for (index, place) in self.places.iter().enumerate() {
            for (tile, pointer) in table.iter_mut().enumerate() {
                // SAFETY: the place lies within the tile's values.
                *pointer = unsafe { values.add(tile * self.tile_pitch() + index * self.pitch) };
            }
            let rows = Rows { table: &table, pitch: count, count, taps: 1, channels: self.channels };
            // SAFETY: each pointer is at the tile's values of all channels, which are the weight's depth, and the sums have
            // room for the panel's columns of each place of each tile.
            unsafe {
                let to = sums.as_mut_ptr().cast::<f32>().add(index * width);
                let (panels, start, residual) = (panel..panel + 1, Start::Bias(None), None);
                Block { rows, right: place, panels, start, residual, pass, to, stride: IN * IN * width }.compute();
            }
        }
        let columns = self.places[0].columns();
        let of_panel = self.places[0].columns_of(panel);
        let (h, w) = self.sizes.result;
        for tile in 0..count {
            let Place { image, y, x } = self.place(tiles.start + tile);
            let pixel = ((image * h + y) * w + x) * columns + of_panel.start;
            // SAFETY: the sums of all places were just written, and the tile's first pixel lies within its image.
            unsafe {
                dispatch(Output::<E, F, IN, OUT> {
                    sums: sums.as_ptr().cast::<f32>().add(tile * IN * IN * width),
                    pitch: width,
                    bias: self.addends.bias.map(|bias| &bias[of_panel.clone()]),
                    residual: self.addends.residual.map(|residual| residual[pixel..].as_ptr()),
                    columns: of_panel.len(),
                    to: result.at(pixel),
                    strides: (w * columns, columns),
                    size: (OUT.min(h - y), OUT.min(w - x)),
                    filter: PhantomData,
                });
            }
        }
    }
}
