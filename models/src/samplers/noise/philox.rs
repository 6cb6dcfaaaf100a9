//! torch's CUDA generator: Philox (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011) and curand's normal
//! transform.

use candle_core::{Device, Tensor};

use super::Noise;
use crate::Result;

/// What `torch.Generator("cuda").manual_seed(seed)` gives to `torch.randn(…)`, up to the GPU's own rounding of
/// logarithm and sine.
///
/// Value i of a draw comes from subsequence i, as on a GPU whose grid has a thread for every value (an A100's has for 221184, an
/// H100's for 270336); for larger draws torch's own values depend on the GPU.
pub struct TorchCuda {
    seed: u64,
    /// Draws made so far; each takes one counter of every subsequence.
    draws: u64,
}

impl TorchCuda {
    /// Opens the stream.
    pub fn new(seed: u64) -> Self {
        Self { seed, draws: 0 }
    }

    /// The next `count` values.
    pub fn values(&mut self, count: usize) -> Vec<f32> {
        let draw = self.draws;
        self.draws += 1;
        (0..count as u64).map(|i| normal(philox(self.seed, draw, i))).collect()
    }
}

/// The first two of the four words of Philox 4x32-10 at this counter and subsequence.
fn philox(key: u64, counter: u64, subsequence: u64) -> (u32, u32) {
    const MULTIPLIERS: (u64, u64) = (0xd251_1f53, 0xcd9e_8d57);
    const WEYL: (u32, u32) = (0x9e37_79b9, 0xbb67_ae85);
    let mut c = [counter as u32, (counter >> 32) as u32, subsequence as u32, (subsequence >> 32) as u32];
    let mut k = (key as u32, (key >> 32) as u32);
    for _ in 0..10 {
        let (a, b) = (MULTIPLIERS.0 * u64::from(c[0]), MULTIPLIERS.1 * u64::from(c[2]));
        c = [(b >> 32) as u32 ^ c[1] ^ k.0, b as u32, (a >> 32) as u32 ^ c[3] ^ k.1, a as u32];
        k = (k.0.wrapping_add(WEYL.0), k.1.wrapping_add(WEYL.1));
    }
    (c[0], c[1])
}

/// curand's Box-Muller transform, of which torch takes the sine's half.
fn normal((a, b): (u32, u32)) -> f32 {
    const STEP: f32 = 2.328_306_4e-10;
    const TURN: f32 = STEP * 6.283_185_5;
    let u = (a as f32).mul_add(STEP, STEP / 2.0);
    let angle = (b as f32).mul_add(TURN, TURN / 2.0);
    (-2.0 * u.ln()).sqrt() * angle.sin()
}

impl Noise for TorchCuda {
    fn seed(&self) -> u64 {
        self.seed
    }

    fn normal(&mut self, shape: &[usize], device: &Device) -> Result<Tensor> {
        let values = self.values(shape.iter().product());
        Ok(Tensor::from_vec(values, shape, device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_starts_as_on_a_gpu() {
        // torch.manual_seed(0); torch.randn(12, device="cuda"), as widely published.
        let expected = [
            -0.924_662_6,
            -0.425_344_15,
            -2.643_845_7,
            0.145_183_88,
            -0.120_866_47,
            -0.579_725_6,
            -0.622_851_2,
            -0.328_387_1,
            -1.074_542_3,
            -0.363_144_07,
            -1.671_050_6,
            2.265_505,
        ];
        let values = TorchCuda::new(0).values(12);
        for (value, expected) in values.iter().zip(expected) {
            assert!((value - expected).abs() < 2e-6, "{values:?}");
        }
    }

    #[test]
    fn successive_draws_go_on() {
        let mut noise = TorchCuda::new(7);
        let (first, second) = (noise.values(100), noise.values(100));
        assert_ne!(first, second);
        let mean: f32 = first.iter().chain(&second).sum::<f32>() / 200.0;
        assert!(mean.abs() < 0.3);
    }
}
