//! Pictures in other sizes, by Lanczos's filter over three lobes, as diffusers has Pillow do it.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::F32;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use crate::{Error, GrayImage, Result, RgbImage};

impl RgbImage {
    /// The picture with other sides, its shape stretched if need be.
    ///
    /// # Errors
    /// When the filter cannot be applied to pictures of these sides.
    pub fn resized(&self, width: u32, height: u32) -> Result<Self> {
        Self::new(width, height, resized::<3>(&self.pixels, (self.width, self.height), (width, height))?)
    }
}

impl GrayImage {
    /// The mask with other sides, its shape stretched if need be; its edges become soft.
    ///
    /// # Errors
    /// When the filter cannot be applied to masks of these sides.
    pub fn resized(&self, width: u32, height: u32) -> Result<Self> {
        Self::new(width, height, resized::<1>(&self.pixels, (self.width, self.height), (width, height))?)
    }
}

/// Pixels of `N` bytes at other sides.
fn resized<const N: usize>(pixels: &[u8], from: (u32, u32), to: (u32, u32)) -> Result<Vec<u8>> {
    // Pillow filters one way and then the other, and rounds to bytes in between, which shows at hard edges: columns first
    // where the height shrinks by more than twice what the width does (since its version 13), else rows.
    let shrinks = |from: u32, to: u32| i64::from(from) - i64::from(to);
    let (narrower, lower) = (shrinks(from.0, to.0), shrinks(from.1, to.1));
    let between = if lower > 0 && lower > 2 * narrower { (from.0, to.1) } else { (to.0, from.1) };
    filtered::<N>(&filtered::<N>(pixels, from, between)?, between, to)
}

/// Pixels with one side changed. The sums are in f32, because the crate works on bytes in fewer bits than Pillow; of a
/// large picture one channel at a time takes the memory for that.
fn filtered<const N: usize>(pixels: &[u8], from: (u32, u32), to: (u32, u32)) -> Result<Vec<u8>> {
    if from == to {
        return Ok(pixels.to_vec());
    }
    let fault = |error: &dyn std::fmt::Display| Error::Unsupported(format!("a picture cannot be resized: {error}"));
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3));
    let mut resizer = Resizer::new();
    let mut bytes = vec![0; to.0 as usize * to.1 as usize * N];
    for channel in 0..N {
        let values = pixels.iter().skip(channel).step_by(N);
        let values: Vec<F32> = values.map(|&value| F32::new(f32::from(value))).collect();
        let source = TypedImageRef::new(from.0, from.1, &values).map_err(|error| fault(&error))?;
        let mut target = TypedImage::<F32>::new(to.0, to.1);
        resizer.resize_typed(&source, &mut target, &options).map_err(|error| fault(&error))?;
        for (byte, value) in bytes.iter_mut().skip(channel).step_by(N).zip(target.pixels()) {
            *byte = value.0.round().clamp(0.0, 255.0) as u8;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The picture of scripts/goldens_resize.py.
    fn waves(width: u32, height: u32) -> RgbImage {
        let places = (0..height).flat_map(|y| (0..width).flat_map(move |x| (0..3_u32).map(move |c| (y, x, c))));
        let value = |(y, x, c): (u32, u32, u32)| x * (5 + c) + y * (11 - 3 * c) + (x / 7 + y / 5) % 2 * 90;
        RgbImage::new(width, height, places.map(|place| (value(place) % 256) as u8).collect()).unwrap()
    }

    #[test]
    fn a_picture_is_resized_as_pillow_does_it() {
        #[derive(serde::Deserialize)]
        struct Case {
            source: (u32, u32),
            target: (u32, u32),
            pixels: Vec<u8>,
        }
        let cases: Vec<Case> = serde_json::from_str(include_str!("../tests/data/resize.json")).unwrap();
        for Case { source, target, pixels } in cases {
            let found = waves(source.0, source.1).resized(target.0, target.1).unwrap();
            let most = found.pixels.iter().zip(&pixels).map(|(&a, &b)| a.abs_diff(b)).max().unwrap();

            assert!(found.pixels.len() == pixels.len() && most <= 1, "{source:?} {target:?}: off by {most}");
        }
        assert_eq!(waves(9, 5).resized(9, 5).unwrap(), waves(9, 5));
    }

    #[test]
    fn a_mask_is_resized_as_one_channel_of_a_picture_is() {
        let picture = waves(24, 20);
        let red = picture.pixels.iter().step_by(3).copied().collect();
        let mask = GrayImage::new(24, 20, red).unwrap().resized(7, 31).unwrap();
        let resized = picture.resized(7, 31).unwrap();

        assert_eq!((mask.width, mask.height), (7, 31));
        assert!(mask.pixels.iter().eq(resized.pixels.iter().step_by(3)));
    }
}
