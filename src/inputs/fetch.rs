//! Fetching pictures by the addresses that callers name, without becoming their way into the operator's network.
//!
//! A name is looked up once, and the connection goes to the addresses that were checked; so a name that means a
//! public address at first and a private one a moment later gains nothing. Redirects are followed by hand, each hop
//! checked like the first. What comes back is bounded while it comes, and its type is for the decoder to find out.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, HeaderMap, HeaderValue, LOCATION, USER_AGENT};
use reqwest::{Client, Response, Url, redirect};

use super::address;
use crate::config::FetchConfig;

/// Redirects that are followed.
const HOPS: usize = 5;
/// The longest address that is taken.
const URL_CHARS: usize = 8192;

/// Why a picture cannot be fetched. Each is written for the caller, and says nothing about the operator's network
/// that the caller did not say first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// It is no address of the web.
    #[error("it is not an http or https address")]
    NotWeb,
    /// It leads into a network that is not public.
    #[error(
        "{0} has no address on the public internet; fetch.allow_private_hosts names the others that may be fetched from"
    )]
    Private(String),
    /// Nobody answers, or not in time.
    #[error("{0}")]
    Unreachable(String),
    /// Something else than a file was answered.
    #[error("{host} answered {status}")]
    Status {
        /// Who answered.
        host: String,
        /// What.
        status: u16,
    },
    /// It is redirected on and on.
    #[error("it is redirected more than {HOPS} times")]
    Redirects,
    /// It is larger than is taken.
    #[error("it is larger than {0} bytes")]
    TooLarge(u64),
}

/// Fetches files from the public internet. Clones share their connections.
#[derive(Debug, Clone)]
pub struct Fetcher {
    client: Client,
    allowed: Arc<[String]>,
    max_bytes: u64,
    timeout: Duration,
}

impl Fetcher {
    /// A fetcher with the operator's limits.
    ///
    /// # Errors
    /// When the system's TLS cannot be set up.
    pub fn new(config: &FetchConfig) -> Result<Self, FetchError> {
        let allowed: Arc<[String]> = config.allow_private_hosts.iter().map(|host| plain(host)).collect();
        let headers = HeaderMap::from_iter([
            (ACCEPT, HeaderValue::from_static("image/*")),
            // Nothing here unpacks a packed body, and a bound on what arrives is then a bound on what there is.
            (ACCEPT_ENCODING, HeaderValue::from_static("identity")),
            (USER_AGENT, HeaderValue::from_static(concat!("easel/", env!("CARGO_PKG_VERSION")))),
        ]);
        let client = Client::builder()
            .dns_resolver(Checked { allowed: Arc::clone(&allowed) })
            .redirect(redirect::Policy::none())
            // A proxy would look the name up itself, unchecked.
            .no_proxy()
            .referer(false)
            .default_headers(headers)
            // A kept connection would be one more way around the check of a later lookup.
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|error| FetchError::Unreachable(reason(&error)))?;
        Ok(Self { client, allowed, max_bytes: config.max_bytes, timeout: Duration::from_secs(config.timeout_seconds) })
    }

    /// The file at an address.
    ///
    /// # Errors
    /// When the address is not public, nobody answers in time, or the file is too large.
    pub async fn fetch(&self, url: &str) -> Result<Bytes, FetchError> {
        let seconds = self.timeout.as_secs();
        let fetched = tokio::time::timeout(self.timeout, self.follow(url)).await;
        fetched.unwrap_or_else(|_| Err(FetchError::Unreachable(format!("it did not come within {seconds} s"))))
    }

    async fn follow(&self, url: &str) -> Result<Bytes, FetchError> {
        let parsed = (url.len() <= URL_CHARS).then(|| Url::parse(url).ok()).flatten();
        let mut url = parsed.ok_or(FetchError::NotWeb)?;
        for _ in 0..=HOPS {
            let host = self.check(&url)?;
            let reply = self.client.get(url.clone()).send().await;
            let reply =
                reply.map_err(|error| refused(&error).unwrap_or_else(|| FetchError::Unreachable(reason(&error))))?;
            let status = reply.status();
            if status.is_redirection()
                && let Some(next) = reply.headers().get(LOCATION).and_then(|next| next.to_str().ok())
            {
                url = url.join(next).map_err(|_| FetchError::NotWeb)?;
                continue;
            }
            if !status.is_success() {
                return Err(FetchError::Status { host, status: status.as_u16() });
            }
            return self.read(reply).await;
        }
        Err(FetchError::Redirects)
    }

    /// Checks what the connection's own lookup does not see: the scheme, and a host that is an address already, which
    /// is looked up by nobody. Gives the host.
    fn check(&self, url: &Url) -> Result<String, FetchError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(FetchError::NotWeb);
        }
        let host = plain(url.host_str().ok_or(FetchError::NotWeb)?);
        match host.parse::<IpAddr>() {
            Ok(address) if !address::public(address) && !self.allowed.contains(&host) => Err(FetchError::Private(host)),
            _ => Ok(host),
        }
    }

    async fn read(&self, reply: Response) -> Result<Bytes, FetchError> {
        let too_large = || FetchError::TooLarge(self.max_bytes);
        if reply.content_length().is_some_and(|length| length > self.max_bytes) {
            return Err(too_large());
        }
        let mut bytes = BytesMut::new();
        let mut parts = reply.bytes_stream();
        while let Some(part) = parts.next().await {
            let part = part.map_err(|error| FetchError::Unreachable(reason(&error)))?;
            if (bytes.len() + part.len()) as u64 > self.max_bytes {
                return Err(too_large());
            }
            bytes.extend_from_slice(&part);
        }
        Ok(bytes.freeze())
    }
}

/// A host as it is compared: in lower case, an IPv6 address without its brackets, a name without its last dot.
fn plain(host: &str) -> String {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Looks names up, and gives the connection only the addresses that it may go to.
#[derive(Debug)]
struct Checked {
    allowed: Arc<[String]>,
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let host = plain(name.as_str());
        let allowed = self.allowed.contains(&host);
        Box::pin(async move {
            // Names that mean nothing and names that only the operator's network knows are answered alike.
            let Ok(found) = tokio::net::lookup_host((name.as_str(), 0)).await else {
                return Err(FetchError::Private(host).into());
            };
            let open: Vec<SocketAddr> = found.filter(|found| allowed || address::public(found.ip())).collect();
            if open.is_empty() {
                return Err(FetchError::Private(host).into());
            }
            Ok(Box::new(open.into_iter()) as Addrs)
        })
    }
}

/// The lookup's own refusal, from inside the client's error.
fn refused(error: &reqwest::Error) -> Option<FetchError> {
    causes(error).find_map(|cause| cause.downcast_ref::<FetchError>().cloned())
}

/// The innermost cause, which is the one that people understand.
fn reason(error: &reqwest::Error) -> String {
    causes(error).last().map_or_else(|| error.to_string(), ToString::to_string)
}

fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |error| error.source())
}
