//! torch's CPU generator: mt19937 (Matsumoto and Nishimura, 1998) and torch's two normal transforms.

use candle_core::{Device, Tensor};

use super::{Noise, normal};
use crate::Result;

const N: usize = 624;
const M: usize = 397;

/// What `torch.Generator("cpu").manual_seed(seed)` gives to `torch.randn(…, dtype=torch.float32)`, bit
/// for bit, over any sequence of draws.
pub struct TorchCpu {
    seed: u64,
    state: [u32; N],
    next: usize,
    /// The second normal of the last pair, which a draw of fewer than 16 values leaves for the next such draw.
    spare: Option<f64>,
}

impl TorchCpu {
    /// Opens the stream. torch's mt19937 takes the low 32 bits of a seed; so do we.
    pub fn new(seed: u64) -> Self {
        let mut state = [0_u32; N];
        state[0] = seed as u32;
        for i in 1..N {
            let last = state[i - 1];
            state[i] = 1_812_433_253_u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        Self { seed, state, next: N, spare: None }
    }

    /// The next `count` values of `torch.randn(count)`.
    ///
    /// torch has two ways: from 16 values on, all uniforms are drawn first and transformed in blocks
    /// of 16, the last block being drawn anew when the count is no multiple of 16; below, the values are made
    /// one by one in double precision. The stream's state after a draw differs accordingly.
    pub fn values(&mut self, count: usize) -> Vec<f32> {
        if count < 16 {
            return (0..count).map(|_| self.single() as f32).collect();
        }
        let mut values: Vec<f32> = (0..count).map(|_| self.uniform()).collect();
        values.chunks_exact_mut(16).for_each(normal::transform);
        if !count.is_multiple_of(16) {
            let tail = &mut values[count - 16..];
            tail.iter_mut().for_each(|v| *v = self.uniform());
            normal::transform(tail);
        }
        values
    }

    fn single(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let angle = std::f64::consts::TAU * self.uniform_f64();
        let radius = (-2.0 * (-self.uniform_f64()).ln_1p()).sqrt();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }

    /// Uniform in 0..1 with 24 random bits.
    fn uniform(&mut self) -> f32 {
        (self.word() & 0x00ff_ffff) as f32 / 16_777_216.0
    }

    /// Uniform in 0..1 with 53 random bits; the first word is the high one.
    fn uniform_f64(&mut self) -> f64 {
        let (high, low) = (u64::from(self.word()), u64::from(self.word()));
        (((high << 32) | low) & ((1 << 53) - 1)) as f64 / (1_u64 << 53) as f64
    }

    /// The next 32 random bits.
    fn word(&mut self) -> u32 {
        if self.next == N {
            self.refill();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn refill(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let twist = if y & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ twist;
        }
        self.next = 0;
    }
}

impl Noise for TorchCpu {
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

    #[derive(serde::Deserialize)]
    struct Stream {
        seed: u64,
        /// The counts of successive draws.
        draws: Vec<usize>,
        /// 64-bit FNV-1a over the little-endian bytes of all values.
        hash: u64,
        /// The first values as bits, for a readable failure.
        head: Vec<u32>,
    }

    fn fnv(values: &[f32]) -> u64 {
        values
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    #[test]
    fn every_value_has_the_bits_that_torch_gives() {
        let streams: Vec<Stream> =
            serde_json::from_str(include_str!("../../../tests/data/samplers_randn.json")).unwrap();
        assert!(streams.len() > 40);
        for stream in streams {
            let mut noise = TorchCpu::new(stream.seed);
            let values: Vec<f32> = stream.draws.iter().flat_map(|count| noise.values(*count)).collect();
            let head: Vec<u32> = values.iter().take(stream.head.len()).map(|v| v.to_bits()).collect();
            assert_eq!(head, stream.head, "seed {} draws {:?}", stream.seed, stream.draws);
            assert_eq!(fnv(&values), stream.hash, "seed {} draws {:?}", stream.seed, stream.draws);
        }
    }
}
