use serde_json::json;

use super::*;

fn parse_body(body: Value) -> Result<(GenerationRequest, Delivery), RequestError> {
    let Value::Object(map) = body else { panic!("a test body is an object") };
    parse(map)
}

fn with(field: &str, value: &Value) -> Value {
    let mut body = json!({"prompt": "a red circle"});
    body[field] = value.clone();
    body
}

/// A good value and bad values for each kind of field.
fn examples(field: &Field) -> (Vec<Value>, Vec<Value>) {
    let fallback = vec![json!({"a": 1}), json!([1])];
    let (good, bad) = match field.kind {
        Kind::Text => (vec![json!("text"), json!("")], vec![json!(1), json!(true)]),
        Kind::Integer { .. } => (
            vec![json!(3), json!(3.0)],
            vec![json!("3"), json!(2.5), json!(-1), json!(true), json!(1e300), json!(-1e300)],
        ),
        Kind::Number { min, max } => {
            (vec![json!(max), json!((min + max) / 3.0), json!(min)], vec![json!("7.5"), json!(false)])
        }
        Kind::Numbers => (vec![json!([3, 2.5, 0])], vec![json!(3), json!("3"), json!(["3"]), json!([[1]]), json!([])]),
        Kind::Flag => (vec![json!(true), json!(false)], vec![json!("true"), json!(1)]),
        Kind::OneOf(names) => {
            (names.iter().map(|name| json!(name)).collect(), vec![json!("gif"), json!(""), json!(1), json!(true)])
        }
        Kind::Size => (
            vec![json!("auto"), json!("64x72"), json!({"width": 64, "height": 72})],
            vec![
                json!(64),
                json!("64"),
                json!("0x64"),
                json!("-1x64"),
                json!("64x"),
                json!("64x64x64"),
                json!("99999999999x1"),
                json!("+6x7"),
                json!({"width": 64}),
                json!({"width": 64, "height": "72"}),
                json!({"width": 64, "height": 72, "depth": 3}),
                json!(true),
            ],
        ),
        Kind::Aspect => (
            vec![json!("16:9"), json!("1.85:1")],
            vec![json!("16"), json!("0:1"), json!("a:b"), json!(1.5), json!("inf:1")],
        ),
        Kind::Labels => (
            vec![json!({}), json!({"a": "b"})],
            vec![json!("a"), json!({"a": null}), json!({"a": {"b": "c"}}), json!({"a": "b".repeat(2000)}), json!(3)],
        ),
        Kind::Picture => {
            (pictures(), vec![json!(""), json!(1), json!("ftp://x/y"), json!("data:,x"), json!({"a": "b"}), json!([])])
        }
        Kind::Pictures => (
            pictures().into_iter().chain([json!(["aGFsbG8=", "https://example.com/a.png"])]).collect(),
            vec![
                json!(""),
                json!(true),
                json!("file:///etc/passwd"),
                json!("data:image/png,x"),
                json!([1]),
                json!([[]]),
            ],
        ),
        Kind::ImageToImage => (
            vec![json!({}), json!({"init_image_url": "https://example.com/a.png", "strength": 0.5})],
            vec![
                json!(1),
                json!([]),
                json!({"strength": 1}),
                json!({"init_image_url": 1}),
                json!({"init_image_url": "aaaa", "x": 1}),
            ],
        ),
        Kind::Unsupported => {
            (vec![json!([]), json!({})], vec![json!("x"), json!(0.5), json!({"a": "b"}), json!(["x"])])
        }
    };
    let bad = match field.kind {
        Kind::Size
        | Kind::Labels
        | Kind::Numbers
        | Kind::Picture
        | Kind::Pictures
        | Kind::ImageToImage
        | Kind::Unsupported => bad,
        _ => bad.into_iter().chain(fallback).collect(),
    };
    (good, bad)
}

