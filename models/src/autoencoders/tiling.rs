//! Large pictures in overlapping tiles, so that memory is bounded by a tile.
//!
//! After `tiled_decode` and `_tiled_encode` of diffusers (`models/autoencoders/autoencoder_kl.py`): the tiles lie
//! on a fixed grid, each is computed alone, and the overlaps are blended linearly. The result differs from that of
//! the whole picture, since normalisations and attention see one tile only.

use candle_core::Tensor;

use crate::Result;

/// A grid of overlapping tiles, in latent pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// A tile's side.
    tile: usize,
    /// How far neighbours overlap and are blended.
    overlap: usize,
}

impl Tiling {
    /// Tiles of this many latent pixels a side that overlap by a quarter, as diffusers' do.
    ///
    /// At least 2, so that tiles overlap by less than they measure.
    pub fn new(tile: usize) -> Self {
        let tile = tile.max(2);
        Self { tile, overlap: tile / 4 }
    }

    /// A tile's side in latent pixels.
    pub fn size(&self) -> usize {
        self.tile
    }

    /// Whether latents of this height and width take more than one tile.
    pub fn splits(&self, height: usize, width: usize) -> bool {
        height > self.tile || width > self.tile
    }

    /// Decodes `latents` (b, h, w, c), each pixel of which becomes `factor` pixels a side.
    pub(crate) fn decode(
        &self,
        latents: &Tensor,
        factor: usize,
        decode: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let Self { tile, overlap } = *self;
        let grid = Grid { tile, step: tile - overlap, blend: overlap * factor, keep: (tile - overlap) * factor };
        grid.map(latents, decode)
    }

    /// Encodes `pictures` (b, H, W, c), of which `factor` pixels a side become one.
    pub(crate) fn encode(
        &self,
        pictures: &Tensor,
        factor: usize,
        encode: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let Self { tile, overlap } = *self;
        let step = (tile - overlap) * factor;
        let grid = Grid { tile: tile * factor, step, blend: overlap, keep: tile - overlap };
        grid.map(pictures, encode)
    }
}

/// Where tiles are cut from the input, and what becomes of their images.
struct Grid {
    /// A tile's side in the input.
    tile: usize,
    /// From one tile's edge to the next one's, in the input.
    step: usize,
    /// How far neighbours are blended, in the output.
    blend: usize,
    /// What is kept of a tile, in the output; its neighbours' begin there.
    keep: usize,
}

impl Grid {
    fn map(&self, x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let (_, h, w, _) = x.dims4()?;
        let mut above: Vec<Tensor> = Vec::new();
        let mut bands = Vec::new();
        for top in (0..h).step_by(self.step) {
            let band = x.narrow(1, top, self.tile.min(h - top))?;
            let mut row: Vec<Tensor> = Vec::new();
            for (column, left) in (0..w).step_by(self.step).enumerate() {
                let mut tile = f(&band.narrow(2, left, self.tile.min(w - left))?.contiguous()?)?;
                // As in diffusers the neighbours are blended themselves by now, so three tiles meet in a corner.
                if let Some(above) = above.get(column) {
                    tile = blend(above, &tile, 1, self.blend)?;
                }
                if let Some(left) = row.last() {
                    tile = blend(left, &tile, 2, self.blend)?;
                }
                row.push(tile);
            }
            let kept = row.iter().map(|tile| self.crop(tile)).collect::<Result<Vec<_>>>()?;
            bands.push(Tensor::cat(&kept, 2)?);
            above = row;
        }
        Ok(Tensor::cat(&bands, 1)?)
    }

    fn crop(&self, tile: &Tensor) -> Result<Tensor> {
        let (_, h, w, _) = tile.dims4()?;
        Ok(tile.narrow(1, 0, self.keep.min(h))?.narrow(2, 0, self.keep.min(w))?)
    }
}

/// Fades from the end of `before` to the start of `after` along `dim`, over `extent` pixels or what there is.
fn blend(before: &Tensor, after: &Tensor, dim: usize, extent: usize) -> Result<Tensor> {
    let (len, all) = (before.dim(dim)?, after.dim(dim)?);
    let extent = extent.min(len).min(all);
    if extent == 0 {
        return Ok(after.clone());
    }
    let mut shape = [1; 4];
    shape[dim] = extent;
    let ramp = |weight: fn(f64) -> f64| {
        let values: Vec<f32> = (0..extent).map(|i| weight(i as f64 / extent as f64) as f32).collect();
        Tensor::from_vec(values, &shape, after.device())?.to_dtype(after.dtype())
    };
    let fading = before.narrow(dim, len - extent, extent)?.broadcast_mul(&ramp(|t| 1.0 - t)?)?;
    let rising = after.narrow(dim, 0, extent)?.broadcast_mul(&ramp(|t| t)?)?;
    let seam = (fading + rising)?;
    if extent == all {
        return Ok(seam);
    }
    Ok(Tensor::cat(&[seam, after.narrow(dim, extent, all - extent)?], dim)?)
}

#[cfg(test)]
mod tests {
    use easel_kernels::upsample_nearest;

    use super::*;
    use crate::denoisers::testing::{distance, noise};

    #[test]
    fn tiles_of_a_local_map_join_without_a_seam() {
        // Where a tile does not depend on what lies around it, tiling must change nothing, whatever the size.
        let double = |x: &Tensor| {
            let (_, h, w, _) = x.dims4()?;
            Ok(upsample_nearest(x, 2 * h, 2 * w)?)
        };
        let halve = |x: &Tensor| {
            let (_, h, w, _) = x.dims4()?;
            Ok(upsample_nearest(x, h / 2, w / 2)?)
        };
        for (tile, h, w) in [(8, 8, 8), (8, 9, 30), (8, 6, 7), (8, 25, 13), (5, 17, 11), (2, 5, 5), (1, 4, 3)] {
            let (small, large) = (noise(&[2, h, w, 3], 1), noise(&[2, 2 * h, 2 * w, 3], 2));
            let tiling = Tiling::new(tile);
            let decoded = tiling.decode(&small, 2, double).unwrap();
            let encoded = tiling.encode(&large, 2, halve).unwrap();
            assert_eq!(decoded.dims(), [2, 2 * h, 2 * w, 3]);
            assert_eq!(encoded.dims(), [2, h, w, 3]);
            assert!(distance(&decoded, &double(&small).unwrap()) < 1e-6, "{tile} {h}x{w}");
            assert!(distance(&encoded, &halve(&large).unwrap()) < 1e-6, "{tile} {h}x{w}");
        }
    }

    #[test]
    fn neighbours_fade_into_each_other() {
        let constant = |value: f32| Tensor::full(value, (1, 1, 4, 1), &candle_core::Device::Cpu).unwrap();
        let seam =
            blend(&constant(1.0), &constant(0.0), 2, 4).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(seam, [1.0, 0.75, 0.5, 0.25]);
    }

    #[test]
    fn a_tile_is_the_most_that_is_in_memory() {
        let largest = std::cell::Cell::new(0);
        let watch = |x: &Tensor| {
            largest.set(largest.get().max(x.elem_count()));
            Ok(x.clone())
        };
        Tiling::new(8).decode(&noise(&[1, 40, 50, 1], 1), 1, watch).unwrap();
        assert_eq!(largest.get(), 64);
    }
}
