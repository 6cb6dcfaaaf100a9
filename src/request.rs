//! The one canonical request that every dialect translates into.

mod error;
pub mod fields;
mod names;
mod parse;
mod pictures;
mod refiner;
mod render;
mod resolve;
mod task;
mod values;

pub use error::RequestError;
pub use parse::parse;
pub use pictures::{Input, Inputs, LongPrompt, MaskInput, Painted, Picture, Source};
pub use refiner::Refiner;
pub use resolve::{Resolver, ResolverError};
pub use values::parse_size;

use std::collections::BTreeMap;

use easel_models::Size;
use easel_models::samplers::NoiseSource;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A generation request as it was asked: only the fields that the caller named are set.
///
/// A dialect fills this in and nothing else; [`Resolver`] checks it against the model's card and the
/// configured limits, and fills in every default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationRequest {
    /// A model's name, an alias, or a well-known vendor name.
    pub model: Option<String>,
    /// What to draw.
    pub prompt: Option<String>,
    /// What to stay away from. `None` differs from "" in some families.
    pub negative_prompt: Option<String>,
    /// Pictures to make; picture i uses seed + i.
    pub n: Option<u64>,
    /// The picture's size.
    pub size: SizeAsked,
    /// Denoising steps.
    pub steps: Option<u64>,
    /// Guidance scale.
    pub guidance: Option<f64>,
    /// Seed of the first picture.
    pub seed: Option<u64>,
    /// Sampler by canonical name or alias.
    pub sampler: Option<String>,
    /// Schedule by name.
    pub schedule: Option<String>,
    /// What else is set of the sampler.
    pub sampling: SamplingOptions,
    /// CLIP layers left out at the end.
    pub clip_skip: Option<u64>,
    /// Classifier-free guidance of models that are told `guidance` as a number.
    pub true_guidance: Option<f64>,
    /// Whether parentheses weigh words.
    pub prompt_weighting: Option<bool>,
    /// What happens to a long prompt.
    pub long_prompt: Option<LongPrompt>,
    /// A model that draws the end.
    pub refiner: Option<String>,
    /// From which share of the schedule on.
    pub refiner_start: Option<f64>,
    /// What to start from, or what an editing model looks at.
    pub images: Vec<Picture>,
    /// Further pictures for an editing model.
    pub references: Vec<Picture>,
    /// Which part of the picture is painted anew.
    pub mask: Option<Picture>,
    /// How `mask` says that.
    pub painted: Painted,
    /// How much of the picture is drawn anew.
    pub strength: Option<f64>,
    /// What was found of the pictures. Not the caller's to say: whoever fetches them fills it in.
    pub inputs: Inputs,
    /// The files' format.
    pub output_format: Option<OutputFormat>,
    /// Quality of lossy formats, 0..=100.
    pub output_compression: Option<u64>,
    /// Previews wanted while the picture is made, 0..=3.
    pub partial_images: Option<u64>,
    /// Place in the waiting list, bounded by the key's class.
    pub priority: Option<Priority>,
    /// Given back unchanged.
    pub metadata: BTreeMap<String, String>,
    /// For usage and quotas.
    pub user: Option<String>,
    /// What the caller should know: fields that were ignored, and the like.
    pub warnings: Vec<String>,
    /// Fields that came under an alias, as (own name, as written): errors name them as the caller did.
    pub spelling: Vec<(&'static str, &'static str)>,
}

/// How the caller wants the answer; it has no influence on the pictures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delivery {
    /// What carries the pictures in a synchronous reply.
    pub response_format: Option<ResponseFormat>,
    /// Server-sent events instead of one reply.
    pub stream: bool,
    /// A job at once instead of the pictures later.
    pub asynchronous: bool,
}

/// What carries a picture in a synchronous reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseFormat {
    /// An address to fetch it from.
    Url,
    /// The file itself, in base64.
    B64Json,
}

/// How a request names its size.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum SizeAsked {
    /// Not at all, or as "auto": the model's own.
    #[default]
    Native,
    /// Width and height in pixels.
    Exact(Size),
    /// The width only; the height is the model's own.
    Width(u32),
    /// The height only; the width is the model's own.
    Height(u32),
    /// A ratio of width to height, with the model's own pixel count.
    Aspect(f64, f64),
}

