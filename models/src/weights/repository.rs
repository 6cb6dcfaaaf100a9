//! A model as its parts' files in the diffusers layout, wherever they are kept.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use serde::de::DeserializeOwned;

use super::files::{Beginning, Bytes, Embedded, Files, Folder, stays_inside};
use super::hub::{self, Hub, HubOptions, SingleOfHub};
use super::tensors::{Blanks, TensorSource};
use super::{Tensors, builtin, fetching, part_files, safetensors, single_file};
use crate::{Error, Loading, Part, Result};

/// What a folder of the diffusers layout is recognised by: the list of the model's parts.
pub const MODEL_INDEX: &str = "model_index.json";

/// The files of one model in the diffusers layout: `model_index.json`, and one folder a part.
#[derive(Clone)]
pub struct Repository {
    files: Arc<dyn Files>,
    /// Whether weights are handed out without their values.
    blank: bool,
}

impl Repository {
    /// The model of these files.
    pub(super) fn new(files: impl Files + 'static) -> Self {
        Self { files: Arc::new(files), blank: false }
    }

    /// The same model without the values of its weights: a network that is built from it in the plain forms of its
    /// operations takes no memory, and every key and shape that it asks for is checked.
    #[must_use]
    pub fn blank(&self) -> Self {
        Self { blank: true, ..self.clone() }
    }

    /// The model in a folder on the disk.
    ///
    /// # Errors
    /// When the path is no folder, or the folder no model.
    pub fn folder(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let shown = path.display();
        if !path.is_dir() {
            if safetensors::is_pickle(&path.to_string_lossy()) {
                return Err(safetensors::refuse_pickle(&shown.to_string()));
            }
            let found = if path.exists() { "is not a folder" } else { "does not exist" };
            return Err(Error::file(
                shown.to_string(),
                format_args!("{found}; a folder in the diffusers layout is expected, with a {MODEL_INDEX} inside"),
            ));
        }
        let repository = Self::new(Folder::new(path));
        if repository.try_bytes(MODEL_INDEX)?.is_none() {
            return Err(Error::file(
                shown.to_string(),
                format_args!("has no {MODEL_INDEX}; a folder in the diffusers layout is expected"),
            ));
        }
        Ok(repository)
    }

    /// What a model from the hub is called for short: the repository's name without its owner, or the file's without its
    /// ending. `None` where `source` is no name on the hub; where it is, it may be a path on the disk all the same.
    pub fn hub_name(source: &str) -> Option<String> {
        hub::short_name(source)
    }

    /// The single file that `source` names on the hub (`owner/name/file.safetensors`, `owner/name:file.gguf` or
    /// `owner/name@revision:file.gguf`), fetched into the cache with what [`Repository::open_file`] will look for beside it and
    /// the repository has; `None` where it names a whole repository. Calls `progress` with the bytes that have arrived.
    ///
    /// # Errors
    /// As [`Repository::hub`]; and when there is no such file, it is a pickle, or the disk is full.
    pub fn hub_file(source: &str, options: &HubOptions, progress: &dyn Fn(Loading)) -> Result<Option<PathBuf>> {
        let Some(SingleOfHub { file, path, files, hub }) = hub::single_file(source, options, progress)? else {
            return Ok(None);
        };
        let repository = Self::new(hub);
        let beside = single_file::neighbours(&repository, &files, &file, &path)?;
        repository.files.fetch(&beside, progress)?;
        Ok(Some(path))
    }

    /// The model on the hub that `source` names: `owner/name`, `owner/name@revision`, and for another variant of the weights
    /// `owner/name?variant=fp16`. Its configuration is fetched as it is read, its weights when they are needed or by
    /// [`Repository::fetch`].
    ///
    /// # Errors
    /// When there is no such repository or revision, or it may not be read, or it is not in the cache and the hub is out of
    /// reach: says which, and what to do.
    pub fn hub(source: &str, options: &HubOptions) -> Result<Self> {
        let hub = Hub::open(source, options)?;
        hub.check_layout()?;
        Ok(Self::new(hub))
    }

    /// The model that ships inside the program.
    pub fn builtin() -> Self {
        Self::new(Embedded::new(builtin::FILES))
    }

    /// Where the model comes from: the path of its folder or file, or its name on the hub.
    pub fn origin(&self) -> String {
        self.files.origin()
    }

    /// The file called `name`; `None` when there is none.
    ///
    /// # Errors
    /// When the file is there and cannot be read, or when the name would lead out of the model's folder.
    pub fn try_bytes(&self, name: &str) -> Result<Option<Bytes>> {
        if !stays_inside(name) {
            return Err(Error::file(name, "is not a name inside the model's folder"));
        }
        self.files.open(name)
    }

