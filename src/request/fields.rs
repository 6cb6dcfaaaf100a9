//! The native request's fields as data: the parser, the unknown-field hints and the OpenAPI document read this one table.

/// What a field takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A string.
    Text,
    /// A whole number in this range; a higher bound may come from the configuration.
    Integer {
        /// The least.
        min: u64,
        /// The most, where it is the same for every server.
        max: Option<u64>,
    },
    /// A number in this range.
    Number {
        /// The least.
        min: f64,
        /// The most.
        max: f64,
    },
    /// A list of numbers, as many as there may be steps and one more.
    Numbers,
    /// `true` or `false`.
    Flag,
    /// One of these strings.
    OneOf(&'static [&'static str]),
    /// `"WIDTHxHEIGHT"`, `"auto"` or `{"width": …, "height": …}`.
    Size,
    /// `"16:9"`.
    Aspect,
    /// An object of strings.
    Labels,
    /// A picture: an address, a data URI or base64.
    Picture,
    /// A picture or a list of them.
    Pictures,
    /// `{"init_image_url": …, "strength": …}`.
    ImageToImage,
    /// Refused by name: the feature is not there yet, and ignoring it would give another picture than asked.
    Unsupported,
}

/// One field of the native request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Field {
    /// Its own name, which replies use.
    pub name: &'static str,
    /// Other spellings that are taken.
    pub aliases: &'static [&'static str],
    /// What it takes.
    pub kind: Kind,
    /// One sentence for the API document; for an unsupported field, what is missing.
    pub about: &'static str,
}

impl Field {
    /// Every spelling, the field's own first.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }
}

