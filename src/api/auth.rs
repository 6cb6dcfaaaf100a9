//! Who is calling: the key check at the router's root, before a body is read.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::App;
use super::errors::{ApiError, Code};
use super::routes::{Access, Table};
use crate::config::Role;
use crate::policy::Caller;

/// Lets a request pass whose route is open or whose key has the route's role, and tells the handler who is calling.
pub(crate) async fn check(State((app, table)): State<(App, Table)>, mut request: Request, next: Next) -> Response {
    let access = table.access(&request);
    if access == Some(Access::Open) {
        return next.run(request).await;
    }
    let caller = match identify(&app, request.headers()) {
        Ok(caller) => caller,
        Err(error) => return error.into_response(),
    };
    if let Some(Access::Needs(role)) = access
        && !caller.may(role)
    {
        let message = format!("the key {:?} lacks the role `{}`, which this route needs", caller.key, name(role));
        return ApiError::new(Code::InsufficientRole, message).into_response();
    }
    tracing::debug!(key = %caller.key, workspace = %caller.workspace, "caller");
    request.extensions_mut().insert(caller);
    next.run(request).await
}

fn identify(app: &App, headers: &HeaderMap) -> Result<Caller, ApiError> {
    if app.keys.is_empty() {
        return Ok(Caller::local());
    }
    let secrets = secrets(headers);
    if secrets.is_empty() {
        let message = "no API key was sent; send `Authorization: Bearer KEY`";
        return Err(ApiError::new(Code::InvalidApiKey, message));
    }
    let known = secrets.iter().find_map(|secret| app.keys.find(secret));
    known.cloned().ok_or_else(|| ApiError::new(Code::InvalidApiKey, "the API key is not known here"))
}

/// Every secret that the headers offer, in any of the vendors' forms.
fn secrets(headers: &HeaderMap) -> Vec<String> {
    let mut secrets = Vec::new();
    for value in headers.get_all(header::AUTHORIZATION).iter().filter_map(|value| value.to_str().ok()) {
        let Some((scheme, rest)) = value.trim().split_once(char::is_whitespace) else { continue };
        let rest = rest.trim();
        if ["bearer", "key", "token"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
            secrets.push(rest.to_owned());
        } else if scheme.eq_ignore_ascii_case("basic") {
            let decoded = STANDARD.decode(rest).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            secrets.extend(decoded.as_deref().and_then(|text| text.split_once(':')).map(|(_, key)| key.to_owned()));
        }
    }
    secrets
        .extend(headers.get_all("x-key").iter().filter_map(|value| value.to_str().ok()).map(|key| key.trim().into()));
    secrets.retain(|secret| !secret.is_empty());
    secrets
}

fn name(role: Role) -> &'static str {
    match role {
        Role::Generate => "generate",
        Role::Read => "read",
        Role::Admin => "admin",
    }
}

/// The caller that [`check`] found. Only protected routes have one.
impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| ApiError::internal("a handler of an open route asked who is calling"))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn offered(name: &'static str, value: &str) -> Vec<String> {
        secrets(&HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_str(value).unwrap())]))
    }

    #[test]
    fn every_vendors_form_of_a_key_is_read() {
        for value in ["Bearer s3", "bearer s3", "BEARER  s3 ", "Key s3", "Token s3", "Basic dXNlcjpzMw=="] {
            assert_eq!(offered("authorization", value), ["s3"], "{value}");
        }
        assert_eq!(offered("x-key", "s3"), ["s3"]);
        assert_eq!(offered("authorization", "Basic dXNlcjphOmI="), ["a:b"]);
    }

    #[test]
    fn an_empty_or_unreadable_header_offers_nothing() {
        for value in ["", "Bearer", "Bearer ", "s3", "Basic !!", "Basic dXNlcg==", "Digest s3"] {
            assert!(offered("authorization", value).is_empty(), "{value}");
        }
        assert!(offered("x-key", " ").is_empty());
    }
}
