//! A hub and its store, each on a port of its own, which can be told to misbehave.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The commit that every known revision is at.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A safetensors file with one tensor, 0, 1, 2 … in f32.
pub(crate) fn safetensors(key: &str, count: usize) -> Vec<u8> {
    let header = format!(r#"{{"{key}":{{"dtype":"F32","shape":[{count}],"data_offsets":[0,{}]}}}}"#, 4 * count);
    let values = (0..count).flat_map(|i| (i as f32).to_le_bytes());
    [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat().into_iter().chain(values).collect()
}

/// A request that was seen.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// With `/store` in front where it came to the store.
    pub(crate) path: String,
    pub(crate) token: Option<String>,
    pub(crate) range: Option<String>,
}

impl Seen {
    pub(crate) fn is(&self, part: &str) -> bool {
        self.path.contains(part)
    }
}

#[derive(Default)]
struct Mischief {
    /// After how many bytes the next transfers of a file are cut.
    cuts: HashMap<String, VecDeque<usize>>,
    /// How many of the next transfers of a file have a wrong byte.
    corrupt: HashMap<String, usize>,
    /// What the next requests are answered with.
    statuses: VecDeque<u16>,
    token: Option<(String, String)>,
    no_ranges: bool,
}

struct State {
    files: HashMap<String, Vec<u8>>,
    store: String,
    seen: Mutex<Vec<Seen>>,
    sent: Mutex<HashMap<String, usize>>,
    mischief: Mutex<Mischief>,
}

pub(crate) struct StandIn {
    endpoint: String,
    state: Arc<State>,
}

impl StandIn {
    /// Serves `owner/name` with these files until the process ends.
    pub(crate) fn serve(files: Vec<(&str, Vec<u8>)>) -> Self {
        let [hub, store] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State {
            files: files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect(),
            store: address(&store),
            seen: Mutex::default(),
            sent: Mutex::default(),
            mischief: Mutex::default(),
        });
        let endpoint = address(&hub);
        for (listener, prefix) in [(hub, ""), (store, "/store")] {
            let state = Arc::clone(&state);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = Arc::clone(&state);
                    // A client that hangs up is not the test's concern.
                    std::thread::spawn(move || state.answer(&stream, prefix));
                }
            });
        }
        Self { endpoint, state }
    }

    pub(crate) fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// An address where nobody listens.
    pub(crate) fn nobody() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    pub(crate) fn forget(&self) {
        self.state.seen.lock().unwrap().clear();
    }

    /// Bytes of the file that were sent.
    pub(crate) fn sent(&self, file: &str) -> usize {
        self.state.sent.lock().unwrap().get(file).copied().unwrap_or(0)
    }

    pub(crate) fn etag(&self, file: &str) -> String {
        etag(file, &self.state.files[file])
    }

    pub(crate) fn cut(&self, file: &str, after: &[usize]) {
        self.state.mischief.lock().unwrap().cuts.insert(file.to_owned(), after.iter().copied().collect());
    }

    pub(crate) fn corrupt(&self, file: &str, times: usize) {
        self.state.mischief.lock().unwrap().corrupt.insert(file.to_owned(), times);
    }

    pub(crate) fn answer(&self, statuses: &[u16]) {
        self.state.mischief.lock().unwrap().statuses = statuses.iter().copied().collect();
    }

    /// Wants this token; without it, the answer has this error code.
    pub(crate) fn want_token(&self, token: &str, code: &str) {
        self.state.mischief.lock().unwrap().token = Some((format!("Bearer {token}"), code.to_owned()));
    }

    pub(crate) fn without_ranges(&self) {
        self.state.mischief.lock().unwrap().no_ranges = true;
    }
}

fn is_large(file: &str) -> bool {
    file.ends_with(".safetensors") || file.ends_with(".bin") || file.ends_with(".gguf")
}