    /// The file called `name`.
    ///
    /// # Errors
    /// When it is missing or cannot be read.
    pub fn bytes(&self, name: &str) -> Result<Bytes> {
        self.try_bytes(name)?.ok_or_else(|| self.missing(name))
    }

    /// The error about a file that is not there.
    fn missing(&self, name: &str) -> Error {
        Error::file(name, self.incomplete().unwrap_or_else(|| "is missing".to_owned()))
    }

    /// Why a file may be missing here that the model has; `None` where all of its files are known.
    pub(super) fn incomplete(&self) -> Option<String> {
        self.files.incomplete()
    }

    /// The variant of the weights that is asked for.
    pub(super) fn variant(&self) -> Option<&str> {
        self.files.variant()
    }

    /// The first bytes of the file called `name`, which is not fetched for it.
    pub(super) fn beginning(&self, name: &str, length: u64) -> Result<Beginning> {
        if !stays_inside(name) {
            return Err(Error::file(name, "is not a name inside the model's folder"));
        }
        self.files.beginning(name, length)?.ok_or_else(|| self.missing(name))
    }

    /// Brings the weights of these parts to this machine, where they are not here yet; other files are fetched when they are
    /// needed, and so are weights without this. Calls `progress` with the bytes that have arrived.
    ///
    /// # Errors
    /// When a part has no weights that can be read, the hub does not hand them out, or the disk is full: says which, and what
    /// to do.
    pub fn fetch(&self, parts: &[&str], progress: &dyn Fn(Loading)) -> Result<()> {
        self.files.fetch(&self.weight_files(parts)?, progress)
    }

    /// Whether the weights of these parts are on this machine, so that nothing has to be fetched for them.
    ///
    /// # Errors
    /// When a part has no weights that can be read.
    pub fn fetched(&self, parts: &[&str]) -> Result<bool> {
        Ok(self.weight_files(parts)?.iter().all(|file| self.files.is_here(file)))
    }

    /// The files in which these parts' weights are, of those that have files of their own.
    fn weight_files(&self, parts: &[&str]) -> Result<Vec<String>> {
        let mut files = Vec::new();
        for part in parts {
            if self.files.weights(part)?.is_none() {
                files.extend(part_files::files(self, part)?);
            }
        }
        Ok(files)
    }

    /// The text file called `name`.
    ///
    /// # Errors
    /// When it is missing, cannot be read or is not UTF-8.
    pub fn text(&self, name: &str) -> Result<String> {
        let bytes = self.bytes(name)?;
        Ok(std::str::from_utf8(&bytes).map_err(|error| Error::file(name, error))?.to_owned())
    }

    /// The JSON file called `name`; `None` when there is none.
    ///
    /// # Errors
    /// Names the file and the key when it cannot be understood.
    pub fn try_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        self.try_bytes(name)?.map(|bytes| parse_json(name, &bytes)).transpose()
    }

    /// The JSON file called `name`.
    ///
    /// # Errors
    /// Names the file, and the key when it cannot be understood.
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        parse_json(name, &self.bytes(name)?)
    }

    /// The names of the files right inside `folder`, in alphabetical order; empty when there is no such folder.
    ///
    /// # Errors
    /// When the folder cannot be read, or when its name would lead out of the model's.
    pub fn list(&self, folder: &str) -> Result<BTreeSet<String>> {
        if !stays_inside(folder) {
            return Err(Error::file(folder, "is not a name inside the model's folder"));
        }
        self.files.list(folder)
    }

    /// The weights of a part, such as `unet`, handed out in `dtype` on `device`.
    ///
    /// # Errors
    /// When there are none that can be read: names the file, and for a pickle how to convert it.
    pub fn tensors(&self, part: &str, dtype: DType, device: &Device) -> Result<Tensors> {
        if !self.blank {
            self.fetch(&[part], &fetching::report)?;
        }
        let source = self.weights(part)?;
        let source = if self.blank { Arc::new(Blanks(source)) } else { source };
        Ok(Tensors::new(source, dtype, device))
    }

    /// Where the weights of a part come from.
    fn weights(&self, part: &str) -> Result<Arc<dyn TensorSource>> {
        match self.files.weights(part)? {
            Some(source) => Ok(source),
            None => part_files::open(self, part),
        }
    }

    /// What a part is made of, by its files' headers; loaded, weights of a shape take `weight_bytes` of it, unless they stay in
    /// the few bits that they are stored in. Whole numbers, such as stored positions, are not counted.
    ///
    /// # Errors
    /// As [`Repository::tensors`].
    pub fn part(&self, part: &str, weight_bytes: impl Fn(&[usize]) -> u64) -> Result<Part> {
        self.part_of(part, weight_bytes, |_| true)
    }

    /// [`Self::part`] of a network that loads only those tensors whose keys `loads` names: the others are counted among the
    /// parameters, but take no bytes.
    ///
    /// # Errors
    /// As [`Repository::tensors`].
    pub fn part_of(
        &self,
        part: &str,
        weight_bytes: impl Fn(&[usize]) -> u64,
        loads: impl Fn(&str) -> bool,
    ) -> Result<Part> {
        let source = self.weights(part)?;
        let (mut parameters, mut bytes, mut stored) = (0, 0, BTreeSet::new());
        for key in source.keys() {
            let Some(info) = source.info(&key).filter(|info| info.fractional) else { continue };
            let values = info.shape.iter().product::<usize>() as u64;
            parameters += values;
            // Tables are looked up in, so they are spread out; the layers that keep few bits are products.
            let table =
                ["shared.weight", "embed_tokens.weight", "embedding.weight"].iter().any(|end| key.ends_with(end));
            if loads(&key) {
                bytes += info.kept_bytes().filter(|_| !table).unwrap_or_else(|| weight_bytes(&info.shape));
            }
            stored.insert(info.dtype);
        }
        let stored = stored.into_iter().collect();
        Ok(Part { name: part.to_owned(), parameters, stored, bytes })
    }
}

