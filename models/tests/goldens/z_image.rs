//! Z-Image.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use easel_models::denoisers::{Adapters, ZImage, ZImageCondition, ZImageConfig, ZImageHooks};
use easel_models::weights::Repository;

use crate::cases::Cases;
use crate::common::{Faults, MODULE_ERROR, data, relative_error, tensors};

fn cases() -> Cases {
    match std::env::var_os("EASEL_Z_IMAGE") {
        Some(folder) => Cases::read(folder),
        None => Cases::read(data("z_image")),
    }
}

#[test]
fn the_pictures_of_z_image_are_diffusers() {
    cases().compare();
}

#[test]
fn a_row_of_z_image_does_not_depend_on_its_neighbours() {
    cases().company("turbo", |case| (case.width, case.height) == (64, 64));
}

#[test]
fn z_image_computes_in_half_precision() {
    cases().narrow("turbo", DType::BF16, 30.0);
    cases().narrow("turbo", DType::F16, 40.0);
}

#[test]
fn the_last_layer_of_z_images_text_encoder_is_not_in_its_predicted_memory() {
    cases().unasked("turbo", |key| key.starts_with("model.layers.2.") || key == "model.norm.weight");
    cases().unasked("base", |key| key.starts_with("model.layers.1.") || key == "model.norm.weight");
}

#[test]
fn qwens_tokenizer_gives_transformers_ids_in_its_chat_template() {
    cases().chats();
}

#[test]
fn z_image_makes_the_same_picture_with_its_parts_in_turn() {
    let cases = cases();
    let case = cases.cases.iter().find(|case| case.model == "turbo" && case.mask).unwrap();
    let (picture, _) = cases.picture(case, cases.cramped("turbo").as_ref());
    assert!(cases.psnr(case, &picture) > 45.0);
}

#[test]
fn a_controlnet_s_residuals_are_added_behind_the_layers_of_z_image_as_in_diffusers() {
    let golden = tensors("z_image/residuals.safetensors");
    let repository = Repository::folder(data("z_image/turbo")).unwrap();
    let config = ZImageConfig::from_json("config.json", &repository.text("transformer/config.json").unwrap()).unwrap();
    let network = ZImage::new(&config, &repository.tensors("transformer", DType::F32, &Device::Cpu).unwrap()).unwrap();
    let of = |name: &str| golden[name].clone();
    let times: Vec<f64> = of("times").to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect();
    let conditions: Vec<ZImageCondition> = (0..2)
        .map(|row| network.condition(&of(&format!("states.{row}")), (6, 10), &Adapters::default()).unwrap())
        .collect();
    let mut faults = Faults::default();
    let cases: [(&str, &[usize]); 4] = [("none", &[]), ("first", &[0]), ("last", &[1]), ("both", &[0, 1])];
    for (name, layers) in cases {
        let residuals: BTreeMap<usize, Tensor> =
            layers.iter().map(|&layer| (layer, of(&format!("residual.{layer}")))).collect();
        let hooks = ZImageHooks { residuals, ..ZImageHooks::default() };
        let flow = network.forward(&of("latents"), &times, &conditions.iter().collect::<Vec<_>>(), &hooks).unwrap();
        faults.error(name, relative_error(&flow, &of(name)), MODULE_ERROR);
    }
    faults.finish();
}
