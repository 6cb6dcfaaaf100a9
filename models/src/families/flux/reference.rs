//! The picture that FLUX.1 Kontext edits.

use candle_core::Tensor;

use super::super::latent_space::LatentSpace;
use super::super::pixels;
use super::card::MULTIPLE_OF_LATENTS;
use crate::{Error, ReferenceSides, Result, RgbImage, Size};

/// Pictures that the model looks at, at most.
pub(super) const MOST: usize = 1;

/// The pixels of the sizes below, about.
pub(super) const AREA: usize = 1024 * 1024;

/// Widths and heights that the model was trained to look at, by falling height: diffusers'
/// `PREFERRED_KONTEXT_RESOLUTIONS`.
const SIZES: [(u32, u32); 17] = [
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
];

/// The sides of the pictures that it takes: something must be left when they are cut to multiples of `multiple`.
pub(super) fn sides(multiple: u32) -> ReferenceSides {
    ReferenceSides { least: multiple, ..ReferenceSides::default() }
}

/// The size that a picture is looked at in: the one of nearest aspect, its sides cut to multiples of `multiple`.
///
/// As in diffusers, the picture's own sides are cut to such multiples before.
fn size((width, height): (u32, u32), multiple: u32) -> Result<(u32, u32)> {
    let cut = |side: u32| side / multiple * multiple;
    let (wide, high) = (cut(width), cut(height));
    let sides = sides(multiple);
    if !sides.take(Size { width, height }) {
        let message = format!("a picture to look at is {width}x{height}; one {sides} is needed");
        return Err(Error::Request { param: "image", message });
    }
    let aspect = f64::from(wide) / f64::from(high);
    let distance = |(width, height): (u32, u32)| (aspect - f64::from(width) / f64::from(height)).abs();
    let nearest = SIZES.into_iter().min_by(|&a, &b| distance(a).total_cmp(&distance(b)));
    let (width, height) = nearest.unwrap_or((wide, high));
    Ok((cut(width), cut(height)))
}

/// The latents of a picture to be edited, (1, c, h, w).
///
/// # Errors
/// When the picture is too small, or a tensor operation fails.
pub(super) fn latents(image: &RgbImage, space: &LatentSpace) -> Result<Tensor> {
    let multiple = (space.factor() * MULTIPLE_OF_LATENTS) as u32;
    let (width, height) = size((image.width, image.height), multiple)?;
    let resized = image.resized(width, height)?;
    space.mode(&pixels::to_tensor(&resized, space.device())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_looked_at_in_the_trained_size_of_nearest_aspect() {
        let cases = [
            ((512, 512), (1024, 1024)),
            ((1920, 1080), (1392, 752)),
            ((1080, 1920), (752, 1392)),
            ((100, 10), (1568, 672)),
            // Cut to multiples of 16 this is a square.
            ((31, 16), (1024, 1024)),
        ];
        for (given, expected) in cases {
            let multiple = if given.1 < 16 { 2 } else { 16 };
            assert_eq!(size(given, multiple).unwrap(), expected, "{given:?}");
        }
        assert_eq!(size((64, 64), 64).unwrap(), (1024, 1024));
        assert_eq!(size((64, 128), 64).unwrap(), (704, 1408));
        let error = size((15, 400), 16).unwrap_err().to_string();
        assert_eq!(error, "image: a picture to look at is 15x400; one with sides of at least 16 pixels is needed");
    }
}
