//! What is kept beside a single file: the parts that it does not hold, and the files that say more than its tensors do.

use std::path::{Path, PathBuf};

use super::roles::Role;

/// The files of one part beside a model's file.
pub(super) struct Beside {
    /// The folder of the model's file.
    folder: PathBuf,
    /// The model's file without its extension.
    stem: String,
}

impl Beside {
    pub(super) fn new(file: &Path) -> Self {
        let folder = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Self { folder: folder.to_owned(), stem }
    }

    /// The folder that the file is in.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of the file's own name beside it.
    pub(super) fn own(&self) -> PathBuf {
        self.folder.join(&self.stem)
    }

    /// Where files of a kind are looked for: with the model, and in the folders that ComfyUI and others keep them in.
    fn places(&self, role: Role) -> Vec<PathBuf> {
        let names: &[&str] = if role.is_autoencoder() { &["vae"] } else { &["text_encoders", "clip"] };
        let near = names.iter().flat_map(|name| [self.folder.join(name), self.folder.join("..").join(name)]);
        std::iter::once(self.folder.clone()).chain(near).collect()
    }

    /// The file that holds such a part, if there is one: the first name of its list wins.
    pub(super) fn file(&self, role: Role) -> Option<PathBuf> {
        let own = format!("{}.vae.safetensors", self.stem);
        let own = role.is_autoencoder().then(|| self.folder.join(own)).filter(|path| path.is_file());
        own.or_else(|| {
            let mut names = role.file_names().iter();
            names.find_map(|name| self.places(role).iter().find_map(|place| find(place, name)))
        })
    }
}

/// The words that say where such a part is looked for.
pub(super) fn searched(role: Role) -> String {
    let names = role.file_names().join(", ").replace('*', "…");
    let folders = if role.is_autoencoder() { "vae/ or ../vae/" } else { "text_encoders/, clip/ or the same in .." };
    format!("as {names} beside the file or in {folders}")
}

/// The file of this name in a folder; a star stands for anything, and then the first in alphabetical order is meant.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let Some((start, end)) = name.split_once('*') else {
        return Some(folder.join(name)).filter(|path| path.is_file());
    };
    let matches = |path: &PathBuf| {
        let file = path.file_name().map(|name| name.to_string_lossy().to_lowercase());
        file.is_some_and(|file| file.starts_with(start) && file.ends_with(end)) && path.is_file()
    };
    folder.read_dir().ok()?.filter_map(|entry| Some(entry.ok()?.path())).filter(matches).min()
}
