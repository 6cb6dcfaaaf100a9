//! The autoencoder, whole and in tiles.

use candle_core::{DType, Device};
use easel_models::autoencoders::{AutoencoderKl, AutoencoderKlConfig, Tiling};

use crate::common::{Faults, MANIFEST, MODULE_ERROR, relative_error, repository, tensors};

#[test]
fn the_autoencoder_encodes_and_decodes_as_the_reference_does_odd_sizes_and_tiles_included() {
    let mut faults = Faults::default();
    for model in MANIFEST.models.iter().map(|model| &model.name) {
        let golden = tensors(format_args!("modules/{model}.safetensors"));
        let (repository, file) = (repository(model), "vae/config.json");
        let config = AutoencoderKlConfig::from_json(file, &repository.text(file).unwrap()).unwrap();
        let weights = repository.tensors("vae", DType::F32, &Device::Cpu).unwrap();
        let vae = AutoencoderKl::new(&config, &weights).unwrap();
        let mut compare = |key: &str, found: &candle_core::Tensor| {
            faults.error(format_args!("{model} {key}"), relative_error(found, &golden[key]), MODULE_ERROR);
        };
        for case in ["even", "odd"] {
            let posterior = vae.encode(&golden[&format!("vae.encode.{case}.x")], None).unwrap();
            compare(&format!("vae.encode.{case}.mean"), posterior.mode());
            compare(&format!("vae.encode.{case}.logvar"), &posterior.log_variance);
            let decoded = vae.decode(&golden[&format!("vae.decode.{case}.z")], None).unwrap();
            compare(&format!("vae.decode.{case}.y"), &decoded);
        }
        if let Some(latents) = golden.get("vae.tiled.z") {
            compare("vae.tiled.y", &vae.decode(latents, Some(&Tiling::new(4))).unwrap());
        }
    }
    faults.finish();
}
