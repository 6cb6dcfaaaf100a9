//! Models on the Hugging Face hub, through the cache that Python shares.
//!
//! A repository is opened by its list of files and its small files alone. Of the weights, the headers are read over the
//! network; the files themselves are fetched when they are needed, or by [`Repository::fetch`](super::Repository::fetch).

mod cache;
mod checksum;
mod failure;
mod name;
mod remote;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use easel_kernels::Mapped;
use parking_lot::Mutex;

use self::cache::RepoCache;
use self::failure::Failure;
use self::name::HubName;
use self::remote::{FileInfo, Remote, Revision};
use super::files::{Beginning, Bytes, Files};
use super::repository::MODEL_INDEX;
use super::safetensors;
use crate::{Error, Loading, Result};

/// How the hub is reached. [`HubOptions::from_env`] reads what Python's `huggingface_hub` reads, from the same variables.
#[derive(Clone)]
pub struct HubOptions {
    /// The hub's address; `None` is the public one, or `HF_ENDPOINT`.
    pub endpoint: Option<String>,
    /// The token of an account, for repositories that are private or gated.
    pub token: Option<String>,
    /// The folder of the cache.
    pub cache: PathBuf,
    /// Whether only the cache is used.
    pub offline: bool,
    /// How often a request, or a transfer that does not come forward, is tried.
    pub attempts: usize,
    /// The pause before the second attempt; it doubles each time.
    pub pause: Duration,
    /// How long the hub may be silent before an attempt counts as failed.
    pub stall: Duration,
}

impl std::fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token does not belong into a log.
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.is_some())
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl HubOptions {
    /// The options of the environment: `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH` or the token file of `hf auth login`,
    /// `HF_HUB_CACHE` or `HF_HOME`, `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        Self {
            endpoint: variable("HF_ENDPOINT"),
            token: token(),
            cache: hf_hub::resolve_cache_dir(),
            offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().any(is_on),
            attempts: 6,
            pause: Duration::from_secs(1),
            stall: Duration::from_secs(30),
        }
    }
}

/// A variable that is set to something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// Whether a variable is set to what Python takes for yes.
fn is_on(name: &str) -> bool {
    variable(name).is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}

/// The token, where `huggingface_hub` looks for it. hf-hub would find it too, but does not say which it is.
fn token() -> Option<String> {
    if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return None;
    }
    variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")).or_else(|| {
        let path = variable("HF_TOKEN_PATH").map_or_else(|| hf_hub::hf_home().join("token"), PathBuf::from);
        let token = std::fs::read_to_string(path).ok()?;
        Some(token.trim().to_owned()).filter(|token| !token.is_empty())
    })
}

/// Whether more can be had than what the cache has.
enum Reach {
    /// The hub answered.
    Online {
        remote: Box<Remote>,
        /// The revision's files.
        files: BTreeSet<String>,
    },
    /// Only the cache is used, for this reason.
    Offline(String),
}

/// One revision of a repository on the hub.
pub(super) struct Hub {
    name: HubName,
    cache: RepoCache,
    commit: String,
    reach: Reach,
    /// What the hub said of files so far.
    infos: Mutex<HashMap<String, FileInfo>>,
}

