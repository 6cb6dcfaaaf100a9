//! From a native JSON body to a [`GenerationRequest`]: names and types. What a value may be is the resolver's to say.

use std::collections::BTreeMap;

use easel_models::Size;
use easel_models::samplers::NoiseSource;
use serde_json::{Map, Value};

use super::fields::{self, FIELDS, Field, Kind};
use super::values::{aspect, integer, invalid, picture, quoted, side, size, wrong_type};
use super::{
    Delivery, GenerationRequest, LongPrompt, OutputFormat, Picture, Priority, RequestError, ResponseFormat,
    SamplingOptions, SizeAsked,
};

/// Unknown fields that are named in warnings; the rest are only counted, so that a reply stays small.
const UNKNOWN_NAMED: usize = 16;
const METADATA_ENTRIES: usize = 64;
const METADATA_KEY_CHARS: usize = 64;
const METADATA_VALUE_CHARS: usize = 1024;
const USER_CHARS: usize = 256;
/// Pictures that one request may bring, as many as OpenAI's takes; a model may take fewer.
const MAX_PICTURES: usize = 16;

/// Reads a native body. Unknown fields become warnings; `null` is as good as absent.
///
/// # Errors
/// When a field is of the wrong type, is none of its named values, or asks for a feature that is not there.
pub fn parse(body: Map<String, Value>) -> Result<(GenerationRequest, Delivery), RequestError> {
    let mut body = Body::new(body);
    let result = read(&mut body);
    result.map_err(|error| error.respelled(&body.spelling))
}

fn read(body: &mut Body) -> Result<(GenerationRequest, Delivery), RequestError> {
    body.refuse_unsupported()?;
    let mut request = GenerationRequest {
        model: body.text(&fields::MODEL)?,
        prompt: body.text(&fields::PROMPT)?,
        negative_prompt: body.text(&fields::NEGATIVE_PROMPT)?,
        n: body.integer(&fields::N)?,
        steps: body.integer(&fields::STEPS)?,
        guidance: body.number(&fields::GUIDANCE)?,
        seed: body.integer(&fields::SEED)?,
        sampler: body.text(&fields::SAMPLER)?,
        schedule: body.text(&fields::SCHEDULE)?,
        sampling: body.sampling()?,
        clip_skip: body.integer(&fields::CLIP_SKIP)?,
        true_guidance: body.number(&fields::TRUE_GUIDANCE)?,
        prompt_weighting: body.flag(&fields::PROMPT_WEIGHTING)?,
        long_prompt: body.long_prompt()?,
        refiner: body.text(&fields::REFINER)?,
        refiner_start: body.number(&fields::REFINER_START)?,
        images: body.pictures(&fields::IMAGE)?,
        references: body.pictures(&fields::REFERENCE_IMAGES)?,
        mask: body.one_picture(&fields::MASK)?,
        output_format: body.output_format()?,
        output_compression: body.integer(&fields::OUTPUT_COMPRESSION)?,
        partial_images: body.integer(&fields::PARTIAL_IMAGES)?,
        priority: body.priority()?,
        metadata: body.metadata()?,
        user: body.text(&fields::USER)?,
        ..GenerationRequest::default()
    };
    if let Some(user) = &request.user
        && user.chars().count() > USER_CHARS
    {
        return Err(invalid(fields::USER.name, &format!("at most {USER_CHARS} characters"), user));
    }
    body.image_to_image(&mut request)?;
    request.strength = body.strength()?;
    request.size = body.size(&mut request.warnings)?;
    let delivery = Delivery {
        response_format: body.response_format()?,
        stream: body.flag(&fields::STREAM)?.unwrap_or(false),
        asynchronous: body.flag(&fields::ASYNC)?.unwrap_or(false),
    };
    // All pictures are opaque, so what is left of the values is honoured.
    body.background()?;
    // There is no result cache, so both values are honoured; only the type is checked.
    body.flag(&fields::CACHE)?;
    body.warn_of_the_rest(&mut request.warnings);
    request.spelling = std::mem::take(&mut body.spelling);
    Ok((request, delivery))
}

/// A body whose fields are taken out one by one.
struct Body {
    left: Map<String, Value>,
    /// Fields that came under an alias: (the field's own name, as written).
    spelling: Vec<(&'static str, &'static str)>,
}

impl Body {
    fn new(mut left: Map<String, Value>) -> Self {
        left.retain(|_, value| !value.is_null());
        Self { left, spelling: Vec::new() }
    }

