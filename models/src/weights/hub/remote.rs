//! The hub over HTTP: what a revision is, what a file is, and a file's bytes.
//!
//! hf-hub looks a revision up. Files are asked for here, because hf-hub neither resumes a transfer nor checks what arrived,
//! saves the text of an error in a file's place, and follows a redirect before it reads the headers that the hub put on it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::mpsc::Sender;
use std::time::Duration;

use hf_hub::HFClient;
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Client, Method, Response, StatusCode, Url, redirect};
use tokio::runtime::Runtime;

use super::checksum::Checksum;
use super::failure::{self, Answer, Failure};
use super::name::{self, HubName};
use super::{HubOptions, cache::RepoCache};
use crate::{Error, Result};

/// Redirects within the hub that are followed.
const REDIRECTS: usize = 5;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(15);
/// The longest pause that a server may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// A file as the hub describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileInfo {
    /// The checksum that it is named after in the cache.
    pub(super) etag: String,
    pub(super) size: u64,
}

/// A revision as the hub describes it.
pub(super) struct Revision {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// What drives the requests.
struct Worker(Option<Runtime>);

impl Worker {
    fn new() -> std::io::Result<Self> {
        Ok(Self(Some(tokio::runtime::Builder::new_current_thread().enable_all().build()?)))
    }

