//! SD1.5 at its true size, without its weights.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

#[path = "../../models/tests/true_configs/listing.rs"]
#[allow(dead_code, reason = "only its reader is used")]
mod listing;

/// Writes a folder in the layout of diffusers into `folder`, whose weights are holes in their files: zeros that take no
/// room on the disk, and the same time to compute with as any others.
pub(crate) fn write(folder: &Path) {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/data");
    let (small, truth) = (data.join("pipelines/sd15"), data.join("true_configs/sd15"));
    for file in ["model_index.json", "scheduler/scheduler_config.json"] {
        copy(&small, folder, file);
    }
    for file in fs::read_dir(small.join("tokenizer")).unwrap() {
        copy(&small, folder, &format!("tokenizer/{}", file.unwrap().file_name().to_str().unwrap()));
    }
    for (part, file) in
        [("text_encoder", "model"), ("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")]
    {
        fs::create_dir_all(folder.join(part)).unwrap();
        fs::copy(truth.join(format!("{part}.json")), folder.join(part).join("config.json")).unwrap();
        weights(&truth.join(format!("{part}.keys")), &folder.join(part).join(format!("{file}.safetensors")));
    }
}

fn copy(from: &Path, to: &Path, file: &str) {
    let target = to.join(file);
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    fs::copy(from.join(file), target).unwrap();
}

/// A safetensors file with the tensors of a list, all zeros.
fn weights(keys: &Path, file: &Path) {
    let mut end = 0;
    let mut header = Map::new();
    for (key, shape) in listing::read(keys) {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        header.insert(key, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}));
    }
    let mut header = Value::Object(header).to_string();
    // The values must begin at a multiple of their size.
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut file = File::create(file).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
}
