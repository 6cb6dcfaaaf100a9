//! Where the files of a model are kept: in a folder, inside the program, or wherever else [`Files`] is written for.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::ops::Deref;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use easel_kernels::Mapped;

use super::builtin;
use super::tensors::TensorSource;
use crate::{Error, Loading, Result};

/// The bytes of one file: mapped from the disk, part of the program, or in memory.
#[derive(Clone)]
pub enum Bytes {
    /// A file on the disk. It is mapped, so that weights larger than the memory left can be read tensor by tensor.
    Mapped(Arc<Mapped>),
    /// A file inside the program.
    Static(&'static [u8]),
    /// A file that was made up, or the beginning of one that is elsewhere.
    Owned(Arc<[u8]>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(mapped) => mapped,
            Self::Static(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// The beginning of a file, and how long the file is.
pub(super) struct Beginning {
    /// As many bytes as were asked for, at least, or all.
    pub(super) bytes: Bytes,
    /// The bytes of the whole file.
    pub(super) size: u64,
}

impl Beginning {
    /// The beginning that is the whole file.
    pub(super) fn whole(bytes: Bytes) -> Self {
        let size = bytes.len() as u64;
        Self { bytes, size }
    }

    /// Whether nothing is left to read.
    pub(super) fn is_whole(&self) -> bool {
        self.bytes.len() as u64 == self.size
    }
}

/// Where the files of a model are kept. Names are relative to the model's root, with `/` between their parts.
pub(super) trait Files: Send + Sync {
    /// The file of this name; `None` when there is none.
    fn open(&self, name: &str) -> Result<Option<Bytes>>;

    /// The names of the files right inside `folder`, without the folder's; empty when there is no such folder.
    fn list(&self, folder: &str) -> Result<BTreeSet<String>>;

    /// The weights of a part, where they are not files in its folder.
    fn weights(&self, part: &str) -> Result<Option<Arc<dyn TensorSource>>> {
        let _ = part;
        Ok(None)
    }

    /// The first bytes of the file of this name, `length` at least if it has as many; `None` when there is none. Where the
    /// file is not on this machine, it is not fetched.
    fn beginning(&self, name: &str, length: u64) -> Result<Option<Beginning>> {
        let _ = length;
        Ok(self.open(name)?.map(Beginning::whole))
    }

    /// Brings those of these files to this machine that are not here yet.
    fn fetch(&self, names: &[String], progress: &dyn Fn(Loading)) -> Result<()> {
        let _ = (names, progress);
        Ok(())
    }

    /// Why a file may be missing here that the model has; `None` where all of its files are known.
    fn incomplete(&self) -> Option<String> {
        None
    }

    /// The variant of the weights that is asked for, such as `fp16`.
    fn variant(&self) -> Option<&str> {
        None
    }

    /// Whether the file of this name is on this machine.
    fn is_here(&self, name: &str) -> bool {
        let _ = name;
        true
    }

    /// Where the files come from, as a path or a name on the hub.
    fn origin(&self) -> String;
}

/// Whether a name is made of plain parts only, so that joining it to a folder cannot lead out of it.
///
/// A link inside the folder may still point elsewhere: the hub's cache is made of such links.
pub(super) fn stays_inside(name: &str) -> bool {
    !name.is_empty() && !name.contains('\\') && Path::new(name).components().all(|c| matches!(c, Component::Normal(_)))
}

/// A folder on the disk.
pub(super) struct Folder {
    root: PathBuf,
}

impl Folder {
    /// The folder at this path, which need not be there.
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }
}

impl Files for Folder {
    fn open(&self, name: &str) -> Result<Option<Bytes>> {
        let path = self.root.join(name);
        if path.is_dir() {
            return Err(Error::file(name, "is a folder; a file is expected"));
        }
        match Mapped::open(&path) {
            Ok(mapped) => Ok(Some(Bytes::Mapped(Arc::new(mapped)))),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(Error::file(name, error)),
        }
    }

    fn list(&self, folder: &str) -> Result<BTreeSet<String>> {
        let entries = match self.root.join(folder).read_dir() {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(BTreeSet::new());
            }
            Err(error) => return Err(Error::file(folder, error)),
        };
        entries
            .map(|entry| Ok(entry.map_err(|error| Error::file(folder, error))?.file_name().into_string().ok()))
            .filter_map(Result::transpose)
            .collect()
    }

    fn origin(&self) -> String {
        self.root.display().to_string()
    }
}

/// Files inside the program.
pub(super) struct Embedded {
    files: &'static [(&'static str, &'static [u8])],
}

impl Embedded {
    /// These files, by name.
    pub(super) fn new(files: &'static [(&'static str, &'static [u8])]) -> Self {
        Self { files }
    }
}

impl Files for Embedded {
    fn open(&self, name: &str) -> Result<Option<Bytes>> {
        Ok(self.files.iter().find(|(file, _)| *file == name).map(|(_, bytes)| Bytes::Static(bytes)))
    }

    fn list(&self, folder: &str) -> Result<BTreeSet<String>> {
        let inside = |file: &str| Some(file.strip_prefix(folder)?.strip_prefix('/')?.to_owned());
        Ok(self.files.iter().filter_map(|(file, _)| inside(file)).filter(|rest| !rest.contains('/')).collect())
    }

    fn origin(&self) -> String {
        builtin::BUILTIN_MODEL.to_owned()
    }
}
