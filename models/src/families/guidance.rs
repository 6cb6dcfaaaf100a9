//! Classifier-free guidance.

use candle_core::{Device, Tensor};

use crate::Result;

/// Moves the prediction away from the negative prompt's: `negative + scale · (positive - negative)`.
///
/// Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022. A `rescale` above 0 brings the spread of the result back
/// towards that of the positive prediction by that share: Lin et al., "Common Diffusion Noise Schedules and Sample
/// Steps are Flawed", 2023, section 3.4. All tensors are one row, (c, h, w) in f32.
pub(super) fn guide(negative: &Tensor, positive: &Tensor, scale: f64, rescale: f64) -> Result<Tensor> {
    let guided = (negative + ((positive - negative)? * scale)?)?;
    if rescale <= 0.0 {
        return Ok(guided);
    }
    let (wanted, found) = (deviation(positive)?, deviation(&guided)?);
    let rescaled = (&guided * (wanted / found))?;
    Ok(((rescaled * rescale)? + (guided * (1.0 - rescale))?)?)
}

/// The embedding of the guidance scale that distilled models take instead of being guided, (1, dim).
///
/// Meng et al., "On Distillation of Guided Diffusion Models", 2023; sinusoids of 1000 · (scale - 1), as diffusers'
/// `get_guidance_scale_embedding` makes them.
pub(super) fn distilled_guidance(scale: f64, dim: usize, device: &Device) -> Result<Tensor> {
    let half = dim / 2;
    let step = 10_000_f64.ln() / (half as f64 - 1.0).max(1.0);
    let angles: Vec<f64> = (0..half).map(|at| (scale - 1.0) * 1000.0 * (-step * at as f64).exp()).collect();
    let mut values: Vec<f32> = angles.iter().map(|angle| angle.sin() as f32).collect();
    values.extend(angles.iter().map(|angle| angle.cos() as f32));
    values.resize(dim, 0.0);
    Ok(Tensor::from_vec(values, (1, dim), device)?)
}

/// The standard deviation of all values, with torch's n - 1.
fn deviation(tensor: &Tensor) -> Result<f64> {
    let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
    let mean = values.iter().copied().map(f64::from).sum::<f64>() / values.len() as f64;
    let squares = values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>();
    Ok((squares / (values.len() as f64 - 1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: [f32; 4]) -> Tensor {
        Tensor::from_slice(&values, (1, 2, 2), &Device::Cpu).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn guidance_extrapolates_from_the_negative_prediction() {
        let (negative, positive) = (row([0.0, 1.0, 2.0, 3.0]), row([1.0, 1.0, 0.0, 4.0]));
        assert_eq!(values(&guide(&negative, &positive, 1.0, 0.0).unwrap()), values(&positive));
        assert_eq!(values(&guide(&negative, &positive, 3.0, 0.0).unwrap()), [3.0, 1.0, -4.0, 6.0]);
    }

    #[test]
    fn a_full_rescale_gives_the_positive_predictions_spread() {
        let (negative, positive) = (row([0.0, 1.0, 2.0, 3.0]), row([1.0, 1.0, 0.0, 4.0]));
        let spread = |rescale| deviation(&guide(&negative, &positive, 7.5, rescale).unwrap()).unwrap();
        let wanted = deviation(&positive).unwrap();
        assert!((spread(1.0) - wanted).abs() < 1e-5);
        // Half the rescale lies half way, because the rescaled prediction is a multiple of the other.
        assert!((spread(0.5) - f64::midpoint(wanted, spread(0.0))).abs() < 1e-5);
        assert!((deviation(&row([1.0, 2.0, 3.0, 4.0])).unwrap() - 1.290_994_448_7).abs() < 1e-9);
    }
}
