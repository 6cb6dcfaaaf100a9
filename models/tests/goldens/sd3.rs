//! Stable Diffusion 3 and 3.5: whole pictures, and T5 with its tokenizer.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use easel_models::families::{Placement, check, open};
use easel_models::samplers::SamplingSpec;
use easel_models::text::{T5Config, T5Encoder, T5Tokenizer};
use easel_models::weights::Repository;
use easel_models::{Error, GrayImage, InitImage, Pipeline, Prompt, RenderSpec, Result, RgbImage};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cases::Cases;
use crate::common::{Faults, MODULE_ERROR, data, relative_error, tensors};
use crate::folders::{copy, set};

fn cases() -> Cases {
    Cases::read(data("sd3"))
}

fn repository(model: &str) -> Repository {
    Repository::folder(data(format_args!("sd3/{model}"))).unwrap()
}

#[test]
fn the_pictures_of_stable_diffusion_3_are_diffusers() {
    cases().compare();
}

#[test]
fn a_row_of_stable_diffusion_3_does_not_depend_on_its_neighbours() {
    // Other steps, samplers, guidance, prompts and tasks.
    cases().company("sd3", |case| (case.width, case.height) == (64, 64));
    cases().company("inpaint", |case| (case.width, case.height) == (32, 32));
}

#[test]
fn stable_diffusion_3_in_half_precision_draws_the_same_pictures() {
    for dtype in [DType::BF16, DType::F16] {
        cases().narrow("sd3", dtype, 28.0);
        cases().narrow("sd35", dtype, 28.0);
    }
}

#[test]
fn parts_that_are_placed_in_turn_draw_the_same_pictures() {
    let cases = cases();
    let placement = Placement { memory: Some(1), ..Placement::CPU };
    let turns = open(&repository("sd3"), &placement, "sd3").unwrap();
    let together = cases.pipeline("sd3", DType::F32);
    assert!(turns.weight_bytes() < together.weight_bytes() / 2);
    let inpainting = cases.cases.iter().find(|case| case.file == "sd3-15.png").unwrap();
    assert_eq!(cases.picture(inpainting, turns.as_ref()).0, cases.picture(inpainting, together.as_ref()).0);
}

#[test]
fn a_long_prompt_is_read_to_its_end_and_a_weight_moves_its_word() {
    let pipeline = cases().pipeline("sd3", DType::F32);
    let encode = |prompt: &Prompt| pipeline.encode(prompt).unwrap();
    let text = "a tree and a cat ".repeat(20);
    let plain = encode(&Prompt::new(&text));
    assert_eq!(plain.states.dims(), [77 + 256, 48]);
    // 75 tokens of the prompt a chunk.
    let long = Prompt { long: true, ..Prompt::new(&text) };
    let chunks = encode(&long).states.dim(0).unwrap() - 256;
    assert!(chunks > 77 && chunks % 77 == 0, "{chunks}");
    let same = Prompt { long: true, weighting: true, ..Prompt::new("a cat") };
    assert!(relative_error(&encode(&same).states, &encode(&Prompt::new("a cat")).states) == 0.0);
    // A weight changes both encoders' states of its word, and the others' by the common factor only.
    let heavy = encode(&Prompt { weighting: true, ..Prompt::new("a (cat:1.5)") }).states;
    let light = encode(&Prompt::new("a cat")).states;
    for part in [0..77, 77..333] {
        let cut = |states: &Tensor| states.narrow(0, part.start, part.len()).unwrap();
        assert!(relative_error(&cut(&heavy), &cut(&light)) > 1e-2, "{part:?}");
    }
    // Of two prompts of other lengths, the shorter one is filled up, and the picture is still drawn.
    let spec = RenderSpec { guidance: 4.0, ..RenderSpec::new(32, 32, 0, SamplingSpec::steps(1)) };
    let (positive, negative) = (Arc::new(encode(&long)), Arc::new(encode(&Prompt::default())));
    let mut row = pipeline.begin(&spec, positive, Some(negative)).unwrap();
    assert_eq!(row.key().context, chunks + 256);
    pipeline.denoise(&mut [&mut row]).unwrap();
    assert!(row.done());
}

