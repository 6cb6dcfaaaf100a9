//! FLUX.2 klein.

use candle_core::DType;

use crate::cases::Cases;
use crate::common::data;

fn cases() -> Cases {
    match std::env::var_os("EASEL_FLUX2") {
        Some(folder) => Cases::read(folder),
        None => Cases::read(data("flux2")),
    }
}

#[test]
fn the_pictures_of_flux_2_klein_are_diffusers() {
    cases().compare();
}

#[test]
fn a_row_of_flux_2_klein_does_not_depend_on_its_neighbours() {
    cases().company("base", |case| (case.width, case.height) == (64, 64) && !case.mask && case.references.is_empty());
    cases().company("base", |case| case.references == [(64, 80)]);
}

#[test]
fn flux_2_klein_computes_in_half_precision() {
    cases().narrow("distilled", DType::BF16, 30.0);
    cases().narrow("distilled", DType::F16, 40.0);
}

#[test]
fn unfinished_latents_of_flux_2_klein_can_be_shown() {
    let cases = cases();
    let case = cases.cases.iter().find(|case| case.model == "distilled").unwrap();
    let pipeline = cases.pipeline("distilled", DType::F32);
    let shown = pipeline.preview(cases.begin(case, pipeline.as_ref()).latents()).unwrap();
    assert_eq!((shown.width, shown.height), (case.width / 16, case.height / 16));
}

#[test]
fn the_layers_behind_the_last_state_of_flux_2_klein_are_not_in_its_predicted_memory() {
    cases().unasked("distilled", |key| key.starts_with("model.layers.27.") || key == "model.norm.weight");
    // A file that ends there has the last norm, and needs it.
    let whole = cases().pipeline("base", DType::F32).parts().remove(0);
    assert_eq!(whole.bytes, 4 * whole.parameters);
}

#[test]
fn flux_2_kleins_tokenizer_gives_transformers_ids_in_its_chat_template() {
    cases().chats();
}

#[test]
fn flux_2_klein_makes_the_same_picture_with_its_parts_in_turn() {
    let cases = cases();
    let case = cases.cases.iter().find(|case| case.model == "distilled" && !case.references.is_empty()).unwrap();
    let (picture, _) = cases.picture(case, cases.cramped("distilled").as_ref());
    assert!(cases.psnr(case, &picture) > 45.0);
}
