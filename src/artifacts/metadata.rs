//! How a picture was made, written into its file.

use serde_json::{Value, json};

use super::ArtifactError;
use crate::request::{OutputFormat, ResolvedRequest};

/// The two forms in which a PNG carries its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Metadata {
    /// The text that A1111 writes and that its tools, and many others, read.
    pub(super) parameters: String,
    /// Our request as JSON, from which the picture can be made again.
    pub(super) easel: String,
}

impl Metadata {
    /// The metadata of picture `image` of a request: that of a request for this picture alone.
    pub(super) fn of(request: &ResolvedRequest, image: usize) -> Result<Self, ArtifactError> {
        let alone = alone(request, image);
        Ok(Self { parameters: parameters(&alone), easel: recipe(&alone)?.to_string() })
    }

    /// PNG text chunks by keyword.
    pub(super) fn chunks(&self) -> [(&'static str, &str); 2] {
        [("parameters", &self.parameters), ("easel", &self.easel)]
    }
}

/// The request that makes one picture of `request` alone.
fn alone(request: &ResolvedRequest, image: usize) -> ResolvedRequest {
    ResolvedRequest { n: 1, seed: request.seed.wrapping_add(image as u64), ..request.clone() }
}

/// What decides how the picture looks, and nothing else: not whose it is, and not how it was waited for. Two
/// requests for one picture give the same file.
fn recipe(request: &ResolvedRequest) -> Result<Value, ArtifactError> {
    let mut asked = serde_json::to_value(request).map_err(|error| ArtifactError::Codec(error.to_string()))?;
    if let Some(fields) = asked.as_object_mut() {
        for field in ["n", "partial_images", "priority", "user"] {
            fields.remove(field);
        }
        if request.output_format == OutputFormat::Png {
            fields.remove("output_compression");
        }
    }
    Ok(json!({ "version": env!("CARGO_PKG_VERSION"), "request": asked }))
}

/// The parameters of a request's first picture in A1111's text form.
pub fn parameters(request: &ResolvedRequest) -> String {
    let size = |width: u32, height: u32| format!("{width}x{height}");
    let mut fields = vec![
        ("Steps", request.steps.to_string()),
        ("Sampler", sampler(&request.sampler).to_owned()),
        ("Schedule type", schedule(&request.schedule).to_owned()),
        ("CFG scale", request.guidance.to_string()),
        ("Seed", request.seed.to_string()),
        ("Size", size(request.width, request.height)),
        ("Model", request.model.clone()),
    ];
    if (request.rendered.width, request.rendered.height) != (request.width, request.height) {
        fields.push(("Rendered size", size(request.rendered.width, request.rendered.height)));
    }
    if let Some(strength) = request.strength {
        fields.push(("Denoising strength", strength.to_string()));
    }
    if let Some(refiner) = &request.refiner {
        fields.extend([("Refiner", refiner.model.clone()), ("Refiner switch at", refiner.start.to_string())]);
    }
    if request.clip_skip > 0 {
        // A1111 counts the layer that is used, from 1; diffusers those that are left out.
        fields.push(("Clip skip", (request.clip_skip + 1).to_string()));
    }
    fields.push(("Version", format!("easel {}", env!("CARGO_PKG_VERSION"))));
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name}: {}", quoted(value))).collect();
    let negative = request.negative_prompt.as_deref().filter(|text| !text.is_empty());
    let mut lines = vec![plain(&request.prompt)];
    lines.extend(negative.map(|text| format!("Negative prompt: {}", plain(text))));
    lines.push(fields.join(", "));
    lines.join("\n")
}

/// The text without NUL, which ends a PNG's text early.
fn plain(text: &str) -> String {
    text.replace('\0', "")
}

/// A1111 writes a value as a JSON string where it holds what separates values.
fn quoted(value: &str) -> String {
    if value.contains([',', ':', '\n', '"', '\0']) { json!(value).to_string() } else { value.to_owned() }
}

/// A sampler's name in A1111's list; our own where it has none.
fn sampler(name: &str) -> &str {
    match name {
        "ddim" => "DDIM",
        "euler" => "Euler",
        "euler_a" => "Euler a",
        "heun" => "Heun",
        "lms" => "LMS",
        "dpm2" => "DPM2",
        "dpm2_a" => "DPM2 a",
        "dpmpp_2m" => "DPM++ 2M",
        "dpmpp_2m_sde" => "DPM++ 2M SDE",
        "dpmpp_sde" => "DPM++ SDE",
        "dpmpp_2s_a" => "DPM++ 2S a",
        "dpmpp_3m_sde" => "DPM++ 3M SDE",
        "pndm" | "plms" => "PLMS",
        "unipc" => "UniPC",
        "lcm" => "LCM",
        other => other,
    }
}

/// A schedule's name in A1111's list; our own where it has none.
fn schedule(name: &str) -> &str {
    match name {
        "default" => "Automatic",
        "karras" => "Karras",
        "exponential" => "Exponential",
        "beta" => "Beta",
        "sgm_uniform" => "SGM Uniform",
        "simple" => "Simple",
        "normal" => "Normal",
        other => other,
    }
}
