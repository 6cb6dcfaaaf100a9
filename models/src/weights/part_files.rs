//! Which files the weights of a part are in, and opening them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::files::Folder;
use super::gguf::GgufSource;
use super::layouts;
use super::repository::Repository;
use super::safetensors::{Index, SafetensorsSource, is_pickle, refuse_pickle};
use super::tensors::TensorSource;
use crate::{Error, Result};

/// The names that weights have in a part's folder: those that diffusers writes, then those that transformers writes,
/// and the half-precision variant of each where it is the only one that was downloaded.
const SINGLE: [&str; 4] = [
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
];

/// The indices of weights in several files, in the same order.
const INDEX: [&str; 4] = [
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.fp16.json",
    "model.safetensors.index.fp16.json",
];

/// The weights of a part, by their files.
enum Found {
    Single(String),
    Sharded(String, Index),
    Gguf(String),
}

/// Looks for the weights in the folder `part`: those of the variant that is asked for, then the usual
/// ones, then a GGUF file.
fn find(repository: &Repository, part: &str) -> Result<Found> {
    let there = repository.list(part)?;
    let variant = repository.variant().map(|variant| {
        ["diffusion_pytorch_model", "model"]
            .map(|base| [format!("{base}.{variant}.safetensors"), format!("{base}.safetensors.index.{variant}.json")])
    });
    let usual = SINGLE.iter().zip(INDEX).map(|(single, index)| [(*single).to_owned(), index.to_owned()]);
    for [single, index] in variant.into_iter().flatten().chain(usual) {
        if there.contains(&single) {
            return Ok(Found::Single(format!("{part}/{single}")));
        }
        if there.contains(&index) {
            let index = format!("{part}/{index}");
            let map = repository.json(&index)?;
            return Ok(Found::Sharded(index, map));
        }
    }
    let mut blocks = there.iter().filter(|name| name.to_ascii_lowercase().ends_with(".gguf"));
    match (blocks.next(), blocks.next()) {
        (Some(one), None) => return Ok(Found::Gguf(format!("{part}/{one}"))),
        (Some(one), Some(two)) => {
            let message = format_args!("has {one} and {two}; one GGUF file is expected, or safetensors files");
            return Err(Error::file(part, message));
        }
        (None, _) => {}
    }
    if let Some(pickle) = there.iter().find(|name| is_pickle(name)) {
        return Err(refuse_pickle(&format!("{part}/{pickle}")));
    }
    let expected = [SINGLE, INDEX].concat().join(", ");
    let reason = repository.incomplete().map(|why| format!("; more {why}")).unwrap_or_default();
    Err(Error::file(part, format_args!("has no weights; one of these is expected: {expected}{reason}")))
}

/// Opens the weights in the folder `part`, by their headers.
pub(super) fn open(repository: &Repository, part: &str) -> Result<Arc<dyn TensorSource>> {
    Ok(match find(repository, part)? {
        Found::Single(name) => Arc::new(SafetensorsSource::single(repository, name)?),
        Found::Sharded(name, index) => Arc::new(SafetensorsSource::sharded(repository, part, name, &index)?),
        Found::Gguf(name) => layouts::diffusers(Arc::new(GgufSource::open(repository, &name)?)),
    })
}

/// Opens a file of weights anywhere on the disk; errors call it by its name alone.
pub(super) fn open_file(path: &Path) -> Result<Arc<dyn TensorSource>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if is_pickle(&name) {
        return Err(refuse_pickle(&name));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let repository = Repository::new(Folder::new(folder));
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    match extension.as_str() {
        "safetensors" | "sft" => Ok(Arc::new(SafetensorsSource::single(&repository, name)?)),
        "gguf" => Ok(Arc::new(GgufSource::open(&repository, &name)?)),
        _ => Err(Error::file(name, "is of no kind that easel reads; a .safetensors or .gguf file is expected")),
    }
}

/// The files of the weights in the folder `part`.
pub(super) fn files(repository: &Repository, part: &str) -> Result<Vec<String>> {
    match find(repository, part)? {
        Found::Single(name) | Found::Gguf(name) => Ok(vec![name]),
        Found::Sharded(name, index) => {
            let shards: BTreeSet<&String> = index.weight_map.values().collect();
            Ok(std::iter::once(name).chain(shards.into_iter().map(|shard| format!("{part}/{shard}"))).collect())
        }
    }
}
