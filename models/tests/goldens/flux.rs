//! FLUX.1: dev, schnell, Fill and Kontext.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use easel_models::denoisers::{Adapters, Flux, FluxCondition, FluxConfig, FluxContext, FluxHooks, FluxResiduals};
use easel_models::samplers::SamplingSpec;
use easel_models::weights::Repository;
use easel_models::{GrayImage, InitImage, Prompt, RenderSpec, RgbImage, Stage};
use serde_json::json;

use crate::cases::Cases;
use crate::common::{Faults, MODULE_ERROR, data, relative_error, tensors};
use crate::folders;

/// The committed cases, or those that `scripts/goldens_flux.py --random` made in the folder that `EASEL_FLUX` names.
fn cases() -> Cases {
    match std::env::var_os("EASEL_FLUX") {
        Some(folder) => Cases::read(folder),
        None => Cases::read(data("flux")),
    }
}

#[test]
fn the_pictures_of_flux_are_diffusers() {
    cases().compare();
}

#[test]
fn a_row_of_flux_does_not_depend_on_its_neighbours() {
    // Text to image, image to image and inpainting, guided and not, of other steps.
    cases().company("dev", |case| (case.width, case.height) == (64, 64));
    // References of equal size share a call.
    cases().company("kontext", |case| ["kontext-03.png", "kontext-04.png"].contains(&case.file.as_str()));
}

#[test]
fn flux_computes_in_half_precision() {
    cases().narrow("dev", DType::BF16, 30.0);
    cases().narrow("dev", DType::F16, 40.0);
}

#[test]
fn a_controlnet_s_residuals_are_added_where_diffusers_adds_them() {
    let golden = tensors("flux/residuals.safetensors");
    let repository = Repository::folder(data("flux/dev")).unwrap();
    let config = FluxConfig::from_json("config.json", &repository.text("transformer/config.json").unwrap()).unwrap();
    let flux = Flux::new(&config, &repository.tensors("transformer", DType::F32, &Device::Cpu).unwrap()).unwrap();
    let of = |name: &str| golden[name].clone();
    let numbers =
        |name: &str| -> Vec<f64> { golden[name].to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect() };
    let rows: Vec<FluxCondition> = (0..2)
        .map(|row| {
            let narrow = |name: &str| golden[name].narrow(0, row, 1).unwrap();
            let (states, pooled, guidance) = (narrow("states"), narrow("pooled"), numbers("guidance")[row]);
            let (channels, reference) = (None, None);
            let size = (4, 6);
            let context = FluxContext { states: &states, pooled: &pooled, guidance, size, channels, reference };
            flux.condition(&context, &Adapters::default()).unwrap()
        })
        .collect();
    let condition = FluxCondition::stack(&rows.iter().collect::<Vec<_>>()).unwrap();
    let mut faults = Faults::default();
    for (name, repeat) in [("neighbours", false), ("round", true)] {
        let (double, single) = (vec![of("double"), of("other")], vec![of("single"), of("other")]);
        let hooks = FluxHooks { residuals: FluxResiduals { double, single, repeat }, ..FluxHooks::default() };
        let velocity: Tensor = flux.forward(&of("latents"), &numbers("timesteps"), &condition, &hooks).unwrap();
        faults.error(name, relative_error(&velocity, &of(name)), MODULE_ERROR);
    }
    faults.finish();
}

/// The error of beginning a picture of this model, whose native size is shrunk to 64x64 (128x128 for Kontext).
fn refusal(model: &str, change: impl Fn(&mut RenderSpec)) -> String {
    let pipeline = cases().pipeline(model, DType::F32);
    let side = if model == "kontext" { 128 } else { 64 };
    let mut spec = RenderSpec { guidance: 3.5, ..RenderSpec::new(side, side, 0, SamplingSpec::steps(2)) };
    change(&mut spec);
    let prompt = Arc::new(pipeline.encode(&Prompt::new("a cat")).unwrap());
    let negative = pipeline.guided(&spec).then(|| prompt.clone());
    pipeline.begin(&spec, prompt, negative).map_or_else(|error| error.to_string(), |_| "no error".to_owned())
}

