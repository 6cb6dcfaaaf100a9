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

    /// The file that holds such a part, if there is one.
    pub(super) fn file(&self, role: Role) -> Option<PathBuf> {
        let list = |place: &str| -> Vec<String> {
            let entries = self.folder.join(place).read_dir().into_iter().flatten().flatten();
            entries
                .filter(|entry| entry.path().is_file())
                .filter_map(|entry| entry.file_name().into_string().ok())
                .collect()
        };
        search(role, &self.stem, list).map(|(place, name)| self.folder.join(place).join(name))
    }
}

/// Where files of a kind are looked for, seen from the model's folder: there, and in the folders that ComfyUI and others keep
/// them in.
fn places(role: Role) -> &'static [&'static str] {
    if role.is_autoencoder() {
        &["", "vae", "../vae"]
    } else {
        &["", "text_encoders", "../text_encoders", "clip", "../clip"]
    }
}

/// The place and the name of the file that holds such a part of the model called `stem`, if there is one: the first name of
/// its list wins. `list` names the files of a place.
pub(super) fn search(role: Role, stem: &str, list: impl Fn(&str) -> Vec<String>) -> Option<(String, String)> {
    let own = role.is_autoencoder().then(|| format!("{stem}.vae.safetensors"));
    if let Some(own) = own.filter(|own| list("").contains(own)) {
        return Some((String::new(), own));
    }
    let there: Vec<(&str, Vec<String>)> = places(role).iter().map(|place| (*place, list(place))).collect();
    let find = |name: &&str| {
        there.iter().find_map(|(place, names)| Some(((*place).to_owned(), find(names, name)?.to_owned())))
    };
    role.file_names().iter().find_map(find)
}

/// The words that say where such a part is looked for.
pub(super) fn searched(role: Role) -> String {
    let names = role.file_names().join(", ").replace('*', "…");
    let folders = if role.is_autoencoder() { "vae/ or ../vae/" } else { "text_encoders/, clip/ or the same in .." };
    format!("as {names} beside the file or in {folders}")
}

/// The file of this name among others; a star stands for anything, and then the first in alphabetical order is meant.
fn find<'a>(names: &'a [String], name: &str) -> Option<&'a String> {
    let Some((start, end)) = name.split_once('*') else { return names.iter().find(|other| *other == name) };
    let matches = |other: &&String| {
        let other = other.to_lowercase();
        other.starts_with(start) && other.ends_with(end)
    };
    names.iter().filter(matches).min()
}
