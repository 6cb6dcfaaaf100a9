//! What an encoder says about a picture's latents.

use candle_core::Tensor;

use crate::Result;

/// A normal distribution for each latent value, independent of the others.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// The means, (b, c, h, w).
    pub mean: Tensor,
    /// The logarithms of the variances, (b, c, h, w), in -30..=20.
    pub log_variance: Tensor,
}

impl Posterior {
    /// Splits an encoder's moments, (b, 2c, h, w).
    pub(crate) fn new(moments: &Tensor) -> Result<Self> {
        let halves = moments.chunk(2, 1)?;
        Ok(Self { mean: halves[0].contiguous()?, log_variance: halves[1].clamp(-30.0, 20.0)?.contiguous()? })
    }

    /// The most likely latents, (b, c, h, w), which are the means.
    pub fn mode(&self) -> &Tensor {
        &self.mean
    }

    /// One draw from the distribution; `noise`, (b, c, h, w), is standard normal and the caller's own, so
    /// that a request's seed decides it.
    ///
    /// # Errors
    /// When the noise is of another shape.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        let deviation = (&self.log_variance * 0.5)?.exp()?;
        Ok((&self.mean + (deviation * noise.to_dtype(self.mean.dtype())?)?)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::denoisers::testing::numbers;

    #[test]
    fn a_sample_is_the_mean_and_the_noise_times_the_deviation() {
        let moments = Tensor::new(&[1f32, 2., 2f32.ln() * 2.0, 100.], &Device::Cpu).unwrap();
        let posterior = Posterior::new(&moments.reshape((1, 4, 1, 1)).unwrap()).unwrap();
        let noise = Tensor::new(&[3f32, 1.], &Device::Cpu).unwrap().reshape((1, 2, 1, 1)).unwrap();
        assert_eq!(numbers(posterior.mode()), [1., 2.]);
        let sample = numbers(&posterior.sample(&noise).unwrap());
        assert!((sample[0] - 7.0).abs() < 1e-5, "{sample:?}");
        // A log variance above 20 is taken as 20.
        assert!((sample[1] / 10f32.exp() - 1.0).abs() < 1e-3, "{sample:?}");
    }
}
