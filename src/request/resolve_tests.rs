use easel_models::{Abilities, Sizes};

use super::*;
use crate::request::OutputFormat;

fn card(sizes: Sizes, fit: Fit) -> ModelCard {
    ModelCard {
        family: "sd1".into(),
        description: String::new(),
        subjects: Vec::new(),
        native: Size { width: 512, height: 512 },
        sizes,
        fit,
        steps: 20,
        guidance: 7.5,
        sampler: "ddim".into(),
        samplers: vec!["ddim".into(), "euler".into(), "dpmpp_2m".into()],
        abilities: Abilities { negative_prompt: true, clip_skip: true, guidance_rescale: true, ..Abilities::default() },
        context_tokens: 77,
        clip_layers: 12,
        parameters: 1,
        dtype: "f32".into(),
        scheduler: easel_models::samplers::SchedulerConfig::default(),
    }
}

fn any() -> Sizes {
    Sizes::Any { multiple: 8, min: 64, max: 1024 }
}

fn resolver_with(configured: &ModelsConfig) -> Resolver {
    let tiny = ModelCard {
        native: Size { width: 128, height: 128 },
        ..card(Sizes::List(vec![Size { width: 128, height: 128 }]), Fit::Resize)
    };
    let plain = ModelCard { abilities: Abilities::default(), ..card(any(), Fit::Exact) };
    let models = vec![
        ("big".into(), card(any(), Fit::Exact)),
        ("tiny".into(), tiny),
        ("plain".into(), plain),
        ("o/wned".into(), card(any(), Fit::Exact)),
    ];
    Resolver::new(models, Limits::default(), configured).unwrap()
}

fn resolver() -> Resolver {
    let mut configured = ModelsConfig::default();
    configured.aliases.insert("dall-e-3".into(), "tiny".into());
    configured.aliases.insert("corp/house".into(), "tiny".into());
    resolver_with(&configured)
}

fn ask(change: impl FnOnce(&mut GenerationRequest)) -> Result<(ResolvedRequest, Vec<String>), RequestError> {
    let mut request = GenerationRequest { prompt: Some("a red circle".into()), ..GenerationRequest::default() };
    change(&mut request);
    resolver().resolve(request)
}

#[test]
fn an_absent_field_takes_the_cards_default() {
    let (resolved, warnings) = ask(|_| {}).unwrap();
    assert!(warnings.is_empty());
    let seed = resolved.seed;
    let expected = ResolvedRequest {
        model: "big".into(),
        prompt: "a red circle".into(),
        negative_prompt: None,
        n: 1,
        width: 512,
        height: 512,
        rendered: Size { width: 512, height: 512 },
        steps: 20,
        guidance: 7.5,
        seed,
        sampler: "ddim".into(),
        schedule: "default".into(),
        sampling: Default::default(),
        clip_skip: 0,
        true_guidance: None,
        prompt_weighting: false,
        long_prompt: LongPrompt::Truncate,
        refiner: None,
        images: Vec::new(),
        mask: None,
        strength: None,
        output_format: OutputFormat::Png,
        output_compression: 100,
        partial_images: 0,
        priority: Priority::Normal,
        user: None,
    };
    assert_eq!(resolved, expected);
}

#[test]
fn random_seeds_differ_and_survive_a_json_client_even_for_the_tenth_picture() {
    let seeds: Vec<u64> = (0..50).map(|_| ask(|_| {}).unwrap().0.seed).collect();
    assert!(seeds.iter().all(|seed| seed + 10 < 1 << 53));
    assert!(seeds.iter().any(|seed| *seed != seeds[0]));
}

#[test]
fn model_names_resolve_as_documented() {
    let resolver = resolver();
    let cases = [
        (None, Ok("big")),
        (Some("tiny"), Ok("tiny")),
        (Some("o/wned"), Ok("o/wned")),
        (Some("someone/tiny"), Ok("tiny")),
        (Some("someone/tiny/deploy"), Ok("tiny")),
        (Some("corp/house"), Ok("tiny")),
        (Some("dall-e-3"), Ok("tiny")),
        (Some("openai/dall-e-3"), Ok("tiny")),
        (Some("gpt-image-1"), Ok("big")),
        (Some("black-forest-labs/FLUX.1-schnell"), Ok("big")),
        (Some("wned"), Err(())),
        (Some("nothing"), Err(())),
        (Some(""), Err(())),
    ];
    for (asked, expected) in cases {
        let got = resolver.model(asked).map(|(name, _)| name).map_err(|error| {
            assert_eq!((error.code(), error.param()), ("model_not_found", "model"));
        });
        assert_eq!(got, expected, "{asked:?}");
    }
}

