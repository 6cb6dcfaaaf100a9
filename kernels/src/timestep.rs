//! The sinusoidal embedding of timesteps.

use candle_core::{Device, Result, Tensor, bail};

/// The sines and cosines of each timestep at `dim / 2` falling frequencies, as (b, dim) in f32.
///
/// After `get_timestep_embedding` of diffusers (`models/embeddings.py`).
/// Frequency i is `max_period ^ (-i / (dim/2 - downscale_freq_shift))`. The
/// angles are rounded to f32 where diffusers rounds them: at timestep 999 an
/// angle of f64 precision would move the embedding by 5e-5, while its sine is
/// taken in f64. The sines come first, the cosines with `flip_sin_to_cos`; an
/// odd `dim` ends in a zero.
///
/// # Errors
/// If `dim` is too small for the shift.
pub fn timestep_embedding(
    timesteps: &[f64],
    dim: usize,
    flip_sin_to_cos: bool,
    downscale_freq_shift: f64,
    max_period: f64,
    device: &Device,
) -> Result<Tensor> {
    let half = dim / 2;
    let steps = half as f64 - downscale_freq_shift;
    if half == 0 || steps <= 0.0 {
        bail!("timestep_embedding: {dim} channels are too few for a frequency shift of {downscale_freq_shift}");
    }
    let log_period = -max_period.ln() as f32;
    let frequencies: Vec<f32> =
        (0..half).map(|i| f64::from(log_period * i as f32 / steps as f32).exp() as f32).collect();
    let mut values = Vec::with_capacity(timesteps.len() * dim);
    for timestep in timesteps {
        let angles = frequencies.iter().map(|frequency| f64::from(*timestep as f32 * frequency));
        let (sines, cosines): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.sin() as f32, a.cos() as f32)).unzip();
        let [first, second] = if flip_sin_to_cos { [cosines, sines] } else { [sines, cosines] };
        values.extend(first);
        values.extend(second);
        values.extend((2 * half..dim).map(|_| 0.0));
    }
    Tensor::from_vec(values, (timesteps.len(), dim), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_the_sines_and_cosines_of_its_timestep() -> Result<()> {
        let embed = |flip, shift, dim| timestep_embedding(&[0.0, 2.5], dim, flip, shift, 100.0, &Device::Cpu);
        // With four channels the frequencies are 1 and 100^(-1/2) = 0.1.
        let (slow, fast) = (0.25f64, 2.5f64);
        let expected = [0., 0., 1., 1., fast.sin(), slow.sin(), fast.cos(), slow.cos()];
        assert_close(&embed(false, 0.0, 4)?, &expected)?;
        let expected = [1., 1., 0., 0., fast.cos(), slow.cos(), fast.sin(), slow.sin()];
        assert_close(&embed(true, 0.0, 4)?, &expected)?;
        // A shift of 1 puts the last frequency at 1 / max_period; an odd size is filled up.
        let slow = 0.025f64;
        let expected = [0., 0., 1., 1., 0., fast.sin(), slow.sin(), fast.cos(), slow.cos(), 0.];
        assert_close(&embed(false, 1.0, 5)?, &expected)?;
        assert!(embed(false, 1.0, 2).is_err());
        Ok(())
    }

    /// The frequencies are rounded to f32, so the angles here, all below 3, may be off by 3e-7.
    fn assert_close(embedding: &Tensor, expected: &[f64]) -> Result<()> {
        let values = embedding.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(values.len(), expected.len());
        for (value, expected) in values.iter().zip(expected) {
            assert!((f64::from(*value) - expected).abs() < 3e-7, "{values:?} {expected}");
        }
        Ok(())
    }
}