    /// Takes a field out under whichever of its names it came.
    fn take(&mut self, field: &Field) -> Result<Option<Value>, RequestError> {
        let mut taken: Option<(&'static str, Value)> = None;
        for name in field.names() {
            let Some(value) = self.left.remove(name) else { continue };
            match &taken {
                None => {
                    if name != field.name {
                        self.spelling.push((field.name, name));
                    }
                    taken = Some((name, value));
                }
                Some((_, first)) if *first == value => {}
                Some((first, _)) => {
                    return Err(RequestError::Contradiction {
                        param: name.into(),
                        other: (*first).into(),
                        hint: "they are one field under two names, with different values; send one".into(),
                    });
                }
            }
        }
        Ok(taken.map(|(_, value)| value))
    }

    fn refuse_unsupported(&mut self) -> Result<(), RequestError> {
        for field in FIELDS.iter().filter(|field| field.kind == Kind::Unsupported) {
            for name in field.names() {
                match self.left.remove(name) {
                    None => {}
                    // An empty list or object asks for nothing.
                    Some(Value::Array(list)) if list.is_empty() => {}
                    Some(Value::Object(object)) if object.is_empty() => {}
                    Some(_) => {
                        return Err(RequestError::Unsupported {
                            param: name.into(),
                            why: format!("{}; leave it out", field.about),
                        });
                    }
                }
            }
        }
        Ok(())
    }

    fn text(&mut self, field: &Field) -> Result<Option<String>, RequestError> {
        match self.take(field)? {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(field.name, "a string", &other)),
        }
    }

