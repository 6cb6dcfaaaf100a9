//! Finished pictures as files: resampled, encoded with their metadata, kept, and served by signed URLs.
//!
//! The same request and seed give the same bytes: nothing in a file depends on the time, the job or the
//! machine. All of it is work for a pool of blocking threads, bounded by the number of cores, so that it
//! holds up neither the engine's thread nor the server's.

mod encode;
mod exif;
mod fit;
mod kept_inputs;
mod links;
mod metadata;
mod negotiate;
mod storage;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use easel_models::{RgbImage, Size};
use image::imageops::FilterType;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

pub use links::LinkError;
pub use metadata::parameters;
pub use negotiate::negotiate;
pub use storage::{Disk, Storage};

use crate::config::ArtifactsConfig;
use crate::inputs::{self, Files};
use crate::request::{OutputFormat, ResolvedRequest};
use links::Links;

/// The longest side of a preview, in pixels: enough to watch, and quick to encode and send.
const PREVIEW_SIDE: u32 = 512;
/// Quality of re-encoded lossy copies.
const COPY_QUALITY: u8 = 90;

/// What can go wrong with a picture's file.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// There is no such picture.
    #[error("there is no picture {index} of {job}")]
    NotFound {
        /// The job asked for.
        job: String,
        /// The picture asked for.
        index: usize,
    },
    /// The store could not be read or written.
    #[error("{what}: {source}")]
    Io {
        /// What was read or written.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A picture that a job's request brought is no longer kept.
    #[error("{what} of the request is gone: the data folder has no file {sha256}")]
    InputGone {
        /// Which picture.
        what: String,
        /// The name that its file was kept under.
        sha256: String,
    },
    /// The picture could not be turned into a file, or back.
    #[error("{0}")]
    Codec(String),
}

/// A picture's file in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// The file.
    pub bytes: Bytes,
    /// Its format.
    pub format: OutputFormat,
}

impl Picture {
    /// The file's SHA-256 in hex.
    pub fn sha256(&self) -> String {
        hex(&Sha256::digest(&self.bytes))
    }
}

/// Brings a rendered picture to its delivered size, puts back what a mask keeps of the files that the request brought, and
/// encodes it as asked, with its parameters inside where `embed_metadata` says so. `image` is the picture's place in the
/// request, from 0.
///
/// # Errors
/// When the format cannot hold the picture, or a file cannot be unpacked.
pub(crate) fn finish(
    request: &ResolvedRequest,
    image: usize,
    picture: &RgbImage,
    embed_metadata: bool,
    files: &Files,
) -> Result<Picture, ArtifactError> {
    let delivered = request.delivered();
    let filter = fit::filter(picture, delivered);
    // The picture that a request starts from was stretched to the rendered size, so the way back is the same.
    let fit = if request.images.is_empty() { fit::cover } else { fit::stretch };
    let mut fitted = fit(picture, delivered, filter)?;
    inputs::restore(request, files, &mut fitted).map_err(|error| ArtifactError::Codec(error.to_string()))?;
    let metadata = embed_metadata.then(|| metadata::Metadata::of(request, image)).transpose()?;
    let format = request.output_format;
    let bytes = encode::encode(&fitted, format, request.output_compression, metadata.as_ref())?;
    Ok(Picture { bytes, format })
}

/// The picture files of all jobs. Clones share one store.
#[derive(Clone)]
pub struct Artifacts {
    inner: Arc<Inner>,
}

struct Inner {
    storage: Box<dyn Storage>,
    links: Links,
    embed_metadata: bool,
    workers: Semaphore,
    /// Held while a picture that a request brought is written: two requests may bring the same one.
    keeping: Mutex<()>,
}

impl Artifacts {
    /// The store under `data_dir`, which exists.
    ///
    /// # Errors
    /// When the folder cannot be written, or the secret for signed URLs cannot be read or made.
    pub fn open(data_dir: &Path, config: &ArtifactsConfig) -> Result<Self, ArtifactError> {
        let root = data_dir.join("artifacts");
        let disk = Disk::open(&root).map_err(|source| io_error(root.display(), source))?;
        Self::with_storage(Box::new(disk), data_dir, config)
    }

