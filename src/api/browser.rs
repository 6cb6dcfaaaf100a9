//! The local user's protection from the pages in their own browser.
//!
//! Without keys everyone who reaches the loopback address is the local user, and every web page that the user opens
//! can reach it through the browser. Two things tell a page from the user:
//!
//! - `Host`. A page of `evil.example` whose name suddenly resolves to 127.0.0.1 (DNS rebinding) is of the same origin
//!   as this server for the browser, but its requests still say `Host: evil.example`. So only loopback names, the
//!   address the server listens on and the host of `server.public_url` are taken.
//! - `Origin`. Browsers send it with every cross-site request that can change something, and with every WebSocket. It
//!   must be this server's own, or one of `server.cors_origins`. `Origin: null` (sandboxed frames, files) is foreign.
//!
//! Programs (curl, the OpenAI clients) send no `Origin`, and a `Host` of what they were pointed at, so they notice
//! nothing. With keys a page would have to know one, so neither is checked, with one exception: browsers remember
//! `Basic` credentials and send them along by themselves, so with those the origin counts again.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::App;
use super::errors::{ApiError, Code};
use super::routes::{Access, Table};
use crate::config::ServerConfig;

/// Refuses what only a foreign page in the local user's browser would send.
pub(crate) async fn guard(State((app, table)): State<(App, Table)>, request: Request, next: Next) -> Response {
    let keyless = app.keys.is_empty();
    let headers = request.headers();
    let verdict = if keyless { check_host(&app.config.server, host(headers, request.uri())) } else { Ok(()) };
    let verdict = verdict.and_then(|()| {
        // Open routes change nothing and show nothing that a link would not.
        if table.access(&request) != Some(Access::Open) && (keyless || basic(headers)) {
            check_origin(&app.config.server, headers, host(headers, request.uri()))
        } else {
            Ok(())
        }
    });
    match verdict {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn check_host(server: &ServerConfig, host: Option<&str>) -> Result<(), ApiError> {
    // HTTP/1.0 programs may leave it out; browsers never do.
    let Some(host) = host else { return Ok(()) };
    let name = name_of(host);
    let ours = loopback(name)
        || name.parse() == Ok(server.host)
        || public_host(server).is_some_and(|public| name_of(public).eq_ignore_ascii_case(name));
    if ours {
        return Ok(());
    }
    let message = "this host name is not the server's: without keys it answers to loopback names only; set \
                   `server.public_url` to the address that it is reached by, or configure a key";
    Err(ApiError::new(Code::HostNotAllowed, message))
}

fn check_origin(server: &ServerConfig, headers: &HeaderMap, host: Option<&str>) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or("null");
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    let own = authority.is_some() && (authority == host || authority == public_host(server));
    if own || server.cors_origins.iter().any(|allowed| allowed == "*" || allowed.trim_end_matches('/') == origin) {
        return Ok(());
    }
    let message = "pages of this origin may not call the server; list it in `server.cors_origins`";
    Err(ApiError::new(Code::OriginNotAllowed, message))
}

/// What the request says it was sent to, with the port if one was named.
pub(super) fn host<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
    let header = headers.get(header::HOST).and_then(|value| value.to_str().ok());
    header.or_else(|| uri.authority().map(axum::http::uri::Authority::as_str))
}

fn public_host(server: &ServerConfig) -> Option<&str> {
    let (_, rest) = server.public_url.as_deref()?.split_once("://")?;
    rest.split('/').next()
}

/// A host without its port, and an IPv6 address without its brackets.
fn name_of(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

fn loopback(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let address: Result<std::net::IpAddr, _> = name.parse();
    // Resolvers and browsers keep `localhost` and what ends in it on this machine (RFC 6761).
    name == "localhost" || name.ends_with(".localhost") || address.is_ok_and(|address| address.is_loopback())
}

fn basic(headers: &HeaderMap) -> bool {
    let scheme = |value: &str| value.trim_start().get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("basic "));
    headers.get_all(header::AUTHORIZATION).iter().filter_map(|value| value.to_str().ok()).any(scheme)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_this_machines_names_are_hosts_of_a_server_without_keys() {
        let server = ServerConfig { public_url: Some("https://art.example:8443/x".into()), ..ServerConfig::default() };
        for host in [
            "localhost:8080",
            "LOCALHOST",
            "a.localhost:1",
            "127.0.0.1:80",
            "127.8.9.1",
            "[::1]:8080",
            "art.example:8443",
        ] {
            assert!(check_host(&server, Some(host)).is_ok(), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "192.168.1.5:8080", "127.0.0.1.evil.example", "", "[::2]"]
        {
            assert!(check_host(&server, Some(host)).is_err(), "{host}");
        }
        assert!(check_host(&server, None).is_ok());
    }

    #[test]
    fn only_this_servers_own_and_listed_origins_may_call() {
        let server = ServerConfig { cors_origins: vec!["https://app.example/".into()], ..ServerConfig::default() };
        let check = |origin: &str| {
            let headers = HeaderMap::from_iter([(header::ORIGIN, HeaderValue::from_str(origin).unwrap())]);
            check_origin(&server, &headers, Some("127.0.0.1:8080")).is_ok()
        };
        for origin in ["http://127.0.0.1:8080", "https://127.0.0.1:8080", "https://app.example"] {
            assert!(check(origin), "{origin}");
        }
        for origin in
            ["null", "", "https://evil.example", "http://127.0.0.1:3000", "http://localhost:8080", "127.0.0.1:8080"]
        {
            assert!(!check(origin), "{origin}");
        }
    }
}