#[test]
fn an_operator_can_switch_vendor_names_off() {
    let resolver = resolver_with(&ModelsConfig { any_name: false, ..ModelsConfig::default() });
    assert!(resolver.model(Some("dall-e-3")).is_err());
    assert!(resolver.model(Some("tiny")).is_ok());
}

#[test]
fn a_configuration_that_names_no_served_model_is_refused_by_key() {
    let models = vec![("big".to_owned(), card(any(), Fit::Exact))];
    let mut configured = ModelsConfig { default: Some("bog".into()), ..ModelsConfig::default() };
    let error = Resolver::new(models.clone(), Limits::default(), &configured).unwrap_err();
    assert_eq!(error.key, "models.default");
    configured.default = None;
    configured.aliases.insert("x".into(), "y".into());
    let error = Resolver::new(models, Limits::default(), &configured).unwrap_err();
    assert_eq!(error.key, "models.aliases.x");
    assert!(Resolver::new(Vec::new(), Limits::default(), &ModelsConfig::default()).is_err());
}

#[test]
fn values_outside_of_their_range_are_refused_by_name() {
    type Change = fn(&mut GenerationRequest);
    let cases: &[(&str, Change)] = &[
        ("prompt", |r| r.prompt = None),
        ("prompt", |r| r.prompt = Some("x".repeat(32_001))),
        ("negative_prompt", |r| r.negative_prompt = Some("x".repeat(32_001))),
        ("n", |r| r.n = Some(0)),
        ("n", |r| r.n = Some(11)),
        ("n", |r| r.n = Some(u64::MAX)),
        ("steps", |r| r.steps = Some(0)),
        ("steps", |r| r.steps = Some(151)),
        ("guidance", |r| r.guidance = Some(-0.1)),
        ("guidance", |r| r.guidance = Some(100.1)),
        ("guidance", |r| r.guidance = Some(f64::NAN)),
        ("clip_skip", |r| r.clip_skip = Some(13)),
        ("output_compression", |r| r.output_compression = Some(101)),
        ("partial_images", |r| r.partial_images = Some(4)),
        ("sampler", |r| r.sampler = Some("magic".into())),
        ("size", |r| r.size = SizeAsked::Exact(Size { width: u32::MAX, height: u32::MAX })),
        ("size", |r| r.size = SizeAsked::Exact(Size { width: 0, height: 8 })),
        ("aspect_ratio", |r| r.size = SizeAsked::Aspect(1e300, 1e-300)),
        ("aspect_ratio", |r| r.size = SizeAsked::Aspect(1000.0, 1.0)),
    ];
    for (param, change) in cases {
        let error = ask(change).unwrap_err();
        assert_eq!((error.param(), error.code()), (*param, "invalid_request"), "{error}");
    }
    let edge = ask(|r| {
        (r.n, r.steps, r.guidance) = (Some(10), Some(150), Some(0.0));
        r.prompt = Some(String::new());
    });
    assert_eq!(edge.unwrap().0.n, 10);
}

#[test]
fn an_error_names_the_field_as_the_caller_spelled_it() {
    let error = ask(|r| {
        r.steps = Some(0);
        r.spelling = vec![("steps", "num_inference_steps")];
    });
    assert_eq!(error.unwrap_err().param(), "num_inference_steps");
}

#[test]
fn a_size_that_an_exact_model_cannot_make_names_the_nearest() {
    let (resolved, _) = ask(|r| r.size = SizeAsked::Exact(Size { width: 72, height: 88 })).unwrap();
    assert_eq!((resolved.width, resolved.height), (72, 88));
    let error = ask(|r| r.size = SizeAsked::Exact(Size { width: 513, height: 700 })).unwrap_err();
    assert_eq!((error.code(), error.param()), ("unsupported_size", "size"));
    assert!(error.to_string().contains("512x704"), "{error}");
    let error = ask(|r| r.size = SizeAsked::Width(513)).unwrap_err();
    assert_eq!((error.code(), error.param()), ("unsupported_size", "width"));
}

