//! What a model is and can do, as the server tells its users.

use serde::{Deserialize, Serialize};

use crate::samplers::{SchedulerConfig, StrengthRule};

/// A picture's size in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Size {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// The sizes that a model can make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sizes {
    /// Any size whose sides are multiples of `multiple`, from `min` to `max` pixels a side.
    Any {
        /// What both sides are a multiple of.
        multiple: u32,
        /// The shortest side.
        min: u32,
        /// The longest side.
        max: u32,
    },
    /// Only these.
    List(Vec<Size>),
}

impl Sizes {
    /// Whether `size` can be made exactly.
    pub fn contains(&self, size: Size) -> bool {
        match self {
            Self::Any { multiple, min, max } => {
                [size.width, size.height].iter().all(|side| side % multiple == 0 && (min..=max).contains(&side))
            }
            Self::List(sizes) => sizes.contains(&size),
        }
    }

    /// The size nearest to `asked` that can be made: the nearest aspect ratio first, then the nearest area.
    pub fn nearest(&self, asked: Size) -> Size {
        match self {
            Self::Any { multiple, min, max } => {
                let snap = |side: u32| {
                    let low = min.next_multiple_of(*multiple);
                    let high = max - max % multiple;
                    let down = side - side % multiple;
                    let near = if side - down < multiple.div_ceil(2) { down } else { down.saturating_add(*multiple) };
                    near.clamp(low, high.max(low))
                };
                Size { width: snap(asked.width), height: snap(asked.height) }
            }
            Self::List(sizes) => {
                let ratio = |s: &Size| f64::from(s.width.max(1)) / f64::from(s.height.max(1));
                let area = |s: &Size| f64::from(s.width.max(1)) * f64::from(s.height.max(1));
                let distance = |s: &Size| ((ratio(s) / ratio(&asked)).ln().abs(), (area(s) / area(&asked)).ln().abs());
                sizes
                    .iter()
                    .copied()
                    .min_by(|a, b| {
                        let (a, b) = (distance(a), distance(b));
                        a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
                    })
                    .unwrap_or(asked)
            }
        }
    }
}

/// What happens to a request for a size that the model cannot make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// It is refused, and the error names the nearest size.
    #[default]
    Exact,
    /// The nearest size is rendered and resampled to the asked one, with a warning.
    Resize,
}

/// The tasks and fields that a model has a use for.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "each is one independent yes or no of the public model list")]
pub struct Abilities {
    /// `negative_prompt` has an effect (at guidance above 1, or above 0 where `guided_from_zero`).
    pub negative_prompt: bool,
    /// Guidance is counted from 0 instead of 1 (Z-Image).
    #[serde(default)]
    pub guided_from_zero: bool,
    /// `guidance` has no effect: the model was distilled to need none (FLUX.1 schnell).
    #[serde(default)]
    pub fixed_guidance: bool,
    /// `clip_skip` has an effect.
    pub clip_skip: bool,
    /// `image` with `strength`.
    pub image_to_image: bool,
    /// `image` with `mask`.
    pub inpaint: bool,
    /// `image` is looked at and edited as the prompt says, instead of being denoised from (FLUX.1 Kontext, FLUX.2).
    #[serde(default)]
    pub edit: bool,
    /// `true_guidance` has an effect, with a negative prompt, beside the guidance that the model is told.
    #[serde(default)]
    pub true_guidance: bool,
    /// `guidance_rescale` has an effect.
    #[serde(default)]
    pub guidance_rescale: bool,
    /// `prompt_weighting` and `long_prompt` have an effect.
    #[serde(default)]
    pub prompt_weighting: bool,
    /// It cannot draw from a prompt alone: `image` is required (SDXL's refiner).
    #[serde(default)]
    pub needs_image: bool,
    /// It paints into pictures only: `image` and `mask` are required (UNets for inpainting, FLUX.1 Fill).
    #[serde(default)]
    pub needs_mask: bool,
    /// Pictures that an editing model looks at at once, at most; 0 is as good as 1.
    #[serde(default)]
    pub references: usize,
    /// What their sides may be.
    #[serde(skip)]
    pub reference_sides: ReferenceSides,
    /// `strength` when a request names none, and how it is counted.
    #[serde(default)]
    pub strengths: Strengths,
}

/// What the sides of a picture may be that an editing model looks at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReferenceSides {
    /// Pixels of each, at least.
    pub least: u32,
    /// The longer one, in units of the shorter one, at most.
    pub longest: u32,
}

impl Default for ReferenceSides {
    fn default() -> Self {
        Self { least: 1, longest: u32::MAX }
    }
}

impl ReferenceSides {
    /// Whether a picture of this size can be looked at.
    pub fn take(&self, size: Size) -> bool {
        let (short, long) = (size.width.min(size.height), size.width.max(size.height));
        short >= self.least && long <= short.saturating_mul(self.longest)
    }
}

impl std::fmt::Display for ReferenceSides {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "with sides of at least {} pixels", self.least)?;
        if self.longest < u32::MAX { write!(f, ", one at most {} times the other", self.longest) } else { Ok(()) }
    }
}

/// The `strength` of requests with `image` that name none. The default is what diffusers' pipelines of Stable Diffusion
/// have; those of other families differ.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Strengths {
    /// Without a mask.
    pub image_to_image: f64,
    /// With one.
    pub inpaint: f64,
    /// How the model's pipelines turn a strength into a first step.
    #[serde(skip)]
    pub rule: StrengthRule,
}

impl Strengths {
    /// How a strength is counted, with or without a mask.
    pub fn rule(&self, masked: bool) -> StrengthRule {
        match self.rule {
            // There is one inpainting pipeline for Stable Diffusion's models, consistency models among them.
            StrengthRule::Spread if masked => StrengthRule::Truncate,
            rule => rule,
        }
    }
}

impl Default for Strengths {
    fn default() -> Self {
        Self { image_to_image: 0.8, inpaint: 1.0, rule: StrengthRule::default() }
    }
}

/// A model as `/v1/models` shows it and as requests are validated against.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// The family's short name, such as `sd1`.
    pub family: String,
    /// What people should know of it; empty when nothing is known beyond the family.
    pub description: String,
    /// What it can draw, of a model that knows only a few things; empty when it is not so limited.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subjects: Vec<String>,
    /// The size made when a request names none.
    pub native: Size,
    /// The sizes that can be made.
    pub sizes: Sizes,
    /// What happens to other sizes.
    pub fit: Fit,
    /// Denoising steps when a request names none.
    pub steps: usize,
    /// Guidance when a request names none.
    pub guidance: f64,
    /// The sampler used when a request names none, from the model's scheduler file.
    pub sampler: String,
    /// The canonical names of the samplers that the model can be used with.
    pub samplers: Vec<String>,
    /// What the model can be asked for.
    pub abilities: Abilities,
    /// Tokens that the text encoder takes, its start and end marks included.
    pub context_tokens: usize,
    /// Layers of the CLIP text encoder, which `clip_skip` counts off from the end; 0 where there is none.
    #[serde(default)]
    pub clip_layers: usize,
    /// Weights in all parts together.
    pub parameters: u64,
    /// The type that the denoiser computes in: `f32`, `bf16` or `f16`.
    pub dtype: String,
    /// The scheduler file as the model's pipeline reads it: what samplers are set up from, and checked against.
    #[serde(skip)]
    pub scheduler: SchedulerConfig,
}
