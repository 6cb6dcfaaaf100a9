//! Files of weights whose header is known, and whose bytes are opened when the first tensor is asked for.

use std::sync::Arc;

use easel_kernels::SharedBytes;
use parking_lot::Mutex;

use super::files::{Beginning, Bytes};
use super::repository::Repository;
use crate::{Error, Result};

/// A file that is mapped, or fetched from the hub first, when its bytes are needed.
pub(super) struct Deferred {
    file: String,
    repository: Repository,
    size: u64,
    bytes: Mutex<Option<Arc<Bytes>>>,
}

impl Deferred {
    /// The file called `file`, of which `beginning` is known.
    pub(super) fn new(repository: &Repository, file: String, beginning: Beginning) -> Self {
        let size = beginning.size;
        let bytes = beginning.is_whole().then(|| Arc::new(beginning.bytes));
        Self { file, repository: repository.clone(), size, bytes: Mutex::new(bytes) }
    }

    /// Its name, relative to the model's root.
    pub(super) fn file(&self) -> &str {
        &self.file
    }

    /// All of its bytes.
    ///
    /// # Errors
    /// When it cannot be had, or is not the file any more that its header was of.
    pub(super) fn bytes(&self) -> Result<Arc<Bytes>> {
        let mut slot = self.bytes.lock();
        if let Some(bytes) = &*slot {
            return Ok(Arc::clone(bytes));
        }
        let bytes = self.repository.bytes(&self.file)?;
        if bytes.len() as u64 != self.size {
            let found = bytes.len();
            return Err(Error::file(
                self.file.as_str(),
                format_args!("has {found} bytes, but had {} when its header was read", self.size),
            ));
        }
        Ok(Arc::clone(slot.insert(Arc::new(bytes))))
    }

    /// Some of its bytes, to be kept as long as anyone needs them.
    ///
    /// # Errors
    /// As [`Deferred::bytes`], or when they lie outside of the file.
    pub(super) fn shared(&self, key: &str, range: std::ops::Range<usize>) -> Result<SharedBytes> {
        let bytes = self.bytes()?;
        SharedBytes::new(bytes, range)
            .ok_or_else(|| Error::file(self.file.as_str(), format_args!("{key}: lies outside of the file")))
    }
}
