//! A model in one file, as people keep and share them, presented as a folder of the diffusers layout.
//!
//! The family is told by the file's keys, the configurations by the shapes of its tensors, and the tensors are found under
//! diffusers' names by the tables of [`super::layouts`]. What the file does not hold is looked for beside it. So no family
//! knows whether its model is a folder or a file.

mod beside;
mod configs;
mod neighbours;
mod recipes;
mod roles;
mod tokenizers;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};

use beside::{Beside, searched};
pub(super) use neighbours::neighbours;
use recipes::{Part, Recipe, merged, recognise};
use tokenizers::Tokenizer;

use super::files::{Bytes, Files, Folder};
use super::layouts::LaidOut;
use super::part_files;
use super::repository::{MODEL_INDEX, Repository};
use super::tensors::TensorSource;
use crate::{Error, Result};

/// A folder beside the file, for the names that start with one of `parts`; for all names where there are none.
struct Overlay {
    folder: Folder,
    parts: Vec<&'static str>,
}

impl Overlay {
    fn covers(&self, name: &str) -> bool {
        let part = name.split('/').next().unwrap_or(name);
        self.parts.is_empty() || self.parts.contains(&part)
    }
}

/// A tokenizer, whose files are made up when the first is read.
struct Embedded {
    tokenizer: Tokenizer,
    files: OnceLock<BTreeMap<&'static str, Bytes>>,
}

impl Embedded {
    fn files(&self) -> &BTreeMap<&'static str, Bytes> {
        self.files.get_or_init(|| self.tokenizer.files().into_iter().collect())
    }
}

/// The folder that a single file would be.
pub(super) struct SingleFile {
    path: String,
    /// Where files are, the first that has one wins.
    overlays: Vec<Overlay>,
    /// The configurations that were made up.
    made: BTreeMap<String, Bytes>,
    /// The folders of tokenizers that come from inside of the program.
    tokenizers: BTreeMap<&'static str, Embedded>,
    /// The weights of the parts.
    parts: BTreeMap<&'static str, Arc<dyn TensorSource>>,
}

