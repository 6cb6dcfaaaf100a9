use candle_core::DType;
use tempfile::TempDir;

use super::*;
use crate::families;
use crate::samplers::SamplingSpec;
use crate::weights::BUILTIN_MODEL;
use crate::{Fit, InitImage, RgbImage, Size};

const CPU: Placement = Placement::CPU;

fn builtin() -> Arc<dyn Pipeline> {
    families::open(&Repository::builtin(), &CPU, BUILTIN_MODEL).unwrap()
}

/// The built-in model as a folder, in which a test can change files.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let builtin = Repository::builtin();
    for part in ["scheduler", "text_encoder", "tokenizer", "unet", "vae"] {
        std::fs::create_dir(dir.path().join(part)).unwrap();
        for file in builtin.list(part).unwrap() {
            let name = format!("{part}/{file}");
            std::fs::write(dir.path().join(&name), &*builtin.bytes(&name).unwrap()).unwrap();
        }
    }
    std::fs::write(dir.path().join("model_index.json"), &*builtin.bytes("model_index.json").unwrap()).unwrap();
    dir
}

/// Sets a key of one of the folder's JSON files.
fn set(dir: &TempDir, file: &str, key: &str, value: serde_json::Value) {
    let path = dir.path().join(file);
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json[key] = value;
    std::fs::write(path, json.to_string()).unwrap();
}

fn open_folder(dir: &TempDir) -> Result<Arc<dyn Pipeline>> {
    let model = families::open(&Repository::folder(dir.path())?, &CPU, "folder")?;
    // Some faults show only once the weights are read.
    model.load(&|_| {})?;
    Ok(model)
}

fn refusal(result: Result<impl Sized>) -> String {
    result.err().expect("an error is expected").to_string()
}

fn spec(steps: usize, seed: u64, guidance: f64) -> RenderSpec {
    let sampling = SamplingSpec::steps(steps);
    RenderSpec { guidance, ..RenderSpec::new(128, 128, seed, sampling) }
}

