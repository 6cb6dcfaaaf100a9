use std::collections::HashMap;

use super::*;
use crate::denoisers::testing::{distance, noise, numbers, view, weights_for};

const TINY: &str = r#"{
    "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4,
    "sample_size": 16, "scaling_factor": 0.5,
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"]
}"#;

fn build() -> (AutoencoderKl, HashMap<String, Tensor>) {
    let config = AutoencoderKlConfig::from_json("vae/config.json", TINY).unwrap();
    let weights = weights_for(|weights| AutoencoderKl::new(&config, weights));
    (AutoencoderKl::new(&config, &view(weights.clone())).unwrap(), weights)
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let (vae, _) = build();
    let (latents, pictures) = (noise(&[3, 4, 5, 6], 1), noise(&[3, 3, 10, 12], 2));
    let decoded = vae.decode(&latents, None).unwrap();
    assert_eq!(decoded.dims(), [3, 3, 10, 12]);
    assert_eq!(numbers(&decoded), numbers(&vae.decode_sliced(&latents, None).unwrap()));
    let encoded = vae.encode(&pictures, None).unwrap();
    for row in 0..3 {
        let alone = vae.encode(&pictures.narrow(0, row, 1).unwrap(), None).unwrap();
        assert_eq!(numbers(&encoded.mode().narrow(0, row, 1).unwrap()), numbers(alone.mode()), "row {row}");
    }
}

#[test]
fn the_attentions_older_names_and_shapes_are_the_same_weights() {
    let (vae, weights) = build();
    let renamed = weights.into_iter().map(|(key, tensor)| {
        let names = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
        let old = names.iter().fold(key.clone(), |key, (new, old)| key.replace(new, old));
        let convolution = old != key && tensor.rank() == 2;
        (old, if convolution { tensor.unsqueeze(2).unwrap().unsqueeze(3).unwrap() } else { tensor })
    });
    let older = AutoencoderKl::new(vae.config(), &view(renamed.collect())).unwrap();
    let latents = noise(&[1, 4, 4, 4], 1);
    assert_eq!(numbers(&older.decode(&latents, None).unwrap()), numbers(&vae.decode(&latents, None).unwrap()));
}

#[test]
fn a_missing_weight_is_told_with_file_and_key() {
    let (vae, mut weights) = build();
    weights.remove("decoder.mid_block.attentions.0.to_k.weight");
    let error = AutoencoderKl::new(vae.config(), &view(weights)).map(|_| ()).unwrap_err().to_string();
    assert!(
        error.starts_with("test/model.safetensors: decoder.mid_block.attentions.0.to_k.weight is missing"),
        "{error}"
    );
}

#[test]
fn scaling_is_undone_by_unscaling() {
    let (vae, weights) = build();
    let latents = noise(&[2, 4, 3, 3], 1);
    let scaled = vae.scale(&latents).unwrap();
    assert!(distance(&scaled, &(&latents * 0.5).unwrap()) < 1e-7);
    assert!(distance(&vae.unscale(&scaled).unwrap(), &latents) < 1e-7);

    let shifted = AutoencoderKlConfig { shift_factor: Some(0.25), ..vae.config().clone() };
    let shifted = AutoencoderKl::new(&shifted, &view(weights.clone())).unwrap();
    let scaled = shifted.scale(&latents).unwrap();
    assert!(distance(&scaled, &((&latents - 0.25).unwrap() * 0.5).unwrap()) < 1e-6);
    assert!(distance(&shifted.unscale(&scaled).unwrap(), &latents) < 1e-6);

    let (mean, deviation) = (Some(vec![0.1, 0.2, 0.3, 0.4]), Some(vec![1.0, 2.0, 3.0, 4.0]));
    let normal = AutoencoderKlConfig { latents_mean: mean, latents_std: deviation, ..vae.config().clone() };
    let normal = AutoencoderKl::new(&normal, &view(weights)).unwrap();
    let scaled = normal.scale(&latents).unwrap();
    let first = ((latents.get(0).unwrap().get(3).unwrap() - 0.4).unwrap() * (0.5 / 4.0)).unwrap();
    assert!(distance(&scaled.get(0).unwrap().get(3).unwrap(), &first) < 1e-6);
    assert!(distance(&normal.unscale(&scaled).unwrap(), &latents) < 1e-6);
}

#[test]
fn a_picture_of_one_tile_is_computed_whole_and_a_larger_one_keeps_its_size() {
    let (vae, _) = build();
    let tiling = vae.native_tiling();
    let small = noise(&[1, 4, 8, 5], 1);
    let whole = vae.decode(&small, None).unwrap();
    assert_eq!(numbers(&vae.decode(&small, Some(&tiling)).unwrap()), numbers(&whole));
    let large = noise(&[1, 4, 13, 20], 1);
    let (whole, tiled) = (vae.decode(&large, None).unwrap(), vae.decode(&large, Some(&tiling)).unwrap());
    assert_eq!(tiled.dims(), whole.dims());
    assert!(distance(&tiled, &whole) > 1e-3, "tiles do not see each other");
    let posterior = vae.encode(&whole, Some(&tiling)).unwrap();
    assert_eq!(posterior.mode().dims(), large.dims());
}

#[test]
fn the_preview_has_one_pixel_a_latent_pixel_and_is_fitted_once() {
    let (vae, _) = build();
    let picture = vae.preview().unwrap().rgb(&noise(&[4, 3, 7], 1)).unwrap();
    assert_eq!((picture.width, picture.height), (7, 3));
    assert!(std::ptr::eq(vae.preview().unwrap(), vae.preview().unwrap()));
    assert!(vae.preview().unwrap().rgb(&noise(&[5, 3, 7], 1)).is_err());
}
