//! Memory-mapped files.

use std::{fs::File, io, ops::Deref, path::Path};

/// A file mapped into memory for reading, so that weights are paged in as they are used and never copied twice.
///
/// The file must not be truncated while it is mapped: an access beyond its new
/// end would end the process (SIGBUS). Replace a weight file by renaming
/// another one over it, which leaves the mapped one whole.
#[derive(Debug)]
pub struct Mapped(memmap2::Mmap);

impl Mapped {
    /// Maps the whole of `path`.
    ///
    /// # Errors
    /// If the file cannot be opened or mapped.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the mapping is private and read-only, and it outlives the file handle by design. The bytes may change
        // only if someone writes to the file meanwhile; they are plain bytes, which every reader checks or copies, and
        // the type's documentation forbids truncation.
        #[expect(unsafe_code, reason = "a mapped file cannot be had without it")]
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self(map))
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_reads_as_its_bytes() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("weights");
        std::fs::write(&path, b"some bytes")?;
        assert_eq!(&*Mapped::open(&path)?, b"some bytes");
        assert_eq!(Mapped::open(folder.path().join("absent")).err().map(|e| e.kind()), Some(io::ErrorKind::NotFound));
        Ok(())
    }
}
