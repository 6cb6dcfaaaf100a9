//! The API document, OpenAPI 3.1: the routes from their list, the replies from their types, the request from the
//! table that its parser reads.

use std::sync::Arc;

use axum::http::Method;
use serde_json::{Map, Value, json};

use super::dialects;
use super::doc::{Content, Doc, Param};
use super::errors::Code;
use super::routes::{Access, Route, Table};
use crate::request::fields::{FIELDS, Field, Kind};

/// The document's text.
#[derive(Debug, Clone)]
pub(crate) struct Spec(Arc<str>);

/// The document's chapters, in order.
const TAGS: [(&str, &str); 9] = [
    ("Images", "OpenAI's images API, with Together's and our own fields."),
    ("Jobs", "Every generation as a job: create, watch, cancel, delete."),
    ("Pictures", "Finished pictures."),
    ("Models", "What may be named in a request."),
    ("Server", "How the server is."),
    ("Administration", "What the operator can have done."),
    ("Plain jobs", "Jobs in the shape `{id, state, output, error}`."),
    ("Tasks", "Jobs in the shape `{id, status, output}`."),
    ("Pages", "What a browser shows."),
];

impl Spec {
    /// Writes the document of these routes.
    pub(crate) fn new(table: &Table) -> Self {
        Self(document(table).to_string().into())
    }

    pub(crate) fn text(&self) -> String {
        self.0.as_ref().to_owned()
    }
}

fn document(table: &Table) -> Value {
    let mut paths = Map::new();
    for route in table.routes() {
        let path = route.path.replace("{*", "{");
        let entry = paths.entry(path).or_insert_with(|| json!({}));
        entry[route.method.as_str().to_ascii_lowercase()] = operation(route);
    }
    let mut schemas: Map<String, Value> =
        table.schemas().iter().map(|(name, schema)| (name.clone(), json!(schema))).collect();
    schemas.insert("GenerationRequest".into(), generation_request());
    schemas.insert("EditRequest".into(), form(&["image", "prompt"], true));
    schemas.insert("VariationRequest".into(), form(&["image"], false));
    schemas.insert("Queue".into(), json!({"type": "object", "description": "The queue as it was a moment ago."}));
    schemas.insert(
        "Health".into(),
        json!({
            "type": "object",
            "properties": {"status": {"type": "string"}, "version": {"type": "string"}},
        }),
    );
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "easel",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A self-hosted image generation server: jobs, and the APIs of image vendors over them.",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": TAGS.map(|(name, about)| json!({"name": name, "description": about})),
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {
                    "type": "http", "scheme": "bearer",
                    "description": "`Authorization: Bearer KEY`; `Key KEY` and `Token KEY` are taken too.",
                },
                "basic": {"type": "http", "scheme": "basic", "description": "The key as the password."},
                "x-key": {"type": "apiKey", "in": "header", "name": "x-key"},
            },
        },
    })
}

fn operation(route: &Route) -> Value {
    let Doc { tag, summary, about, body, .. } = &route.doc;
    let mut operation = json!({
        "tags": [tag],
        "summary": summary,
        "operationId": operation_id(route),
        "parameters": parameters(route),
        "responses": responses(route),
        "security": if route.access == Access::Open { json!([]) } else { json!([{"bearer": []}, {"basic": []}, {"x-key": []}]) },
    });
    if !about.is_empty() {
        operation["description"] = json!(about);
    }
    if let Some(body) = body {
        operation["requestBody"] = json!({"required": true, "content": content(*body)});
    }
    operation
}

fn operation_id(route: &Route) -> String {
    let words = route.path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let words: Vec<&str> = words.collect();
    format!("{}_{}", route.method.as_str().to_ascii_lowercase(), words.join("_")).trim_end_matches('_').to_owned()
}

fn parameters(route: &Route) -> Vec<Value> {
    let parameter = |param: &Param| {
        json!({
            "in": param.place,
            "name": param.name,
            "required": param.place == "path",
            "schema": {"type": param.kind},
            "description": param.about,
        })
    };
    route.doc.params.iter().map(parameter).collect()
}