impl SingleFile {
    /// The model of this file.
    ///
    /// # Errors
    /// Names the file and what is wrong: it cannot be read, is no model that easel knows, or lacks a part that is not
    /// beside it either.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let source = part_files::open_file(path)?;
        let beside = Beside::new(path);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Recipe { class, index, scheduler, parts } = recognise(&source, &name)?;
        let mut model = Self {
            path: path.display().to_string(),
            overlays: overlays(&beside, class),
            made: BTreeMap::new(),
            tokenizers: BTreeMap::new(),
            parts: BTreeMap::new(),
        };
        let mut list =
            merged(json!({"_class_name": class, "scheduler": ["diffusers", scheduler["_class_name"]]}), index);
        model.made_json("scheduler/scheduler_config.json", &scheduler);
        for part in parts {
            let there = model.take(&source, &beside, &part)?;
            list[part.folder] = if there { json!(part.role.class()) } else { json!([null, null]) };
            if let Some((folder, tokenizer)) = part.tokenizer {
                list[folder] = if there { json!(["transformers", tokenizer.class()]) } else { json!([null, null]) };
                if there && !model.has(folder, |_| true)? {
                    model.tokenizers.insert(folder, Embedded { tokenizer, files: OnceLock::new() });
                }
            }
        }
        model.made_json(MODEL_INDEX, &list);
        Ok(model)
    }

    /// Finds a part and its configuration; whether it is there.
    fn take(&mut self, source: &Arc<dyn TensorSource>, beside: &Beside, part: &Part) -> Result<bool> {
        let Part { folder, role, ref settings, ref tokenizer, optional } = *part;
        let inside = role.find(&**source).map(|layout| (Arc::clone(source), layout));
        let found = match inside {
            Some(found) => found,
            // A folder of the diffusers layout says everything of the part itself.
            None if Self::is_part(&beside.folder().join(folder)) => {
                let tokenizer = tokenizer.map(|(folder, _)| folder);
                let parts = [Some(folder), tokenizer].into_iter().flatten().collect();
                self.overlays.push(Overlay { folder: Folder::new(beside.folder()), parts });
                return Ok(true);
            }
            None if self.has(folder, is_weights)? => return Ok(true),
            None => match beside.file(role) {
                Some(path) => {
                    let other = part_files::open_file(&path)?;
                    let layout = role.find(&*other).ok_or_else(|| {
                        Error::file(path.display().to_string(), format_args!("does not hold a {}", role.what()))
                    })?;
                    (other, layout)
                }
                // What is wrong with the folder is told when it is opened.
                None if self.has(folder, |_| true)? => return Ok(true),
                None if optional => return Ok(false),
                None => {
                    let (what, searched) = (role.what(), searched(role));
                    let message = format_args!(
                        "holds no {what}; it is looked for {searched}, and as a folder {folder}/ of the diffusers layout"
                    );
                    return Err(Error::file(source.file(), message));
                }
            },
        };
        let part = LaidOut::new(found.0, found.1);
        let config = merged(role.config(&part)?, settings.clone());
        self.made_json(&format!("{folder}/config.json"), &config);
        self.parts.insert(folder, Arc::new(part));
        Ok(true)
    }

    /// Whether a folder holds a part of the diffusers layout, weights included.
    fn is_part(folder: &Path) -> bool {
        folder.join("config.json").is_file()
            && folder.read_dir().is_ok_and(|mut entries| {
                entries.any(|entry| entry.is_ok_and(|entry| is_weights(&entry.file_name().to_string_lossy())))
            })
    }

    /// Whether a folder beside the file has such files for this folder of the model.
    fn has(&self, folder: &str, such: impl Fn(&str) -> bool) -> Result<bool> {
        let covering = self.overlays.iter().filter(|overlay| overlay.covers(folder));
        for overlay in covering {
            if overlay.folder.list(folder)?.iter().any(|name| such(name)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn made_json(&mut self, name: &str, value: &Value) {
        self.made.insert(name.to_owned(), Bytes::Owned(Arc::from(value.to_string().into_bytes())));
    }
}

/// Whether a file of this name holds weights, or says which do.
fn is_weights(name: &str) -> bool {
    [".safetensors", ".safetensors.index.json", ".gguf"].iter().any(|ending| name.ends_with(ending))
}

/// The folders whose configurations and tokenizers count more than what is made up: that of the file's own name beside
/// it, and its own where that is the folder of the same kind of model.
fn overlays(beside: &Beside, class: &str) -> Vec<Overlay> {
    let own = Some(Folder::new(&beside.own())).filter(|_| beside.own().is_dir());
    let folder = Folder::new(beside.folder());
    let same =
        folder.open(MODEL_INDEX).ok().flatten().is_some_and(|bytes| {
            serde_json::from_slice::<Value>(&bytes).is_ok_and(|index| index["_class_name"] == class)
        });
    own.into_iter().chain(same.then_some(folder)).map(|folder| Overlay { folder, parts: Vec::new() }).collect()
}

impl Files for SingleFile {
    fn open(&self, name: &str) -> Result<Option<Bytes>> {
        // The list of parts is of those that were found.
        let overlays = self.overlays.iter().filter(|overlay| name != MODEL_INDEX && overlay.covers(name));
        for overlay in overlays {
            if let Some(bytes) = overlay.folder.open(name)? {
                return Ok(Some(bytes));
            }
        }
        if let Some((folder, file)) = name.split_once('/')
            && let Some(embedded) = self.tokenizers.get(folder)
        {
            return Ok(embedded.files().get(file).cloned());
        }
        Ok(self.made.get(name).cloned())
    }

    fn list(&self, folder: &str) -> Result<BTreeSet<String>> {
        let inside = |file: &String| Some(file.strip_prefix(folder)?.strip_prefix('/')?.to_owned());
        let mut names: BTreeSet<String> = self.made.keys().filter_map(inside).collect();
        if let Some(embedded) = self.tokenizers.get(folder) {
            names.extend(embedded.files().keys().map(|name| (*name).to_owned()));
        }
        for overlay in self.overlays.iter().filter(|overlay| overlay.covers(folder)) {
            names.extend(overlay.folder.list(folder)?);
        }
        Ok(names)
    }

    fn weights(&self, part: &str) -> Result<Option<Arc<dyn TensorSource>>> {
        Ok(self.parts.get(part).cloned())
    }

    fn origin(&self) -> String {
        self.path.clone()
    }
}

impl Repository {
    /// The model in one file, safetensors or GGUF: a checkpoint of Stable Diffusion 1, 2, XL or 3, of FLUX.1 or FLUX.2 klein,
    /// or of Z-Image, in the names of the code that it was trained with, in ComfyUI's or in diffusers'.
    ///
    /// What the file does not hold is taken from beside it: text encoders and autoencoder from the files and folders that
    /// they are usually kept in, configurations and tokenizers from a folder of the file's name.
    ///
    /// # Errors
    /// Names the file and what is wrong: it cannot be read, is no model that easel knows, or lacks a part that is not beside
    /// it either.
    pub fn open_file(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::new(SingleFile::open(path.as_ref())?))
    }
}