    /// Runs a request to its end, on the thread that calls, which must be one that may block.
    fn block_on<T>(&self, request: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        match &self.0 {
            Some(runtime) => runtime.block_on(request),
            None => Err(Failure::Lasting("the transfer has ended already".to_owned())),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A model may be dropped by a task of a server, where a runtime must not wait for its threads.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// The hub, for one repository.
pub(super) struct Remote {
    name: HubName,
    runtime: Worker,
    hub: HFClient,
    /// Follows redirects. reqwest leaves the token out as soon as one leads to another host or port.
    client: Client,
    /// Shows a redirect as what it is.
    still: Client,
    token: Option<HeaderValue>,
    attempts: usize,
    pause: Duration,
}

impl Remote {
    pub(super) fn new(name: &HubName, options: &HubOptions) -> Result<Self> {
        let fail = |error: &dyn std::error::Error| failure::error(name, failure::reasons(error));
        let builder = || {
            Client::builder()
                .user_agent(concat!("easel/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT)
                .read_timeout(options.stall)
        };
        let client = builder().build().map_err(|error| fail(&error))?;
        let still = builder().redirect(redirect::Policy::none()).build().map_err(|error| fail(&error))?;
        // Attempts and pauses are counted here, so hf-hub shall not repeat what is repeated already.
        let mut hub = HFClient::builder().client(client.clone()).retry_max_attempts(0).cache_dir(&options.cache);
        if let Some(endpoint) = &options.endpoint {
            hub = hub.endpoint(endpoint);
        }
        let token = options.token.as_ref().map(|token| {
            HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| failure::error(name, "the token of the hub has characters that no token has"))
        });
        let token = token.transpose()?;
        if let Some(token) = &options.token {
            hub = hub.token(token);
        }
        let hub = hub.build().map_err(|error| fail(&error))?;
        let runtime = Worker::new().map_err(|error| fail(&error))?;
        let (attempts, pause) = (options.attempts.max(1), options.pause);
        Ok(Self { name: name.clone(), runtime, hub, client, still, token, attempts, pause })
    }

    /// Where the hub is.
    pub(super) fn endpoint(&self) -> &str {
        self.hub.endpoint()
    }

    /// What the asked revision is now, in this many attempts.
    pub(super) fn revision(&self, attempts: usize) -> Result<Revision, Failure> {
        let model = self.hub.model(&self.name.owner, &self.name.name);
        let info = self.run(|| {
            self.repeat(attempts, async || {
                let info = model.info().revision(&self.name.revision).send().await;
                info.map_err(|error| failure::of_hub(&error, &self.name, self.endpoint()))
            })
        })?;
        let (Some(commit), Some(files)) = (info.sha, info.siblings) else {
            return Err(Failure::Lasting(format!("{} names no commit and files of it", self.endpoint())));
        };
        if !name::is_commit(&commit) {
            return Err(Failure::Lasting(format!("{} says that its commit is {commit:?}", self.endpoint())));
        }
        let files = files.into_iter().map(|file| file.rfilename).filter(|file| name::is_path(file)).collect();
        Ok(Revision { commit, files })
    }

    /// What the file is, by the headers of its address.
    pub(super) fn info(&self, commit: &str, file: &str) -> Result<FileInfo> {
        let info = self.run(|| self.repeat(self.attempts, async || self.head(commit, file).await));
        info.map_err(|failure| self.error(file, failure))
    }

    /// The first `length` bytes of a file.
    pub(super) fn beginning(&self, commit: &str, file: &str, length: u64) -> Result<Vec<u8>> {
        let bytes = self.run(|| self.repeat(self.attempts, async || self.read(commit, file, length).await));
        bytes.map_err(|failure| self.error(file, failure))
    }

    async fn read(&self, commit: &str, file: &str, length: u64) -> Result<Vec<u8>, Failure> {
        let mut response = self.get(commit, file, Some(format!("bytes=0-{}", length.saturating_sub(1)))).await?;
        let mut bytes = Vec::new();
        // A hub that knows no ranges sends everything: what is too much is left on the wire.
        while (bytes.len() as u64) < length {
            match response.chunk().await.map_err(|error| Failure::network(&error))? {
                Some(chunk) => bytes.extend_from_slice(&chunk),
                None => return Err(passing(format!("the transfer was cut after {} of {length} bytes", bytes.len()))),
            }
        }
        bytes.truncate(length as usize);
        Ok(bytes)
    }

    /// Fetches a file into the cache's blobs, whose lock must be held. Calls `progress` with the bytes that are there.
    pub(super) fn fetch(
        &self,
        commit: &str,
        file: &str,
        info: &FileInfo,
        cache: &RepoCache,
        progress: &dyn Fn(u64),
    ) -> Result<()> {
        // The callback stays on this thread, the transfer is on another: blocking here is allowed whoever calls.
        let (sender, receiver) = std::sync::mpsc::channel();
        let fetched = std::thread::scope(|scope| {
            let transfer =
                scope.spawn(move || self.runtime.block_on(self.transfer(commit, file, info, cache, &sender)));
            receiver.into_iter().for_each(progress);
            transfer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        fetched.map_err(|failure| self.error(file, failure))
    }

    async fn transfer(
        &self,
        commit: &str,
        file: &str,
        info: &FileInfo,
        cache: &RepoCache,
        progress: &Sender<u64>,
    ) -> Result<(), Failure> {
        let path = cache.partial(&info.etag);
        let mut failures = 0;
        loop {
            let before = path.metadata().map_or(0, |data| data.len());
            match self.attempt(commit, file, info, &path, progress).await {
                Ok(()) => break,
                Err(Failure::Passing { message, wait }) => {
                    // A transfer that comes forward may be cut as often as it likes.
                    let after = path.metadata().map_or(0, |data| data.len());
                    failures = if after > before { 1 } else { failures + 1 };
                    if failures >= self.attempts {
                        return Err(Failure::Passing { message, wait });
                    }
                    self.rest(failures, wait).await;
                }
                Err(lasting) => return Err(lasting),
            }
        }
        let blob = cache.blob(&info.etag);
        std::fs::rename(&path, &blob).map_err(|error| Failure::disk(&error, &blob, 0))
    }

    /// Fetches what is missing of a file, and checks the whole.
    async fn attempt(
        &self,
        commit: &str,
        file: &str,
        info: &FileInfo,
        path: &Path,
        progress: &Sender<u64>,
    ) -> Result<(), Failure> {
        let disk = |error: std::io::Error, there: u64| Failure::disk(&error, path, info.size.saturating_sub(there));
        let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
        let mut partial = open.map_err(|error| disk(error, 0))?;
        let mut checksum = Checksum::of(&info.etag, info.size);
        let mut there = take_up(&mut partial, info.size, &mut checksum).map_err(|error| disk(error, 0))?;
        // Nobody is left to hear of the progress only if the caller has panicked.
        let _ = progress.send(there);
        if there < info.size {
            let range = (there > 0).then(|| format!("bytes={there}-"));
            let mut response = self.get(commit, file, range).await?;
            if there > 0 && !continues(&response, there) {
                // The hub knows no ranges: from the beginning.
                checksum = Checksum::of(&info.etag, info.size);
                there = 0;
                partial.set_len(0).and_then(|()| partial.rewind()).map_err(|error| disk(error, 0))?;
            }
            while let Some(chunk) = response.chunk().await.map_err(|error| Failure::network(&error))? {
                if there + chunk.len() as u64 > info.size {
                    partial.set_len(0).map_err(|error| disk(error, there))?;
                    return Err(passing(format!("more came than the {} bytes that were told", info.size)));
                }
                partial.write_all(&chunk).map_err(|error| disk(error, there))?;
                checksum.update(&chunk);
                there += chunk.len() as u64;
                let _ = progress.send(there);
            }
        }
        if there < info.size {
            return Err(passing(format!("the transfer was cut after {there} of {} bytes", info.size)));
        }
        if let Err(found) = checksum.check() {
            // What is wrong in it cannot be told, so none of it is of use.
            partial.set_len(0).map_err(|error| disk(error, there))?;
            return Err(passing(format!("what arrived has the checksum {found}; {} is expected", info.etag)));
        }
        partial.sync_all().map_err(|error| disk(error, there))
    }

    /// Asks for the bytes of a file.
    async fn get(&self, commit: &str, file: &str, range: Option<String>) -> Result<Response, Failure> {
        let mut request = self.client.get(self.url(commit, file)?).headers(self.headers());
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        let response = request.send().await.map_err(|error| Failure::network(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(Answer::new(response.status(), response.headers()).failure(&self.name, self.endpoint(), Some(file)))
    }

    /// Asks what a file is. The hub says so on its own answer, also where that is a redirect to a store.
    async fn head(&self, commit: &str, file: &str) -> Result<FileInfo, Failure> {
        let mut url = self.url(commit, file)?;
        for _ in 0..=REDIRECTS {
            let request = self.still.request(Method::HEAD, url.clone()).headers(self.headers());
            let response = request.send().await.map_err(|error| Failure::network(&error))?;
            let (status, headers) = (response.status(), response.headers());
            let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
            // A redirect within the hub, from a repository's former name, tells nothing of the file; one to a store does.
            if status.is_redirection()
                && text("x-linked-etag").is_none()
                && let Some(next) = text(LOCATION.as_str()).and_then(|location| url.join(location).ok())
                && next.origin() == url.origin()
            {
                url = next;
                continue;
            }
            if !status.is_success() && !status.is_redirection() {
                return Err(Answer::new(status, headers).failure(&self.name, self.endpoint(), Some(file)));
            }
            // Of a redirect, the length is that of its own text.
            let length = text("x-linked-size").or_else(|| text("content-length").filter(|_| status.is_success()));
            let etag = text("x-linked-etag").or_else(|| text(ETAG.as_str()));
            let etag = etag.map(|etag| etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"'));
            let missing = |what| Failure::Lasting(format!("{} does not tell {what} of {file}", self.endpoint()));
            let etag = etag.filter(|etag| name::is_etag(etag)).ok_or_else(|| missing("the checksum"))?;
            let size = length.and_then(|length| length.parse().ok()).ok_or_else(|| missing("the size"))?;
            return Ok(FileInfo { etag: etag.to_owned(), size });
        }
        Err(Failure::Lasting(format!("{} redirects {file} again and again", self.endpoint())))
    }

    /// `ENDPOINT/owner/name/resolve/COMMIT/file`, escaped.
    fn url(&self, commit: &str, file: &str) -> Result<Url, Failure> {
        let lasting = |message: String| Failure::Lasting(format!("{:?} is no address: {message}", self.endpoint()));
        let mut url = Url::parse(self.endpoint()).map_err(|error| lasting(error.to_string()))?;
        let mut segments = url.path_segments_mut().map_err(|()| lasting("it cannot have a path".to_owned()))?;
        segments.pop_if_empty().extend([&self.name.owner, &self.name.name, "resolve", commit]).extend(file.split('/'));
        drop(segments);
        Ok(url)
    }

    fn headers(&self) -> HeaderMap {
        // Compressed on the way, neither sizes nor ranges would be those of the file.
        let mut headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]);
        if let Some(token) = &self.token {
            let mut token = token.clone();
            token.set_sensitive(true);
            headers.insert(AUTHORIZATION, token);
        }
        headers
    }

    /// Repeats what fails in passing, with pauses.
    async fn repeat<T>(&self, attempts: usize, attempt: impl AsyncFn() -> Result<T, Failure>) -> Result<T, Failure> {
        let mut failures = 0;
        loop {
            match attempt().await {
                Err(Failure::Passing { message, wait }) => {
                    failures += 1;
                    if failures >= attempts {
                        return Err(Failure::Passing { message, wait });
                    }
                    self.rest(failures, wait).await;
                }
                other => return other,
            }
        }
    }

    /// Waits before the next attempt: as long as the server asks, or twice as long each time.
    async fn rest(&self, failures: usize, wait: Option<Duration>) {
        let pause = self.pause * 2_u32.saturating_pow(failures.min(6) as u32 - 1);
        tokio::time::sleep(wait.map_or(pause, |wait| wait.min(LONGEST_WAIT))).await;
    }

    /// Runs a request to its end, whoever calls: a thread of an asynchronous runtime may not block, a new one may.
    fn run<T: Send, F>(&self, request: impl FnOnce() -> F + Send) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| self.runtime.block_on(request()));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// What is said of a file that could not be had.
    fn error(&self, file: &str, failure: Failure) -> Error {
        match failure {
            Failure::Lasting(message) => failure::error(&self.name, format_args!("{file}: {message}")),
            Failure::Passing { message, .. } => failure::error(
                &self.name,
                format_args!(
                    "{file} could not be fetched in {} attempts: {message}. What has arrived is kept, and the next attempt goes \
                     on from there",
                    self.attempts
                ),
            ),
        }
    }
}

fn passing(message: String) -> Failure {
    Failure::Passing { message, wait: None }
}

/// Reads what arrived before into the checksum; an end that is too long, of another file, is dropped. Leaves the file at its end.
fn take_up(partial: &mut File, size: u64, checksum: &mut Checksum) -> std::io::Result<u64> {
    if partial.metadata()?.len() > size {
        partial.set_len(0)?;
    }
    partial.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; 1 << 20];
    let mut there = 0;
    loop {
        let read = partial.read(&mut buffer)?;
        if read == 0 {
            return Ok(there);
        }
        checksum.update(&buffer[..read]);
        there += read as u64;
    }
}

/// Whether an answer holds the bytes from `start` on.
fn continues(response: &Response, start: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    response.status() == StatusCode::PARTIAL_CONTENT
        && range.is_some_and(|range| range.starts_with(&format!("bytes {start}-")))
}