#[test]
fn a_resizing_model_delivers_exactly_the_asked_size_with_a_warning() {
    let (resolved, warnings) = ask(|r| {
        r.model = Some("tiny".into());
        r.size = SizeAsked::Exact(Size { width: 1024, height: 1792 });
    })
    .unwrap();
    assert_eq!((resolved.width, resolved.height), (1024, 1792));
    assert_eq!(resolved.rendered, Size { width: 128, height: 128 });
    assert_eq!(warnings.len(), 1);
    let (_, warnings) = ask(|r| {
        r.model = Some("tiny".into());
        r.size = SizeAsked::Exact(Size { width: 128, height: 128 });
    })
    .unwrap();
    assert!(warnings.is_empty());
}

#[test]
fn a_ratio_keeps_the_models_pixel_count() {
    let (resolved, warnings) = ask(|r| r.size = SizeAsked::Aspect(16.0, 9.0)).unwrap();
    assert_eq!((resolved.width, resolved.height), (680, 384));
    assert!(warnings.is_empty());
    // The largest side is 1024, so 10:1 would have to become another ratio.
    let error = ask(|r| r.size = SizeAsked::Aspect(10.0, 1.0)).unwrap_err();
    assert_eq!((error.code(), error.param()), ("unsupported_size", "aspect_ratio"));
    let (resolved, warnings) = ask(|r| {
        r.model = Some("tiny".into());
        r.size = SizeAsked::Aspect(4.0, 1.0);
    })
    .unwrap();
    assert_eq!((resolved.width, resolved.height, warnings.len()), (256, 64, 1));
}

#[test]
fn what_a_model_has_no_use_for_is_refused_and_never_dropped() {
    for (param, change) in [
        ("negative_prompt", (|r| r.negative_prompt = Some("blurry".into())) as fn(&mut GenerationRequest)),
        ("clip_skip", |r| r.clip_skip = Some(1)),
    ] {
        let error = ask(|r| {
            r.model = Some("plain".into());
            change(r);
        })
        .unwrap_err();
        assert_eq!((error.code(), error.param()), ("unsupported_parameter", param));
    }
    let quiet = ask(|r| {
        r.model = Some("plain".into());
        (r.negative_prompt, r.clip_skip) = (Some(String::new()), Some(0));
    });
    assert!(quiet.is_ok());
}

#[test]
fn all_layers_of_the_models_text_encoder_can_be_skipped_and_no_more() {
    assert_eq!(ask(|r| r.clip_skip = Some(12)).unwrap().0.clip_skip, 12);
    let error = ask(|r| r.clip_skip = Some(13)).unwrap_err();
    assert_eq!(error.param(), "clip_skip");
    assert!(error.to_string().contains("from 0 to 12"), "{error}");
}

#[test]
fn a_negative_prompt_without_guidance_is_warned_of() {
    let (_, warnings) = ask(|r| (r.negative_prompt, r.guidance) = (Some("blurry".into()), Some(1.0))).unwrap();
    assert_eq!(warnings, ["`negative_prompt` has no effect at guidance 1; it has above 1"]);
}

#[test]
fn guidance_is_counted_as_the_model_counts_it_and_never_ignored_in_silence() {
    let asked = |abilities: Abilities, guidance| {
        let models = vec![("it".into(), ModelCard { abilities, ..card(any(), Fit::Exact) })];
        let resolver = Resolver::new(models, Limits::default(), &ModelsConfig::default()).unwrap();
        let negative_prompt = abilities.negative_prompt.then(|| "blurry".to_owned());
        let prompt = Some("a red circle".to_owned());
        let request = GenerationRequest { prompt, negative_prompt, guidance, ..GenerationRequest::default() };
        resolver.resolve(request).unwrap().1
    };
    let from_zero = Abilities { negative_prompt: true, guided_from_zero: true, ..Abilities::default() };
    assert!(asked(from_zero, Some(0.5)).is_empty());
    assert_eq!(asked(from_zero, Some(0.0)), ["`negative_prompt` has no effect at guidance 0; it has above 0"]);
    let fixed = Abilities { fixed_guidance: true, ..Abilities::default() };
    assert_eq!(asked(fixed, Some(3.5)), ["`guidance` has no effect: it was distilled to need none"]);
    assert!(asked(fixed, None).is_empty());
    let told = Abilities { negative_prompt: true, true_guidance: true, ..Abilities::default() };
    assert_eq!(asked(told, Some(3.5)), ["`negative_prompt` has no effect without `true_guidance` above 1"]);
}

