//! The values of a request's fields, read from JSON: whole numbers, sizes, ratios and pictures.

use easel_models::Size;
use serde_json::{Map, Value};

use super::{Picture, RequestError, SizeAsked, Source, fields};

/// Characters of an unknown field's name, or of a refused value, that are repeated in a message.
const QUOTED_CHARS: usize = 64;

/// A picture as JSON names it: a string, or an object with an address, as OpenAI's newer clients write it.
pub(super) fn picture(
    param: &str,
    field: &'static str,
    number: Option<usize>,
    value: Value,
) -> Result<Picture, RequestError> {
    const WANTED: &str = "an address, a data URI or base64";
    let text = match value {
        Value::String(text) => text,
        Value::Object(mut parts) => {
            let url = ["image_url", "url", "b64_json"].iter().find_map(|name| parts.remove(*name));
            match url {
                Some(Value::String(text)) => text,
                // As in chat messages: {"image_url": {"url": …}}.
                Some(Value::Object(mut inner)) => match inner.remove("url") {
                    Some(Value::String(text)) => text,
                    _ => return Err(wrong_type(param, WANTED, &Value::Object(inner))),
                },
                _ => return Err(wrong_type(param, WANTED, &Value::Object(parts))),
            }
        }
        other => return Err(wrong_type(param, WANTED, &other)),
    };
    let source = source(text).map_err(|text| invalid(param, WANTED, &text))?;
    Ok(Picture { field, number, source })
}

/// What a text that names a picture is; the text itself where it is nothing of the kind.
fn source(text: String) -> Result<Source, String> {
    /// Our own pictures, by path; neither begins base64.
    const OWN: [&str; 2] = ["/files/", "/v1/jobs/"];
    let begins = |prefix: &str| text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix));
    if begins("http://") || begins("https://") || OWN.iter().any(|own| text.starts_with(own)) {
        return Ok(Source::Url(text));
    }
    if begins("data:") {
        return match text.split_once(',') {
            Some((head, data)) if head.to_ascii_lowercase().ends_with(";base64") => Ok(Source::Base64(data.to_owned())),
            _ => Err(text),
        };
    }
    // The letters are looked at when the picture is unpacked; of what has a scheme, or nothing in it, it is plain now.
    if text.contains(':') || text.trim().is_empty() { Err(text) } else { Ok(Source::Base64(text)) }
}

/// A whole number. JSON has one number type, so `20.0` is as good as `20`.
pub(super) fn integer(param: &str, value: &Value) -> Result<u64, RequestError> {
    /// Above it a float no longer tells whole numbers apart.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if let Some(number) = value.as_u64() {
        return Ok(number);
    }
    let Some(number) = value.as_f64() else { return Err(wrong_type(param, "a whole number", value)) };
    if number.fract() != 0.0 {
        return Err(wrong_type(param, "a whole number", value));
    }
    if (0.0..EXACT).contains(&number) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and within range, checked")]
        return Ok(number as u64);
    }
    Err(invalid(param, "a whole number from 0 to 18446744073709551615", &value.to_string()))
}

pub(super) fn side(param: &str, value: &Value) -> Result<u32, RequestError> {
    let pixels = integer(param, value)?;
    match u32::try_from(pixels) {
        Ok(pixels) if pixels > 0 => Ok(pixels),
        _ => Err(invalid(param, "a positive number of pixels", &pixels.to_string())),
    }
}

pub(super) fn size(param: &str, value: Value) -> Result<SizeAsked, RequestError> {
    const WANTED: &str = "\"WIDTHxHEIGHT\", \"auto\" or {\"width\": …, \"height\": …}";
    match value {
        Value::String(text) if text == "auto" => Ok(SizeAsked::Native),
        Value::String(text) => parse_size(&text).map(SizeAsked::Exact).ok_or_else(|| invalid(param, WANTED, &text)),
        Value::Object(mut sides) => {
            let (width, height) = (sides.remove("width"), sides.remove("height"));
            match (width, height) {
                (Some(width), Some(height)) if sides.is_empty() => Ok(SizeAsked::Exact(Size {
                    width: side(&format!("{param}.width"), &width)?,
                    height: side(&format!("{param}.height"), &height)?,
                })),
                _ => Err(wrong_type(param, WANTED, &Value::Object(Map::new()))),
            }
        }
        other => Err(wrong_type(param, WANTED, &other)),
    }
}

/// Reads `"512x768"`. Sides are positive.
pub fn parse_size(text: &str) -> Option<Size> {
    let (width, height) = text.split_once(['x', 'X', '×'])?;
    let side = |text: &str| -> Option<u32> {
        let digits = text.trim();
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse().ok().filter(|pixels| plain && *pixels > 0)
    };
    Some(Size { width: side(width)?, height: side(height)? })
}

pub(super) fn aspect(text: &str) -> Result<(f64, f64), RequestError> {
    let side = |text: &str| text.trim().parse::<f64>().ok().filter(|side| side.is_finite() && *side > 0.0);
    let sides = text.split_once(':').and_then(|(across, down)| Some((side(across)?, side(down)?)));
    sides.ok_or_else(|| invalid(fields::ASPECT_RATIO.name, "a ratio such as \"16:9\"", text))
}

/// A refused value's name for a message, of bounded length.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

pub(super) fn wrong_type(param: &str, wanted: &str, found: &Value) -> RequestError {
    let found = match found {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("the string {:?}", quoted(text)),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    };
    RequestError::WrongType { param: param.into(), wanted: wanted.into(), found }
}

pub(super) fn invalid(param: &str, wanted: &str, asked: &str) -> RequestError {
    RequestError::InvalidValue { param: param.into(), wanted: wanted.into(), asked: format!("{:?}", quoted(asked)) }
}
