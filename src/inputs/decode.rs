//! From a file that somebody sent to pixels: nothing about it is believed before it is checked.

use std::io::Cursor;

use easel_models::{GrayImage, RgbImage};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

/// Why a file is no picture that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It begins like no picture at all.
    #[error("it is not a png, jpeg or webp file")]
    Unknown,
    /// It is a picture in another format.
    #[error("{0} files are not taken; possible are png, jpeg and webp")]
    Format(&'static str),
    /// Unpacked, it would be too large.
    #[error("it is {width}x{height}; at most {most} pixels in all are taken (limits.max_input_pixels)")]
    TooLarge {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
        /// The most pixels.
        most: u64,
    },
    /// It begins like a picture and goes on like none.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// A mask whose transparency says what to paint has none.
    #[error("it has no transparent part, and the transparent part is what is painted anew")]
    Opaque,
}

/// Unpacks a file, and turns it upright as its metadata says. Its size is checked before any pixel is unpacked.
///
/// # Errors
/// When it is no png, jpeg or webp file, is damaged, or has more than `most` pixels.
pub(super) fn decode(file: &[u8], most: u64) -> Result<DynamicImage, DecodeError> {
    let format = match image::guess_format(file) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) => format,
        Ok(other) => return Err(DecodeError::Format(other.extensions_str().first().copied().unwrap_or("such"))),
        Err(_) => return Err(DecodeError::Unknown),
    };
    let damaged = |error: image::ImageError| DecodeError::Damaged(error.to_string());
    let mut reader = ImageReader::with_format(Cursor::new(file), format);
    let mut limits = Limits::no_limits();
    // What the decoder may need beside the pixels; the largest of those take 16 bytes each.
    limits.max_alloc = Some(most.saturating_mul(16).saturating_add(16 << 20));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > most {
        return Err(DecodeError::TooLarge { width, height, most });
    }
    // A picture without readable metadata is upright.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

/// A picture in colour, on white where it is transparent.
pub(super) fn rgb(picture: DynamicImage) -> RgbImage {
    let (width, height) = (picture.width(), picture.height());
    let pixels =
        if picture.color().has_alpha() { over(&picture.into_rgba8(), 255) } else { picture.into_rgb8().into_raw() };
    RgbImage { width, height, pixels }
}

/// A mask that is painted anew where it is white; where it is transparent it is kept.
pub(super) fn white_mask(picture: DynamicImage) -> GrayImage {
    let (width, height) = (picture.width(), picture.height());
    let colours =
        if picture.color().has_alpha() { over(&picture.into_rgba8(), 0) } else { picture.into_rgb8().into_raw() };
    GrayImage { width, height, pixels: colours.chunks_exact(3).map(luminance).collect() }
}

/// A mask that is painted anew where it is transparent, as OpenAI's clients send them.
///
/// # Errors
/// When nothing of it is transparent.
pub(super) fn transparency_mask(picture: DynamicImage) -> Result<GrayImage, DecodeError> {
    let (width, height) = (picture.width(), picture.height());
    let pixels: Vec<u8> = picture.into_rgba8().pixels().map(|pixel| 255 - pixel.0[3]).collect();
    // What is more opaque than not is kept, so of such a mask nothing would be painted.
    if pixels.iter().all(|value| *value < 128) {
        return Err(DecodeError::Opaque);
    }
    Ok(GrayImage { width, height, pixels })
}

/// The pixels over a ground of one grey.
fn over(picture: &image::RgbaImage, ground: u32) -> Vec<u8> {
    let mix = |value: u8, alpha: u8| {
        let (value, alpha) = (u32::from(value), u32::from(alpha));
        #[allow(clippy::cast_possible_truncation, reason = "a mean of two bytes is a byte")]
        let mixed = ((value * alpha + ground * (255 - alpha) + 127) / 255) as u8;
        mixed
    };
    picture.pixels().flat_map(|pixel| [0, 1, 2].map(|channel| mix(pixel.0[channel], pixel.0[3]))).collect()
}

/// PIL's `convert("L")`: ITU-R 601-2 in whole numbers.
fn luminance(pixel: &[u8]) -> u8 {
    let [red, green, blue] = [pixel[0], pixel[1], pixel[2]].map(u32::from);
    #[allow(clippy::cast_possible_truncation, reason = "the weights add up to 65536")]
    let grey = ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16) as u8;
    grey
}
