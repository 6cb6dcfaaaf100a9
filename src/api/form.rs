//! Forms with files, as OpenAI's clients send them: `multipart/form-data` with the same fields that JSON has.

use axum::body::Body;
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::{HeaderMap, header};
use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::App;
use super::body::{self, JsonBody};
use super::errors::{ApiError, Code};
use crate::request::fields::{self, Field, Kind};
use crate::request::{GenerationRequest, Picture, Source};

/// Parts of a form; a form of ours has a few dozen at most.
const PARTS: usize = 256;

/// A body with files: a form, or the same as JSON.
#[derive(Debug)]
pub(crate) struct Form {
    /// What is not a file, with the types that JSON would have.
    pub(crate) fields: Map<String, Value>,
    /// Files, by the field that takes them and in the order in which they came.
    files: Vec<(&'static Field, Bytes)>,
    /// What the body says, written in one way only: two forms that say the same are the same here, although each has
    /// a boundary of its own and its fields in any order.
    pub(crate) canonical: Bytes,
}

impl FromRequest<App> for Form {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        if !is_form(request.headers()) {
            let JsonBody { fields, bytes } = JsonBody::from_request(request, app).await.map_err(|error| {
                let wanted = "the body must be multipart/form-data, or application/json with pictures as addresses";
                if error.code == Code::UnsupportedMediaType { ApiError::new(error.code, wanted) } else { error }
            })?;
            return Ok(Self { fields, files: Vec::new(), canonical: bytes });
        }
        let (parts, body) = request.into_parts();
        // Whole first: clients send fields in any order, and the bounds on size and time are the same as for JSON.
        let bytes = body::read(&parts.headers, body, app.config.limits.max_body_bytes).await?;
        let broken = |error: &dyn std::fmt::Display| {
            ApiError::new(Code::InvalidRequest, format!("the body is not a valid form: {error}"))
        };
        let request = Request::from_parts(parts, Body::from(bytes));
        let mut form = Multipart::from_request(request, app).await.map_err(|error| broken(&error.body_text()))?;
        let mut parts = Vec::new();
        while let Some(part) = form.next_field().await.map_err(|error| broken(&error.body_text()))? {
            let name = part.name().unwrap_or_default().to_owned();
            let file = part.file_name().is_some();
            let value = part.bytes().await.map_err(|error| broken(&error.body_text()))?;
            if parts.len() == PARTS {
                return Err(broken(&format!("it has more than {PARTS} parts")));
            }
            parts.push(Part { name, file, value });
        }
        Self::of(parts)
    }
}

/// One part of a form.
struct Part {
    name: String,
    /// Whether it came as a file.
    file: bool,
    value: Bytes,
}

impl Form {
    fn of(parts: Vec<Part>) -> Result<Self, ApiError> {
        let canonical = canonical(&parts);
        let mut fields: Map<String, Value> = Map::new();
        let mut files = Vec::new();
        for Part { name, file, value } in parts {
            // `image[]` and `image[0]` are how clients write a list.
            let name = name.split('[').next().unwrap_or_default().to_owned();
            let field = fields::find(&name);
            let picture = field.filter(|field| matches!(field.kind, Kind::Picture | Kind::Pictures));
            if let (Some(field), true) = (picture, file) {
                files.push((field, value));
                continue;
            }
            let text = String::from_utf8(value.to_vec()).map_err(|_| {
                ApiError::field(Code::InvalidRequest, &name, format!("`{name}` must be text, in UTF-8; it is not"))
            })?;
            let value = typed(field, text);
            match fields.get_mut(&name) {
                None => drop(fields.insert(name, value)),
                // A list of addresses is several parts, too.
                Some(Value::Array(list)) if picture.is_some() => list.push(value),
                Some(first) if picture.is_some() => *first = Value::Array(vec![first.take(), value]),
                Some(first) if *first == value => {}
                Some(_) => {
                    let message = format!("`{name}` was sent twice, with different values; send one");
                    return Err(ApiError::field(Code::InvalidRequest, name, message));
                }
            }
        }
        Ok(Self { fields, files, canonical })
    }

    /// Takes the fields and the files apart.
    pub(crate) fn split(self) -> (Map<String, Value>, Files, Bytes) {
        (self.fields, Files(self.files), self.canonical)
    }
}