#[test]
fn a_rescale_is_refused_before_there_is_a_job_where_the_model_has_none() {
    let rescale = |r: &mut GenerationRequest| r.sampling.guidance_rescale = Some(0.7);
    assert!(ask(rescale).is_ok());
    let error = ask(|r| {
        rescale(r);
        r.model = Some("plain".into());
    });
    assert_eq!(error.unwrap_err().param(), "guidance_rescale");
}

#[test]
fn every_spelling_of_a_sampler_and_its_schedule_resolves_to_the_canonical_names() {
    for (sampler, schedule, expected) in [
        (None, None, ("ddim", "default")),
        (Some("euler"), None, ("euler", "default")),
        (Some("EulerDiscreteScheduler"), Some("karras"), ("euler", "karras")),
        (Some("DPM++ 2M"), Some("SGM Uniform"), ("dpmpp_2m", "sgm_uniform")),
        (Some("DPM++ 2M Karras"), None, ("dpmpp_2m", "karras")),
        (Some("dpmpp_2m"), Some("automatic"), ("dpmpp_2m", "default")),
        (None, Some("simple"), ("ddim", "simple")),
    ] {
        let (resolved, warnings) = ask(|r| {
            (r.sampler, r.schedule) = (sampler.map(Into::into), schedule.map(Into::into));
        })
        .unwrap();
        assert_eq!((resolved.sampler.as_str(), resolved.schedule.as_str()), expected);
        assert!(warnings.is_empty());
    }
}

#[test]
fn an_impossible_sampler_or_schedule_is_refused_with_what_is_possible() {
    for (sampler, schedule, param, possible) in [
        (Some("magic"), None, "sampler", "dpmpp_2m"),
        // Known, but not among this model's.
        (Some("euler_a"), None, "sampler", "dpmpp_2m"),
        (Some("ddim"), Some("karras"), "schedule", "sgm_uniform"),
        (Some("euler"), Some("magic"), "schedule", "karras"),
        (None, Some("exponential"), "schedule", "simple"),
    ] {
        let error = ask(|r| {
            (r.sampler, r.schedule) = (sampler.map(Into::into), schedule.map(Into::into));
        })
        .unwrap_err();
        assert_eq!((error.param(), error.code()), (param, "invalid_request"));
        assert!(error.to_string().contains(possible), "{error}");
    }
}

#[test]
fn solver_options_are_checked_by_the_sampler_before_there_is_a_job() {
    let with = |sampler: &str, options: SamplingOptions| {
        ask(|request| (request.sampler, request.sampling) = (Some(sampler.into()), options))
    };
    let eta = || SamplingOptions { eta: Some(0.5), ..SamplingOptions::default() };
    assert_eq!(with("ddim", eta()).unwrap().0.sampling, eta());
    let error = with("euler", eta()).unwrap_err();
    assert_eq!((error.code(), error.param()), ("invalid_request", "eta"));
    assert!(error.to_string().contains("ddim"), "{error}");

    let sigmas = |list: &[f64]| SamplingOptions { sigmas: Some(list.to_vec()), ..SamplingOptions::default() };
    let falling = sigmas(&[10.0, 3.0, 1.0, 0.0]);
    let (resolved, _) = with("euler", falling.clone()).unwrap();
    assert_eq!((resolved.steps, resolved.sampling_spec().sigmas), (3, falling.sigmas.clone()));
    let steps = ask(|r| (r.sampler, r.steps, r.sampling) = (Some("euler".into()), Some(7), falling));
    assert_eq!(steps.unwrap_err().param(), "steps");
    assert_eq!(with("euler", sigmas(&[1.0, 3.0, 0.0])).unwrap_err().param(), "sigmas");
}

#[test]
fn a_flow_model_whose_schedule_shifts_with_the_picture_is_asked_for_any_size() {
    let json = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": true, "base_shift": 0.5,
        "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}"#;
    let scheduler = easel_models::samplers::SchedulerConfig::from_json(json).unwrap();
    let (sampler, samplers) = ("flow_euler".to_owned(), vec!["flow_euler".to_owned()]);
    let flow = ModelCard { scheduler, sampler, samplers, ..card(any(), Fit::Exact) };
    let resolver = Resolver::new(vec![("flow".into(), flow)], Limits::default(), &ModelsConfig::default()).unwrap();
    for side in [64, 512] {
        let size = SizeAsked::Exact(Size { width: side, height: 64 });
        let request = GenerationRequest { prompt: Some("a cat".into()), size, ..GenerationRequest::default() };
        assert_eq!(resolver.resolve(request).unwrap().0.width, side);
    }
}