    /// The same over another storage; only the secret for signed URLs is kept in `data_dir`.
    ///
    /// # Errors
    /// When the secret for signed URLs cannot be read or made.
    pub fn with_storage(
        storage: Box<dyn Storage>,
        data_dir: &Path,
        config: &ArtifactsConfig,
    ) -> Result<Self, ArtifactError> {
        let links = Links::open(&data_dir.join("url-secret"), config.signed_url_ttl_seconds)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = Semaphore::new(cores);
        Ok(Self {
            inner: Arc::new(Inner {
                storage,
                links,
                embed_metadata: config.embed_metadata,
                workers,
                keeping: Mutex::default(),
            }),
        })
    }

    /// Brings a rendered picture to its delivered size and encodes it as asked, with its parameters inside; and gives
    /// it with the file's SHA-256 in hex, which is computed here because it takes a while for a large file.
    ///
    /// `image` is the picture's place in the request, from 0. What its mask keeps is put back from the files that it
    /// brought.
    ///
    /// # Errors
    /// When the format cannot hold the picture, or a file that the request brought cannot be read.
    pub async fn encode(
        &self,
        request: &ResolvedRequest,
        image: usize,
        picture: Arc<RgbImage>,
    ) -> Result<(Picture, String), ArtifactError> {
        let embed = self.inner.embed_metadata;
        let request = request.clone();
        // Only a mask needs them again.
        let files = if request.mask.is_some() { self.files(&request).await? } else { Files::default() };
        self.work(move || {
            let finished = finish(&request, image, &picture, embed, &files)?;
            let sha256 = finished.sha256();
            Ok((finished, sha256))
        })
        .await
    }

    /// A preview's PNG: of the delivered size, or as much smaller as its longest side has 512 pixels.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub async fn preview(&self, delivered: Size, picture: Arc<RgbImage>) -> Result<Bytes, ArtifactError> {
        self.work(move || {
            encode::preview(&fit::cover(&picture, fit::within(delivered, PREVIEW_SIDE), FilterType::Triangle)?)
        })
        .await
    }

    /// Keeps a picture, on the disk when this returns. Keeping it again replaces it.
    ///
    /// # Errors
    /// When it cannot be written; nothing of it is left then.
    pub async fn keep(&self, job: &str, index: usize, picture: Picture) -> Result<(), ArtifactError> {
        let name = Name::new(job, index, picture.format)?;
        let this = self.clone();
        blocking(move || {
            let written = this.inner.storage.put(&name.job, &name.file, &picture.bytes);
            written.map_err(|source| io_error(&name, source))
        })
        .await
    }

    /// A picture as it was kept.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub async fn open_picture(&self, job: &str, index: usize) -> Result<Picture, ArtifactError> {
        let job = job.to_owned();
        let this = self.clone();
        blocking(move || this.read(&job, index)).await
    }

    /// A copy of a picture: no wider than `width`, in `format`, where those are given. A picture that is so
    /// already is given as it was kept; a copy that had to be encoded anew carries no parameters.
    ///
    /// # Errors
    /// When there is no such picture, or it cannot be read or encoded.
    pub async fn copy(
        &self,
        job: &str,
        index: usize,
        width: Option<u32>,
        format: Option<OutputFormat>,
    ) -> Result<Picture, ArtifactError> {
        let kept = self.open_picture(job, index).await?;
        if width.is_none() && format.is_none_or(|format| format == kept.format) {
            return Ok(kept);
        }
        self.work(move || {
            let format = format.unwrap_or(kept.format);
            let codec = |error: image::ImageError| ArtifactError::Codec(error.to_string());
            let decoded = image::load_from_memory(&kept.bytes).map_err(codec)?.into_rgb8();
            let own = Size { width: decoded.width(), height: decoded.height() };
            let asked = width.map_or(own, |width| fit::no_wider(own, width));
            if asked == own && format == kept.format {
                return Ok(kept);
            }
            let picture = RgbImage { width: own.width, height: own.height, pixels: decoded.into_raw() };
            let small = fit::cover(&picture, asked, FilterType::Lanczos3)?;
            Ok(Picture { bytes: encode::encode(&small, format, COPY_QUALITY, None)?, format })
        })
        .await
    }

    /// Removes every picture of a job; it may have none.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub async fn remove(&self, job: &str) -> Result<(), ArtifactError> {
        let Ok(Name { job, .. }) = Name::new(job, 0, OutputFormat::Png) else { return Ok(()) };
        let this = self.clone();
        blocking(move || this.inner.storage.remove(&job).map_err(|source| io_error(&job, source))).await
    }

    /// The path of a public URL for a picture: it needs no key, and works until `expires`.
    pub fn signed_path(&self, job: &str, index: usize, format: OutputFormat, expires: Timestamp) -> String {
        self.inner.links.path(job, &file_name(index, format), expires)
    }

    /// The same for as long as is configured, and at most a tenth of that or an hour longer, so that the URL of a picture stays the
    /// same for a while and browsers find it in their cache.
    pub fn public_path(&self, job: &str, index: usize, format: OutputFormat, now: Timestamp) -> String {
        self.signed_path(job, index, format, self.inner.links.expiry(now))
    }

    /// Checks the parts of a public URL's path, `/files/{token}/{job}/{file}`, and says which picture it means and
    /// until when.
    ///
    /// # Errors
    /// When the URL was not signed here, or its time is over.
    pub fn verify(&self, token: &str, job: &str, file: &str, now: Timestamp) -> Result<(usize, Timestamp), LinkError> {
        let expires = self.inner.links.verify(token, job, file, now)?;
        let (index, _) = parse_file_name(file).ok_or(LinkError::Invalid)?;
        Ok((index, expires))
    }

    fn read(&self, job: &str, index: usize) -> Result<Picture, ArtifactError> {
        for format in OutputFormat::ALL {
            let name = Name::new(job, index, format)?;
            let read = self.inner.storage.get(&name.job, &name.file);
            if let Some(bytes) = read.map_err(|source| io_error(&name, source))? {
                return Ok(Picture { bytes: bytes.into(), format });
            }
        }
        Err(ArtifactError::NotFound { job: job.into(), index })
    }

    /// Runs `f`, which computes, when one of the cores is free for it.
    async fn work<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> Result<T, ArtifactError> + Send + 'static,
    ) -> Result<T, ArtifactError> {
        let _core = self.inner.workers.acquire().await.map_err(|error| ArtifactError::Codec(error.to_string()))?;
        blocking(f).await
    }
}

