//! Models in one file: every tensor and value as the reference's conversion gives it, and full-size models whole.
//!
//! `tests/data/single_files` has the tensors of such files, and `scripts/single_files.py` tells how they were made.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use easel_kernels::with_plain_forms;
use easel_models::families::check;
use easel_models::text::{ClipTokenizer, QwenTokenizer, T5Tokenizer, Thinking};
use easel_models::weights::Repository;
use serde_json::{Value, json};

use crate::listing::read;
use crate::tests::network;

/// Shapes by keys.
type Shapes = BTreeMap<String, Vec<usize>>;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// FNV-1a over these numbers, 64 bits.
fn digest(numbers: impl IntoIterator<Item = u64>) -> u64 {
    numbers.into_iter().fold(0xcbf2_9ce4_8422_2325, |value, number| (value ^ number).wrapping_mul(0x100_0000_01b3))
}

/// The values of a tensor, by the rule of `scripts/single_files.py`.
fn values(key: &str, shape: &[usize]) -> Vec<f32> {
    let start = digest(key.bytes().map(u64::from)) & 0xffff;
    let count = shape.iter().product::<usize>() as u64;
    (0..count).map(|at| ((at * 40503 + start) & 0xffff) as f32).collect()
}

/// Writes a file with these tensors, in f32 and with their values, or in f16 and without: then it takes no room on the disk.
fn write(path: &Path, shapes: &Shapes, full: bool) {
    let (dtype, size) = if full { ("F16", 2) } else { ("F32", 4) };
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (key, shape) in shapes {
        let start = end;
        end += size * shape.iter().product::<usize>();
        header.insert(key.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = BufWriter::new(File::create(path).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    if full {
        file.into_inner().unwrap().set_len((8 + header.len() + end) as u64).unwrap();
    } else {
        for (key, shape) in shapes {
            let bytes: Vec<u8> = values(key, shape).iter().flat_map(|value| value.to_le_bytes()).collect();
            file.write_all(&bytes).unwrap();
        }
        file.flush().unwrap();
    }
}

/// A folder with this model's file, and the file.
fn model(name: &str, full: bool) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let folder = if full { "single_files/full" } else { "single_files" };
    write(&path, &read(&data(&format!("{folder}/{name}.keys"))), full);
    (dir, path)
}

#[test]
fn every_tensor_has_the_name_and_the_values_that_the_references_conversion_gives_it() {
    let mut names: Vec<String> = fs::read_dir(data("single_files"))
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".converted")?.to_owned()))
        .collect();
    names.sort();
    assert!(names.len() >= 7, "{names:?}");
    let mut faults = Vec::new();
    for name in names {
        let (_dir, path) = model(&name, false);
        let repository = Repository::open_file(&path).unwrap();
        let mut parts: BTreeMap<&str, u64> = BTreeMap::new();
        let text = fs::read_to_string(data(&format!("single_files/{name}.converted"))).unwrap();
        for line in text.lines() {
            let [part, key, shape, wanted] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
            let shape: Vec<usize> = shape.split('x').filter_map(|side| side.parse().ok()).collect();
            *parts.entry(part).or_default() += shape.iter().product::<usize>() as u64;
            let tensors = repository.tensors(part, DType::F32, &Device::Cpu).unwrap();
            match tensors.get(key, &shape) {
                Ok(tensor) => {
                    let found: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
                    let found = digest(found.into_iter().map(|value| value as u64));
                    if format!("{found:016x}") != wanted {
                        faults.push(format!("{name} {part}: {key} has other values"));
                    }
                }
                Err(error) => faults.push(format!("{name} {part}: {error}")),
            }
        }
        for (part, wanted) in parts {
            let found = repository.part(part, |_| 0).unwrap().parameters;
            if found != wanted {
                faults.push(format!("{name} {part}: {found} parameters instead of {wanted}"));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// The parts of full-size models by the published configurations that theirs must be.
const FULL: &[(&str, &[(&str, &str)])] = &[
    ("sd1", &[("unet", "sd15/unet"), ("vae", "sd15/vae"), ("text_encoder", "sd15/text_encoder")]),
    ("sd1-inpainting", &[("unet", "sd15-inpainting/unet"), ("vae", "sd15/vae"), ("text_encoder", "sd15/text_encoder")]),
    ("sd2", &[("unet", "sd21/unet"), ("text_encoder", "sd21/text_encoder")]),
    ("sdxl", &[("unet", "sdxl/unet"), ("vae", "sdxl/vae"), ("text_encoder_2", "sdxl/text_encoder_2")]),
    ("sdxl-refiner", &[("unet", "sdxl-refiner/unet"), ("vae", "sdxl/vae"), ("text_encoder_2", "sdxl/text_encoder_2")]),
    (
        "sd3-medium",
        &[
            ("transformer", "sd3-medium/transformer"),
            ("vae", "sd3-medium/vae"),
            ("text_encoder", "sd3-medium/text_encoder"),
            ("text_encoder_2", "sd3-medium/text_encoder_2"),
            ("text_encoder_3", "sd3-medium/text_encoder_3"),
        ],
    ),
    ("sd35-medium", &[("transformer", "sd35-medium/transformer")]),
    ("sd35-large", &[("transformer", "sd35-large/transformer")]),
    (
        "z-image-turbo",
        &[
            ("transformer", "z-image-turbo/transformer"),
            ("vae", "z-image-turbo/vae"),
            ("text_encoder", "z-image-turbo/text_encoder"),
        ],
    ),
    ("flux2-klein-4b", &[("transformer", "flux2-klein-4b/transformer"), ("vae", "flux2-klein-4b/vae")]),
    ("flux-dev", &[("transformer", "flux-dev/transformer"), ("vae", "flux-schnell/vae")]),
    ("flux-schnell", &[("transformer", "flux-schnell/transformer")]),
    ("flux-fill", &[("transformer", "flux-fill/transformer")]),
];

/// A list with one value everywhere as that value, which configurations may have instead.
fn short(value: &Value) -> &Value {
    match value.as_array().map(Vec::as_slice) {
        Some([first, rest @ ..]) if rest.iter().all(|other| other == first) => first,
        _ => value,
    }
}

/// Where a made up configuration differs from the published one.
fn differences(made: &Value, published: &Value) -> Vec<String> {
    let same = |key: &str, made: &Value| match (published.get(key), key) {
        // Nothing tells the depth of transformers on levels that have none, and nothing reads it.
        (Some(wanted), "transformer_layers_per_block") => {
            let depth = |value: &Value, at: usize| value.get(at).cloned().unwrap_or_else(|| value.clone());
            let types = made_types(published);
            (0..types.len()).all(|at| !types[at] || depth(made, at) == depth(wanted, at))
        }
        (Some(wanted), _) => short(wanted) == short(made) || wanted.as_f64().is_some_and(|w| made.as_f64() == Some(w)),
        // SD2's text encoder has the size of a projection that it does not have.
        (None, _) => true,
    };
    let made = made.as_object().unwrap().iter().filter(|(key, _)| *key != "projection_dim");
    made.filter(|(key, value)| !same(key, value))
        .map(|(key, value)| format!("{key} is {value} instead of {}", published[key.as_str()]))
        .collect()
}

/// Which levels of a UNet have transformers.
fn made_types(config: &Value) -> Vec<bool> {
    let types = config["down_block_types"].as_array().unwrap();
    types.iter().map(|kind| kind == "CrossAttnDownBlock2D").collect()
}

#[test]
fn a_full_size_file_has_the_configurations_that_were_published_and_every_tensor_that_they_ask_for() {
    let mut faults = Vec::new();
    for (name, parts) in FULL {
        let (_dir, path) = model(name, true);
        let repository = Repository::open_file(&path).unwrap();
        for (part, published) in *parts {
            let mut fault = |what: String| faults.push(format!("{name} {part}: {what}"));
            let wanted: Value =
                serde_json::from_str(&fs::read_to_string(data(&format!("true_configs/{published}.json"))).unwrap())
                    .unwrap();
            let made = repository.text(&format!("{part}/config.json")).unwrap();
            differences(&serde_json::from_str(&made).unwrap(), &wanted).into_iter().for_each(&mut fault);
            let weights = repository.blank().tensors(part, DType::F32, &Device::Cpu).unwrap();
            let network = network(&made).unwrap_or_else(|class| panic!("{class} is not in NETWORKS"));
            if let Err(error) = with_plain_forms(|| (network.build)(&made, &weights)) {
                fault(error.to_string());
            }
            let listed = read(&data(&format!("true_configs/{published}.keys")));
            let listed: usize = listed.values().map(|shape| shape.iter().product::<usize>()).sum();
            let found = repository.part(part, |_| 0).unwrap().parameters;
            if found != listed as u64 {
                fault(format!("{found} parameters instead of {listed}"));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn a_full_size_file_opens_as_its_family() {
    for (name, _) in FULL {
        let (_dir, path) = model(name, true);
        let checked = Repository::open_file(&path).and_then(|repository| check(&repository));
        assert_eq!(checked.map_err(|error| error.to_string()), Ok(()), "{name}");
    }
}

#[test]
fn the_tokenizers_that_ship_inside_give_the_published_ones_ids() {
    // transformers 5.23 with the published files.
    let texts = ["a photo of a cat", "A red circle, 12 é 日本 🎉"];
    let open = |name: &str| {
        let (dir, path) = model(name, false);
        (dir, Repository::open_file(&path).unwrap())
    };
    let (_dir, sd3) = open("sd3");
    let expected: [&[u32]; 2] = [
        &[49406, 320, 1125, 539, 320, 2368, 49407],
        &[49406, 320, 736, 7117, 267, 272, 273, 4166, 39121, 19277, 361, 3986, 49407],
    ];
    for (text, expected) in texts.into_iter().zip(expected) {
        for (folder, pad) in [("tokenizer", 49407), ("tokenizer_2", 0)] {
            let tokenizer = ClipTokenizer::open(&sd3, folder).unwrap();
            let ids = tokenizer.encode(text, 77).unwrap().ids;
            assert_eq!((&ids[..expected.len()], ids[76]), (expected, pad), "{folder} {text}");
            assert_eq!((tokenizer.max_length(), tokenizer.largest_id()), (Some(77), 49407));
        }
    }
    let expected: [&[u32]; 2] = [&[3, 9, 1202, 13, 3, 9, 1712, 1], &[71, 1131, 8196, 6, 586, 3, 154, 3, 2, 3, 2, 1]];
    let tokenizer = T5Tokenizer::open(&sd3, "tokenizer_3").unwrap();
    for (text, expected) in texts.into_iter().zip(expected) {
        assert_eq!(tokenizer.encode(text, expected.len()).unwrap().ids, expected, "{text}");
    }
    assert_eq!(tokenizer.largest_id(), 32_099);

    let (_dir, z_image) = open("z-image");
    let tokenizer = QwenTokenizer::open(&z_image, "tokenizer").unwrap();
    // <|im_start|>user, the prompt, <|im_end|>, <|im_start|>assistant, and for klein an empty thought.
    let start = [151_644, 872, 198];
    let end = [151_645, 198, 151_644, 77091, 198];
    let thought = [151_667, 271, 151_668, 271];
    let expected: [&[u32]; 2] =
        [&[64, 6548, 315, 264, 8251], &[32, 2518, 12671, 11, 220, 16, 17, 3958, 75402, 21894, 11162, 236, 231]];
    for (text, words) in texts.into_iter().zip(expected) {
        for (thinking, thought) in [(Thinking::Enabled, &[][..]), (Thinking::Disabled, &thought)] {
            let expected = [&start, words, &end, thought].concat();
            assert_eq!(tokenizer.encode(text, thinking, expected.len()).unwrap().ids, expected, "{text}");
        }
    }
    assert_eq!(tokenizer.largest_id(), 151_668);
}

/// The JSON file of a model.
fn config(repository: &Repository, file: &str) -> Value {
    repository.json(file).unwrap()
}

/// What opening a file with these tensors says.
fn refusal(shapes: &Shapes, file: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(file);
    write(&path, shapes, true);
    Repository::open_file(&path).err().expect("an error is expected").to_string()
}

#[test]
fn the_kind_of_model_is_told_by_its_tensors() {
    let mut shapes = read(&data("single_files/full/sd2.keys"));
    let open = |shapes: &Shapes, name: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        write(&path, shapes, true);
        Repository::open_file(&path).unwrap()
    };
    let velocity = open(&shapes, "v2-1_768.safetensors");
    assert_eq!(config(&velocity, "scheduler/scheduler_config.json")["prediction_type"], "v_prediction");
    assert_eq!(config(&velocity, "unet/config.json")["sample_size"], 96);
    // Nine channels are those of an inpainting model, which predicts noise.
    let first = "model.diffusion_model.input_blocks.0.0.weight";
    shapes.get_mut(first).unwrap()[1] = 9;
    let inpaints = open(&shapes, "512-inpainting.safetensors");
    assert_eq!(config(&inpaints, "model_index.json")["_class_name"], "StableDiffusionInpaintPipeline");
    assert_eq!(config(&inpaints, "scheduler/scheduler_config.json")["prediction_type"], "epsilon");
    shapes.get_mut(first).unwrap()[1] = 5;
    let depth = refusal(&shapes, "depth.safetensors");
    assert!(depth.starts_with("depth.safetensors: its UNet takes 5 channels and gives 4"), "{depth}");

    let xl = open(&read(&data("single_files/full/sdxl.keys")), "xl.safetensors");
    assert_eq!(config(&xl, "model_index.json")["_class_name"], "StableDiffusionXLPipeline");
    let refiner = open(&read(&data("single_files/full/sdxl-refiner.keys")), "refiner.safetensors");
    let index = config(&refiner, "model_index.json");
    assert_eq!(
        (&index["_class_name"], &index["text_encoder"]),
        (&json!("StableDiffusionXLImg2ImgPipeline"), &json!([null, null]))
    );
    // A fine-tune that predicts velocity says so by an empty tensor.
    let mut shapes = read(&data("single_files/full/sdxl.keys"));
    shapes.insert("v_pred".to_owned(), vec![0]);
    shapes.insert("ztsnr".to_owned(), vec![0]);
    let scheduler = config(&open(&shapes, "noob.safetensors"), "scheduler/scheduler_config.json");
    assert_eq!(scheduler["prediction_type"], "v_prediction");
    assert_eq!(scheduler["rescale_betas_zero_snr"], true);
}

#[test]
fn stable_diffusion_2_at_512_pixels_is_told_by_the_step_that_it_was_trained_to() {
    let shapes = read(&data("single_files/sd2.keys"));
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    for (key, shape) in &shapes {
        tensors.insert(key.clone(), Tensor::zeros(shape.as_slice(), DType::F16, &Device::Cpu).unwrap());
    }
    for (step, prediction, side) in [(875_000_i64, "epsilon", 64), (140_000, "v_prediction", 96)] {
        tensors.insert("global_step".to_owned(), Tensor::new(step, &Device::Cpu).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        candle_core::safetensors::save(&tensors.clone().into_iter().collect(), &path).unwrap();
        let repository = Repository::open_file(&path).unwrap();
        assert_eq!(config(&repository, "scheduler/scheduler_config.json")["prediction_type"], prediction);
        assert_eq!(config(&repository, "unet/config.json")["sample_size"], side);
    }
}

#[test]
fn a_part_that_is_not_in_the_file_is_taken_from_beside_it() {
    let shapes = read(&data("single_files/flux.keys"));
    let part = |prefix: &str| -> Shapes {
        let strip = |(key, shape): (&String, &Vec<usize>)| Some((key.strip_prefix(prefix)?.to_owned(), shape.clone()));
        shapes.iter().filter_map(strip).collect()
    };
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    fs::create_dir_all(file("unet")).unwrap();
    let path = file("unet/flux1-dev.safetensors");
    write(&path, &part("model.diffusion_model."), true);
    let refused = || Repository::open_file(&path).err().map(|error| error.to_string()).unwrap_or_default();
    let missing = refused();
    assert!(missing.starts_with("flux1-dev.safetensors: holds no CLIP ViT-L text encoder"), "{missing}");
    assert!(missing.contains("clip_l.safetensors") && missing.contains("text_encoders/"), "{missing}");
    // With the model, in ComfyUI's folders, and as the folder of the diffusers layout.
    write(&file("unet/clip_l.safetensors"), &part("text_encoders.clip_l.transformer."), true);
    assert!(refused().contains("T5 XXL text encoder") && refused().contains("t5xxl_fp16.safetensors"), "{}", refused());
    fs::create_dir_all(file("text_encoders")).unwrap();
    write(&file("text_encoders/t5xxl_fp16.safetensors"), &part("text_encoders.t5xxl.transformer."), true);
    assert!(refused().contains("holds no autoencoder"), "{}", refused());
    fs::create_dir_all(file("unet/vae")).unwrap();
    write(&file("unet/vae/diffusion_pytorch_model.safetensors"), &part("vae."), true);
    fs::write(file("unet/vae/config.json"), r#"{"scaling_factor": 0.5}"#).unwrap();
    let repository = Repository::open_file(&path).unwrap();
    assert_eq!(config(&repository, "vae/config.json")["scaling_factor"], 0.5);
    assert_eq!(repository.part("text_encoder", |_| 0).unwrap().stored, ["F16"]);
    assert_eq!(config(&repository, "text_encoder_2/config.json")["num_layers"], 2);
    assert_eq!(config(&repository, "model_index.json")["_class_name"], "FluxPipeline");
    // What a folder of the file's name says counts more than what is made up.
    fs::create_dir_all(file("unet/flux1-dev/scheduler")).unwrap();
    fs::write(file("unet/flux1-dev/scheduler/scheduler_config.json"), r#"{"shift": 7}"#).unwrap();
    let repository = Repository::open_file(&path).unwrap();
    assert_eq!(config(&repository, "scheduler/scheduler_config.json")["shift"], 7);
}

#[test]
fn a_file_that_is_no_model_is_refused_by_what_it_is() {
    let one = |key: &str| Shapes::from([(key.to_owned(), vec![4, 4])]);
    let lora = refusal(&one("lora_unet_down_blocks_0.lora_down.weight"), "style.safetensors");
    assert_eq!(lora, "style.safetensors: is a LoRA, which is used with a model, not as one");
    let vae = refusal(&one("first_stage_model.decoder.mid.block_1.norm1.weight"), "ae.safetensors");
    assert!(vae.starts_with("ae.safetensors: is the autoencoder of a model alone"), "{vae}");
    let other = refusal(&one("layer.weight"), "other.safetensors");
    assert!(
        other.starts_with("other.safetensors: is no model that easel knows: none of its 1 tensors (layer.weight"),
        "{other}"
    );
    // A denoiser with a part cut out names the tensor that tells its size.
    let cut = refusal(&one("double_blocks.0.img_attn.norm.key_norm.scale"), "cut.safetensors");
    assert!(cut.starts_with("cut.safetensors: x_embedder.weight is missing"), "{cut}");
    let dir = tempfile::tempdir().unwrap();
    for (name, told) in [
        ("model.ckpt", "is a pickle"),
        ("model.onnx", "a .safetensors or .gguf file is expected"),
        ("model.safetensors", "is no whole"),
    ] {
        fs::write(dir.path().join(name), b"\x80\x02").unwrap();
        let error = Repository::open_file(dir.path().join(name)).err().unwrap().to_string();
        assert!(error.starts_with(name) && error.contains(told), "{error}");
    }
    let absent = Repository::open_file(dir.path().join("absent.safetensors")).err().unwrap().to_string();
    assert!(absent.contains("absent.safetensors"), "{absent}");
}
