//! Absolute addresses: clients join relative ones with the wrong base.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::App;
use super::browser;
use super::errors::ApiError;

/// Builds the addresses of one request's reply.
#[derive(Debug, Clone)]
pub(crate) struct Urls {
    base: String,
}

impl Urls {
    /// The absolute address of `path`, which begins with a slash.
    pub(crate) fn at(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// The path of an address of this server, given as such or as a path alone.
    pub(crate) fn path_of<'a>(&self, url: &'a str) -> Option<&'a str> {
        Some(url.strip_prefix(&self.base).unwrap_or(url)).filter(|path| path.starts_with('/'))
    }
}

impl FromRequestParts<App> for Urls {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let server = &app.config.server;
        if let Some(public) = &server.public_url {
            return Ok(Self { base: public.trim_end_matches('/').to_owned() });
        }
        // Behind proxies the header is a list, the client's own end first.
        let forwarded = parts.headers.get("x-forwarded-proto").and_then(|value| value.to_str().ok());
        let forwarded = forwarded.and_then(|list| list.split(',').next()).map(str::trim);
        let scheme =
            if forwarded.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")) { "https" } else { "http" };
        let plain = |host: &&str| {
            !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte))
        };
        let base = match browser::host(&parts.headers, &parts.uri).filter(plain) {
            Some(host) => format!("{scheme}://{host}"),
            None => format!("{scheme}://{}", std::net::SocketAddr::new(server.host, server.port)),
        };
        Ok(Self { base })
    }
}
