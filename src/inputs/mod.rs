//! The pictures that requests bring: fetched, unpacked, and made ready for a model.
//!
//! Files are kept with their job as they came, under their SHA-256 ([`crate::artifacts`]). What a model is given is
//! made from them when the job goes to the engine, so it is the same after a restart.

mod address;
mod decode;
mod fetch;
#[cfg(test)]
mod tests;

pub use decode::DecodeError;
pub use fetch::{FetchError, Fetcher};

use bytes::Bytes;
use easel_models::{GrayImage, InitImage, RgbImage, Size};

use crate::engine::Pictures;
use crate::request::{Painted, ResolvedRequest};

/// A file and its pixels' number are bounded when a request brings it; a file that is kept has passed.
const KEPT: u64 = u64::MAX;

/// What a job's files hold, in the order of its request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files {
    /// What it starts from, or what an editing model looks at.
    pub(crate) images: Vec<Bytes>,
    /// Its mask.
    pub(crate) mask: Option<Bytes>,
}

/// The size of the picture in a file, which is unpacked to see that it can be.
///
/// # Errors
/// When it is no picture that can be used, or has more than `most` pixels.
pub(crate) fn size_of(file: &[u8], most: u64) -> Result<Size, DecodeError> {
    let picture = decode::decode(file, most)?;
    Ok(Size { width: picture.width(), height: picture.height() })
}

/// The size of the mask in a file, which is read to see that it says something.
///
/// # Errors
/// The same, and when a mask of this kind says nothing.
pub(crate) fn mask_size_of(file: &[u8], painted: Painted, most: u64) -> Result<Size, DecodeError> {
    let mask = mask(file, painted, most)?;
    Ok(Size { width: mask.width, height: mask.height })
}

/// What the engine starts from.
///
/// # Errors
/// When a file cannot be unpacked.
pub(crate) fn pictures(request: &ResolvedRequest, files: &Files) -> Result<Pictures, DecodeError> {
    let Some(strength) = request.strength else {
        // An editing model brings what it looks at to its own sizes.
        let references = files.images.iter().map(|file| Ok(decode::rgb(decode::decode(file, KEPT)?)));
        return Ok(Pictures { references: references.collect::<Result<_, _>>()?, ..Pictures::default() });
    };
    let init = files.images.first().map(|file| picture(file, request.rendered)).transpose()?;
    let mask = fitting_mask(request, files, request.rendered)?;
    Ok(Pictures { init: init.map(|image| InitImage { image, strength }), mask, references: Vec::new() })
}

/// Puts what the mask keeps back over a finished picture, from the file that it came in: a model's autoencoder gives
/// it back a little changed. A picture without a mask stays as it is.
///
/// # Errors
/// When a file cannot be unpacked.
pub(crate) fn restore(request: &ResolvedRequest, files: &Files, made: &mut RgbImage) -> Result<(), DecodeError> {
    let size = Size { width: made.width, height: made.height };
    let (Some(mask), Some(file)) = (fitting_mask(request, files, size)?, files.images.first()) else { return Ok(()) };
    let original = picture(file, size)?;
    let pixels = made.pixels.chunks_exact_mut(3).zip(original.pixels.chunks_exact(3)).zip(&mask.pixels);
    for ((made, original), share) in pixels {
        let share = u32::from(*share);
        for (made, original) in made.iter_mut().zip(original) {
            #[allow(clippy::cast_possible_truncation, reason = "a mean of two bytes is a byte")]
            let mixed = ((u32::from(*made) * share + u32::from(*original) * (255 - share) + 127) / 255) as u8;
            *made = mixed;
        }
    }
    Ok(())
}

fn picture(file: &[u8], size: Size) -> Result<RgbImage, DecodeError> {
    decode::rgb(decode::decode(file, KEPT)?).resized(size.width, size.height).map_err(|error| unfit(&error))
}

fn fitting_mask(request: &ResolvedRequest, files: &Files, size: Size) -> Result<Option<GrayImage>, DecodeError> {
    let (Some(kept), Some(file)) = (&request.mask, &files.mask) else { return Ok(None) };
    let mask = mask(file, kept.painted, KEPT)?;
    mask.resized(size.width, size.height).map_err(|error| unfit(&error)).map(Some)
}

fn mask(file: &[u8], painted: Painted, most: u64) -> Result<GrayImage, DecodeError> {
    let picture = decode::decode(file, most)?;
    match painted {
        Painted::White => Ok(decode::white_mask(picture)),
        Painted::Transparent => decode::transparency_mask(picture),
    }
}

fn unfit(error: &easel_models::Error) -> DecodeError {
    DecodeError::Damaged(error.to_string())
}
