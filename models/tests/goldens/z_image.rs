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
fn qwens_tokenizer_gives_transformers_ids_in_its_chat_template() {
    cases().chats();
}