/// What a request may set of its sampler besides name and schedule; `None` is the model's or the method's own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct SamplingOptions {
    /// How much noise a step adds anew, where the method has it: DDIM's eta and its like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta: Option<f64>,
    /// The solver's order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<usize>,
    /// The solver's variant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solver: Option<String>,
    /// The shift of a flow model's schedule towards noise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift: Option<f64>,
    /// Where the noise comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub noise: Option<NoiseSource>,
    /// Explicit timesteps instead of a schedule, one a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timesteps: Option<Vec<f64>>,
    /// Explicit sigmas instead of a schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigmas: Option<Vec<f64>>,
    /// diffusers' `guidance_rescale` (Lin et al., 2023, section 3.4).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_rescale: Option<f64>,
}

/// A picture file's format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OutputFormat {
    /// Lossless; carries its parameters.
    #[default]
    Png,
    /// Lossy.
    Jpeg,
    /// Lossy.
    Webp,
}

impl OutputFormat {
    /// Every format, for messages that name the allowed values.
    pub const ALL: [Self; 3] = [Self::Png, Self::Jpeg, Self::Webp];

    /// The name in requests, which is also the file extension.
    pub fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
        }
    }

    /// The media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }
}

/// A request's place in the waiting list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// After everyone else.
    Low,
    /// The rule.
    #[default]
    Normal,
    /// Before everyone else.
    High,
}

impl Priority {
    /// The name in requests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

/// A request as understood: valid for its model, with every default filled in. It is stored with its
/// job, so that after a crash the same pictures are made from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResolvedRequest {
    /// The model's name in `/v1/models`.
    pub model: String,
    /// What to draw.
    pub prompt: String,
    /// What to stay away from; `None` where the caller gave none.
    pub negative_prompt: Option<String>,
    /// Pictures to make.
    pub n: u32,
    /// The delivered picture's width.
    pub width: u32,
    /// The delivered picture's height.
    pub height: u32,
    /// The size that the model renders; differs from the delivered one only where the card's fit is `resize`.
    #[schema(value_type = Object)]
    pub rendered: Size,
    /// Denoising steps.
    pub steps: usize,
    /// diffusers' `guidance_scale`.
    pub guidance: f64,
    /// Seed of the first picture; picture i uses seed + i (wrapping).
    pub seed: u64,
    /// The sampler's canonical name.
    pub sampler: String,
    /// The schedule's name.
    pub schedule: String,
    /// What else was set of the sampler.
    #[serde(flatten)]
    pub sampling: SamplingOptions,
    /// CLIP layers left out at the end.
    pub clip_skip: usize,
    /// Classifier-free guidance of a model that is told `guidance` as a number; `None` is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub true_guidance: Option<f64>,
    /// Whether parentheses weigh words.
    #[serde(default, skip_serializing_if = "is_default")]
    pub prompt_weighting: bool,
    /// What happens to a prompt that is too long.
    #[serde(default, skip_serializing_if = "is_default")]
    pub long_prompt: LongPrompt,
    /// The model that draws the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refiner: Option<Refiner>,
    /// The picture to start from, or those that an editing model looks at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<Input>,
    /// Which part of the picture is painted anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<MaskInput>,
    /// How much of the picture is drawn anew; `None` where nothing starts from a picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// The files' format.
    pub output_format: OutputFormat,
    /// Quality of lossy formats, 0..=100.
    pub output_compression: u8,
    /// Previews wanted while a picture is made.
    pub partial_images: u32,
    /// Place in the waiting list.
    pub priority: Priority,
    /// For usage and quotas.
    pub user: Option<String>,
}

impl ResolvedRequest {
    /// The files that its job needs.
    pub fn inputs(&self) -> impl Iterator<Item = &Input> {
        self.images.iter().chain(self.mask.iter().map(|mask| &mask.file))
    }

    /// The delivered pictures' size.
    pub fn delivered(&self) -> Size {
        Size { width: self.width, height: self.height }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
