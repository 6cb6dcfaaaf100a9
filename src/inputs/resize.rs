//! Pictures in the size that a model makes, resampled as PIL's Lanczos filter does, which diffusers' pipelines use.

use easel_models::{GrayImage, RgbImage, Size};
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

/// The picture in another size, its shape stretched if need be.
pub(super) fn rgb(picture: RgbImage, size: Size) -> Option<RgbImage> {
    let from = Size { width: picture.width, height: picture.height };
    let pixels = resized(picture.pixels, PixelType::U8x3, from, size)?;
    Some(RgbImage { width: size.width, height: size.height, pixels })
}

/// The mask in another size; its edges become soft.
pub(super) fn gray(mask: GrayImage, size: Size) -> Option<GrayImage> {
    let from = Size { width: mask.width, height: mask.height };
    let pixels = resized(mask.pixels, PixelType::U8, from, size)?;
    Some(GrayImage { width: size.width, height: size.height, pixels })
}

/// `None` when the bytes are not as many as the size says, or the size is none.
fn resized(pixels: Vec<u8>, kind: PixelType, from: Size, to: Size) -> Option<Vec<u8>> {
    if from == to {
        return Some(pixels);
    }
    // Pillow filters rows before columns, and rounds in between.
    let between = Size { width: to.width, height: from.height };
    let rows = pass(&pixels, kind, from, between)?;
    pass(&rows, kind, between, to)
}

fn pass(pixels: &[u8], kind: PixelType, from: Size, to: Size) -> Option<Vec<u8>> {
    let source = ImageRef::new(from.width, from.height, pixels, kind).ok()?;
    let mut target = Image::new(to.width, to.height, kind);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3)).use_alpha(false);
    Resizer::new().resize(&source, &mut target, &options).ok()?;
    Some(target.into_vec())
}
