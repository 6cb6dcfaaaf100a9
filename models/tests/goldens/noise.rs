//! torch's random numbers on the CPU, bit for bit.

use candle_core::Device;
use easel_models::samplers::NoiseSource;

use crate::common::{Faults, MANIFEST, tensors};

#[test]
fn noise_is_torchs_bit_for_bit_over_successive_draws_of_any_size() {
    let wanted = tensors("noise.safetensors");
    let mut faults = Faults::default();
    for stream in &MANIFEST.noise {
        let mut noise = NoiseSource::TorchCpu.open(stream.seed);
        for (at, shape) in stream.draws.iter().enumerate() {
            let bits = |tensor: &candle_core::Tensor| -> Vec<u32> {
                tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
            };
            let found = noise.normal(shape, &Device::Cpu).unwrap();
            assert_eq!(found.dims(), shape);
            let (found, wanted) = (bits(&found), bits(&wanted[&format!("{}.{at}", stream.key)]));
            let other = found.iter().zip(&wanted).filter(|(a, b)| a != b).count();
            let what = format_args!("seed {}, draw {at} of {:?}: {other} values differ", stream.seed, stream.draws);
            faults.check(found == wanted, what);
        }
    }
    faults.finish();
}