#[test]
fn every_part_is_checked_without_its_weights() {
    for model in ["sd3", "sd35", "large", "inpaint"] {
        check(&repository(model)).unwrap();
    }
}

/// What the reference's tokenizer makes of a text.
#[derive(Deserialize)]
struct Row {
    model: String,
    pad: u32,
    text: String,
    length: usize,
    /// The ids with the end mark, cut to the length, without the padding.
    ids: Vec<u32>,
    /// Ids before they were cut, the end mark not counted.
    count: usize,
}

#[test]
fn every_text_becomes_the_ids_that_the_reference_gives_t5() {
    let rows: Vec<Row> = crate::common::json("sd3/t5_tokens.json");
    let mut faults = Faults::default();
    for model in ["sd3", "sd35"] {
        let tokenizer = T5Tokenizer::open(&repository(model), "tokenizer_3").unwrap();
        for Row { text, length, pad, ids, count, .. } in rows.iter().filter(|row| row.model == model) {
            let tokens = tokenizer.encode(text, *length).unwrap();
            let mut wanted = ids.clone();
            wanted.resize(*length, *pad);
            let found = &tokens.ids;
            faults.check(*found == wanted, format_args!("{model}, {text:?}:\n  {found:?} instead of\n  {wanted:?}"));
            let seen = tokens.mask.iter().filter(|&&seen| seen == 1).count();
            faults.check(seen == ids.len(), format_args!("{model}, {text:?}: the mask shows {seen} ids"));
            let cut = *count >= *length;
            faults
                .check(tokens.count == *count && tokens.truncated.is_some() == cut, format_args!("{model}, {text:?}"));
        }
    }
    faults.finish();
}

#[test]
fn t5_gives_the_references_states_with_and_without_a_mask() {
    let golden = tensors("sd3/t5_states.safetensors");
    let mut faults = Faults::default();
    for model in ["sd3", "sd35"] {
        let repository = repository(model);
        let config: T5Config = repository.json("text_encoder_3/config.json").unwrap();
        let weights = repository.tensors("text_encoder_3", DType::F32, &Device::Cpu).unwrap();
        let t5 = T5Encoder::new(&config, &weights).unwrap();
        for text in [0, 3] {
            let key = |what: &str| format!("{model}.{text}.{what}");
            let integers = |what: &str, dtype| golden[&key(what)].to_dtype(dtype).unwrap();
            let ids: Tensor = integers("ids", DType::U32);
            let mask = integers("mask", DType::U8);
            for (what, mask) in [("plain", None), ("masked", Some(&mask))] {
                let found = t5.forward(&ids, mask).unwrap();
                faults.error(key(what), relative_error(&found, &golden[&key(what)]), MODULE_ERROR);
            }
        }
    }
    faults.finish();
}

/// Opens a copy of `model` after `change`.
fn opened(model: &str, change: impl FnOnce(&Path)) -> Result<Arc<dyn Pipeline>> {
    let folder = tempfile::tempdir().unwrap();
    copy(&data(format_args!("sd3/{model}")), folder.path());
    change(folder.path());
    let pipeline = open(&Repository::folder(folder.path())?, &Placement::CPU, model)?;
    pipeline.load(&|_| {})?;
    Ok(pipeline)
}

#[test]
fn a_folder_without_t5_opens_all_the_same() {
    let tokens = |change: &dyn Fn(&Path)| opened("sd3", change).unwrap().card().context_tokens;
    assert_eq!(tokens(&|_| {}), 256);
    assert_eq!(tokens(&|folder| fs::remove_dir_all(folder.join("text_encoder_3")).unwrap()), 77);
    let null = json!([null, null]);
    assert_eq!(tokens(&|folder| set(folder, "model_index.json", "text_encoder_3", Some(null.clone()))), 77);
}

