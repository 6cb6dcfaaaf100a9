//! What the API document says of a route; written beside the route itself.

use axum::http::StatusCode;

use super::errors::Code;

/// A route's entry in the API document.
#[derive(Debug, Clone)]
pub(crate) struct Doc {
    pub(crate) tag: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) about: &'static str,
    pub(crate) params: Vec<Param>,
    pub(crate) body: Option<Content>,
    pub(crate) replies: Vec<(StatusCode, Content, &'static str)>,
    pub(crate) errors: Vec<Code>,
}

/// A parameter outside of the body. Those of the path are found there; an entry here only describes one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Param {
    /// `path`, `query` or `header`.
    pub(crate) place: &'static str,
    pub(crate) name: &'static str,
    /// The JSON type.
    pub(crate) kind: &'static str,
    pub(crate) about: &'static str,
}

/// What a body holds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Content {
    /// Nothing.
    Empty,
    /// JSON of the named schema.
    Json(&'static str),
    /// JSON of the named schema, or server-sent events.
    JsonOrEvents(&'static str),
    /// Something else, of this media type.
    Media(&'static str),
    /// A form with files, and the same as JSON.
    Form(&'static str),
}

impl Doc {
    pub(crate) fn new(tag: &'static str, summary: &'static str) -> Self {
        Self { tag, summary, about: "", params: Vec::new(), body: None, replies: Vec::new(), errors: Vec::new() }
    }

    /// A paragraph below the summary.
    pub(crate) fn about(mut self, about: &'static str) -> Self {
        self.about = about;
        self
    }

    pub(crate) fn path(self, name: &'static str, kind: &'static str, about: &'static str) -> Self {
        self.param(Param { place: "path", name, kind, about })
    }

    pub(crate) fn query(self, name: &'static str, kind: &'static str, about: &'static str) -> Self {
        self.param(Param { place: "query", name, kind, about })
    }

    pub(crate) fn header(self, name: &'static str, about: &'static str) -> Self {
        self.param(Param { place: "header", name, kind: "string", about })
    }

    fn param(mut self, param: Param) -> Self {
        self.params.push(param);
        self
    }

    pub(crate) fn body(mut self, content: Content) -> Self {
        self.body = Some(content);
        self
    }

    pub(crate) fn reply(mut self, status: StatusCode, content: Content, about: &'static str) -> Self {
        self.replies.push((status, content, about));
        self
    }

    /// A 200 of this schema.
    pub(crate) fn ok(self, schema: &'static str) -> Self {
        self.reply(StatusCode::OK, Content::Json(schema), "")
    }

    pub(crate) fn errors(mut self, errors: &[Code]) -> Self {
        self.errors.extend_from_slice(errors);
        self
    }

    /// A call that makes a job: its headers, and what can go wrong with it.
    pub(crate) fn creates(self) -> Self {
        self.header("Idempotency-Key", "A repeat with the same body gives the same job back, for 24 hours.").errors(&[
            Code::InvalidRequest,
            Code::UnsupportedSize,
            Code::UnsupportedParameter,
            Code::InvalidImage,
            Code::ImageUnreachable,
            Code::ModelNotFound,
            Code::IdempotencyMismatch,
            Code::QueueFull,
            Code::ShuttingDown,
            Code::StorageFull,
        ])
    }
}
