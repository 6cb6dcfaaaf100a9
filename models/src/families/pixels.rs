//! Between 8-bit pictures and the tensors of an autoencoder.

use candle_core::{DType, Device, Tensor};

use crate::{Error, RenderSpec, Result, RgbImage};

/// Refuses a picture, given as the field `param`, that does not have the size of the one to be made.
///
/// # Errors
/// Names the field and both sizes.
pub(super) fn check_size(param: &'static str, (width, height): (u32, u32), spec: &RenderSpec) -> Result<()> {
    if (width, height) == (spec.width, spec.height) {
        return Ok(());
    }
    let wanted = (spec.width, spec.height);
    let message =
        format!("it is {width}x{height}; the size of the picture to be made, {}x{}, is needed", wanted.0, wanted.1);
    Err(Error::Request { param, message })
}

/// A picture as an autoencoder takes it: (1, 3, h, w) in -1..=1, f32.
pub(super) fn to_tensor(image: &RgbImage, device: &Device) -> Result<Tensor> {
    let (width, height) = (image.width as usize, image.height as usize);
    let values: Vec<f32> = image.pixels.iter().map(|&value| 2.0 * (f32::from(value) / 255.0) - 1.0).collect();
    let pixels = Tensor::from_vec(values, (1, height, width, 3), &Device::Cpu)?;
    Ok(pixels.permute((0, 3, 1, 2))?.contiguous()?.to_device(device)?)
}

/// The picture in what an autoencoder decoded: (1, 3, h, w), meant to be in -1..=1, of any type.
///
/// # Errors
/// When values are not numbers, which is what an autoencoder gives whose range is too large for its type.
pub(super) fn to_image(decoded: &Tensor) -> Result<RgbImage> {
    let (_, _, height, width) = decoded.dims4()?;
    let pixels = decoded.get(0)?.permute((1, 2, 0))?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
    let values: Vec<f32> = pixels.flatten_all()?.to_vec1()?;
    if values.iter().any(|value| value.is_nan()) {
        let message = "the picture's values are not numbers; the model may need a type of larger range";
        return Err(Error::Unsupported(message.to_owned()));
    }
    // numpy rounds halves to even, so does diffusers, so do we.
    let bytes = values.iter().map(|value| ((value * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8);
    RgbImage::new(width as u32, height as u32, bytes.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_comes_back_from_its_tensor_unchanged() {
        let pixels: Vec<u8> = (0..=255).flat_map(|value| [value, 255 - value, value / 2]).collect();
        let image = RgbImage::new(32, 8, pixels).unwrap();
        let tensor = to_tensor(&image, &Device::Cpu).unwrap();
        assert_eq!(tensor.dims(), [1, 3, 8, 32]);
        assert_eq!(to_image(&tensor).unwrap(), image);
    }

    #[test]
    fn values_out_of_range_are_clamped_and_nonsense_is_an_error() {
        let decoded = |values: [f32; 3]| Tensor::from_slice(&values, (1, 3, 1, 1), &Device::Cpu).unwrap();
        assert_eq!(to_image(&decoded([-7.0, 0.0, f32::INFINITY])).unwrap().pixels, [0, 128, 255]);
        let error = to_image(&decoded([0.0, f32::NAN, 0.0])).unwrap_err().to_string();
        assert_eq!(error, "the picture's values are not numbers; the model may need a type of larger range");
    }
}
