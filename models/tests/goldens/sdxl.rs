//! SDXL, its refiner, UNets for inpainting and consistency models, against `scripts/goldens_sdxl.py`.

use candle_core::{DType, Tensor};
use easel_models::samplers::SamplingSpec;
use easel_models::{Error, GrayImage, InitImage, Pipeline, Prompt, RenderSpec, RgbImage, Stage};
use serde_json::json;

use crate::cases::Cases;
use crate::common::{Faults, data};
use crate::folders::{error_in, set};

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

fn open(model: &str) -> std::sync::Arc<dyn Pipeline> {
    cases().pipeline(model, DType::F32)
}

#[test]
fn an_absent_negative_prompt_is_zeros_where_the_model_says_so() {
    let largest = |tensor: &Tensor| tensor.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    for (model, zeros) in [("base", true), ("refiner", false), ("turbo", false)] {
        let pipeline = open(model);
        let absent = pipeline.encode(&Prompt::default()).unwrap();
        let empty = pipeline.encode(&Prompt::new("")).unwrap();
        assert_eq!(largest(&absent.states) == 0.0, zeros, "{model}");
        assert_eq!(largest(absent.pooled.as_ref().unwrap()) == 0.0, zeros, "{model}");
        assert!(largest(&empty.states) > 0.0, "{model}");
        assert_eq!(absent.states.dims(), empty.states.dims(), "{model}");
    }
}

#[test]
fn a_long_prompt_beside_an_absent_negative_one_has_its_length() {
    let pipeline = open("base");
    let long = Prompt { long: true, ..Prompt::new("green tree ".repeat(80)) };
    let (positive, negative) = (pipeline.encode(&long).unwrap(), pipeline.encode(&Prompt::default()).unwrap());
    assert!(positive.states.dim(0).unwrap() > 77 && negative.states.dim(0).unwrap() == 77);
    let spec = RenderSpec { guidance: 5.0, ..RenderSpec::new(64, 64, 1, SamplingSpec::steps(1)) };
    let mut row = pipeline.begin(&spec, positive.into(), Some(negative.into())).unwrap();
    pipeline.denoise(&mut [&mut row]).unwrap();
    assert!(row.done() && row.key().context > 77);
}

#[test]
fn what_a_model_is_for_is_on_its_card() {
    let abilities = |model: &str| {
        let card = open(model).card().clone();
        let of = card.abilities;
        (card.family, of.image_to_image, of.inpaint, of.needs_image, of.needs_mask, of.negative_prompt)
    };
    assert_eq!(abilities("base"), ("sdxl".to_owned(), true, true, false, false, true));
    assert_eq!(abilities("refiner"), ("sdxl_refiner".to_owned(), true, true, true, false, true));
    assert_eq!(abilities("inpainter"), ("sdxl".to_owned(), false, true, true, true, true));
    assert_eq!(abilities("sd_inpainter"), ("sd1".to_owned(), false, true, true, true, true));
    assert_eq!(abilities("lcm"), ("sd1".to_owned(), true, true, false, false, false));
    let card = open("lcm").card().clone();
    assert_eq!((card.steps, card.guidance, card.sampler.as_str()), (4, 8.5, "lcm"));
    // The refiner's encoder has four layers, whose last but one is what `clip_skip` counts from.
    assert_eq!((open("refiner").card().clip_layers, open("refiner").card().context_tokens), (3, 77));
}

#[test]
fn what_a_model_cannot_do_is_refused_by_the_field() {
    let plain = || RenderSpec::new(64, 64, 0, SamplingSpec::steps(4));
    let init = |side: u32| {
        let image = RgbImage::new(side, side, vec![90; (side * side * 3) as usize]).unwrap();
        Some(InitImage { image, strength: 0.5 })
    };
    let mask = |side: u32| Some(GrayImage::new(side, side, vec![255; (side * side) as usize]).unwrap());
    let latents = |side: usize| Tensor::zeros((4, side, side), DType::F32, &candle_core::Device::Cpu).unwrap();
    let reference = || vec![init(64).unwrap().image];
    let cases = [
        ("inpainter", plain(), "mask"),
        ("inpainter", RenderSpec { init: init(64), ..plain() }, "mask"),
        ("sd_inpainter", RenderSpec { mask: mask(64), ..plain() }, "image"),
        ("base", RenderSpec { mask: mask(64), ..plain() }, "image"),
        ("base", RenderSpec { mask: mask(32), init: init(64), ..plain() }, "mask"),
        ("base", RenderSpec { init: init(32), ..plain() }, "image"),
        ("base", RenderSpec { references: reference(), ..plain() }, "references"),
        ("base", RenderSpec { true_guidance: 2.0, ..plain() }, "true_guidance"),
        ("base", RenderSpec { width: 60, ..plain() }, "size"),
        ("refiner", plain(), "image"),
        ("refiner", RenderSpec { stage: Stage::Second { from: 0.5, latents: latents(9) }, ..plain() }, "stage"),
        ("sd", RenderSpec { stage: Stage::First { until: 0.5 }, ..plain() }, "stage"),
    ];
    let mut faults = Faults::default();
    for (model, spec, field) in cases {
        let pipeline = open(model);
        let positive = pipeline.encode(&Prompt::new("a cat")).unwrap().into();
        let found = match pipeline.begin(&spec, positive, None) {
            Err(Error::Request { param, .. }) => param,
            Err(other) => panic!("{model} {field}: {other}"),
            Ok(_) => "nothing",
        };
        faults.check(found == field, format_args!("{model}: {found} is refused instead of {field}"));
    }
    faults.finish();
}

#[test]
fn parts_that_do_not_fit_each_other_are_told_by_file_and_key() {
    let mut faults = Faults::default();
    let cases = [
        ("base", "unet/config.json", "addition_embed_type", json!(null)),
        ("base", "unet/config.json", "projection_class_embeddings_input_dim", json!(50)),
        ("base", "unet/config.json", "cross_attention_dim", json!(12)),
        ("base", "unet/config.json", "in_channels", json!(5)),
        ("base", "tokenizer_2/tokenizer_config.json", "model_max_length", json!(40)),
        ("refiner", "model_index.json", "requires_aesthetics_score", json!(false)),
        ("inpainter", "unet/config.json", "in_channels", json!(8)),
    ];
    for (model, file, key, value) in cases {
        let spoil = |folder: &std::path::Path| set(folder, file, key, Some(value));
        let error = error_in(&data(format_args!("sdxl/{model}")), spoil).unwrap_or_default();
        faults.check(error.contains(key), format_args!("{model} {file}: {key}: {error:?}"));
    }
    faults.finish();
}