/// Reads JSON, and says which key of which file is at fault where it cannot be.
fn parse_json<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let message: &dyn Display = error.inner();
        match path.as_str() {
            "." => Error::file(name, message),
            _ => Error::file(name, format_args!("{path}: {message}")),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(result: Result<impl Sized>) -> String {
        result.err().expect("an error is expected").to_string()
    }

    #[test]
    fn a_name_never_leads_out_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret.json"), "{}").unwrap();
        let model = dir.path().join("model");
        std::fs::create_dir(&model).unwrap();
        std::fs::write(model.join(MODEL_INDEX), "{}").unwrap();
        let repository = Repository::folder(&model).unwrap();
        let absolute = dir.path().join("secret.json");
        for name in ["../secret.json", "./../secret.json", "a/../../secret.json", "", "..\\secret.json"]
            .into_iter()
            .chain([absolute.to_str().unwrap()])
        {
            assert!(refusal(repository.try_bytes(name)).contains("is not a name inside the model's folder"), "{name}");
        }
        assert!(refusal(repository.list("..")).contains("is not a name inside"));
    }

    #[test]
    fn a_folder_without_a_model_is_refused_by_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let empty = refusal(Repository::folder(dir.path()));
        assert!(empty.ends_with("has no model_index.json; a folder in the diffusers layout is expected"), "{empty}");
        let absent = refusal(Repository::folder(dir.path().join("nowhere")));
        assert!(absent.contains("nowhere: does not exist"), "{absent}");
        let pickle = refusal(Repository::folder(dir.path().join("model.ckpt")));
        assert!(pickle.contains("pickle"), "{pickle}");
    }

    #[test]
    fn json_that_does_not_fit_is_told_by_file_and_key() {
        #[derive(Debug, serde::Deserialize)]
        struct Config {
            #[allow(dead_code, reason = "only its type matters here")]
            sizes: Vec<u32>,
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(MODEL_INDEX), r#"{"sizes": [1, "two"]}"#).unwrap();
        let repository = Repository::folder(dir.path()).unwrap();
        let error = refusal(repository.json::<Config>(MODEL_INDEX));
        assert!(error.starts_with("model_index.json: sizes[1]: invalid type: string \"two\""), "{error}");
        assert_eq!(refusal(repository.json::<Config>("unet/config.json")), "unet/config.json: is missing");
    }

    #[test]
    fn the_embedded_files_are_found_by_name_and_folder() {
        let repository = Repository::builtin();
        assert!(repository.try_bytes("unet/config.json").unwrap().is_some());
        assert!(repository.try_bytes("unet/nothing.json").unwrap().is_none());
        let unet = repository.list("unet").unwrap();
        assert_eq!(unet.iter().collect::<Vec<_>>(), ["config.json", "diffusion_pytorch_model.safetensors"]);
        assert!(repository.list("un").unwrap().is_empty());
    }
}
