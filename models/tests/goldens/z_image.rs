//! Z-Image.

use candle_core::DType;

use crate::cases::Cases;
use crate::common::data;

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
