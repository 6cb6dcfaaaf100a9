//! `/v1/models` and `/v1/samplers`: what may be named in a request.

use axum::Json;
use axum::extract::{Path, State};
use easel_models::samplers::{SamplerInfo, catalogue};
use easel_models::{Abilities, Fit, ModelCard, Size, Sizes};
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::dialects;
use super::doc::Doc;
use super::errors::{ApiError, Code};
use super::routes::{Access, Routes};
use crate::config::Role;
use crate::engine::{LoadingStatus, ModelStatus, Peaks};

pub(crate) fn routes() -> Routes {
    Routes::new(dialects::openai_shape)
        .schema::<ModelReply>()
        .schema::<ModelList>()
        .schema::<SamplerList>()
        .get(
            "/v1/models",
            Access::Needs(Role::Read),
            Doc::new("Models", "List the models").about("OpenAI's list, with what each model can do.").ok("ModelList"),
            list,
        )
        .get(
            "/v1/models/{*id}",
            Access::Needs(Role::Read),
            Doc::new("Models", "Get a model")
                .path("id", "string", "Its name, an alias, or a vendor's name that means it; slashes may be encoded.")
                .ok("Model")
                .errors(&[Code::ModelNotFound]),
            show,
        )
        .get(
            "/v1/samplers",
            Access::Needs(Role::Read),
            Doc::new("Models", "List the samplers and the schedules that go with each").ok("SamplerList"),
            samplers,
        )
}

/// A model: what OpenAI's clients read, and what it can do.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Model)]
pub(crate) struct ModelReply {
    id: String,
    /// `model`
    object: &'static str,
    /// Unix seconds.
    created: i64,
    owned_by: &'static str,
    /// Whether requests that name no model get this one.
    default: bool,
    /// Further names of it.
    aliases: Vec<String>,
    /// `unloaded` (the first request has it loaded), `loading`, `ready`, `unloading`, or `failed`.
    state: &'static str,
    /// Why it could not be loaded, of a model that failed; a later request has it tried again.
    error: Option<String>,
    /// How far it is loaded, while it is: `done` and `total` in bytes, and whether it is `fetching` them over the network.
    #[schema(value_type = Option<Object>)]
    loading: Option<LoadingStatus>,
    /// Bytes that its weights take in memory.
    weight_bytes: u64,
    /// Whether it is never unloaded.
    pinned: bool,
    /// The most bytes that it took so far, its weights included: `predicted` from the shapes, and `seen`.
    #[schema(value_type = Object)]
    peaks: Peaks,
    family: String,
    /// One sentence for people; may be empty.
    description: String,
    /// What it can draw, of a model that knows only a few things; empty when it is not so limited.
    subjects: Vec<String>,
    sizes: SizesReply,
    /// `exact`: other sizes are refused. `resize`: rendered at the nearest size and resampled.
    fit: &'static str,
    /// What a request that names nothing gets.
    defaults: Defaults,
    /// The samplers that it can be used with.
    samplers: Vec<String>,
    abilities: AbilitiesReply,
    /// Tokens that the text encoder takes, its start and end marks included.
    context_tokens: usize,
    /// Weights in all parts together.
    parameters: u64,
    /// The type that the denoiser computes in.
    dtype: String,
}

/// What a request that names nothing gets.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Defaults {
    width: u32,
    height: u32,
    steps: usize,
    guidance: f64,
    sampler: String,
}

/// The sizes that a model makes.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = Sizes)]
pub(crate) enum SizesReply {
    /// Sides that are multiples of a number, in a range.
    Any {
        /// What both sides are a multiple of.
        multiple: u32,
        /// The shortest side.
        min: u32,
        /// The longest side.
        max: u32,
    },
    /// Only these, as `"WIDTHxHEIGHT"`.
    List(Vec<String>),
}

