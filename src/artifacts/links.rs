//! Public URLs of pictures: whoever has one may fetch its picture, without a key, until it expires.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use jiff::{SignedDuration, Timestamp};
use rand::Rng;
use sha2::Sha256;

use super::{ArtifactError, io_error, storage};

/// URLs expire on the hour, so that they stay the same for as long and can be cached; short-lived ones on a tenth
/// of their life, so that they live little longer than configured.
const GRAIN: i64 = 3600;

/// Why a public URL does not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// It was not made here, or has been changed.
    #[error("this URL is not valid")]
    Invalid,
    /// Its time is over.
    #[error("this URL has expired; ask for the job again to get a new one")]
    Expired,
}

/// Signs and checks URLs by a secret of this server.
pub(super) struct Links {
    secret: [u8; 64],
    lifetime: SignedDuration,
}

impl Links {
    /// Reads the secret from `file`, or makes one there at the first start.
    pub(super) fn open(file: &Path, lifetime_seconds: u64) -> Result<Self, ArtifactError> {
        let secret = read_or_make(file).map_err(|source| io_error(file.display(), source))?;
        let lifetime = SignedDuration::from_secs(lifetime_seconds.try_into().unwrap_or(i64::MAX));
        Ok(Self { secret, lifetime })
    }

    /// When a URL handed out now expires.
    pub(super) fn expiry(&self, now: Timestamp) -> Timestamp {
        let Ok(end) = now.checked_add(self.lifetime) else { return Timestamp::MAX };
        let grain = (self.lifetime.as_secs() / 10).clamp(1, GRAIN);
        let seconds = end.as_second();
        let whole = seconds.saturating_add((grain - seconds.rem_euclid(grain)) % grain);
        Timestamp::from_second(whole).unwrap_or(Timestamp::MAX)
    }

    /// `/files/{expiry}.{code}/{job}/{file}`
    pub(super) fn path(&self, job: &str, file: &str, expires: Timestamp) -> String {
        let expires = expires.as_second();
        let code = URL_SAFE_NO_PAD.encode(self.code(expires, job, file).finalize().into_bytes());
        format!("/files/{expires}.{code}/{job}/{file}")
    }

    /// Checks a URL's parts, in a time that does not depend on how wrong the code is, and says when it expires.
    pub(super) fn verify(&self, token: &str, job: &str, file: &str, now: Timestamp) -> Result<Timestamp, LinkError> {
        let (expires, code) = token.split_once('.').ok_or(LinkError::Invalid)?;
        let expires: i64 = expires.parse().map_err(|_| LinkError::Invalid)?;
        let code = URL_SAFE_NO_PAD.decode(code).map_err(|_| LinkError::Invalid)?;
        self.code(expires, job, file).verify_slice(&code).map_err(|_| LinkError::Invalid)?;
        let end = Timestamp::from_second(expires).map_err(|_| LinkError::Invalid)?;
        if now.as_second() < expires { Ok(end) } else { Err(LinkError::Expired) }
    }

    fn code(&self, expires: i64, job: &str, file: &str) -> Hmac<Sha256> {
        let mut code = <Hmac<Sha256> as KeyInit>::new(&self.secret.into());
        // None of the parts can hold a slash, so no two pictures have the same text.
        code.update(format!("easel-picture/{expires}/{job}/{file}").as_bytes());
        code
    }
}

fn read_or_make(file: &Path) -> io::Result<[u8; 64]> {
    match fs::read(file) {
        Ok(bytes) => bytes.try_into().map_err(|bytes: Vec<u8>| {
            let message = format!("holds {} bytes instead of 64; remove it to have a new secret made", bytes.len());
            io::Error::new(io::ErrorKind::InvalidData, message)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let secret: [u8; 64] = rand::rng().random();
            // Renamed into place, so that a crash leaves no half secret.
            let temporary = file.with_extension("tmp");
            let mut written = create_private(&temporary)?;
            written.write_all(&secret)?;
            written.sync_all()?;
            fs::rename(&temporary, file)?;
            storage::sync_folder(file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
            Ok(secret)
        }
        Err(error) => Err(error),
    }
}

/// A new file that only its owner can read.
fn create_private(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}