const fn field(name: &'static str, aliases: &'static [&'static str], kind: Kind, about: &'static str) -> Field {
    Field { name, aliases, kind, about }
}

macro_rules! fields {
    ($($ident:ident = $value:expr;)*) => {
        $(
            #[doc = concat!("The field of this name; see [`FIELDS`].")]
            pub const $ident: Field = $value;
        )*
        /// Every field that is understood, in the order of the API document.
        pub const FIELDS: &[Field] = &[$($ident),*];
    };
}

fields! {
    MODEL = field("model", &[], Kind::Text,
        "A name from `/v1/models`, an alias, or a well-known vendor name, which means the default model.");
    PROMPT = field("prompt", &[], Kind::Text,
        "What to draw. Required. The job routes take an empty one; `/v1/images/generations` refuses it, as OpenAI does.");
    NEGATIVE_PROMPT = field("negative_prompt", &[], Kind::Text, "What to stay away from.");
    N = field("n", &["num_images", "num_outputs"], Kind::Integer { min: 1, max: None },
        "Pictures to make; picture i uses seed + i.");
    SIZE = field("size", &["image_size"], Kind::Size, "The picture's size; absent or `auto`, the model's own.");
    WIDTH = field("width", &[], Kind::Integer { min: 1, max: None }, "Pixels across, instead of `size`.");
    HEIGHT = field("height", &[], Kind::Integer { min: 1, max: None }, "Pixels down, instead of `size`.");
    ASPECT_RATIO = field("aspect_ratio", &[], Kind::Aspect, "Width to height, with the model's own pixel count.");
    STEPS = field("steps", &["num_inference_steps"], Kind::Integer { min: 1, max: None }, "Denoising steps.");
    GUIDANCE = field("guidance", &["guidance_scale", "cfg_scale"], Kind::Number { min: 0.0, max: 100.0 },
        "How closely to follow the prompt; 1 or less switches classifier-free guidance off.");
    SEED = field("seed", &[], Kind::Integer { min: 0, max: None },
        "Seed of the first picture; absent, a random one, which the reply tells.");
    SAMPLER = field("sampler", &["sampler_name"], Kind::Text, "One of `/v1/samplers`, by name or alias.");
    SCHEDULE = field("schedule", &["scheduler"], Kind::Text, "A noise schedule that `/v1/samplers` lists for the sampler.");
    ETA = field("eta", &[], Kind::Number { min: 0.0, max: 1.0 },
        "How much noise a step adds anew, for the samplers that have it.");
    ORDER = field("order", &["solver_order"], Kind::Integer { min: 1, max: Some(4) },
        "The solver's order, for the samplers that have several.");
    SOLVER = field("solver", &["solver_type"], Kind::Text, "The solver's variant, for the samplers that have several.");
    SHIFT = field("shift", &[], Kind::Number { min: 0.01, max: 100.0 }, "The shift of a flow model's schedule towards noise.");
    NOISE = field("noise", &[], Kind::OneOf(&["torch_cpu", "torch_cuda", "brownian"]),
        "Where the noise comes from: torch's CPU generator (the rule), its CUDA generator, or one Brownian path.");
    TIMESTEPS = field("timesteps", &[], Kind::Numbers, "Explicit timesteps instead of a schedule, one a step, falling.");
    SIGMAS = field("sigmas", &[], Kind::Numbers,
        "Explicit sigmas instead of a schedule, falling: one a step and the last one's end; for flow models without the end.");
    GUIDANCE_RESCALE = field("guidance_rescale", &[], Kind::Number { min: 0.0, max: 1.0 },
        "Rescales the guided prediction towards the prompt's own spread (Lin et al., 2023); 0 is none.");
    CLIP_SKIP = field("clip_skip", &[], Kind::Integer { min: 0, max: None },
        "CLIP layers left out at the end, as diffusers counts: 1 is the last but one.");
    TRUE_GUIDANCE = field("true_guidance", &["true_cfg_scale"], Kind::Number { min: 0.0, max: 100.0 },
        "Classifier-free guidance, by the negative prompt, of models that are told `guidance` as a number; 1 is none.");
    PROMPT_WEIGHTING = field("prompt_weighting", &[], Kind::Flag,
        "Whether `(word:1.3)`, `(word)` and `[word]` weigh words; false, they are read as they stand.");
    LONG_PROMPT = field("long_prompt", &[], Kind::OneOf(&["truncate", "chunk"]),
        "What happens to a prompt longer than the text encoder's context: its end is left out, or it is encoded in chunks.");
    REFINER = field("refiner", &[], Kind::Text,
        "A second model, by name, that draws the end of the schedule, as SDXL's refiner does.");
    REFINER_START = field("refiner_start", &["denoising_end"], Kind::Number { min: 0.0, max: 1.0 },
        "From which share of the schedule on `refiner` draws; 0.8.");
    IMAGE = field("image", &["images", "init_image", "image_url"], Kind::Pictures,
        "The picture to start from, or with `mask` to paint into; an editing model looks at it, and may take a list. An \
         address, a data URI or base64 of a png, jpeg or webp file.");
    IMAGE_TO_IMAGE = field("image_to_image", &[], Kind::ImageToImage,
        "The same as an object: `init_image_url` is `image`, `strength` is `strength`.");
    REFERENCE_IMAGES = field("reference_images", &[], Kind::Pictures, "Further pictures for an editing model to look at.");
    MASK = field("mask", &["mask_image", "mask_url"], Kind::Picture,
        "Which part of `image` is painted anew: white is, black is kept. Brought to the picture's size.");
    STRENGTH = field("strength", &["denoising_strength"], Kind::Number { min: 0.0, max: 1.0 },
        "How much of `image` is drawn anew: a little keeps most of it, 1 keeps nothing.");
    IMAGE_STRENGTH = field("image_strength", &[], Kind::Number { min: 0.0, max: 1.0 },
        "How much of `image` stays, as Stability counts: 1 - `strength`.");
    OUTPUT_FORMAT = field("output_format", &[], Kind::OneOf(&["png", "jpeg", "webp"]), "The files' format.");
    OUTPUT_COMPRESSION = field("output_compression", &[], Kind::Integer { min: 0, max: Some(100) },
        "Quality of jpeg and webp files.");
    PARTIAL_IMAGES = field("partial_images", &[], Kind::Integer { min: 0, max: Some(3) },
        "Previews sent while the picture is made.");
    RESPONSE_FORMAT = field("response_format", &[], Kind::OneOf(&["url", "b64_json", "base64"]),
        "Whether a synchronous reply carries addresses or the pictures themselves.");
    BACKGROUND = field("background", &[], Kind::OneOf(&["auto", "opaque"]),
        "Pictures are opaque; `transparent` is refused.");
    STREAM = field("stream", &[], Kind::Flag, "Answer with server-sent events.");
    ASYNC = field("async", &[], Kind::Flag, "Answer at once with a job; as the header `Prefer: respond-async`.");
    PRIORITY = field("priority", &[], Kind::OneOf(&["low", "normal", "high"]),
        "Place in the waiting list; bounded by the key's class.");
    METADATA = field("metadata", &[], Kind::Labels, "Given back unchanged: at most 64 strings of at most 1024 characters.");
    USER = field("user", &[], Kind::Text, "Your name for the person who asks; at most 256 characters.");
    CACHE = field("cache", &[], Kind::Flag, "`false`: never answer from a result cache. This server has none, so every picture is made anew.");

    CONTROL = field("control", &[], Kind::Unsupported, "ControlNet is not built yet");
    LORAS = field("loras", &["image_loras"], Kind::Unsupported, "LoRA adapters are not built yet");
    TEMPLATE = field("template", &[], Kind::Unsupported, "prompt templates are not built yet");
    VARIABLES = field("variables", &[], Kind::Unsupported, "prompt templates are not built yet");
    WEBHOOK_URL = field("webhook_url", &["webhook"], Kind::Unsupported,
        "webhooks are not built yet; watch the job at `/v1/jobs/{id}/events`");
}

/// The field of this name, under any of its spellings.
pub fn find(name: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.names().any(|known| known == name))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_spelling_means_two_fields() {
        let mut seen = BTreeSet::new();
        for name in FIELDS.iter().flat_map(Field::names) {
            assert!(seen.insert(name), "{name} is there twice");
        }
    }
}