/// A large file's SHA-256, a small file's name in git.
fn etag(file: &str, bytes: &[u8]) -> String {
    let sum: Vec<u8> = if is_large(file) {
        Sha256::digest(bytes).to_vec()
    } else {
        Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize().to_vec()
    };
    sum.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

impl State {
    fn answer(&self, stream: &TcpStream, prefix: &str) {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() || line.is_empty() {
            return;
        }
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).is_err() {
                return;
            }
            match line.trim_end().split_once(": ") {
                Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.to_owned()),
                None => break,
            };
        }
        let seen = Seen {
            path: format!("{prefix}{path}"),
            token: headers.get("authorization").cloned(),
            range: headers.get("range").cloned(),
            method,
        };
        self.seen.lock().unwrap().push(seen.clone());
        let (head, body) = if prefix.is_empty() { self.hub(&seen, &path) } else { self.file(&seen, &path[1..], "") };
        let mut stream = stream;
        if stream.write_all(head.as_bytes()).is_ok() && seen.method == "GET" {
            // A cut transfer ends here too, short of what its header promised.
            let _ = stream.write_all(&body);
        }
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = reader.read(&mut [0; 16]);
    }

    /// The hub's answer: its head, and its body.
    fn hub(&self, seen: &Seen, path: &str) -> (String, Vec<u8>) {
        let mut mischief = self.mischief.lock().unwrap();
        if let Some(status) = mischief.statuses.pop_front() {
            return plain(status, "");
        }
        if let Some((token, code)) = &mischief.token
            && seen.token.as_ref() != Some(token)
        {
            let status = if seen.token.is_some() { 403 } else { 401 };
            return plain(status, &format!("X-Error-Code: {code}\r\n"));
        }
        drop(mischief);
        if path.contains("/former/name/") {
            return plain(307, &format!("Location: {}\r\n", path.replace("/former/name/", "/owner/name/")));
        }
        if let Some(revision) = path.strip_prefix("/api/models/owner/name/revision/") {
            if !["main", "refs%2Fpr%2F1", COMMIT].contains(&revision) {
                return plain(404, "X-Error-Code: RevisionNotFound\r\n");
            }
            let files = self.files.keys().map(|file| format!(r#"{{"rfilename":"{file}"}}"#)).collect::<Vec<_>>();
            let body = format!(r#"{{"id":"owner/name","sha":"{COMMIT}","siblings":[{}]}}"#, files.join(","));
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            return (head, body.into_bytes());
        }
        if path.starts_with("/api/") {
            return plain(404, "X-Error-Code: RepoNotFound\r\n");
        }
        let Some(file) = path.strip_prefix(&format!("/owner/name/resolve/{COMMIT}/")) else {
            return plain(404, "X-Error-Code: EntryNotFound\r\n");
        };
        let Some(bytes) = self.files.get(file) else { return plain(404, "X-Error-Code: EntryNotFound\r\n") };
        let etag = etag(file, bytes);
        if is_large(file) {
            let location = format!("{}/{file}", self.store);
            let size = bytes.len();
            return plain(
                302,
                &format!(
                    "Location: {location}\r\nX-Repo-Commit: {COMMIT}\r\nX-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {size}\r\n"
                ),
            );
        }
        self.file(seen, file, &format!("X-Repo-Commit: {COMMIT}\r\nETag: \"{etag}\"\r\n"))
    }

    /// A file's bytes, or some of them.
    fn file(&self, seen: &Seen, file: &str, headers: &str) -> (String, Vec<u8>) {
        let mut mischief = self.mischief.lock().unwrap();
        let mut bytes = self.files[file].clone();
        let mut status = "200 OK";
        let mut range_header = String::new();
        let size = bytes.len();
        if let Some(times) = mischief.corrupt.get_mut(file).filter(|times| **times > 0 && seen.method == "GET") {
            *times -= 1;
            *bytes.last_mut().unwrap() ^= 1;
        }
        if let Some(range) = seen.range.as_ref().filter(|_| !mischief.no_ranges) {
            let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap();
            let from: usize = from.parse().unwrap();
            let to = to.parse::<usize>().map_or(size, |to| (to + 1).min(size));
            bytes = bytes[from..to].to_vec();
            status = "206 Partial Content";
            range_header = format!("Content-Range: bytes {from}-{}/{size}\r\n", to - 1);
        }
        let length = bytes.len();
        // A cut is of whole transfers: the header, which is asked for by its end, arrives.
        let to_the_end = seen.range.as_ref().is_none_or(|range| range.ends_with('-'));
        if seen.method == "GET"
            && to_the_end
            && let Some(after) = mischief.cuts.get_mut(file).and_then(VecDeque::pop_front)
        {
            bytes.truncate(after);
        }
        if seen.method == "GET" {
            *self.sent.lock().unwrap().entry(file.to_owned()).or_default() += bytes.len();
        }
        let head = format!(
            "HTTP/1.1 {status}\r\n{headers}{range_header}Content-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        (head, bytes)
    }
}

/// An answer without a body.
fn plain(status: u16, headers: &str) -> (String, Vec<u8>) {
    (format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n"), Vec::new())
}