fn pictures() -> Vec<Value> {
    let names = [
        "https://example.com/a.png",
        "HTTP://example.com/a",
        "data:image/png;base64,aGFsbG8=",
        "aGFsbG8=",
        "/9j/4AAQ",
        "/files/1.x/job/0.png",
    ];
    let objects = [
        json!({"image_url": "https://example.com/a.png"}),
        json!({"image_url": {"url": "aGFsbG8="}}),
        json!({"b64_json": "aGFsbG8="}),
    ];
    names.iter().map(|name| json!(name)).chain(objects).collect()
}

#[test]
fn every_field_takes_good_values_and_refuses_bad_ones_by_the_name_that_was_sent() {
    for field in FIELDS {
        let (good, bad) = examples(field);
        assert!(!good.is_empty() && !bad.is_empty());
        for name in field.names() {
            for value in &good {
                let (request, _) = parse_body(with(name, value)).unwrap_or_else(|e| panic!("{name} {value}: {e}"));
                assert_eq!(request.warnings, Vec::<String>::new(), "{name} {value}");
            }
            for value in &bad {
                let error = parse_body(with(name, value)).expect_err(&format!("{name} {value}"));
                let named = error.param() == name || error.param().starts_with(&format!("{name}."));
                assert!(named, "{name} {value}: {error:?}");
                let code = if field.kind == Kind::Unsupported { "unsupported_parameter" } else { "invalid_request" };
                assert_eq!(error.code(), code, "{name} {value}");
            }
        }
    }
}

#[test]
fn null_is_as_good_as_absent_for_every_field() {
    for name in FIELDS.iter().flat_map(Field::names).filter(|name| *name != "prompt") {
        let (request, delivery) = parse_body(with(name, &Value::Null)).unwrap();
        let (plain, plain_delivery) = parse_body(json!({"prompt": "a red circle"})).unwrap();
        assert_eq!((request, delivery), (plain, plain_delivery), "{name}");
    }
}

#[test]
fn every_alias_means_its_field() {
    for field in FIELDS.iter().filter(|field| field.kind != Kind::Unsupported) {
        let value = &examples(field).0[0];
        let (own, _) = parse_body(with(field.name, value)).unwrap();
        for alias in field.aliases {
            let (mut aliased, _) = parse_body(with(alias, value)).unwrap();
            assert_eq!(aliased.spelling, [(field.name, *alias)]);
            aliased.spelling.clear();
            // A picture remembers how its field was written, for the errors that come when it is fetched.
            for picture in aliased.images.iter_mut().chain(&mut aliased.references).chain(&mut aliased.mask) {
                assert_eq!(std::mem::replace(&mut picture.field, field.name), *alias);
            }
            assert_eq!(aliased, own, "{alias}");
        }
    }
}

#[test]
fn one_field_under_two_names_must_have_one_value() {
    assert_eq!(parse_body(json!({"prompt": "x", "steps": 5, "num_inference_steps": 5})).unwrap().0.steps, Some(5));
    let error = parse_body(json!({"prompt": "x", "steps": 5, "num_inference_steps": 6})).unwrap_err();
    assert_eq!(error.param(), "num_inference_steps");
}

#[test]
fn a_body_with_every_field_is_understood() {
    let (request, delivery) = parse_body(json!({
        "model": "m", "prompt": "p", "negative_prompt": "q", "n": 2, "size": "64x72", "steps": 5, "guidance": 3.5,
        "seed": u64::MAX, "sampler": "euler", "schedule": "karras", "clip_skip": 1, "output_format": "webp",
        "output_compression": 80, "partial_images": 2, "priority": "high", "metadata": {"a": "b"}, "user": "u",
        "response_format": "base64", "stream": true, "async": false, "cache": false,
    }))
    .unwrap();
    assert_eq!(
        request,
        GenerationRequest {
            model: Some("m".into()),
            prompt: Some("p".into()),
            negative_prompt: Some("q".into()),
            n: Some(2),
            size: SizeAsked::Exact(Size { width: 64, height: 72 }),
            steps: Some(5),
            guidance: Some(3.5),
            seed: Some(u64::MAX),
            sampler: Some("euler".into()),
            schedule: Some("karras".into()),
            clip_skip: Some(1),
            output_format: Some(OutputFormat::Webp),
            output_compression: Some(80),
            partial_images: Some(2),
            priority: Some(Priority::High),
            metadata: BTreeMap::from([("a".into(), "b".into())]),
            user: Some("u".into()),
            ..GenerationRequest::default()
        }
    );
    assert_eq!(
        delivery,
        Delivery { response_format: Some(ResponseFormat::B64Json), stream: true, asynchronous: false }
    );
}