fn responses(route: &Route) -> Value {
    let mut responses = Map::new();
    for (status, body, about) in &route.doc.replies {
        let about = if about.is_empty() { status.canonical_reason().unwrap_or("") } else { about };
        let mut response = json!({"description": about});
        if !matches!(body, Content::Empty) {
            response["content"] = content(*body);
        }
        responses.insert(status.as_u16().to_string(), response);
    }
    let mut codes = route.doc.errors.clone();
    codes.push(Code::HostNotAllowed);
    if let Access::Needs(_) = route.access {
        codes.extend([Code::InvalidApiKey, Code::InsufficientRole, Code::OriginNotAllowed, Code::Internal]);
    }
    if route.method == Method::POST && route.doc.body.is_some() {
        codes.extend([Code::BodyTooLarge, Code::UnsupportedMediaType, Code::RequestTimeout]);
    }
    for code in Code::ALL.iter().filter(|code| codes.contains(code)) {
        let status = code.status().as_u16().to_string();
        let entry = responses.entry(status).or_insert_with(
            || json!({"description": "", "content": {"application/json": {"schema": reference("Error")}}}),
        );
        let before = entry["description"].as_str().unwrap_or_default();
        let name = format!("`{}`", code.name());
        if !before.contains(&name) {
            let joined = if before.is_empty() { name } else { format!("{before}, {name}") };
            entry["description"] = json!(joined);
        }
    }
    Value::Object(responses)
}

fn content(content: Content) -> Value {
    match content {
        Content::Empty => json!({}),
        Content::Json(schema) => json!({"application/json": {"schema": reference(schema)}}),
        Content::JsonOrEvents(schema) => json!({
            "application/json": {"schema": reference(schema)},
            "text/event-stream": {"schema": {"type": "string"}},
        }),
        Content::Media(media) => json!({media: {"schema": {"type": "string"}}}),
        Content::Form(schema) => json!({
            "multipart/form-data": {"schema": reference(schema)},
            "application/json": {"schema": reference("GenerationRequest")},
        }),
    }
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn generation_request() -> Value {
    let mut properties = Map::new();
    for field in FIELDS.iter().filter(|field| field.kind != Kind::Unsupported) {
        properties.insert(field.name.into(), property(field));
    }
    for (name, about, values) in dialects::openai::OWN_FIELDS {
        let mut property = json!({"description": about});
        if !values.is_empty() {
            property["type"] = json!("string");
            property["enum"] = json!(values);
        }
        properties.insert((*name).into(), property);
    }
    json!({
        "type": "object",
        "required": ["prompt"],
        "description": "Unknown fields are ignored with a warning; `null` is as good as absent.",
        "properties": properties,
        "additionalProperties": true,
    })
}

/// The form of a route that starts from a picture: the fields of a request, with files in place of addresses.
fn form(required: &[&str], masked: bool) -> Value {
    let mut form = generation_request();
    let file = |about: &str| json!({"type": "string", "format": "binary", "description": about});
    let image = "A png, jpeg or webp file. Several come as `image[]`, where the model can look at several.";
    form["properties"]["image"] = file(image);
    if masked {
        form["properties"]["mask"] = file("A png file of the size of `image`: what is transparent is painted anew.");
    } else if let Some(properties) = form["properties"].as_object_mut() {
        properties.remove("mask");
    }
    form["required"] = json!(required);
    form
}

fn property(field: &Field) -> Value {
    let picture = json!({"type": "string", "examples": ["https://example.com/a.png", "data:image/png;base64,…"]});
    let mut property = match field.kind {
        Kind::Picture => picture,
        Kind::Pictures => json!({"oneOf": [picture, {"type": "array", "items": picture, "maxItems": 16}]}),
        Kind::ImageToImage => json!({"type": "object", "required": ["init_image_url"], "properties": {
            "init_image_url": picture, "strength": {"type": "number", "minimum": 0, "maximum": 1},
        }}),
        Kind::Text | Kind::Aspect | Kind::Unsupported => json!({"type": "string"}),
        Kind::Integer { min, max } => {
            let mut range = json!({"type": "integer", "minimum": min});
            if let Some(max) = max {
                range["maximum"] = json!(max);
            }
            range
        }
        Kind::Number { min, max } => json!({"type": "number", "minimum": min, "maximum": max}),
        Kind::Numbers => json!({"type": "array", "items": {"type": "number"}}),
        Kind::Flag => json!({"type": "boolean"}),
        Kind::OneOf(names) => json!({"type": "string", "enum": names}),
        Kind::Size => json!({"oneOf": [
            {"type": "string", "examples": ["512x512", "auto"]},
            {"type": "object", "required": ["width", "height"], "properties": {
                "width": {"type": "integer", "minimum": 1}, "height": {"type": "integer", "minimum": 1},
            }},
        ]}),
        Kind::Labels => json!({"type": "object", "additionalProperties": {"type": "string"}}),
    };
    let aliases: Vec<String> = field.aliases.iter().map(|alias| format!("`{alias}`")).collect();
    let aliases = if aliases.is_empty() { String::new() } else { format!(" Also {}.", aliases.join(", ")) };
    property["description"] = json!(format!("{}{aliases}", field.about));
    property
}