impl Hub {
    /// Looks a source up: on the hub, or in the cache where the hub is not asked or does not answer.
    ///
    /// # Errors
    /// When there is no such repository or revision, or it may not be read, or it is not in the cache and the hub is out of
    /// reach.
    pub(super) fn open(source: &str, options: &HubOptions) -> Result<Self> {
        let name = HubName::parse(source)?;
        let cache = RepoCache::new(&options.cache, &name);
        let cached = if name::is_commit(&name.revision) {
            Some(name.revision.clone()).filter(|commit| cache.snapshot(commit).is_dir())
        } else {
            cache.commit_of(&name.revision)
        };
        let (commit, reach) = if options.offline {
            (cached, Reach::Offline("HF_HUB_OFFLINE keeps easel from asking the hub".to_owned()))
        } else {
            let remote = Box::new(Remote::new(&name, options)?);
            // Where the cache has an answer, a hub that gives none shall not hold a server's start up for long.
            let attempts = if cached.is_some() { options.attempts.min(2) } else { options.attempts };
            match remote.revision(attempts) {
                Ok(Revision { commit, files }) => {
                    if !name::is_commit(&name.revision) {
                        let written = cache.set_commit(&name.revision, &commit);
                        written.map_err(|error| {
                            failure::error(&name, format_args!("{}: {error}", cache.root().display()))
                        })?;
                    }
                    (Some(commit), Reach::Online { remote, files: files.into_iter().collect() })
                }
                Err(Failure::Passing { message, .. }) => {
                    (cached, Reach::Offline(format!("the hub at {} cannot be reached: {message}", remote.endpoint())))
                }
                Err(Failure::Lasting(message)) => return Err(failure::error(&name, message)),
            }
        };
        match (commit, reach) {
            (Some(commit), reach) => Ok(Self { name, cache, commit, reach, infos: Mutex::default() }),
            (None, Reach::Offline(why)) => Err(failure::error(
                &name,
                format_args!("is not in the cache at {}, and {why}", options.cache.display()),
            )),
            (None, Reach::Online { .. }) => Err(failure::error(&name, "has no commit")),
        }
    }

    /// Refuses a repository that is no folder of the diffusers layout, with what it could be used as.
    pub(super) fn check_layout(&self) -> Result<()> {
        let files = self.files();
        if files.contains(MODEL_INDEX) {
            return Ok(());
        }
        if let Some(why) = self.incomplete() {
            return Err(failure::error(&self.name, format_args!("{MODEL_INDEX} {why}")));
        }
        let kinds = |kind: &dyn Fn(&str) -> bool| files.iter().filter(|file| kind(file)).cloned().collect::<Vec<_>>();
        let found = kinds(&|file| file.ends_with(".safetensors") || file.ends_with(".gguf"));
        if let Some(first) = found.first() {
            let (id, names) = (self.name.id(), found.join(", "));
            let message = format!(
                "has no {MODEL_INDEX}; one of its files may be a whole model: {names}; name it as {id}:{first}"
            );
            return Err(failure::error(&self.name, message));
        }
        if let Some(pickle) = kinds(&safetensors::is_pickle).first() {
            return Err(safetensors::refuse_pickle(&format!("{}: {pickle}", self.name)));
        }
        Err(failure::error(&self.name, format_args!("has no {MODEL_INDEX}, and no weights")))
    }

    /// The files of the revision; of the cache, where the hub is not asked.
    fn files(&self) -> BTreeSet<String> {
        match &self.reach {
            Reach::Online { files, .. } => files.clone(),
            Reach::Offline(_) => self.cache.files(&self.commit),
        }
    }

    /// Where the file is on the disk, if it is.
    fn cached(&self, name: &str) -> Option<PathBuf> {
        Some(self.cache.snapshot(&self.commit).join(name)).filter(|path| path.is_file())
    }

    /// The hub, if it has a file of this name and can be asked for it.
    fn remote(&self, name: &str) -> Option<&Remote> {
        match &self.reach {
            Reach::Online { remote, files } => files.contains(name).then_some(remote),
            Reach::Offline(_) => None,
        }
    }

    fn info(&self, remote: &Remote, name: &str) -> Result<FileInfo> {
        if let Some(info) = self.infos.lock().get(name) {
            return Ok(info.clone());
        }
        let info = remote.info(&self.commit, name)?;
        self.infos.lock().insert(name.to_owned(), info.clone());
        Ok(info)
    }

    /// Where the file is on the disk, fetched if it is not there yet; `None` when there is none. Calls `progress` with its
    /// bytes that are there.
    pub(super) fn path(&self, name: &str, progress: &dyn Fn(u64)) -> Result<Option<PathBuf>> {
        if let Some(path) = self.cached(name) {
            return Ok(Some(path));
        }
        let Some(remote) = self.remote(name) else { return Ok(None) };
        let info = self.info(remote, name)?;
        let disk = |error: std::io::Error| {
            failure::error(&self.name, format_args!("{name}: {}: {error}", self.cache.root().display()))
        };
        let lock = self.cache.lock(&info.etag).map_err(disk)?;
        if !self.cache.blob(&info.etag).is_file() {
            remote.fetch(&self.commit, name, &info, &self.cache, progress)?;
        }
        drop(lock);
        self.cache.link(&self.commit, name, &info.etag).map_err(disk)?;
        Ok(self.cached(name))
    }
}

