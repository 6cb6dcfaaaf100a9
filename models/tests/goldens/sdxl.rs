//! SDXL, its refiner, UNets for inpainting and consistency models, against `scripts/goldens_sdxl.py`.

use candle_core::DType;

use crate::cases::Cases;
use crate::common::data;

fn cases() -> Cases {
    Cases::read(data("sdxl"))
}

#[test]
fn the_pictures_are_diffusers() {
    cases().compare();
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    for model in ["base", "inpainter", "lcm", "sd"] {
        cases().company(model, |case| (case.width, case.height) == (64, 64));
    }
}

#[test]
fn two_models_that_share_a_picture_have_company_too() {
    cases().company("refiner", |case| (case.width, case.height) == (64, 64));
}

#[test]
fn half_types_give_nearly_the_same_pictures() {
    for model in ["base", "refiner", "inpainter", "sd_inpainter", "lcm"] {
        cases().narrow(model, DType::BF16, 25.0);
        cases().narrow(model, DType::F16, 35.0);
    }
}