#[test]
fn sizes_can_be_said_in_five_ways() {
    let asked = |body| parse_body(body).map(|(request, _)| request.size);
    let exact = SizeAsked::Exact(Size { width: 64, height: 72 });
    assert_eq!(asked(json!({"prompt": "", "width": 64, "height": 72})).unwrap(), exact);
    assert_eq!(asked(json!({"prompt": "", "size": "auto", "width": 64, "height": 72})).unwrap(), exact);
    assert_eq!(asked(json!({"prompt": "", "image_size": {"width": 64, "height": 72}})).unwrap(), exact);
    assert_eq!(asked(json!({"prompt": "", "width": 64})).unwrap(), SizeAsked::Width(64));
    assert_eq!(asked(json!({"prompt": "", "aspect_ratio": "16:9"})).unwrap(), SizeAsked::Aspect(16.0, 9.0));
    assert_eq!(
        asked(json!({"prompt": "", "size": "auto", "aspect_ratio": "1:1"})).unwrap(),
        SizeAsked::Aspect(1.0, 1.0)
    );
    let error = asked(json!({"prompt": "", "size": "64x72", "aspect_ratio": "1:1"})).unwrap_err();
    assert_eq!(error.param(), "aspect_ratio");
}

#[test]
fn a_size_wins_over_sides_and_says_so() {
    let (request, _) = parse_body(json!({"prompt": "", "size": "64x72", "width": 1, "height": 1})).unwrap();
    assert_eq!(request.size, SizeAsked::Exact(Size { width: 64, height: 72 }));
    assert_eq!(request.warnings.len(), 1);
}

#[test]
fn unknown_fields_are_named_in_bounded_warnings_with_a_hint() {
    let (request, _) = parse_body(json!({"prompt": "", "guidence": 3, "zzz": {}})).unwrap();
    assert_eq!(request.guidance, None);
    assert!(request.warnings.iter().any(|warning| warning.contains("`guidence`") && warning.contains("`guidance`")));
    assert!(request.warnings.iter().any(|warning| warning == "unknown field `zzz` was ignored"));

    let mut body = json!({"prompt": ""});
    for i in 0..500 {
        body[format!("{i}{}", "é".repeat(1000))] = json!(1);
    }
    let (request, _) = parse_body(body).unwrap();
    assert_eq!(request.warnings.len(), UNKNOWN_NAMED + 1);
    assert!(request.warnings.iter().all(|warning| warning.chars().count() < 200));
}

#[test]
fn avif_is_refused_as_a_feature_that_is_not_there() {
    let error = parse_body(json!({"prompt": "", "output_format": "avif"})).unwrap_err();
    assert_eq!((error.code(), error.param()), ("unsupported_parameter", "output_format"));
}

#[test]
fn a_transparent_background_is_refused_as_a_feature_that_is_not_there() {
    let error = parse_body(with("background", &json!("transparent"))).unwrap_err();
    assert_eq!((error.code(), error.param()), ("unsupported_parameter", "background"));
}

#[test]
fn a_refused_value_is_repeated_in_part_only() {
    let error = parse_body(json!({"prompt": "", "size": "x".repeat(100_000)})).unwrap_err();
    assert!(error.to_string().len() < 400);
}
