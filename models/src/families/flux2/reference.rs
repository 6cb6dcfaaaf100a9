//! The pictures that the model looks at, as the reference prepares them.

use crate::{Error, ReferenceSides, Result, RgbImage, Size};

/// Larger pictures are brought to this many pixels.
const MOST_PIXELS: u64 = 1024 * 1024;

/// The sides of the pictures that it takes.
pub(super) const SIDES: ReferenceSides = ReferenceSides { least: 64, longest: 8 };

/// A picture of a size that the model takes: no more than a megapixel, its sides multiples of `multiple`, cut evenly on
/// both sides.
///
/// # Errors
/// When the picture is too small or too slender.
pub(super) fn prepare(image: &RgbImage, multiple: u32) -> Result<RgbImage> {
    let RgbImage { width, height, .. } = *image;
    if !SIDES.take(Size { width, height }) {
        let message = format!("a picture to look at is {width}x{height}; one {SIDES} is needed");
        return Err(Error::Request { param: "image", message });
    }
    let pixels = u64::from(width) * u64::from(height);
    let resized;
    let mut image = image;
    if pixels > MOST_PIXELS {
        let scale = (MOST_PIXELS as f64 / pixels as f64).sqrt();
        let side = |side: u32| (f64::from(side) * scale) as u32;
        resized = image.resized(side(width), side(height))?;
        image = &resized;
    }
    crop(image, image.width / multiple * multiple, image.height / multiple * multiple)
}

/// The middle of a picture.
fn crop(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    let (left, top) = ((image.width - width) / 2, (image.height - height) / 2);
    let line = |row: u32| {
        let start = ((top + row) * image.width + left) as usize * 3;
        &image.pixels[start..start + width as usize * 3]
    };
    RgbImage::new(width, height, (0..height).flat_map(line).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: u32, height: u32) -> RgbImage {
        let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, 0]));
        RgbImage::new(width, height, pixels.collect()).unwrap()
    }

    #[test]
    fn a_picture_is_cut_to_whole_tokens_from_its_middle() {
        let cut = prepare(&picture(75, 83), 16).unwrap();
        assert_eq!((cut.width, cut.height, &cut.pixels[..3]), (64, 80, &[5, 1, 0][..]));
        let whole = picture(64, 80);
        assert_eq!(prepare(&whole, 16).unwrap(), whole);
    }

    #[test]
    fn a_large_picture_is_brought_to_a_megapixel() {
        let small = prepare(&picture(2000, 1000), 16).unwrap();
        assert_eq!((small.width, small.height), (1440, 720));
    }

    #[test]
    fn a_tiny_or_slender_picture_is_told_what_is_possible() {
        let told = |width, height| prepare(&picture(width, height), 16).unwrap_err().to_string();
        let possible = "one with sides of at least 64 pixels, one at most 8 times the other is needed";
        assert_eq!(told(63, 100), format!("image: a picture to look at is 63x100; {possible}"));
        assert_eq!(told(64, 513), format!("image: a picture to look at is 64x513; {possible}"));
        assert!(prepare(&picture(64, 512), 16).is_ok());
    }
}
