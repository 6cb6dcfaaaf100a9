//! OpenAI's own request fields, and what they say about the reply.

use serde_json::{Map, Value};

use crate::api::errors::{ApiError, Code};
use crate::request::fields::{self, Field};
use crate::request::{self, Delivery, GenerationRequest, ResponseFormat};

/// Fields that only OpenAI's and Together's clients send: (name, meaning, values; none is any value at all).
pub(crate) const OWN_FIELDS: &[(&str, &str, &[&str])] = &[
    (
        "quality",
        "Taken and given back; the number of `steps` decides.",
        &["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"],
    ),
    ("style", "Taken and ignored; say it in the prompt.", &["vivid", "natural"]),
    ("input_fidelity", "Taken and ignored; `strength` decides.", &["high", "low"]),
    ("moderation", "Taken and ignored.", &["low", "auto"]),
    ("safety_identifier", "Taken and ignored.", &[]),
    ("disable_safety_checker", "Taken and ignored.", &[]),
    ("complexity", "Taken and ignored.", &[]),
    ("frame_count", "Taken and ignored.", &[]),
    ("frame_duration_ms", "Taken and ignored.", &[]),
    ("svg", "Taken and ignored.", &[]),
];

/// What a route is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// A picture from a prompt, or from what the request brings.
    Generation,
    /// A picture changed as a prompt says.
    Edit,
    /// A picture varied; there may be no prompt.
    Variation,
}

impl Task {
    /// What the names of a stream's events begin with.
    pub(super) fn event(self) -> &'static str {
        match self {
            Self::Generation => "image_generation",
            Self::Edit | Self::Variation => "image_edit",
        }
    }
}

/// A request, and how its sender wants to read the answer.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: GenerationRequest,
    pub(super) delivery: Delivery,
    /// What carries the pictures.
    pub(super) format: ResponseFormat,
    /// As sent, or `auto`.
    pub(super) quality: String,
    pub(super) task: Task,
}

impl Asked {
    /// Reads a body.
    ///
    /// # Errors
    /// When a field is not what its vendor or we say it may be.
    pub(super) fn read(mut body: Map<String, Value>, task: Task) -> Result<Self, ApiError> {
        body.retain(|_, value| !value.is_null());
        let traits = Traits::of(&body);
        let mut quality = None;
        for (name, _, values) in OWN_FIELDS {
            let Some(value) = body.remove(*name) else { continue };
            if !values.is_empty() && !value.as_str().is_some_and(|value| values.contains(&value)) {
                let message = format!("`{name}` must be one of {}", values.join(", "));
                return Err(ApiError::field(Code::InvalidRequest, *name, message));
            }
            if *name == "quality" {
                quality = value.as_str().map(ToOwned::to_owned);
            }
        }
        if body.contains_key("markup") {
            let message = "`markup` is not supported: send `mask`, whose transparent part is painted anew";
            return Err(ApiError::field(Code::UnsupportedParameter, "markup", message));
        }
        let (mut request, delivery) = request::parse(body)?;
        if task == Task::Variation {
            request.prompt.get_or_insert_default();
        } else if request.prompt.as_deref() == Some("") {
            return Err(ApiError::field(Code::InvalidRequest, "prompt", "`prompt` must not be empty"));
        }
        let format = delivery.response_format.unwrap_or_else(|| traits.format(request.model.as_deref()));
        Ok(Self { request, delivery, format, quality: quality.unwrap_or_else(|| "auto".into()), task })
    }
}

/// What the presence of fields says about the client.
#[derive(Debug)]
struct Traits {
    /// Fields that only a gpt-image client sends.
    gpt_image: bool,
    /// `output_format`, which such a client sends, but Together's too.
    output_format: bool,
    /// Fields that only a Together client sends.
    together: bool,
}

impl Traits {
    fn of(body: &Map<String, Value>) -> Self {
        let any = |names: &[&str]| names.iter().any(|name| body.contains_key(*name));
        let quality = body.get("quality").and_then(Value::as_str);
        let steps: Vec<&str> = Field::names(&fields::STEPS).collect();
        Self {
            gpt_image: any(&["output_compression", "background", "moderation", "stream", "input_fidelity"])
                || quality.is_some_and(|quality| !matches!(quality, "standard" | "hd")),
            output_format: any(&["output_format"]),
            together: any(&["width", "height"]) || any(&steps),
        }
    }

    /// Clients of the gpt-image models cannot ask for base64 and read nothing else; everyone else expects an address.
    fn format(&self, model: Option<&str>) -> ResponseFormat {
        let by_name = model.is_some_and(|id| id.starts_with("gpt-image-") || id.starts_with("chatgpt-image-"));
        if by_name || self.gpt_image || (self.output_format && !self.together) {
            ResponseFormat::B64Json
        } else {
            ResponseFormat::Url
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(extra: Value) -> Result<Asked, ApiError> {
        let Value::Object(extra) = extra else { panic!("an object") };
        let mut body = Map::from_iter([("prompt".into(), json!("a cat"))]);
        body.extend(extra);
        Asked::read(body, Task::Generation)
    }

    #[test]
    fn the_member_that_carries_the_picture_follows_the_client() {
        use ResponseFormat::{B64Json, Url};
        for (extra, expected) in [
            (json!({}), Url),
            (json!({"model": "dall-e-3", "quality": "hd", "style": "vivid", "size": "1024x1024"}), Url),
            (json!({"model": "dall-e-2", "response_format": "b64_json"}), B64Json),
            (json!({"model": "gpt-image-1"}), B64Json),
            (json!({"model": "chatgpt-image-latest"}), B64Json),
            (json!({"model": "gpt-image-1", "response_format": "url"}), Url),
            (json!({"quality": "low"}), B64Json),
            (json!({"quality": "standard"}), Url),
            (json!({"background": "auto"}), B64Json),
            (json!({"moderation": "low"}), B64Json),
            (json!({"output_compression": 50}), B64Json),
            (json!({"output_format": "webp"}), B64Json),
            (json!({"output_format": null}), Url),
            (json!({"stream": false}), B64Json),
            (json!({"output_format": "jpeg", "width": 512, "height": 512}), Url),
            (json!({"output_format": "jpeg", "steps": 4}), Url),
            (json!({"output_format": "jpeg", "steps": 4, "response_format": "base64"}), B64Json),
            (json!({"background": "opaque", "steps": 4}), B64Json),
            (json!({"seed": 1, "guidance": 2}), Url),
        ] {
            assert_eq!(read(extra.clone()).unwrap().format, expected, "{extra}");
        }
    }

    #[test]
    fn vendors_fields_are_checked_and_leave_no_warning() {
        for (name, _, values) in OWN_FIELDS {
            for value in *values {
                assert_eq!(read(json!({*name: value})).unwrap().request.warnings, Vec::<String>::new());
            }
            if values.is_empty() {
                assert!(read(json!({*name: {"any": "thing"}})).unwrap().request.warnings.is_empty());
            } else {
                for bad in [json!("other"), json!(1), json!(true), json!(["auto"])] {
                    assert_eq!(read(json!({*name: bad})).unwrap_err().param.as_deref(), Some(*name));
                }
            }
        }
    }

    #[test]
    fn transparency_and_an_empty_prompt_are_refused() {
        let error = read(json!({"background": "transparent"})).unwrap_err();
        assert_eq!((error.code, error.param.as_deref()), (Code::UnsupportedParameter, Some("background")));
        let error = read(json!({"prompt": ""})).unwrap_err();
        assert_eq!((error.code, error.param.as_deref()), (Code::InvalidRequest, Some("prompt")));
    }
}