/// A single file of a repository on the hub.
pub(super) struct SingleOfHub {
    /// Its name in the repository.
    pub(super) file: String,
    /// Where it is in the cache.
    pub(super) path: PathBuf,
    /// All files of the repository.
    pub(super) files: BTreeSet<String>,
    /// The repository.
    pub(super) hub: Hub,
}

/// What a model of this source is called for short; `None` where it is no name on the hub.
pub(super) fn short_name(source: &str) -> Option<String> {
    let name = HubName::parse(source).ok()?;
    let stem = name.file.as_ref().and_then(|file| Some(Path::new(file).file_stem()?.to_string_lossy().into_owned()));
    Some(stem.unwrap_or(name.name))
}

/// The single file that a source names, fetched; `None` where it names a whole repository.
pub(super) fn single_file(
    source: &str,
    options: &HubOptions,
    progress: &dyn Fn(Loading),
) -> Result<Option<SingleOfHub>> {
    let Some(file) = HubName::parse(source)?.file else { return Ok(None) };
    if safetensors::is_pickle(&file) {
        return Err(safetensors::refuse_pickle(source));
    }
    let hub = Hub::open(source, options)?;
    hub.fetch(std::slice::from_ref(&file), progress)?;
    match hub.cached(&file) {
        Some(path) => Ok(Some(SingleOfHub { file, path, files: hub.files(), hub })),
        None => {
            let why = hub.incomplete().unwrap_or_else(|| "is not among its files".to_owned());
            Err(failure::error(&hub.name, format_args!("{file} {why}")))
        }
    }
}

/// Maps a file of the cache.
fn map(name: &str, path: &Path) -> Result<Bytes> {
    Ok(Bytes::Mapped(Arc::new(Mapped::open(path).map_err(|error| Error::file(name, error))?)))
}

impl Files for Hub {
    fn open(&self, name: &str) -> Result<Option<Bytes>> {
        self.path(name, &|_| {})?.map(|path| map(name, &path)).transpose()
    }

    fn beginning(&self, name: &str, length: u64) -> Result<Option<Beginning>> {
        if let Some(path) = self.cached(name) {
            return Ok(Some(Beginning::whole(map(name, &path)?)));
        }
        let Some(remote) = self.remote(name) else { return Ok(None) };
        let size = self.info(remote, name)?.size;
        let bytes = remote.beginning(&self.commit, name, length.min(size))?;
        Ok(Some(Beginning { bytes: Bytes::Owned(bytes.into()), size }))
    }

    fn list(&self, folder: &str) -> Result<BTreeSet<String>> {
        let files = self.files();
        let inside = |file: &String| Some(file.strip_prefix(folder)?.strip_prefix('/')?.to_owned());
        Ok(files.iter().filter_map(inside).filter(|rest| !rest.contains('/')).collect())
    }

    fn fetch(&self, names: &[String], progress: &dyn Fn(Loading)) -> Result<()> {
        let mut wanted = Vec::new();
        for name in names.iter().filter(|name| self.cached(name).is_none()) {
            if let Some(remote) = self.remote(name) {
                wanted.push((name, self.info(remote, name)?.size));
            }
        }
        let total = wanted.iter().map(|(_, size)| size).sum();
        let mut before = 0;
        for (name, size) in wanted {
            self.path(name, &|there| progress(Loading { done: before + there, total, fetching: true }))?;
            before += size;
            progress(Loading { done: before, total, fetching: true });
        }
        Ok(())
    }

    fn incomplete(&self) -> Option<String> {
        match &self.reach {
            Reach::Online { .. } => None,
            Reach::Offline(why) => Some(format!("is not in the cache at {}, and {why}", self.cache.root().display())),
        }
    }

    fn variant(&self) -> Option<&str> {
        self.name.variant.as_deref()
    }

    fn is_here(&self, name: &str) -> bool {
        self.cached(name).is_some()
    }

    fn origin(&self) -> String {
        self.name.id()
    }
}