/// The tasks and fields that a model has a use for.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Abilities)]
#[allow(clippy::struct_excessive_bools, reason = "each is one independent yes or no")]
pub(crate) struct AbilitiesReply {
    negative_prompt: bool,
    clip_skip: bool,
    /// `image` with `strength`.
    image_to_image: bool,
    /// `image` with `mask`.
    inpaint: bool,
    /// `image` is looked at and changed as the prompt says.
    edit: bool,
    /// Pictures that `image` may be a list of, where the model edits.
    references: usize,
    /// It cannot do without `image`.
    needs_image: bool,
    /// It cannot do without `mask`.
    needs_mask: bool,
    true_guidance: bool,
    /// `prompt_weighting` and `long_prompt` have an effect.
    prompt_weighting: bool,
    /// `strength` where a request names none.
    strength: f64,
    /// The same with a mask.
    inpaint_strength: f64,
}

/// Every model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    /// `list`
    object: &'static str,
    data: Vec<ModelReply>,
}

/// Every sampler.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SamplerList {
    /// `list`
    object: &'static str,
    /// Each with `name`, `title`, `aliases`, `summary`, `order`, `calls_per_step`, `stochastic`, `kind`, `schedules`.
    #[schema(value_type = Vec<Object>)]
    data: &'static [SamplerInfo],
}

/// A model as it is now.
pub(crate) fn model(app: &App, name: &str, card: &ModelCard) -> ModelReply {
    let Size { width, height } = card.native;
    let ModelStatus { state, error, loading, weight_bytes, pinned, peaks } =
        app.engine.status(name).unwrap_or_default();
    ModelReply {
        id: name.into(),
        object: "model",
        created: app.started.as_second(),
        owned_by: "easel",
        default: name == app.resolver.default_model(),
        aliases: app.resolver.aliases(name).map(ToOwned::to_owned).collect(),
        state: state.name(),
        error,
        loading,
        weight_bytes,
        pinned,
        peaks,
        family: card.family.clone(),
        description: card.description.clone(),
        subjects: card.subjects.clone(),
        sizes: match &card.sizes {
            Sizes::Any { multiple, min, max } => SizesReply::Any { multiple: *multiple, min: *min, max: *max },
            Sizes::List(sizes) => SizesReply::List(sizes.iter().map(ToString::to_string).collect()),
        },
        fit: match card.fit {
            Fit::Exact => "exact",
            Fit::Resize => "resize",
        },
        defaults: Defaults { width, height, steps: card.steps, guidance: card.guidance, sampler: card.sampler.clone() },
        samplers: card.samplers.clone(),
        abilities: abilities(&card.abilities),
        context_tokens: card.context_tokens,
        parameters: card.parameters,
        dtype: card.dtype.clone(),
    }
}

impl ModelList {
    /// Every model as it is now.
    pub(crate) fn of(app: &App) -> Self {
        let data = app.resolver.models().iter().map(|(name, card)| model(app, name, card)).collect();
        Self { object: "list", data }
    }
}

fn abilities(abilities: &Abilities) -> AbilitiesReply {
    AbilitiesReply {
        negative_prompt: abilities.negative_prompt,
        clip_skip: abilities.clip_skip,
        image_to_image: abilities.image_to_image,
        inpaint: abilities.inpaint,
        edit: abilities.edit,
        references: if abilities.edit { abilities.references.max(1) } else { 0 },
        needs_image: abilities.needs_image || abilities.needs_mask,
        needs_mask: abilities.needs_mask,
        true_guidance: abilities.true_guidance,
        prompt_weighting: abilities.prompt_weighting,
        strength: abilities.strengths.image_to_image,
        inpaint_strength: abilities.strengths.inpaint,
    }
}

async fn list(State(app): State<App>) -> Json<ModelList> {
    Json(ModelList::of(&app))
}

async fn show(State(app): State<App>, Path(id): Path<String>) -> Result<Json<ModelReply>, ApiError> {
    let (name, card) = app.resolver.model(Some(&id))?;
    Ok(Json(model(&app, name, card)))
}

async fn samplers() -> Json<SamplerList> {
    Json(SamplerList { object: "list", data: catalogue() })
}