#[test]
fn parts_that_do_not_fit_are_told_by_file_and_key() {
    let mut faults = Faults::default();
    let cases: [(&str, &str, Value); 16] = [
        ("transformer/config.json", "_class_name", json!("FluxTransformer2DModel")),
        ("transformer/config.json", "in_channels", json!(8)),
        ("transformer/config.json", "out_channels", json!(8)),
        ("transformer/config.json", "qk_norm", json!("l2")),
        ("transformer/config.json", "joint_attention_dim", json!(32)),
        ("transformer/config.json", "pooled_projection_dim", json!(32)),
        ("transformer/config.json", "caption_projection_dim", json!(32)),
        ("transformer/config.json", "sample_size", json!(26)),
        ("transformer/config.json", "pos_embed_max_size", json!(13)),
        ("text_encoder/config.json", "max_position_embeddings", json!(70)),
        ("text_encoder_2/config.json", "vocab_size", json!(100)),
        ("text_encoder_3/config.json", "d_model", json!(64)),
        ("text_encoder_3/config.json", "model_type", json!("umt5")),
        ("text_encoder_3/config.json", "vocab_size", json!(100)),
        ("vae/config.json", "latent_channels", json!(4)),
        ("scheduler/scheduler_config.json", "_class_name", json!("DDIMScheduler")),
    ];
    for (file, key, value) in cases {
        let error = opened("sd3", |folder| set(folder, file, key, Some(value.clone()))).err();
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        // The places are counted by the weights.
        let (file, key) =
            if key == "pos_embed_max_size" { ("transformer/", "pos_embed.pos_embed") } else { (file, key) };
        faults.check(error.contains(file) && error.contains(key), format_args!("{file}: {key} {value}: {error:?}"));
    }
    for part in ["text_encoder", "text_encoder_3", "transformer"] {
        let remove = |folder: &Path| {
            for entry in fs::read_dir(folder.join(part)).unwrap().map(|entry| entry.unwrap().path()) {
                if entry.extension().is_some_and(|extension| extension == "safetensors") {
                    fs::remove_file(entry).unwrap();
                }
            }
        };
        let error = opened("sd3", remove).err().map(|error| error.to_string()).unwrap_or_default();
        faults.check(error.starts_with(part), format_args!("without {part}'s weights: {error:?}"));
    }
    faults.finish();
}

#[test]
fn what_a_model_has_no_use_for_or_cannot_do_without_is_refused_by_its_field() {
    let picture = || RgbImage::new(32, 32, vec![0; 3072]).unwrap();
    let init = || Some(InitImage { image: picture(), strength: 0.5 });
    let mask = || Some(GrayImage::new(32, 32, vec![255; 1024]).unwrap());
    let usual = || RenderSpec::new(32, 32, 0, SamplingSpec::steps(2));
    let refused = |model: &str, spec: RenderSpec| -> Option<&'static str> {
        let pipeline = cases().pipeline(model, DType::F32);
        let positive = Arc::new(pipeline.encode(&Prompt::new("")).unwrap());
        match pipeline.begin(&spec, positive, None) {
            Ok(_) => None,
            Err(Error::Request { param, .. }) => Some(param),
            Err(error) => panic!("{error}"),
        }
    };
    let specs = |init: Option<InitImage>, mask| RenderSpec { init, mask, ..usual() };
    assert_eq!(refused("sd3", usual()), None);
    assert_eq!(refused("sd3", specs(init(), mask())), None);
    assert_eq!(refused("sd3", specs(None, mask())), Some("image"));
    assert_eq!(refused("inpaint", specs(init(), mask())), None);
    assert_eq!(refused("inpaint", specs(init(), None)), Some("mask"));
    assert_eq!(refused("inpaint", usual()), Some("image"));
    assert_eq!(refused("sd3", RenderSpec { references: vec![picture()], ..usual() }), Some("references"));
    assert_eq!(refused("sd3", RenderSpec { true_guidance: 2.0, ..usual() }), Some("true_guidance"));
    assert_eq!(refused("sd3", RenderSpec { width: 40, ..usual() }), Some("size"));
    let small = RenderSpec { width: 64, height: 64, init: init(), ..usual() };
    assert_eq!(refused("sd3", small), Some("image"));
    let pipeline = cases().pipeline("sd3", DType::F32);
    let deep = Prompt { clip_skip: pipeline.card().clip_layers + 1, ..Prompt::new("a") };
    assert!(matches!(pipeline.encode(&deep), Err(Error::Request { param: "clip_skip", .. })));
}
