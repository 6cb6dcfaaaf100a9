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
use sha2::{Digest, Sha256};

use crate::engine::Pictures;
use crate::request::{Input, Painted, ResolvedRequest};

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

/// What a file is that a request brings as a picture, or as a mask of this kind; it is unpacked to see that it can be.
///
/// # Errors
/// When it is no picture that can be used, a mask that says nothing, or has more than `most` pixels.
pub(crate) fn look(file: &[u8], painted: Option<Painted>, most: u64) -> Result<Input, DecodeError> {
    let (width, height) = match painted {
        None => {
            let picture = decode::decode(file, most)?;
            (picture.width(), picture.height())
        }
        Some(painted) => {
            let mask = mask(file, painted, most)?;
            (mask.width, mask.height)
        }
    };
    let sha256 = Sha256::digest(file).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Input { sha256, width, height, bytes: file.len() as u64 })
}

/// What the engine starts from.
///
/// # Errors
/// When a file cannot be unpacked.
pub(crate) fn pictures(request: &ResolvedRequest, files: &Files) -> Result<Pictures, DecodeError> {
    let (first, others) = match request.strength {
        None => (None, &files.images[..]),
        Some(strength) => match files.images.split_first() {
            None => (None, &[][..]),
            Some((first, others)) => (Some(InitImage { image: picture(first, request.rendered)?, strength }), others),
        },
    };
    // An editing model brings what it looks at to its own sizes.
    let references = others.iter().map(|file| Ok(decode::rgb(decode::decode(file, KEPT)?)));
    let references = references.collect::<Result<_, _>>()?;
    Ok(Pictures { init: first, mask: fitting_mask(request, files, request.rendered)?, references })
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
