//! How far two pictures are apart.

use easel_models::RgbImage;
use serde::{Deserialize, Serialize};

/// Three measures of the distance between two pictures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Distances {
    /// Peak signal to noise ratio in dB over all samples; equal pictures have [`EQUAL_PSNR`].
    pub psnr: f64,
    /// Structural similarity (Wang et al., 2004), 1 for equal pictures.
    pub ssim: f64,
    /// A perceptual distance: 100 less the SSIMULACRA 2 score (Sneyers, 2022), 0 for equal pictures; about
    /// 10 is hard to see, 30 is visible, above 100 is another picture.
    pub perceptual: f64,
}

/// What stands for the infinite ratio of equal pictures, so that files and plots stay finite.
pub(super) const EQUAL_PSNR: f64 = 100.0;

/// The pictures cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Incomparable(String);

impl Distances {
    /// Measures `picture` against `reference`, which is of the same size.
    ///
    /// # Errors
    /// When the sizes differ, or are below the 8 pixels a side that the perceptual measure needs.
    pub fn between(reference: &RgbImage, picture: &RgbImage) -> Result<Self, Incomparable> {
        if (reference.width, reference.height) != (picture.width, picture.height) {
            return Err(Incomparable(format!(
                "{}x{} and {}x{} pixels cannot be compared",
                reference.width, reference.height, picture.width, picture.height
            )));
        }
        Ok(Self {
            psnr: psnr(reference, picture),
            ssim: ssim(reference, picture)?,
            perceptual: perceptual(reference, picture)?,
        })
    }
}

/// Peak signal to noise ratio in dB.
fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    let squares: u64 = a.pixels.iter().zip(&b.pixels).map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2)).sum();
    if squares == 0 {
        return EQUAL_PSNR;
    }
    let mean = squares as f64 / a.pixels.len() as f64;
    (10.0 * (255.0_f64.powi(2) / mean).log10()).min(EQUAL_PSNR)
}

fn ssim(a: &RgbImage, b: &RgbImage) -> Result<f64, Incomparable> {
    let wrap = |picture: &RgbImage| {
        image::RgbImage::from_raw(picture.width, picture.height, picture.pixels.clone())
            .ok_or_else(|| Incomparable("a picture's bytes do not fill its size".into()))
    };
    image_compare::rgb_similarity_structure(&image_compare::Algorithm::MSSIMSimple, &wrap(a)?, &wrap(b)?)
        .map(|similarity| similarity.score)
        .map_err(|error| Incomparable(error.to_string()))
}

fn perceptual(a: &RgbImage, b: &RgbImage) -> Result<f64, Incomparable> {
    use ssimulacra2::{ColorPrimaries, Rgb, TransferCharacteristic};
    let wrap = |picture: &RgbImage| {
        let pixels = picture.pixels.chunks_exact(3);
        let pixels = pixels.map(|rgb| [rgb[0], rgb[1], rgb[2]].map(|sample| f32::from(sample) / 255.0)).collect();
        let (width, height) = (picture.width as usize, picture.height as usize);
        Rgb::new(pixels, width, height, TransferCharacteristic::SRGB, ColorPrimaries::BT709)
            .map_err(|error| Incomparable(error.to_string()))
    };
    ssimulacra2::compute_frame_ssimulacra2(wrap(a)?, wrap(b)?)
        .map(|score| (100.0 - score).max(0.0))
        .map_err(|error| Incomparable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(shift: u8) -> RgbImage {
        let pixels = (0..32u32 * 32 * 3).map(|i| ((i * 7 % 200) as u8).wrapping_add(shift)).collect();
        RgbImage::new(32, 32, pixels).unwrap()
    }

    #[test]
    fn equal_pictures_have_no_distance() {
        let found = Distances::between(&picture(0), &picture(0)).unwrap();
        assert_eq!(found.psnr, EQUAL_PSNR);
        assert!((found.ssim - 1.0).abs() < 1e-9);
        assert!(found.perceptual < 1e-3);
    }

    #[test]
    fn a_shift_of_every_sample_by_ten_is_28_db() {
        // 20 log10(255 / 10) = 28.13 dB.
        let found = Distances::between(&picture(0), &picture(10)).unwrap();
        assert!((found.psnr - 28.13).abs() < 0.01, "{found:?}");
        let further = Distances::between(&picture(0), &picture(30)).unwrap();
        assert!(further.psnr < found.psnr && further.perceptual > found.perceptual);
    }

    #[test]
    fn pictures_of_other_sizes_are_refused() {
        let small = RgbImage::new(16, 16, vec![0; 768]).unwrap();
        assert!(Distances::between(&picture(0), &small).is_err());
    }
}