    fn flag(&mut self, field: &Field) -> Result<Option<bool>, RequestError> {
        match self.take(field)? {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong_type(field.name, "true or false", &other)),
        }
    }

    fn integer(&mut self, field: &Field) -> Result<Option<u64>, RequestError> {
        self.take(field)?.map(|value| integer(field.name, &value)).transpose()
    }

    fn number(&mut self, field: &Field) -> Result<Option<f64>, RequestError> {
        match self.take(field)? {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| wrong_type(field.name, "a number", &value)),
        }
    }

    fn numbers(&mut self, field: &Field) -> Result<Option<Vec<f64>>, RequestError> {
        let Some(value) = self.take(field)? else { return Ok(None) };
        let wrong = || wrong_type(field.name, "a list of one number or more", &value);
        let list = value.as_array().filter(|list| !list.is_empty()).ok_or_else(wrong)?;
        list.iter().map(|number| number.as_f64().ok_or_else(wrong)).collect::<Result<_, _>>().map(Some)
    }

    fn sampling(&mut self) -> Result<SamplingOptions, RequestError> {
        Ok(SamplingOptions {
            eta: self.number(&fields::ETA)?,
            // A number too large for the machine is out of every range, which the resolver says.
            order: self.integer(&fields::ORDER)?.map(|order| usize::try_from(order).unwrap_or(usize::MAX)),
            solver: self.text(&fields::SOLVER)?,
            shift: self.number(&fields::SHIFT)?,
            noise: self.one_of(&fields::NOISE)?.and_then(|name| NoiseSource::find(&name)),
            timesteps: self.numbers(&fields::TIMESTEPS)?,
            sigmas: self.numbers(&fields::SIGMAS)?,
            guidance_rescale: self.number(&fields::GUIDANCE_RESCALE)?,
        })
    }

    fn one_of(&mut self, field: &Field) -> Result<Option<String>, RequestError> {
        let Kind::OneOf(names) = field.kind else { return self.text(field) };
        let Some(text) = self.text(field)? else { return Ok(None) };
        if names.contains(&text.as_str()) {
            Ok(Some(text))
        } else {
            Err(invalid(field.name, &format!("one of {}", names.join(", ")), &text))
        }
    }

    fn long_prompt(&mut self) -> Result<Option<LongPrompt>, RequestError> {
        Ok(self.one_of(&fields::LONG_PROMPT)?.map(|name| match name.as_str() {
            "chunk" => LongPrompt::Chunk,
            _ => LongPrompt::Truncate,
        }))
    }

    /// The field as the caller wrote it.
    fn written(&self, field: &Field) -> &'static str {
        let written = self.spelling.iter().find(|(name, _)| *name == field.name);
        written.map_or(field.name, |(_, written)| *written)
    }

    fn one_picture(&mut self, field: &Field) -> Result<Option<Picture>, RequestError> {
        self.take(field)?.map(|value| picture(field.name, self.written(field), None, value)).transpose()
    }

    /// A picture or a list of them; an empty list asks for nothing.
    fn pictures(&mut self, field: &Field) -> Result<Vec<Picture>, RequestError> {
        let list = match self.take(field)? {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) => list,
            Some(value) => return Ok(vec![picture(field.name, self.written(field), None, value)?]),
        };
        if list.len() > MAX_PICTURES {
            return Err(invalid(field.name, &format!("at most {MAX_PICTURES} pictures"), &list.len().to_string()));
        }
        let several = list.len() > 1;
        let numbered = (1..).zip(list);
        let one = |(number, value)| picture(field.name, self.written(field), several.then_some(number), value);
        numbered.map(one).collect()
    }

    /// The fields of image to image as one object.
    fn image_to_image(&mut self, request: &mut GenerationRequest) -> Result<(), RequestError> {
        const NAME: &str = fields::IMAGE_TO_IMAGE.name;
        const URL: &str = "image_to_image.init_image_url";
        const WANTED: &str = "{\"init_image_url\": …, \"strength\": …}";
        let mut parts = match self.take(&fields::IMAGE_TO_IMAGE)? {
            None => return Ok(()),
            Some(Value::Object(parts)) => parts,
            Some(other) => return Err(wrong_type(NAME, WANTED, &other)),
        };
        parts.retain(|_, value| !value.is_null());
        if parts.is_empty() {
            return Ok(());
        }
        let url = parts.remove("init_image_url").ok_or_else(|| RequestError::Missing { param: URL.into() })?;
        let strength = parts.remove(fields::STRENGTH.name);
        if let Some(unknown) = parts.keys().next() {
            return Err(invalid(&format!("{NAME}.{}", quoted(unknown)), "one of init_image_url, strength", unknown));
        }
        if !request.images.is_empty() {
            return Err(RequestError::Contradiction {
                param: NAME.into(),
                other: self.written(&fields::IMAGE).into(),
                hint: "both name the picture to start from; send one".into(),
            });
        }
        request.images = vec![picture(URL, URL, None, url)?];
        if let Some(strength) = strength
            && let Some(before) = self.left.insert(fields::STRENGTH.name.into(), strength.clone())
            && before != strength
        {
            return Err(RequestError::Contradiction {
                param: format!("{NAME}.{}", fields::STRENGTH.name),
                other: fields::STRENGTH.name.into(),
                hint: "they are one field with different values; send one".into(),
            });
        }
        Ok(())
    }

    /// `strength`, or what is left of 1 beside `image_strength`.
    fn strength(&mut self) -> Result<Option<f64>, RequestError> {
        let strength = self.number(&fields::STRENGTH)?;
        let Some(kept) = self.number(&fields::IMAGE_STRENGTH)? else { return Ok(strength) };
        let name = fields::IMAGE_STRENGTH.name;
        if !(0.0..=1.0).contains(&kept) {
            return Err(RequestError::InvalidValue {
                param: name.into(),
                wanted: "a number from 0 to 1".into(),
                asked: kept.to_string(),
            });
        }
        match strength {
            // Written as decimals, the two do not add up exactly.
            Some(strength) if (strength + kept - 1.0).abs() > 1e-6 => Err(RequestError::Contradiction {
                param: name.into(),
                other: self.written(&fields::STRENGTH).into(),
                hint: "what is kept and what is drawn anew add up to 1; send one".into(),
            }),
            Some(strength) => Ok(Some(strength)),
            None => {
                self.spelling.push((fields::STRENGTH.name, name));
                Ok(Some(1.0 - kept))
            }
        }
    }

    fn output_format(&mut self) -> Result<Option<OutputFormat>, RequestError> {
        if self.left.get("output_format").and_then(Value::as_str) == Some("avif") {
            return Err(RequestError::Unsupported {
                param: "output_format".into(),
                why: "avif files are not built yet; possible are png, jpeg, webp".into(),
            });
        }
        let name = self.one_of(&fields::OUTPUT_FORMAT)?;
        Ok(name.and_then(|name| OutputFormat::ALL.into_iter().find(|format| format.name() == name)))
    }

    fn background(&mut self) -> Result<(), RequestError> {
        if self.left.get("background").and_then(Value::as_str) == Some("transparent") {
            return Err(RequestError::Unsupported {
                param: "background".into(),
                why: "the models make opaque pictures; possible are auto, opaque".into(),
            });
        }
        self.one_of(&fields::BACKGROUND).map(drop)
    }

    fn priority(&mut self) -> Result<Option<Priority>, RequestError> {
        Ok(self.one_of(&fields::PRIORITY)?.map(|name| match name.as_str() {
            "low" => Priority::Low,
            "high" => Priority::High,
            _ => Priority::Normal,
        }))
    }

    fn response_format(&mut self) -> Result<Option<ResponseFormat>, RequestError> {
        Ok(self.one_of(&fields::RESPONSE_FORMAT)?.map(|name| match name.as_str() {
            "url" => ResponseFormat::Url,
            _ => ResponseFormat::B64Json,
        }))
    }

    fn metadata(&mut self) -> Result<BTreeMap<String, String>, RequestError> {
        let name = fields::METADATA.name;
        let entries = match self.take(&fields::METADATA)? {
            None => return Ok(BTreeMap::new()),
            Some(Value::Object(entries)) => entries,
            Some(other) => return Err(wrong_type(name, "an object of strings", &other)),
        };
        if entries.len() > METADATA_ENTRIES {
            return Err(invalid(name, &format!("at most {METADATA_ENTRIES} entries"), &entries.len().to_string()));
        }
        let mut metadata = BTreeMap::new();
        for (key, value) in entries {
            let Value::String(value) = value else {
                return Err(wrong_type(&format!("{name}.{}", quoted(&key)), "a string", &value));
            };
            if key.chars().count() > METADATA_KEY_CHARS {
                return Err(invalid(
                    name,
                    &format!("an object whose keys have at most {METADATA_KEY_CHARS} characters"),
                    &key,
                ));
            }
            if value.chars().count() > METADATA_VALUE_CHARS {
                let wanted = format!("at most {METADATA_VALUE_CHARS} characters");
                return Err(invalid(&format!("{name}.{key}"), &wanted, &value));
            }
            metadata.insert(key, value);
        }
        Ok(metadata)
    }

    fn size(&mut self, warnings: &mut Vec<String>) -> Result<SizeAsked, RequestError> {
        let size = self.take(&fields::SIZE)?.map(|value| size(fields::SIZE.name, value)).transpose()?;
        let (width, height) = (self.side(&fields::WIDTH)?, self.side(&fields::HEIGHT)?);
        let aspect = self.text(&fields::ASPECT_RATIO)?.map(|text| aspect(&text)).transpose()?;

        let sides = match (width, height) {
            (Some(width), Some(height)) => Some(SizeAsked::Exact(Size { width, height })),
            (Some(width), None) => Some(SizeAsked::Width(width)),
            (None, Some(height)) => Some(SizeAsked::Height(height)),
            (None, None) => None,
        };
        // Together's clients send width and height beside a size and mean the size.
        let asked = match (size, sides) {
            (Some(size @ SizeAsked::Exact(_)), sides) => {
                if sides.is_some_and(|sides| sides != size) {
                    warnings.push("`width` and `height` were ignored: `size` was sent too".into());
                }
                size
            }
            (_, Some(sides)) => sides,
            (size, None) => size.unwrap_or_default(),
        };
        match (asked, aspect) {
            (asked, None) => Ok(asked),
            (SizeAsked::Native, Some((across, down))) => Ok(SizeAsked::Aspect(across, down)),
            (_, Some(_)) => Err(RequestError::Contradiction {
                param: fields::ASPECT_RATIO.name.into(),
                other: if sides.is_some() && size.is_none() { "width".into() } else { "size".into() },
                hint: "send a size or a ratio".into(),
            }),
        }
    }

    fn side(&mut self, field: &Field) -> Result<Option<u32>, RequestError> {
        self.take(field)?.map(|value| side(field.name, &value)).transpose()
    }

    fn warn_of_the_rest(&mut self, warnings: &mut Vec<String>) {
        let unknown = self.left.len();
        for name in self.left.keys().take(UNKNOWN_NAMED) {
            let near = FIELDS
                .iter()
                .flat_map(Field::names)
                .map(|known| (strsim::jaro_winkler(known, &quoted(name)), known))
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .filter(|(likeness, _)| *likeness > 0.85);
            let hint = near.map(|(_, known)| format!("; did you mean `{known}`?")).unwrap_or_default();
            warnings.push(format!("unknown field `{}` was ignored{hint}", quoted(name)));
        }
        if unknown > UNKNOWN_NAMED {
            warnings.push(format!("{} more unknown fields were ignored", unknown - UNKNOWN_NAMED));
        }
        self.left.clear();
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
