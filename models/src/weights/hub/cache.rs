//! The cache that easel shares with Python's `huggingface_hub`: the same folders, so that a file which either of them
//! fetched is there for both.
//!
//! `models--owner--name/` has `blobs/`, each file under its checksum; `snapshots/COMMIT/`, the tree of a commit with links to
//! the blobs; and `refs/`, a file for each branch or tag with its commit.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::name::HubName;

/// One repository's part of the cache.
#[derive(Debug, Clone)]
pub(super) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(super) fn new(cache: &Path, name: &HubName) -> Self {
        let folder = format!("models--{}--{}", name.owner, name.name);
        Self { root: cache.join(&folder), locks: cache.join(".locks").join(folder) }
    }

    /// Where it is.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The commit that a branch or a tag was at when it was last looked up.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        let commit = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        let commit = commit.trim().to_owned();
        super::name::is_commit(&commit).then_some(commit)
    }

    /// Writes down which commit a branch or a tag is at.
    pub(super) fn set_commit(&self, revision: &str, commit: &str) -> io::Result<()> {
        let path = self.root.join("refs").join(revision);
        if self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        create_parent(&path)?;
        fs::write(path, commit)
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The content of the file with this checksum.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// What has arrived of it, while it is fetched and after a cut.
    pub(super) fn partial(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Waits until no other process fetches this blob; none does until the lock is dropped. It is the lock of
    /// `huggingface_hub`.
    pub(super) fn lock(&self, etag: &str) -> io::Result<File> {
        fs::create_dir_all(&self.locks)?;
        fs::create_dir_all(self.root.join("blobs"))?;
        let file =
            File::options().create(true).truncate(false).write(true).open(self.locks.join(format!("{etag}.lock")))?;
        file.lock()?;
        Ok(file)
    }

    /// Puts a blob into a commit's folder under its name, as a relative link, so that the cache may be moved.
    pub(super) fn link(&self, commit: &str, name: &str, etag: &str) -> io::Result<()> {
        let pointer = self.snapshot(commit).join(name);
        create_parent(&pointer)?;
        match fs::remove_file(&pointer) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let up = "../".repeat(name.split('/').count() + 1);
        match symlink(Path::new(&format!("{up}blobs/{etag}")), &pointer) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            // Where the file system has no links, Python keeps the file itself in the commit's folder too.
            Err(_) => fs::copy(self.blob(etag), &pointer).map(drop),
            Ok(()) => Ok(()),
        }
    }

    /// The names of a commit's files that are there, relative to its folder.
    pub(super) fn files(&self, commit: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut folders = vec![(self.snapshot(commit), String::new())];
        while let Some((folder, prefix)) = folders.pop() {
            let Ok(entries) = folder.read_dir() else { continue };
            for entry in entries.flatten() {
                let Ok(file) = entry.file_name().into_string() else { continue };
                let (path, name) = (entry.path(), format!("{prefix}{file}"));
                if path.is_dir() {
                    folders.push((path, format!("{name}/")));
                } else if path.exists() {
                    found.insert(name);
                }
            }
        }
        found
    }
}

fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

#[cfg(unix)]
fn symlink(to: &Path, at: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(to, at)
}

#[cfg(not(unix))]
fn symlink(_to: &Path, _at: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
