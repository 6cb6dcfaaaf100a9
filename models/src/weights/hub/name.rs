//! The names of repositories and files on the hub. They come from users and servers, so each is checked before it
//! becomes a part of a path or an address.

use crate::{Error, Result};

/// What a source on the hub is: `owner/name`, `owner/name@revision`, and with a single file of it
/// `owner/name/file.safetensors`, `owner/name:file.gguf` or `owner/name@revision:file.gguf`; each may end in
/// `?variant=fp16`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HubName {
    pub(super) owner: String,
    pub(super) name: String,
    /// A branch, a tag or a commit.
    pub(super) revision: String,
    /// The checkpoint to open, if the repository is no folder of the diffusers layout.
    pub(super) file: Option<String>,
    /// The weights' variant that is asked for, such as `fp16`.
    pub(super) variant: Option<String>,
}

/// The branch that is meant when none is named.
const MAIN: &str = "main";

impl HubName {
    /// Reads a source.
    ///
    /// # Errors
    /// When it is no name of this form.
    pub(super) fn parse(source: &str) -> Result<Self> {
        Self::read(source).ok_or_else(|| {
            Error::file(
                source,
                "is no name on the hub; owner/name, owner/name@revision, owner/name:file.safetensors or \
                 owner/name@revision:file.gguf is expected, with letters, digits, \"-\", \"_\" and \".\" in owner and name",
            )
        })
    }

    fn read(source: &str) -> Option<Self> {
        let (source, variant) = match source.split_once("?variant=") {
            Some((source, variant)) => (source, Some(variant.to_owned()).filter(|v| is_word(v))),
            None => (source, None),
        };
        let (left, right) = source.split_once('@').map_or((source, None), |(left, right)| (left, Some(right)));
        let (path, mut file) = left.split_once(':').map_or((left, None), |(path, file)| (path, Some(file)));
        let revision = match right {
            Some(right) => match right.split_once(':') {
                Some((revision, named)) if file.is_none() => {
                    file = Some(named);
                    revision
                }
                _ => right,
            },
            None => MAIN,
        };
        let (owner, rest) = path.split_once('/')?;
        let name = match rest.split_once('/') {
            Some((name, inside)) if file.is_none() => {
                file = Some(inside);
                name
            }
            _ => rest,
        };
        let valid = is_repository_part(owner)
            && is_repository_part(name)
            && owner.len() + name.len() < 96
            && is_revision(revision)
            && file.is_none_or(is_path);
        valid.then(|| Self {
            owner: owner.to_owned(),
            name: name.to_owned(),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
            variant,
        })
    }

    /// `owner/name`.
    pub(super) fn id(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

impl std::fmt::Display for HubName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        if self.revision == MAIN { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

/// The hub's rule for the names of owners and repositories.
fn is_repository_part(part: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric() || c == '_';
    is_word(part)
        && part.starts_with(edge)
        && part.ends_with(edge)
        && !part.contains("--")
        && !part.contains("..")
        && !part.ends_with(".git")
}

/// Letters, digits, `-`, `_` and `.`.
fn is_word(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// What git takes as a branch or a tag, and what is a path of plain parts too, since the cache keeps a file of this name.
fn is_revision(revision: &str) -> bool {
    let part =
        |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with('.') && !part.ends_with(".lock");
    let forbidden = |c: char| c.is_control() || c.is_whitespace() || "\\~^:?*[@{".contains(c);
    revision.len() <= 255 && !revision.contains("..") && !revision.contains(forbidden) && revision.split('/').all(part)
}

/// A path inside a repository, of plain parts.
pub(super) fn is_path(path: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.len() <= 1024 && !path.contains(|c: char| c.is_control() || c == '\\') && path.split('/').all(part)
}

/// The name of a commit.
pub(super) fn is_commit(commit: &str) -> bool {
    commit.len() == 40 && commit.chars().all(|c| c.is_ascii_hexdigit())
}

/// What a blob may be named after in the cache.
pub(super) fn is_etag(etag: &str) -> bool {
    is_word(etag) && !etag.starts_with('.') && etag.len() <= 200
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(source: &str) -> (String, String, Option<String>, Option<String>) {
        let name = HubName::parse(source).unwrap();
        (name.id(), name.revision, name.file, name.variant)
    }

    #[test]
    fn a_source_names_a_repository_a_revision_a_file_and_a_variant() {
        let some = |text: &str| Some(text.to_owned());
        let id = || "Stability-AI/sd_3.5".to_owned();
        assert_eq!(read("Stability-AI/sd_3.5"), (id(), "main".into(), None, None));
        assert_eq!(read("Stability-AI/sd_3.5@refs/pr/1"), (id(), "refs/pr/1".into(), None, None));
        assert_eq!(read("Stability-AI/sd_3.5?variant=fp16"), (id(), "main".into(), None, some("fp16")));
        for source in
            ["Stability-AI/sd_3.5/a/b.gguf@v1", "Stability-AI/sd_3.5:a/b.gguf@v1", "Stability-AI/sd_3.5@v1:a/b.gguf"]
        {
            assert_eq!(read(source), (id(), "v1".into(), some("a/b.gguf"), None), "{source}");
        }
    }

    #[test]
    fn what_could_become_another_path_is_no_name() {
        for source in [
            "name",
            "a/",
            "/b",
            "../b",
            "a/..",
            "./b",
            "a/.b",
            "a/b.",
            "-a/b",
            "a--b/c",
            "a/b@",
            "a/b@..",
            "a/b@../x",
            "a/b@/x",
            "a/b@x/../y",
            "a/b@x\\y",
            "a/b@x y",
            "a/b:",
            "a/b:../x",
            "a/b:/x",
            "a/b:x//y",
            "a/b/../x",
            "a/b:x\\y",
            "C:\\a/b",
            "a/b@x\n",
            "a b/c",
            "a/b.git",
            "ä/b",
            "a/b@.hidden",
        ] {
            assert!(HubName::parse(source).is_err(), "{source}");
        }
        assert!(!is_etag("../x") && !is_etag("a/b") && !is_etag("") && !is_etag(".x"));
        assert!(!is_commit("main") && is_commit(&"a".repeat(40)));
    }
}
