//! The parameters in EXIF's `UserComment`, where A1111's tools look for them in JPEG and WebP files.

use bytes::Bytes;
use easel_models::RgbImage;

use super::ArtifactError;

/// A JPEG segment holds 65535 bytes with its length and the `Exif` mark.
const MOST: usize = 65_000;
const EXIF_IFD: u16 = 0x8769;
const USER_COMMENT: u16 = 0x9286;
const LONG: u16 = 4;
const UNDEFINED: u16 = 7;

/// An EXIF block, a TIFF file of one directory, whose user comment is `text`; `None` when the text is too
/// long for a JPEG's segment.
///
/// Exif 2.32, 4.6.5: the comment begins with eight bytes that name its encoding; `UNICODE` is UTF-16 in the
/// file's byte order.
pub(super) fn user_comment(text: &str) -> Option<Vec<u8>> {
    let comment: Vec<u8> = b"UNICODE\0".iter().copied().chain(text.encode_utf16().flat_map(u16::to_be_bytes)).collect();
    let length = u32::try_from(comment.len()).ok()?;
    if comment.len() > MOST {
        return None;
    }
    let mut block = b"MM\0\x2a\0\0\0\x08".to_vec();
    // A directory is its count, twelve bytes an entry, and where the next one is: this one ends at 26.
    directory(&mut block, EXIF_IFD, LONG, 1, 26);
    directory(&mut block, USER_COMMENT, UNDEFINED, length, 44);
    block.extend(comment);
    Some(block)
}

/// A directory with one entry and no successor.
fn directory(block: &mut Vec<u8>, tag: u16, kind: u16, count: u32, value: u32) {
    block.extend(1_u16.to_be_bytes());
    block.extend(tag.to_be_bytes());
    block.extend(kind.to_be_bytes());
    block.extend(count.to_be_bytes());
    block.extend(value.to_be_bytes());
    block.extend(0_u32.to_be_bytes());
}

/// Puts an EXIF block into a simple WebP file, which becomes one of the extended layout (RFC 9649, 2.7).
pub(super) fn into_webp(simple: &[u8], picture: &RgbImage, exif: &[u8]) -> Result<Bytes, ArtifactError> {
    const HAS_EXIF: u32 = 1 << 3;
    let chunks = simple.get(12..).filter(|_| simple.starts_with(b"RIFF"));
    let chunks = chunks.ok_or_else(|| ArtifactError::Codec("WebP: the encoder's file has no header".into()))?;
    let mut body = b"WEBP".to_vec();
    let mut header = HAS_EXIF.to_le_bytes().to_vec();
    header.extend(&(picture.width.saturating_sub(1)).to_le_bytes()[..3]);
    header.extend(&(picture.height.saturating_sub(1)).to_le_bytes()[..3]);
    chunk(&mut body, *b"VP8X", &header)?;
    body.extend(chunks);
    chunk(&mut body, *b"EXIF", exif)?;
    let mut file = Vec::with_capacity(body.len() + 8);
    chunk(&mut file, *b"RIFF", &body)?;
    Ok(file.into())
}

/// A name, a length, and the data, filled up to an even length.
fn chunk(file: &mut Vec<u8>, name: [u8; 4], data: &[u8]) -> Result<(), ArtifactError> {
    let length = u32::try_from(data.len()).map_err(|_| ArtifactError::Codec("WebP: more than 4 GiB".into()))?;
    file.extend(name);
    file.extend(length.to_le_bytes());
    file.extend(data);
    if data.len() % 2 == 1 {
        file.push(0);
    }
    Ok(())
}
