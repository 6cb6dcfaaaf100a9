//! Where picture files lie.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A place for files, in a folder a job, and one a picture that requests brought. Calls block. Names are checked by the
/// caller: a folder is `job_` and a ULID or `input_` and a SHA-256 in hex, a file a number and an extension or none.
pub trait Storage: Send + Sync + 'static {
    /// Keeps a file, whole and durable when this returns; one of this name is replaced in one step.
    ///
    /// # Errors
    /// When it cannot be written; nothing of it is left then.
    fn put(&self, job: &str, file: &str, bytes: &[u8]) -> io::Result<()>;

    /// A file's content; `None` where there is no such file.
    ///
    /// # Errors
    /// When it cannot be read.
    fn get(&self, job: &str, file: &str) -> io::Result<Option<Vec<u8>>>;

    /// Whether there is such a file.
    ///
    /// # Errors
    /// When that cannot be found out.
    fn has(&self, job: &str, file: &str) -> io::Result<bool>;

    /// Removes all files of a job; it may have none.
    ///
    /// # Errors
    /// When they cannot be removed.
    fn remove(&self, job: &str) -> io::Result<()>;

    /// The folders of pictures that requests brought.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn inputs(&self) -> io::Result<Vec<String>>;
}

/// Files in a folder of this machine, `SHARD/JOB/FILE`.
#[derive(Debug, Clone)]
pub struct Disk {
    root: PathBuf,
}

impl Disk {
    /// The storage in the folder `root`, which is created if need be.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn open(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        Ok(Self { root: root.into() })
    }

    /// A job's folder: a shard holds a thousandth of the jobs, so that no folder grows too large to list. The
    /// end of a ULID is random, and so is that of a hash.
    fn folder(&self, job: &str) -> PathBuf {
        let shard: String = job.chars().rev().take(2).collect();
        self.root.join(shard).join(job)
    }
}

impl Storage for Disk {
    fn put(&self, job: &str, file: &str, bytes: &[u8]) -> io::Result<()> {
        let folder = self.folder(job);
        if !folder.is_dir() {
            fs::create_dir_all(&folder)?;
            // A new folder is found after a power cut only if the folders above it are on the disk.
            for above in folder.ancestors().skip(1).take(2) {
                sync_folder(above)?;
            }
        }
        // One name for every attempt: what a killed process has left is overwritten by the next.
        let temporary = folder.join(format!(".{file}.tmp"));
        let written = write_synced(&temporary, bytes)
            .and_then(|()| fs::rename(&temporary, folder.join(file)))
            .and_then(|()| sync_folder(&folder));
        if written.is_err() {
            // On a full disk a half-written file takes the room that others need. The first error is the one to tell.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    fn get(&self, job: &str, file: &str) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.folder(job).join(file)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn has(&self, job: &str, file: &str) -> io::Result<bool> {
        self.folder(job).join(file).try_exists()
    }

    fn remove(&self, job: &str) -> io::Result<()> {
        match fs::remove_dir_all(self.folder(job)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn inputs(&self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for shard in names(&self.root)? {
            // A hash ends in lower case, a ULID in upper; the shards that may hold either are few.
            if shard.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase()) {
                found.extend(names(&self.root.join(shard))?.into_iter().filter(|name| name.starts_with("input_")));
            }
        }
        Ok(found)
    }
}

/// The entries of a folder; none where there is none.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    // What is no text is none of ours.
    let name = |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name().into_string().ok()).transpose();
    entries.filter_map(name).collect()
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
