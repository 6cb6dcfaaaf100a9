//! What the hub says that a file's bytes add up to.

use std::fmt::Write;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The checksum of a file while it arrives, by the kind of its tag.
pub(super) struct Checksum {
    expected: String,
    sum: Sum,
}

enum Sum {
    /// Files in Git LFS and its successor have the SHA-256 of their bytes.
    Content(Sha256),
    /// Files in git have git's name of a blob: the SHA-1 of a header and their bytes.
    Git(Sha1),
    /// Something else, which only the server could check.
    Unknown,
}

impl Checksum {
    /// The sum that is to be `etag` in the end, of a file of `size` bytes.
    pub(super) fn of(etag: &str, size: u64) -> Self {
        let hexadecimal = etag.chars().all(|c| c.is_ascii_hexdigit());
        let sum = match etag.len() {
            64 if hexadecimal => Sum::Content(Sha256::new()),
            40 if hexadecimal => Sum::Git(Sha1::new_with_prefix(format!("blob {size}\0"))),
            _ => Sum::Unknown,
        };
        Self { expected: etag.to_ascii_lowercase(), sum }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match &mut self.sum {
            Sum::Content(sum) => sum.update(bytes),
            Sum::Git(sum) => sum.update(bytes),
            Sum::Unknown => {}
        }
    }

    /// Compares.
    ///
    /// # Errors
    /// The sum that was found instead.
    pub(super) fn check(self) -> Result<(), String> {
        let found = match self.sum {
            Sum::Content(sum) => hexadecimal(&sum.finalize()),
            Sum::Git(sum) => hexadecimal(&sum.finalize()),
            Sum::Unknown => return Ok(()),
        };
        if found == self.expected { Ok(()) } else { Err(found) }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(etag: &str, bytes: &[u8]) -> Result<(), String> {
        let mut sum = Checksum::of(etag, bytes.len() as u64);
        bytes.chunks(3).for_each(|chunk| sum.update(chunk));
        sum.check()
    }

    #[test]
    fn a_tag_is_checked_as_what_it_is() {
        // `printf 'hello\n' | sha256sum`, and `| git hash-object --stdin`.
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        for tag in [sha256, git, "3-of-another-kind"] {
            assert_eq!(check(tag, b"hello\n"), Ok(()), "{tag}");
        }
        assert_eq!(check(git, b"Hello\n").unwrap_err().len(), 40);
        assert_eq!(check(&sha256.replace('5', "6"), b"hello\n").unwrap_err(), sha256);
    }
}
