//! Pictures and masks, as plain bytes.

use crate::{Error, Result};

/// An 8-bit RGB picture, rows from the top, three bytes a pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// `width * height * 3` bytes.
    pub pixels: Vec<u8>,
}

impl RgbImage {
    /// Wraps pixel bytes.
    ///
    /// # Errors
    /// When `pixels` is not `width * height * 3` bytes long.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Result<Self> {
        if pixels.len() as u64 != u64::from(width) * u64::from(height) * 3 {
            return Err(Error::Unsupported(format!("{} bytes are not a {width}x{height} RGB picture", pixels.len())));
        }
        Ok(Self { width, height, pixels })
    }
}

/// An 8-bit grey picture, rows from the top, one byte a pixel: a mask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrayImage {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// `width * height` bytes.
    pub pixels: Vec<u8>,
}

impl GrayImage {
    /// Wraps pixel bytes.
    ///
    /// # Errors
    /// When `pixels` is not `width * height` bytes long.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Result<Self> {
        if pixels.len() as u64 != u64::from(width) * u64::from(height) {
            return Err(Error::Unsupported(format!("{} bytes are not a {width}x{height} grey picture", pixels.len())));
        }
        Ok(Self { width, height, pixels })
    }
}