fn begin(model: &dyn Pipeline, prompt: &str, spec: &RenderSpec) -> Result<Trajectory> {
    let encode =
        |text: Option<&str>| model.encode(&Prompt { text: text.map(str::to_owned), ..Prompt::default() }).map(Arc::new);
    let negative = (spec.guidance > 1.0).then(|| encode(None)).transpose()?;
    model.begin(spec, encode(Some(prompt))?, negative)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Takes a row alone to its end.
fn finish(model: &dyn Pipeline, mut row: Trajectory) -> Tensor {
    while !row.done() {
        model.denoise(&mut [&mut row]).unwrap();
    }
    row.latents().clone()
}

#[test]
fn the_built_in_model_says_what_it_is() {
    let model = builtin();
    let card = model.card();
    assert!(card.description.starts_with("A demonstration that proves the installation"));
    assert_eq!((card.family.as_str(), card.native, card.fit), ("sd1", Size { width: 128, height: 128 }, Fit::Resize));
    assert_eq!((card.steps, card.guidance, card.sampler.as_str()), (20, 5.0, "ddim"));
    assert_eq!((card.context_tokens, card.dtype.as_str(), card.subjects.len()), (77, "f32", 12));
    assert_eq!(card.clip_layers, 2);
    // As scripts/default-model/README.md counts: 1.77 M, 4.81 M and 0.64 M.
    assert_eq!(card.parameters / 10_000, 722);
    assert!(card.sizes.contains(card.native) && card.samplers.contains(&card.sampler));
}

#[test]
fn a_red_circle_on_blue_is_red_in_the_middle_and_blue_around() {
    let model = builtin();
    let row = begin(&*model, "a red circle on a blue background", &spec(8, 0, 5.0)).unwrap();
    let picture = model.decode(&[finish(&*model, row)]).unwrap().remove(0);
    assert_eq!((picture.width, picture.height), (128, 128));
    let at = |x: usize, y: usize| <[u8; 3]>::try_from(&picture.pixels[(y * 128 + x) * 3..][..3]).unwrap();
    let [red, green, blue] = at(64, 64);
    assert!(red > 150 && green < 110 && blue < 110, "{:?}", at(64, 64));
    for corner in [at(8, 8), at(119, 8), at(8, 119), at(119, 119)] {
        let [red, green, blue] = corner;
        assert!(blue > 150 && red < 110 && green < 150, "{corner:?}");
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let model = builtin();
    let row = || begin(&*model, "a green tree at night", &spec(4, 1 << 40, 5.0)).unwrap();
    let alone = finish(&*model, row());

    let other = |steps, guidance, prompt| begin(&*model, prompt, &spec(steps, 3, guidance)).unwrap();
    let mut others = [other(2, 1.0, "a cat"), other(5, 9.0, ""), other(9, 2.0, "a blue fish in the sea")];
    let mut company = row();
    while !company.done() {
        let [first, second, third] = &mut others;
        // The first is done after two calls, and is left alone from then on.
        model.denoise(&mut [first, second, &mut company, third]).unwrap();
    }
    assert_eq!(values(&alone), values(company.latents()));
    assert_eq!(others.map(|row| (row.done(), row.progress().step)), [(true, 2), (false, 4), (false, 4)]);
}

#[test]
fn without_guidance_the_model_is_asked_once_a_row() {
    let model = builtin();
    let rows = |guidance| begin(&*model, "a cat", &spec(3, 0, guidance)).unwrap().rows();
    assert_eq!((rows(1.0), rows(5.0)), (1, 2));
}

#[test]
fn an_image_is_kept_as_far_as_its_strength_allows() {
    let model = builtin();
    let row = begin(&*model, "a red circle on a blue background", &spec(8, 0, 5.0)).unwrap();
    let picture = model.decode(&[finish(&*model, row)]).unwrap().remove(0);
    let again = |strength: f64| {
        let init = Some(InitImage { image: picture.clone(), strength });
        begin(&*model, "a red circle on a blue background", &RenderSpec { init, ..spec(10, 5, 5.0) })
    };
    // n - int(n · strength): 3 of 10 steps remain.
    let row = again(0.3).unwrap();
    assert_eq!(row.progress().steps, 3);
    let redrawn = model.decode(&[finish(&*model, row)]).unwrap().remove(0);
    let squares = picture.pixels.iter().zip(&redrawn.pixels).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    let error = (squares.sum::<f64>() / picture.pixels.len() as f64).sqrt();
    assert!((0.5..16.0).contains(&error), "{error}");
    assert!(refusal(again(0.05)).contains("strength 0.05 leaves none of 10 steps"));

    let small = RgbImage::new(64, 64, vec![0; 64 * 64 * 3]).unwrap();
    let init = Some(InitImage { image: small, strength: 0.5 });
    let error = refusal(begin(&*model, "", &RenderSpec { init, ..spec(10, 5, 5.0) }));
    assert_eq!(error, "image: it is 64x64; the size of the picture to be made, 128x128, is needed");
}

#[test]
fn a_preview_has_a_pixel_for_each_latent_pixel() {
    let model = builtin();
    let row = begin(&*model, "a red circle on a blue background", &spec(4, 0, 5.0)).unwrap();
    let preview = model.preview(&finish(&*model, row)).unwrap();
    assert_eq!((preview.width, preview.height), (16, 16));
    let middle = &preview.pixels[(8 * 16 + 8) * 3..][..3];
    assert!(middle[0] > middle[2], "{middle:?} is not red");
    assert!(preview.pixels[2] > preview.pixels[0], "{:?} is not blue", &preview.pixels[..3]);
}

#[test]
fn a_size_that_the_model_cannot_make_is_refused_with_the_nearest() {
    let model = builtin();
    let error = refusal(begin(&*model, "", &RenderSpec { width: 1024, height: 1024, ..spec(1, 0, 1.0) }));
    assert_eq!(error, "size: 1024x1024 cannot be made; the nearest size is 128x128");
}

#[test]
fn a_prompt_that_is_too_long_tells_what_was_left_out() {
    let model = builtin();
    let text = format!("{}a cat", "red circle ".repeat(40));
    let conditioning = model.encode(&Prompt::new(text)).unwrap();
    assert_eq!((conditioning.states.dims2().unwrap(), conditioning.tokens), ((77, 128), 82));
    assert_eq!(conditioning.truncated.as_deref(), Some("circle red circle red circle a cat"));
}

#[test]
fn a_folder_renders_what_the_same_files_inside_the_program_do() {
    let dir = folder();
    let model = open_folder(&dir).unwrap();
    // Without easel.json the card says what diffusers would do.
    assert_eq!((model.card().steps, model.card().guidance, model.card().fit), (50, 7.5, Fit::Exact));
    assert!(model.card().sizes.contains(Size { width: 72, height: 88 }));
    let render = |model: &dyn Pipeline| finish(model, begin(model, "a cat", &spec(2, 0, 5.0)).unwrap());
    assert_eq!(values(&render(&*model)), values(&render(&*builtin())));
}

#[test]
fn a_class_that_easel_does_not_run_is_refused_with_those_it_does() {
    let dir = folder();
    set(&dir, "model_index.json", "_class_name", "KandinskyPipeline".into());
    let error = refusal(open_folder(&dir));
    assert!(
        error.starts_with(
            "model_index.json: _class_name is \"KandinskyPipeline\", which easel does not run; it runs Sta"
        )
    );
}

#[test]
fn parts_that_do_not_fit_each_other_are_told_by_file_and_key() {
    let cases = [
        (
            "unet/config.json",
            "cross_attention_dim",
            64,
            "unet/config.json: cross_attention_dim is 64, but text_encoder",
        ),
        (
            "unet/config.json",
            "in_channels",
            5,
            "unet/config.json: in_channels is 5, but vae/config.json has latent_chann",
        ),
        // An inpainting UNet's, but its first convolution has weights for 4.
        ("unet/config.json", "in_channels", 9, "unet/diffusion_pytorch_model.safetensors: conv_in.weight has shape"),
        ("unet/config.json", "out_channels", 8, "unet/config.json: out_channels is 8, but vae/config.json"),
        ("text_encoder/config.json", "vocab_size", 1000, "tokenizer/vocab.json: has ids up to 1850, but text_encoder"),
        ("text_encoder/config.json", "num_attention_heads", 3, "text_encoder/config.json: hidden_size 128 cannot be"),
        (
            "text_encoder/config.json",
            "max_position_embeddings",
            40,
            "tokenizer/tokenizer_config.json: model_max_length is",
        ),
        (
            "text_encoder/config.json",
            "intermediate_size",
            7,
            "text_encoder/model.safetensors: encoder.layers.0.mlp.fc1",
        ),
    ];
    for (file, key, value, expected) in cases {
        let dir = folder();
        set(&dir, file, key, value.into());
        let error = refusal(open_folder(&dir));
        assert!(error.starts_with(expected), "{error}");
    }
    for file in ["unet/config.json", "scheduler/scheduler_config.json", "vae/config.json"] {
        let dir = folder();
        std::fs::remove_file(dir.path().join(file)).unwrap();
        assert_eq!(refusal(open_folder(&dir)), format!("{file}: is missing"));
    }
}

#[test]
fn the_familys_old_scheduler_files_are_corrected_as_diffusers_does() {
    let dir = folder();
    let render = || {
        let model = open_folder(&dir).unwrap();
        values(&finish(&*model, begin(&*model, "a cat", &spec(2, 0, 5.0)).unwrap()))
    };
    let right = render();
    set(&dir, "scheduler/scheduler_config.json", "steps_offset", 0.into());
    set(&dir, "scheduler/scheduler_config.json", "clip_sample", true.into());
    assert_eq!(render(), right);
}

#[test]
fn a_scheduler_that_is_not_known_does_not_keep_a_model_from_drawing() {
    let dir = folder();
    set(&dir, "scheduler/scheduler_config.json", "_class_name", "WarpScheduler".into());
    let model = open_folder(&dir).unwrap();
    assert_eq!(model.card().sampler, "ddim");
    assert!(model.card().description.contains("WarpScheduler"));
    assert_eq!(begin(&*model, "", &spec(2, 0, 1.0)).unwrap().progress().steps, 2);
}

#[test]
fn easel_json_overrides_the_card_and_nothing_else() {
    let dir = folder();
    let with = |json: &str| {
        std::fs::write(dir.path().join("easel.json"), json).unwrap();
        open_folder(&dir).map(|model| model.card().clone())
    };
    let card =
        with(r#"{"description": "mine", "steps": 7, "sampler": "euler", "native": {"width": 64, "height": 72}}"#);
    let card = card.unwrap();
    assert_eq!((card.description.as_str(), card.steps, card.sampler.as_str()), ("mine", 7, "euler"));
    assert_eq!((card.native, card.guidance), (Size { width: 64, height: 72 }, 7.5));
    let faults = [
        (r#"{"stpes": 7}"#, "easel.json: stpes: unknown field `stpes`"),
        (r#"{"steps": 0}"#, "easel.json: steps is 0"),
        (r#"{"guidance": -1}"#, "easel.json: guidance is -1"),
        (r#"{"sampler": "warp"}"#, "easel.json: sampler is \"warp\"; known: ddim"),
        (r#"{"native": {"width": 60, "height": 64}}"#, "easel.json: native is 60x64"),
        (r#"{"sizes": {"list": []}}"#, "easel.json: sizes.list is empty"),
        (
            r#"{"sizes": {"list": [{"width": 65, "height": 64}]}}"#,
            "easel.json: sizes: 65x64 cannot be made; the nearest",
        ),
        (r#"{"sizes": {"any": {"multiple": 4, "min": 64, "max": 128}}}"#, "easel.json: sizes: 68x68 cannot be made"),
        (r#"{"sizes": {"any": {"multiple": 64, "min": 65, "max": 127}}}"#, "easel.json: sizes.any has no multiple"),
    ];
    for (json, expected) in faults {
        let error = refusal(with(json));
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn a_long_prompt_in_chunks_draws_what_its_end_says() {
    let model = builtin();
    let start = "a red circle on a blue background ".repeat(12);
    let text = |end: &str| format!("{start}{end}");
    let draw = |prompt: &Prompt| {
        let spec = spec(2, 7, 5.0);
        let encode = |prompt: &Prompt| Arc::new(model.encode(prompt).unwrap());
        let mut row = model.begin(&spec, encode(prompt), Some(encode(&Prompt::default()))).unwrap();
        let context = row.key().context;
        while !row.done() {
            model.denoise(&mut [&mut row]).unwrap();
        }
        (context, values(row.latents()))
    };
    let long = |end| Prompt { long: true, ..Prompt::new(text(end)) };
    let short = |end| Prompt::new(text(end));
    assert_eq!(draw(&short("square")), draw(&short("triangle")));
    let (square, triangle) = (draw(&long("square")), draw(&long("triangle")));
    assert_eq!((square.0, triangle.0), (2 * 77, 2 * 77));
    assert_ne!(square.1, triangle.1);
}

#[test]
fn a_weight_of_one_is_no_weight() {
    let model = builtin();
    let states =
        |text: &str, weighting| values(&model.encode(&Prompt { weighting, ..Prompt::new(text) }).unwrap().states);
    assert_eq!(states("a (red:1.0) circle", true), states("a red circle", false));
    assert_ne!(states("a (red:1.5) circle", true), states("a red circle", false));
    assert_ne!(states("a (red:1.5) circle", false), states("a red circle", false));
}

#[test]
fn a_picture_in_bf16_is_close_to_the_one_in_f32_and_the_same_in_company() {
    let halves = Placement { dtype: DType::BF16, ..CPU };
    let half = families::open(&Repository::builtin(), &halves, BUILTIN_MODEL).unwrap();
    let picture = |model: &dyn Pipeline, others: &[u64]| {
        let row = |seed| begin(model, "a red circle on a blue background", &spec(10, seed, 5.0)).unwrap();
        let mut rows: Vec<Trajectory> = std::iter::once(3).chain(others.iter().copied()).map(row).collect();
        while !rows[0].done() {
            model.denoise(&mut rows.iter_mut().collect::<Vec<_>>()).unwrap();
        }
        model.decode(std::slice::from_ref(rows[0].latents())).unwrap().remove(0)
    };
    let (alone, full) = (picture(&*half, &[]), picture(&*builtin(), &[]));
    assert_eq!(picture(&*half, &[8, 9]), alone);
    let squares: u64 = alone.pixels.iter().zip(&full.pixels).map(|(&a, &b)| u64::from(a.abs_diff(b)).pow(2)).sum();
    let psnr = 10.0 * (255.0_f64.powi(2) * alone.pixels.len() as f64 / squares as f64).log10();
    assert!(psnr > 35.0, "{psnr}");
}