/// The files of a form.
#[derive(Debug)]
pub(crate) struct Files(Vec<(&'static Field, Bytes)>);

impl Files {
    /// Puts the files into the request that was read from the rest.
    ///
    /// # Errors
    /// When a field that takes one picture has several.
    pub(crate) fn attach(self, request: &mut GenerationRequest) -> Result<(), ApiError> {
        let several = self.0.iter().filter(|(field, _)| field.kind == Kind::Pictures).count() > 1;
        let mut number = 0;
        for (field, bytes) in self.0 {
            number += usize::from(field.kind == Kind::Pictures);
            let picture = Picture {
                field: field.name,
                number: (several && field.kind == Kind::Pictures).then_some(number),
                source: Source::File(bytes),
            };
            if field.kind == Kind::Picture {
                if request.mask.replace(picture).is_some() {
                    let message = "`mask` was sent twice; send one";
                    return Err(ApiError::field(Code::InvalidRequest, field.name, message));
                }
            } else if field.name == fields::REFERENCE_IMAGES.name {
                request.references.push(picture);
            } else {
                request.images.push(picture);
            }
        }
        Ok(())
    }
}

fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.trim_start().to_ascii_lowercase().starts_with("multipart/form-data")
}

/// A text with the type that its field has in JSON. What is no such thing stays text, which the parser refuses by name.
fn typed(field: Option<&Field>, text: String) -> Value {
    let Some(field) = field else { return Value::String(text) };
    let trimmed = text.trim();
    let read = match field.kind {
        // An empty entry of a form is one that was left out.
        _ if trimmed.is_empty() && field.kind != Kind::Text => Some(Value::Null),
        Kind::Integer { .. } | Kind::Number { .. } => {
            serde_json::from_str(trimmed).ok().filter(|value: &Value| value.is_number())
        }
        Kind::Flag => serde_json::from_str(trimmed).ok().filter(|value: &Value| value.is_boolean()),
        _ if trimmed.starts_with(['{', '[']) && field.kind != Kind::Text => serde_json::from_str(trimmed).ok(),
        _ => None,
    };
    read.unwrap_or(Value::String(text))
}

fn canonical(parts: &[Part]) -> Bytes {
    let mut sorted: Vec<&Part> = parts.iter().collect();
    // Stable, so that the order of a list's pictures counts.
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let mut text = BytesMut::new();
    for Part { name, value, .. } in sorted {
        text.put_u64(name.len() as u64);
        text.put_slice(name.as_bytes());
        text.put_slice(&Sha256::digest(value));
    }
    text.freeze()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(name: &str, value: &str) -> Part {
        Part { name: name.into(), file: false, value: Bytes::copy_from_slice(value.as_bytes()) }
    }

    #[test]
    fn a_forms_texts_have_the_types_that_json_has() {
        let form = Form::of(vec![
            text("n", "2"),
            text("guidance", "7.5"),
            text("stream", "true"),
            text("seed", ""),
            text("prompt", ""),
            text("size", "512x512"),
            text("metadata", r#"{"a": "b"}"#),
            text("quality", "high"),
            text("steps", "many"),
            text("image[]", "https://example.com/1.png"),
            text("image[]", "https://example.com/2.png"),
        ]);
        let expected = json!({
            "n": 2, "guidance": 7.5, "stream": true, "seed": null, "prompt": "", "size": "512x512",
            "metadata": {"a": "b"}, "quality": "high", "steps": "many",
            "image": ["https://example.com/1.png", "https://example.com/2.png"],
        });
        assert_eq!(Value::Object(form.unwrap().fields), expected);
    }

    #[test]
    fn a_field_that_is_there_twice_must_say_the_same() {
        assert!(Form::of(vec![text("n", "2"), text("n", "2")]).is_ok());
        let error = Form::of(vec![text("n", "2"), text("n", "3")]).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("n"));
    }

    #[test]
    fn forms_that_say_the_same_are_the_same_whatever_the_order_of_their_fields() {
        let file = |value: &'static [u8]| Part { name: "image[]".into(), file: true, value: value.into() };
        let of = |parts| Form::of(parts).unwrap().canonical;
        let one = of(vec![text("prompt", "a"), file(b"1"), file(b"2")]);
        assert_eq!(one, of(vec![file(b"1"), text("prompt", "a"), file(b"2")]));
        assert_ne!(one, of(vec![file(b"2"), text("prompt", "a"), file(b"1")]));
        assert_ne!(one, of(vec![text("prompt", "b"), file(b"1"), file(b"2")]));
        assert_ne!(of(vec![text("ab", "c")]), of(vec![text("a", "bc")]));
    }
}
