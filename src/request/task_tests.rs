use easel_models::{Abilities, ReferenceSides, Strengths};

use super::*;
use crate::config::{Limits, ModelsConfig};
use crate::request::{Input, Inputs, MaskInput, Painted, Picture, ResolvedRequest, Source};

fn card(abilities: Abilities) -> ModelCard {
    ModelCard {
        family: "sd1".into(),
        description: String::new(),
        subjects: Vec::new(),
        native: Size { width: 512, height: 512 },
        sizes: Sizes::Any { multiple: 8, min: 64, max: 1024 },
        fit: Fit::Exact,
        steps: 20,
        guidance: 7.5,
        sampler: "ddim".into(),
        samplers: vec!["ddim".into()],
        abilities,
        context_tokens: 77,
        clip_layers: 12,
        parameters: 1,
        dtype: "f32".into(),
        scheduler: easel_models::samplers::SchedulerConfig::default(),
    }
}

fn resolver() -> Resolver {
    let none = Abilities::default();
    let strengths = Strengths { image_to_image: 0.3, inpaint: 0.9, ..Strengths::default() };
    let models = [
        ("draws", none),
        ("starts", Abilities { image_to_image: true, inpaint: true, strengths, ..none }),
        (
            "edits",
            Abilities { edit: true, references: 3, reference_sides: ReferenceSides { least: 64, longest: 8 }, ..none },
        ),
        ("both", Abilities { edit: true, image_to_image: true, inpaint: true, ..none }),
        ("fills", Abilities { inpaint: true, needs_mask: true, ..none }),
        ("refines", Abilities { image_to_image: true, needs_image: true, ..none }),
    ];
    let models = models.map(|(name, abilities)| (name.to_owned(), card(abilities)));
    Resolver::new(models.into(), Limits::default(), &ModelsConfig::default()).unwrap()
}

fn input(width: u32, height: u32) -> Input {
    Input { sha256: "0".repeat(64), width, height, bytes: 1 }
}

/// A request to `model` with this many pictures that were found, and perhaps a mask.
fn with(model: &str, images: usize, mask: bool, strength: Option<f64>) -> Result<ResolvedRequest, RequestError> {
    let mask = mask.then(|| MaskInput { file: input(300, 200), painted: Painted::White });
    resolve(GenerationRequest {
        model: Some(model.into()),
        prompt: Some("p".into()),
        strength,
        inputs: Inputs { images: vec![input(300, 200); images], mask },
        ..GenerationRequest::default()
    })
}

fn resolve(request: GenerationRequest) -> Result<ResolvedRequest, RequestError> {
    resolver().resolve(request).map(|(resolved, _)| resolved)
}

#[test]
fn a_strength_that_leaves_no_step_is_refused_before_there_is_a_job() {
    for mask in [false, true] {
        let error = with("starts", 1, mask, Some(0.0)).unwrap_err();
        assert_eq!(error.param(), "strength");
        assert!(error.to_string().contains("leaves none of"), "{error}");
    }
}

#[test]
fn a_picture_that_cannot_be_looked_at_is_refused_before_there_is_a_job() {
    let edit = |(width, height)| {
        resolve(GenerationRequest {
            model: Some("edits".into()),
            prompt: Some("p".into()),
            inputs: Inputs { images: vec![input(300, 200), input(width, height)], mask: None },
            ..GenerationRequest::default()
        })
    };
    assert!(edit((64, 512)).is_ok());
    for size in [(63, 300), (64, 513)] {
        let error = edit(size).unwrap_err();
        assert_eq!(error.param(), "image");
        let possible = "with sides of at least 64 pixels, one at most 8 times the other";
        assert!(error.to_string().contains(possible), "{error}");
        assert!(error.to_string().contains(&format!("{}x{}", size.0, size.1)), "{error}");
    }
}

#[test]
fn a_strength_that_is_not_asked_for_is_that_of_the_family() {
    for (model, mask, asked, expected) in [
        ("starts", false, None, Some(0.3)),
        ("starts", true, None, Some(0.9)),
        ("starts", false, Some(1.0), Some(1.0)),
        ("both", false, Some(0.7), Some(0.7)),
        ("both", true, None, Some(1.0)),
        ("both", false, None, None),
        ("edits", false, None, None),
        ("fills", true, None, Some(1.0)),
        ("refines", false, None, Some(0.8)),
    ] {
        let resolved = with(model, 1, mask, asked).unwrap();
        assert_eq!((resolved.strength, resolved.mask.is_some()), (expected, mask), "{model}");
    }
}

