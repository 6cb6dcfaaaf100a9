//! Between 8-bit pictures and masks, and the tensors of an autoencoder.

use candle_core::{DType, Device, Tensor};

use crate::{Error, GrayImage, RenderSpec, Result, RgbImage};

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

/// A mask in pixels, (1, 1, h, w) in f32: 1 where it is white enough to be painted anew, else 0.
pub(super) fn mask_to_tensor(mask: &GrayImage, device: &Device) -> Result<Tensor> {
    // diffusers' threshold of 0.5 lies between 127 and 128.
    let values: Vec<f32> = mask.pixels.iter().map(|&value| f32::from(u8::from(value >= 128))).collect();
    Ok(Tensor::from_vec(values, (1, 1, mask.height as usize, mask.width as usize), device)?)
}

/// A mask at the latents' size, (1, h, w) in f32, by the nearest pixel as torch's `interpolate` finds it: the first
/// of those that one latent stands for.
pub(super) fn mask_to_latents(mask: &GrayImage, height: usize, width: usize, device: &Device) -> Result<Tensor> {
    let (rows, columns) = (mask.height as usize, mask.width as usize);
    let pixel = |y: usize, x: usize| mask.pixels[y * rows / height * columns + x * columns / width];
    let values = (0..height).flat_map(|y| (0..width).map(move |x| (y, x)));
    let values: Vec<f32> = values.map(|(y, x)| f32::from(u8::from(pixel(y, x) >= 128))).collect();
    Ok(Tensor::from_vec(values, (1, height, width), device)?)
}

/// A picture as an autoencoder takes it, (1, 3, h, w), with what is painted anew left out: 0, which is grey.
///
/// # Errors
/// When the mask is of another size.
pub(super) fn to_masked_tensor(image: &RgbImage, mask: &GrayImage, device: &Device) -> Result<Tensor> {
    let kept = mask_to_tensor(mask, device)?.affine(-1.0, 1.0)?;
    Ok(to_tensor(image, device)?.broadcast_mul(&kept)?)
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
    fn a_mask_is_two_valued_and_takes_the_first_pixel_of_each_latent() {
        let mask = GrayImage::new(4, 4, vec![127, 255, 128, 0, 0, 0, 0, 0, 255, 0, 0, 255, 0, 0, 0, 0]).unwrap();
        let numbers = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(numbers(mask_to_latents(&mask, 2, 2, &Device::Cpu).unwrap()), [0.0, 1.0, 1.0, 0.0]);
        assert_eq!(&numbers(mask_to_tensor(&mask, &Device::Cpu).unwrap())[..4], [0.0, 1.0, 1.0, 0.0]);
        let white = RgbImage::new(4, 4, vec![255; 48]).unwrap();
        assert_eq!(&numbers(to_masked_tensor(&white, &mask, &Device::Cpu).unwrap())[..5], [1.0, 0.0, 0.0, 1.0, 1.0]);
    }

    #[test]
    fn values_out_of_range_are_clamped_and_nonsense_is_an_error() {
        let decoded = |values: [f32; 3]| Tensor::from_slice(&values, (1, 3, 1, 1), &Device::Cpu).unwrap();
        assert_eq!(to_image(&decoded([-7.0, 0.0, f32::INFINITY])).unwrap().pixels, [0, 128, 255]);
        let error = to_image(&decoded([0.0, f32::NAN, 0.0])).unwrap_err().to_string();
        assert_eq!(error, "the picture's values are not numbers; the model may need a type of larger range");
    }
}