/// Runs `f`, which blocks, off the async threads.
async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> Result<T, ArtifactError> + Send + 'static,
) -> Result<T, ArtifactError> {
    match tokio::task::spawn_blocking(f).await {
        Ok(done) => done,
        // The process ends before the work has begun. That is no fault of the job, which must not be told of one.
        Err(error) if error.is_cancelled() => std::future::pending().await,
        Err(error) => Err(ArtifactError::Codec(format!("a worker was lost: {error}"))),
    }
}

/// A picture's place in a storage. What a request names gets there only through [`Name::new`].
#[derive(Debug)]
struct Name {
    job: String,
    file: String,
}

impl Name {
    /// A job's id becomes part of a path, so it must be `job_` and a ULID in its canonical spelling.
    fn new(job: &str, index: usize, format: OutputFormat) -> Result<Self, ArtifactError> {
        let id = job.strip_prefix("job_").and_then(|id| Some((id, ulid::Ulid::from_string(id).ok()?)));
        match id {
            Some((id, ulid)) if ulid.to_string() == id => {
                Ok(Self { job: job.to_owned(), file: file_name(index, format) })
            }
            _ => Err(ArtifactError::NotFound { job: job.to_owned(), index }),
        }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.job, self.file)
    }
}

fn file_name(index: usize, format: OutputFormat) -> String {
    format!("{index}.{}", format.name())
}

fn parse_file_name(file: &str) -> Option<(usize, OutputFormat)> {
    let (index, extension) = file.split_once('.')?;
    let format = OutputFormat::ALL.into_iter().find(|format| format.name() == extension)?;
    Some((index.parse().ok()?, format))
}

fn io_error(what: impl std::fmt::Display, source: io::Error) -> ArtifactError {
    ArtifactError::Io { what: what.to_string(), source }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
