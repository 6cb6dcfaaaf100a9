//! Pictures in other sizes.

use easel_models::{RgbImage, Size};
use image::imageops::{self, FilterType};
use image::{ImageBuffer, Rgb};

use super::ArtifactError;

/// The filter for the way from a rendered picture to its delivered size: Lanczos keeps detail when a picture
/// shrinks, and rings at edges when it grows, where Catmull-Rom does less.
pub(super) fn filter(from: &RgbImage, to: Size) -> FilterType {
    if to.width <= from.width && to.height <= from.height { FilterType::Lanczos3 } else { FilterType::CatmullRom }
}

/// Scales a picture so that it covers `to`, and cuts off what stands over at both sides alike, so that no
/// shape is distorted. A picture of that size stays as it is.
pub(super) fn cover(picture: &RgbImage, to: Size, filter: FilterType) -> Result<RgbImage, ArtifactError> {
    let (width, height) = (picture.width, picture.height);
    if (width, height) == (to.width, to.height) {
        return Ok(picture.clone());
    }
    let view = view(picture)?;
    if width == 0 || height == 0 || to.width == 0 || to.height == 0 {
        return Err(ArtifactError::Codec(format!("a {width}x{height} picture cannot be brought to {to}")));
    }
    let (part_width, part_height) = part(Size { width, height }, to);
    let (x, y) = ((width - part_width) / 2, (height - part_height) / 2);
    let scaled =
        imageops::resize(&*imageops::crop_imm(&view, x, y, part_width, part_height), to.width, to.height, filter);
    Ok(RgbImage { width: to.width, height: to.height, pixels: scaled.into_raw() })
}

/// Scales a picture to `to`, each side by itself. A picture of that size stays as it is.
pub(super) fn stretch(picture: &RgbImage, to: Size, filter: FilterType) -> Result<RgbImage, ArtifactError> {
    let from = Size { width: picture.width, height: picture.height };
    if from == to {
        return Ok(picture.clone());
    }
    let view = view(picture)?;
    if from.width == 0 || from.height == 0 || to.width == 0 || to.height == 0 {
        return Err(ArtifactError::Codec(format!("a {from} picture cannot be brought to {to}")));
    }
    let pixels = imageops::resize(&view, to.width, to.height, filter).into_raw();
    Ok(RgbImage { width: to.width, height: to.height, pixels })
}

fn view(picture: &RgbImage) -> Result<ImageBuffer<Rgb<u8>, &[u8]>, ArtifactError> {
    let (width, height) = (picture.width, picture.height);
    ImageBuffer::from_raw(width, height, picture.pixels.as_slice())
        .ok_or_else(|| ArtifactError::Codec(format!("{} bytes are not {width}x{height} pixels", picture.pixels.len())))
}

/// The largest part of `from` that has the shape of `to`.
fn part(from: Size, to: Size) -> (u32, u32) {
    let [fw, fh, tw, th] = [from.width, from.height, to.width, to.height].map(u64::from);
    // Rounded, and never more than there is.
    let scaled = |side: u64, by: u64, over: u64, most: u32| {
        u32::try_from((side * by + over / 2) / over).unwrap_or(most).clamp(1, most)
    };
    if fw * th >= fh * tw {
        (scaled(fh, tw, th, from.width), from.height)
    } else {
        (from.width, scaled(fw, th, tw, from.height))
    }
}

/// `size`, or the largest of its shape whose longest side is `side`.
pub(super) fn within(size: Size, side: u32) -> Size {
    let longest = size.width.max(size.height);
    if longest <= side { size } else { shrunk(size, side, longest) }
}

/// `size`, or the size of its shape that is `width` wide.
pub(super) fn no_wider(size: Size, width: u32) -> Size {
    if size.width <= width { size } else { shrunk(size, width.max(1), size.width) }
}

fn shrunk(size: Size, by: u32, over: u32) -> Size {
    let side = |side: u32| {
        let (side, by, over) = (u64::from(side), u64::from(by), u64::from(over));
        u32::try_from((side * by + over / 2) / over).unwrap_or(u32::MAX).max(1)
    };
    Size { width: side(size.width), height: side(size.height) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(width: u32, height: u32) -> Size {
        Size { width, height }
    }

    /// A picture whose red is the column and whose green is the row.
    fn ramp(width: u32, height: u32) -> RgbImage {
        let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, 0])).collect();
        RgbImage { width, height, pixels }
    }

    #[test]
    fn another_shape_is_cut_out_of_the_middle() {
        let square = cover(&ramp(200, 100), size(100, 100), FilterType::Triangle).unwrap();
        let red: Vec<u8> = square.pixels.iter().step_by(3).take(100).copied().collect();
        let expected: Vec<u8> = (50..150).collect();
        assert_eq!(red, expected);
        let wide = cover(&ramp(100, 100), size(100, 50), FilterType::Triangle).unwrap();
        assert_eq!((wide.pixels[1], wide.pixels[wide.pixels.len() - 2]), (25, 74));
    }

    #[test]
    fn the_same_shape_is_only_scaled() {
        let large = cover(&ramp(64, 64), size(128, 128), FilterType::CatmullRom).unwrap();
        assert_eq!((large.width, large.height, large.pixels.len()), (128, 128, 128 * 128 * 3));
        // Corners stay where they are.
        assert_eq!((large.pixels[0], large.pixels[127 * 3]), (0, 63));
    }

    #[test]
    fn a_circle_stays_a_circle() {
        let disc = |x: u32, y: u32| (x as f64 - 63.5).hypot(y as f64 - 63.5) < 40.0;
        let pixels = (0..128).flat_map(|y| (0..128).flat_map(move |x| [if disc(x, y) { 255 } else { 0 }; 3])).collect();
        let wide =
            cover(&RgbImage { width: 128, height: 128, pixels }, size(384, 256), FilterType::CatmullRom).unwrap();
        let lit = |x: usize, y: usize| wide.pixels[(y * 384 + x) * 3] > 127;
        let across = (0..384).filter(|x| lit(*x, 128)).count();
        let down = (0..256).filter(|y| lit(192, *y)).count();
        assert!(across.abs_diff(down) <= 2, "{across} across, {down} down");
    }

    #[test]
    fn smaller_sizes_keep_their_shape() {
        assert_eq!(within(size(1024, 768), 512), size(512, 384));
        assert_eq!(within(size(64, 72), 512), size(64, 72));
        assert_eq!(no_wider(size(1000, 1), 10), size(10, 1));
        assert_eq!(no_wider(size(100, 50), 0), size(1, 1));
        assert_eq!(no_wider(size(100, 50), 500), size(100, 50));
    }

    #[test]
    fn extreme_shapes_leave_at_least_a_pixel() {
        let line = cover(&ramp(200, 2), size(1, 50), FilterType::Lanczos3).unwrap();
        assert_eq!((line.width, line.height, line.pixels.len()), (1, 50, 150));
        assert!(cover(&ramp(4, 4), size(0, 4), FilterType::Lanczos3).is_err());
    }
}
