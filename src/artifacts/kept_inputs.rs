//! The pictures that requests brought, kept as they came under the SHA-256 of their file, for as long as a job needs them.

use std::sync::PoisonError;

use bytes::Bytes;

use super::{ArtifactError, Artifacts, blocking, io_error};
use crate::engine::Pictures;
use crate::inputs::{self, DecodeError, Files};
use crate::request::{Input, Painted, ResolvedRequest};

/// A folder holds one file.
const FILE: &str = "0";
const PREFIX: &str = "input_";

impl Artifacts {
    /// Looks at a picture that a request brings, or at a mask of this kind: whether it can be unpacked, and what it is.
    ///
    /// # Errors
    /// When it is no picture that can be used, or has more than `most` pixels.
    pub async fn look(&self, file: Bytes, painted: Option<Painted>, most: u64) -> Result<Input, DecodeError> {
        let looked = self.work(move || Ok(inputs::look(&file, painted, most)));
        looked.await.unwrap_or_else(|error| Err(DecodeError::Damaged(error.to_string())))
    }

    /// Keeps a picture that a request brought, on the disk when this returns.
    ///
    /// # Errors
    /// When it cannot be written; nothing of it is left then.
    pub async fn keep_input(&self, sha256: &str, file: Bytes) -> Result<(), ArtifactError> {
        let folder = folder(sha256)?;
        let this = self.clone();
        blocking(move || {
            let _one = this.inner.keeping.lock().unwrap_or_else(PoisonError::into_inner);
            let storage = &this.inner.storage;
            // The name is the content's, so what is there already is the same.
            let kept = storage
                .has(&folder, FILE)
                .and_then(|there| if there { Ok(()) } else { storage.put(&folder, FILE, &file) });
            kept.map_err(|source| io_error(&folder, source))
        })
        .await
    }

    /// What a job is rendered from.
    ///
    /// # Errors
    /// When a file that it brought is not there or cannot be unpacked.
    pub async fn pictures(&self, request: &ResolvedRequest) -> Result<Pictures, ArtifactError> {
        let files = self.files(request).await?;
        let request = request.clone();
        let codec = |error: DecodeError| ArtifactError::Codec(format!("a picture of the request: {error}"));
        self.work(move || inputs::pictures(&request, &files).map_err(codec)).await
    }

    /// Removes a picture that requests brought; it may be gone.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn remove_input(&self, sha256: &str) -> Result<(), ArtifactError> {
        let folder = folder(sha256)?;
        let this = self.clone();
        blocking(move || this.inner.storage.remove(&folder).map_err(|source| io_error(&folder, source))).await
    }

    /// The hashes of all pictures that requests brought.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn kept_inputs(&self) -> Result<Vec<String>, ArtifactError> {
        let this = self.clone();
        blocking(move || {
            let folders = this.inner.storage.inputs().map_err(|source| io_error("the pictures of requests", source))?;
            Ok(folders.iter().filter_map(|folder| folder.strip_prefix(PREFIX)).map(str::to_owned).collect())
        })
        .await
    }

    /// The files that a request brought.
    pub(super) async fn files(&self, request: &ResolvedRequest) -> Result<Files, ArtifactError> {
        let images: Vec<String> = request.images.iter().map(|image| image.sha256.clone()).collect();
        let mask = request.mask.as_ref().map(|mask| mask.file.sha256.clone());
        let this = self.clone();
        blocking(move || {
            let several = images.len() > 1;
            let numbered = (1..).zip(&images);
            let name = |number: usize| if several { format!("picture {number}") } else { "the picture".to_owned() };
            let images =
                numbered.map(|(number, sha256)| this.input(sha256, || name(number))).collect::<Result<_, _>>()?;
            let mask = mask.map(|sha256| this.input(&sha256, || "the mask".to_owned())).transpose()?;
            Ok(Files { images, mask })
        })
        .await
    }

    fn input(&self, sha256: &str, what: impl FnOnce() -> String) -> Result<Bytes, ArtifactError> {
        let folder = folder(sha256)?;
        let read = self.inner.storage.get(&folder, FILE).map_err(|source| io_error(&folder, source))?;
        read.map(Bytes::from).ok_or_else(|| ArtifactError::InputGone { what: what(), sha256: sha256.to_owned() })
    }
}

/// A hash becomes part of a path, so it must be one.
fn folder(sha256: &str) -> Result<String, ArtifactError> {
    let plain = sha256.len() == 64 && sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if plain {
        Ok(format!("{PREFIX}{sha256}"))
    } else {
        Err(ArtifactError::Codec(format!("{sha256:?} is no SHA-256 in hex")))
    }
}
