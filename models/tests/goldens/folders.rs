//! Folders with something wrong: the error names the file, and the key where one is at fault.

use std::fs;
use std::path::Path;

use candle_core::{Device, safetensors};
use easel_models::families::check;
use easel_models::weights::Repository;
use serde_json::{Value, json};

use crate::common::{Faults, data};

/// Copies a folder and everything in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::write(&to, fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

/// What is wrong with a copy of `model` after `spoil`, by its files' headers; `None` when nothing is.
fn error(model: &str, spoil: impl FnOnce(&Path)) -> Option<String> {
    error_in(&data(format_args!("pipelines/{model}")), spoil)
}

/// What is wrong with a copy of the model in this folder after `spoil`.
pub(crate) fn error_in(model: &Path, spoil: impl FnOnce(&Path)) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    copy(model, folder.path());
    spoil(folder.path());
    let opened = Repository::folder(folder.path()).and_then(|repository| check(&repository));
    opened.err().map(|error| error.to_string())
}

/// Sets a key of a JSON file, or removes it.
pub(crate) fn set(folder: &Path, file: &str, key: &str, value: Option<Value>) {
    let path = folder.join(file);
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let object = json.as_object_mut().unwrap();
    match value {
        Some(value) => object.insert(key.to_owned(), value),
        None => object.remove(key),
    };
    fs::write(path, json.to_string()).unwrap();
}

/// The denoiser's weights in a folder of one file a part.
const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";

#[test]
fn an_untouched_copy_opens() {
    for model in ["sd15", "sd21", "wide", "deep", "small"] {
        assert_eq!(error(model, |_| {}), None, "{model}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let mut faults = Faults::default();
    for file in [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/config.json",
        "vae/config.json",
    ] {
        let error = error("small", |folder| fs::remove_file(folder.join(file)).unwrap()).unwrap_or_default();
        faults.check(error.contains(file), format_args!("without {file}: {error:?}"));
    }
    // Weights go by several names, so their folder is named, and what could be there.
    for (part, file) in
        [("text_encoder", "model"), ("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")]
    {
        let name = format!("{file}.safetensors");
        let remove = |folder: &Path| fs::remove_file(folder.join(part).join(&name)).unwrap();
        let error = error("small", remove).unwrap_or_default();
        faults.check(error.starts_with(part) && error.contains(&name), format_args!("without {part}: {error:?}"));
    }
    let shard = "unet/diffusion_pytorch_model-00002-of-00004.safetensors";
    let error = error("wide", |folder| fs::remove_file(folder.join(shard)).unwrap()).unwrap_or_default();
    faults.check(error.starts_with(shard), format_args!("without a shard: {error:?}"));
    faults.finish();
}

#[test]
fn a_key_that_is_missing_wrong_or_contradicts_another_file_is_named() {
    let mut faults = Faults::default();
    let cases: [(&str, &str, Option<Value>); 18] = [
        ("model_index.json", "_class_name", None),
        ("model_index.json", "_class_name", Some(json!("StableDiffusionLDM3DPipeline"))),
        ("unet/config.json", "sample_size", None),
        ("unet/config.json", "sample_size", Some(json!("large"))),
        // Absent, it is diffusers' default of 1280, which does not fit the text encoder.
        ("unet/config.json", "cross_attention_dim", None),
        ("unet/config.json", "cross_attention_dim", Some(json!(12))),
        ("unet/config.json", "in_channels", Some(json!(3))),
        ("unet/config.json", "block_out_channels", Some(json!([8, -16]))),
        ("unet/config.json", "norm_num_groups", Some(json!(5))),
        ("unet/config.json", "down_block_types", Some(json!(["CrossAttnDownBlock2D"]))),
        ("unet/config.json", "down_block_types", Some(json!(["CrossAttnDownBlock2D", "KDownBlock2D"]))),
        ("vae/config.json", "latent_channels", Some(json!(16))),
        ("vae/config.json", "norm_num_groups", Some(json!(3))),
        ("text_encoder/config.json", "num_attention_heads", Some(json!(3))),
        ("text_encoder/config.json", "hidden_act", Some(json!("swish"))),
        ("tokenizer/tokenizer_config.json", "model_max_length", Some(json!(78))),
        ("scheduler/scheduler_config.json", "beta_schedule", Some(json!("zigzag"))),
        ("scheduler/scheduler_config.json", "prediction_type", Some(json!("score"))),
    ];
    for (file, key, value) in cases {
        let error = error("small", |folder| set(folder, file, key, value.clone())).unwrap_or_default();
        // The message may say more than one file: the one that is at fault, and the one that it contradicts.
        faults.check(error.contains(file) && error.contains(key), format_args!("{file}: {key} {value:?}: {error:?}"));
    }
    faults.finish();
}

#[test]
fn a_weight_that_is_missing_or_of_another_shape_is_named_with_its_file() {
    let mut faults = Faults::default();
    for (part, file, key) in [
        ("unet", WEIGHTS, "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"),
        ("vae", "vae/diffusion_pytorch_model.safetensors", "decoder.mid_block.attentions.0.to_q.weight"),
        ("text_encoder", "text_encoder/model.safetensors", "text_model.encoder.layers.0.mlp.fc1.weight"),
    ] {
        for remove in [true, false] {
            let error = error("small", |folder| {
                let path = folder.join(file);
                let mut tensors = safetensors::load(&path, &Device::Cpu).unwrap();
                let found = tensors.remove(key).unwrap_or_else(|| panic!("{file} has {key}"));
                if !remove {
                    tensors.insert(key.to_owned(), found.narrow(0, 0, 3).unwrap().contiguous().unwrap());
                }
                safetensors::save(&tensors, path).unwrap();
            });
            let error = error.unwrap_or_default();
            // In the older spelling of the attention and without CLIP's prefix the key would be another one.
            let name = key.trim_start_matches("text_model.");
            let what = format_args!("{part} with {key} {}: {error:?}", if remove { "gone" } else { "cut" });
            faults.check(error.starts_with(file) && error.contains(name), what);
        }
    }
    faults.finish();
}

#[test]
fn weights_that_are_cut_off_or_no_safetensors_are_named() {
    let cut = error("small", |folder| {
        let bytes = fs::read(folder.join(WEIGHTS)).unwrap();
        fs::write(folder.join(WEIGHTS), &bytes[..bytes.len() / 2]).unwrap();
    });
    assert!(cut.unwrap().starts_with(WEIGHTS));

    let pickle = error("small", |folder| {
        fs::remove_file(folder.join(WEIGHTS)).unwrap();
        fs::write(folder.join("unet/diffusion_pytorch_model.bin"), b"\x80\x02}q\x00.").unwrap();
    });
    let pickle = pickle.unwrap();
    assert!(pickle.starts_with("unet/diffusion_pytorch_model.bin") && pickle.contains("pickle"), "{pickle}");

    let broken = error("small", |folder| fs::write(folder.join("unet/config.json"), "{").unwrap()).unwrap();
    assert!(broken.starts_with("unet/config.json"), "{broken}");
}
