//! What of a repository on the hub a single file in it needs: what [`SingleFile`](super::SingleFile) will look for beside it.

use std::collections::BTreeSet;
use std::path::Path;

use super::beside::search;
use super::is_weights;
use super::recipes::recognise;
use crate::Result;
use crate::weights::part_files;
use crate::weights::repository::{MODEL_INDEX, Repository};

/// How the names of files end that say something of a model, and are small.
const SMALL: [&str; 4] = [".json", ".txt", ".model", ".jinja"];

/// The files of `repository`, which are these, that belong to the model in its file called `file`, which is at `path`
/// already: the parts that the file does not hold, and configurations and tokenizers. None where it is no model.
///
/// # Errors
/// When the file is no file of weights, or the index of a part's weights cannot be read.
pub(in crate::weights) fn neighbours(
    repository: &Repository,
    files: &BTreeSet<String>,
    file: &str,
    path: &Path,
) -> Result<Vec<String>> {
    let source = part_files::open_file(path)?;
    let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    // What is wrong with it is told when it is opened.
    let Ok(recipe) = recognise(&source, name) else { return Ok(Vec::new()) };
    let list = |place: &str| join(folder, place).map(|place| inside(files, &place)).unwrap_or_default();
    let tokenizers = recipe.parts.iter().filter_map(|part| part.tokenizer.map(|(folder, _)| folder));
    let folders: Vec<&str> =
        recipe.parts.iter().map(|part| part.folder).chain(tokenizers).chain(["scheduler"]).collect();

    let mut wanted = Vec::new();
    // The folder of the same kind of model, and that of the file's own name.
    for root in ["", stem] {
        wanted.extend(join(folder, &format!("{root}/{MODEL_INDEX}")));
        for part in &folders {
            let place = format!("{root}/{part}");
            let small = list(&place).into_iter().filter(|name| SMALL.iter().any(|ending| name.ends_with(ending)));
            wanted.extend(small.filter_map(|name| join(folder, &format!("{place}/{name}"))));
        }
    }
    for part in recipe.parts.iter().filter(|part| part.role.find(&*source).is_none()) {
        let there = list(part.folder);
        if there.iter().any(|name| name == "config.json") && there.iter().any(|name| is_weights(name)) {
            let place = join(folder, part.folder).unwrap_or_default();
            wanted.extend(part_files::files(repository, &place)?);
        } else if let Some((place, name)) = search(part.role, stem, list) {
            wanted.extend(join(folder, &format!("{place}/{name}")));
        }
    }
    wanted.retain(|name| files.contains(name));
    Ok(wanted)
}

/// A place in a repository, seen from its folder `from`; `None` where it would be outside.
fn join(from: &str, place: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').filter(|part| !part.is_empty()).collect();
    for part in place.split('/').filter(|part| !part.is_empty()) {
        if part == ".." {
            parts.pop()?;
        } else {
            parts.push(part);
        }
    }
    Some(parts.join("/"))
}

/// A name in `folder` as it is seen from there.
fn relative(folder: &str, name: &str) -> Option<String> {
    if folder.is_empty() {
        Some(name.to_owned())
    } else {
        Some(name.strip_prefix(folder)?.strip_prefix('/')?.to_owned())
    }
}

/// The names of the files right inside of a folder.
fn inside(files: &BTreeSet<String>, folder: &str) -> Vec<String> {
    files.iter().filter_map(|file| relative(folder, file)).filter(|name| !name.contains('/')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_never_outside_of_the_repository() {
        assert_eq!(join("split_files/diffusion_models", "../vae").as_deref(), Some("split_files/vae"));
        assert_eq!(join("", "vae").as_deref(), Some("vae"));
        assert_eq!(join("a", "..").as_deref(), Some(""));
        assert_eq!(join("a", "../../vae"), None);
    }
}