#[test]
fn steps_that_are_not_asked_for_are_as_many_as_the_strength_leaves_one_of() {
    let turbo = ModelCard { steps: 1, ..card(Abilities { image_to_image: true, ..Abilities::default() }) };
    let resolver = Resolver::new(vec![("t".into(), turbo)], Limits::default(), &ModelsConfig::default()).unwrap();
    let steps = |strength: Option<f64>, asked: Option<u64>| {
        let images = vec![input(64, 64); usize::from(strength.is_some())];
        let inputs = Inputs { images, mask: None };
        let asked =
            GenerationRequest { prompt: Some("p".into()), strength, steps: asked, inputs, ..Default::default() };
        resolver.resolve(asked).map(|(resolved, _)| resolved.steps).unwrap()
    };
    assert_eq!((steps(None, None), steps(Some(1.0), None)), (1, 1));
    assert_eq!((steps(Some(0.8), None), steps(Some(0.3), None)), (2, 4));
    assert_eq!(steps(Some(0.6), Some(2)), 2);
}

#[test]
fn what_a_model_cannot_do_is_refused_by_field_and_says_who_can() {
    for (model, images, mask, strength, param, code) in [
        ("draws", 1, false, None, "image", "unsupported_parameter"),
        ("draws", 1, true, None, "mask", "unsupported_parameter"),
        ("starts", 0, true, None, "mask", "unsupported_parameter"),
        ("edits", 1, true, None, "mask", "unsupported_parameter"),
        ("edits", 1, false, Some(0.5), "strength", "unsupported_parameter"),
        ("edits", 4, false, None, "image", "invalid_request"),
        ("starts", 2, false, None, "image", "invalid_request"),
        ("both", 2, true, None, "image", "invalid_request"),
        ("fills", 1, false, None, "mask", "invalid_request"),
        ("fills", 0, false, None, "image", "invalid_request"),
        ("refines", 0, false, None, "image", "invalid_request"),
        ("starts", 1, false, Some(1.5), "strength", "invalid_request"),
    ] {
        let error = with(model, images, mask, strength).unwrap_err();
        assert_eq!((error.param(), error.code()), (param, code), "{model}: {error}");
    }
    let error = with("draws", 1, true, None).unwrap_err().to_string();
    assert_eq!(
        error,
        "`mask` is not supported: draws does not paint into pictures; of the served models starts, both, fills can"
    );
}

#[test]
fn a_request_is_refused_before_its_pictures_are_fetched() {
    let picture = || Picture { field: "init_image", number: None, source: Source::Url("https://example.com/".into()) };
    let mut request = GenerationRequest {
        model: Some("draws".into()),
        images: vec![picture()],
        spelling: vec![("image", "init_image")],
        ..GenerationRequest::default()
    };
    assert_eq!(resolver().admit(&request).unwrap_err().param(), "init_image");
    request.model = Some("starts".into());
    assert_eq!(resolver().admit(&request), Ok(()));
    request.references = vec![picture()];
    assert_eq!(resolver().admit(&request).unwrap_err().param(), "reference_images");
    request.model = Some("edits".into());
    assert_eq!(resolver().admit(&request), Ok(()));
}

#[test]
fn a_strength_without_a_picture_is_told_to_have_no_effect() {
    let request = GenerationRequest { prompt: Some("p".into()), strength: Some(0.5), ..GenerationRequest::default() };
    let (resolved, warnings) = resolver().resolve(request).unwrap();
    assert_eq!((resolved.strength, warnings.len()), (None, 1));
}

#[test]
fn a_picture_without_a_size_takes_the_others_with_sides_cut_to_multiples() {
    let start = Task::Start { strength: 0.5 };
    let mut card = card(Abilities::default());
    let of = |card: &ModelCard, task, width, height, most| {
        let (delivered, rendered) = size_of(Size { width, height }, task, card, most);
        (delivered.to_string(), rendered.to_string())
    };
    let same = |size: &str| (size.to_owned(), size.to_owned());
    assert_eq!(of(&card, start, 300, 207, u64::MAX), same("296x200"));
    assert_eq!(of(&card, start, 512, 512, u64::MAX), same("512x512"));
    // Brought down with its shape where it is too large, and up to the least side.
    assert_eq!(of(&card, start, 4000, 2000, u64::MAX), same("1024x512"));
    assert_eq!(of(&card, start, 20, 300, u64::MAX), same("64x296"));
    assert_eq!(of(&card, start, 1000, 1000, 500 * 500), same("496x496"));
    // What is looked at only lends its shape, with at most the native number of pixels.
    assert_eq!(of(&card, Task::Edit, 1024, 1024, u64::MAX), same("512x512"));
    assert_eq!(of(&card, Task::Edit, 320, 240, u64::MAX), same("320x240"));
    card.fit = Fit::Resize;
    card.sizes = Sizes::List(vec![Size { width: 64, height: 64 }, Size { width: 80, height: 48 }]);
    assert_eq!(of(&card, start, 300, 180, u64::MAX), ("300x180".into(), "80x48".into()));
}
