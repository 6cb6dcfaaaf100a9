//! Pixels to files.

use bytes::Bytes;
use easel_models::RgbImage;
use image::{ExtendedColorType, ImageEncoder};

use super::metadata::Metadata;
use super::{ArtifactError, exif};
use crate::request::OutputFormat;

/// Encodes a picture; `quality`, in 0..=100, is for the lossy formats.
///
/// WebP is lossy at every quality: its lossless form takes many times as long for a difference that nobody
/// sees, and who wants every pixel asks for PNG.
pub(super) fn encode(
    picture: &RgbImage,
    format: OutputFormat,
    quality: u8,
    metadata: Option<&Metadata>,
) -> Result<Bytes, ArtifactError> {
    match format {
        OutputFormat::Png => png(picture, png::Compression::Balanced, metadata),
        OutputFormat::Jpeg => jpeg(picture, quality, metadata),
        OutputFormat::Webp => webp(picture, quality, metadata),
    }
}

/// Encodes a preview, quickly.
pub(super) fn preview(picture: &RgbImage) -> Result<Bytes, ArtifactError> {
    png(picture, png::Compression::Fast, None)
}

fn png(picture: &RgbImage, compression: png::Compression, metadata: Option<&Metadata>) -> Result<Bytes, ArtifactError> {
    let error = |error: png::EncodingError| ArtifactError::Codec(format!("PNG: {error}"));
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, picture.width, picture.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(compression);
    for (keyword, text) in metadata.map(Metadata::chunks).into_iter().flatten() {
        // tEXt is Latin-1, and read by more programs; iTXt is UTF-8.
        let added = if text.is_ascii() {
            encoder.add_text_chunk(keyword.into(), text.into())
        } else {
            encoder.add_itxt_chunk(keyword.into(), text.into())
        };
        added.map_err(error)?;
    }
    let mut writer = encoder.write_header().map_err(error)?;
    writer.write_image_data(&picture.pixels).map_err(error)?;
    writer.finish().map_err(error)?;
    Ok(file.into())
}

fn jpeg(picture: &RgbImage, quality: u8, metadata: Option<&Metadata>) -> Result<Bytes, ArtifactError> {
    let error = |error: image::ImageError| ArtifactError::Codec(format!("JPEG: {error}"));
    let mut file = Vec::new();
    // The encoder's scale begins at 1.
    let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut file, quality.clamp(1, 100));
    if let Some(exif) = metadata.and_then(|metadata| exif::user_comment(&metadata.parameters)) {
        encoder.set_exif_metadata(exif).map_err(|e| ArtifactError::Codec(format!("JPEG: {e}")))?;
    }
    encoder.write_image(&picture.pixels, picture.width, picture.height, ExtendedColorType::Rgb8).map_err(error)?;
    Ok(file.into())
}

fn webp(picture: &RgbImage, quality: u8, metadata: Option<&Metadata>) -> Result<Bytes, ArtifactError> {
    let encoder = webp::Encoder::from_rgb(&picture.pixels, picture.width, picture.height);
    let encoded = encoder
        .encode_simple(false, f32::from(quality.min(100)))
        .map_err(|error| ArtifactError::Codec(format!("WebP: {error:?}")))?;
    match metadata.and_then(|metadata| exif::user_comment(&metadata.parameters)) {
        Some(exif) => exif::into_webp(&encoded, picture, &exif),
        None => Ok(Bytes::copy_from_slice(&encoded)),
    }
}