#[test]
fn flux_refuses_by_name_what_it_has_no_use_for_or_cannot_do_without() {
    let picture = |side: u32| RgbImage::new(side, side, vec![9; (side * side * 3) as usize]).unwrap();
    let mask = |side: u32| GrayImage::new(side, side, vec![255; (side * side) as usize]).unwrap();
    let init = |side| Some(InitImage { image: picture(side), strength: 0.5 });
    let mut faults = Faults::default();
    let mut expect = |model: &str, param: &str, change: &dyn Fn(&mut RenderSpec)| {
        let error = refusal(model, change);
        faults.check(error.starts_with(param), format_args!("{model}, {param}: {error}"));
    };
    expect("dev", "size", &|spec| spec.width = 72);
    expect("dev", "references", &|spec| spec.references = vec![picture(64)]);
    expect("dev", "guidance_rescale", &|spec| spec.guidance_rescale = 0.7);
    expect("dev", "stage", &|spec| spec.stage = Stage::First { until: 0.8 });
    expect("dev", "image", &|spec| spec.init = init(32));
    expect("dev", "image", &|spec| spec.mask = Some(mask(64)));
    expect("dev", "mask", &|spec| (spec.init, spec.mask) = (init(64), Some(mask(32))));
    expect("dev", "strength", &|spec| spec.init = Some(InitImage { image: picture(64), strength: 0.0 }));
    expect("fill", "image", &|_| ());
    expect("fill", "mask", &|spec| spec.init = init(64));
    expect("fill", "true_guidance", &|spec| {
        (spec.init, spec.mask, spec.true_guidance) = (init(64), Some(mask(64)), 2.0);
    });
    expect("kontext", "image", &|spec| spec.init = init(128));
    expect("kontext", "mask", &|spec| spec.mask = Some(mask(128)));
    expect("kontext", "image", &|spec| spec.references = vec![picture(64), picture(64)]);
    expect("kontext", "image", &|spec| spec.references = vec![picture(8)]);
    faults.finish();
}

#[test]
fn a_card_tells_what_each_of_the_flux_models_can_do() {
    let card = |model: &str| cases().pipeline(model, DType::F32).card().clone();
    let dev = card("dev");
    assert_eq!((dev.family.as_str(), dev.steps, dev.guidance, dev.native.width), ("flux", 28, 3.5, 1024));
    assert_eq!((dev.sampler.as_str(), dev.context_tokens), ("flow_euler", 512));
    assert!(dev.abilities.image_to_image && dev.abilities.inpaint && dev.abilities.true_guidance);
    let schnell = card("schnell");
    assert_eq!((schnell.steps, schnell.guidance), (4, 0.0), "it is told no guidance");
    let fill = card("fill");
    assert_eq!((fill.family.as_str(), fill.steps, fill.guidance), ("flux-fill", 50, 30.0));
    assert!(fill.abilities.needs_mask && !fill.abilities.image_to_image && !fill.abilities.negative_prompt);
    let kontext = card("kontext");
    assert_eq!((kontext.family.as_str(), kontext.abilities.references), ("flux-kontext", 1));
    assert!(kontext.abilities.edit && !kontext.abilities.image_to_image);
}

#[test]
fn a_contradiction_between_fluxs_parts_is_told_with_file_and_key() {
    let transformer = "transformer/config.json";
    let cases = [
        ("dev", transformer, "in_channels", json!(16), "in_channels is 16, but vae/config.json has latent_channels 16"),
        ("dev", transformer, "out_channels", json!(128), "out_channels is 128"),
        ("dev", transformer, "joint_attention_dim", json!(25), "text_encoder_2/config.json has d_model 24"),
        ("dev", transformer, "pooled_projection_dim", json!(8), "text_encoder/config.json has hidden_size 16"),
        ("dev", transformer, "axes_dims_rope", json!([4, 4, 4]), "axes_dims_rope: [4, 4, 4] add up to 12"),
        ("fill", "vae/config.json", "latent_channels", json!(8), "in_channels is 96"),
        ("fill", "model_index.json", "_class_name", json!("FluxPipeline"), "in_channels is 96"),
        ("dev", "text_encoder_2/config.json", "vocab_size", json!(100), "tokenizer_2/tokenizer.json: has ids up to"),
    ];
    let mut faults = Faults::default();
    for (model, file, key, value, message) in cases {
        let spoiled = folders::error_in(&data(format_args!("flux/{model}")), |folder| {
            folders::set(folder, file, key, Some(value));
        });
        let right = spoiled.as_ref().is_some_and(|error| error.contains(message));
        faults.check(right, format_args!("{model}, {key}: {spoiled:?}"));
    }
    faults.finish();
}
