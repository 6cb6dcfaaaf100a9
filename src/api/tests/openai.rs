use super::jobs::path_of;
use super::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

const ROUTE: &str = "/v1/images/generations";

#[tokio::test]
async fn a_plain_request_is_answered_with_an_address_and_both_vocabularies() {
    let server = Server::start().await;
    let mut body = red();
    body["metadata"] = json!({"a": "b"});
    let reply = server.post(ROUTE, &body).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    let reply = reply.json();
    let now = Timestamp::now().as_second();
    assert!((now - 60..=now).contains(&reply["created"].as_i64().unwrap()));
    let image = &reply["data"][0];
    assert_eq!((&image["index"], &image["type"], &image["seed"]), (&json!(0), &json!("url"), &json!(7)));
    assert!(image.get("b64_json").is_none());
    for (member, expected) in [
        ("object", json!("list")),
        ("model", json!("quick")),
        ("size", json!("64x64")),
        ("quality", json!("auto")),
        ("background", json!("opaque")),
        ("output_format", json!("png")),
        ("status", json!("succeeded")),
        ("metadata", json!({"a": "b"})),
        ("warnings", json!([])),
    ] {
        assert_eq!(reply[member], expected, "{member}");
    }
    assert_eq!(reply["id"], reply["job_id"]);
    assert_eq!(reply["outputs"][0]["url"], image["url"]);
    assert!(reply["metrics"]["steps"].as_u64().unwrap() >= 4);
    let fetched = server.get(path_of(image["url"].as_str().unwrap())).await;
    assert_eq!(fetched.header("content-type"), Some("image/png"));
    assert!(fetched.bytes.starts_with(b"\x89PNG"));
}

#[tokio::test]
async fn usage_counts_prompt_tokens_and_tiles_of_sixteen_pixels() {
    let server = Server::start().await;
    let body = json!({"prompt": "a red circle", "n": 2, "size": "72x40", "response_format": "b64_json"});
    let usage = server.post(ROUTE, &body).await.json()["usage"].take();
    // 72x40 pixels are 5 x 3 tiles, twice.
    assert_eq!(
        usage,
        json!({
            "input_tokens": 3, "input_tokens_details": {"text_tokens": 3, "image_tokens": 0},
            "output_tokens": 30, "output_tokens_details": {"text_tokens": 0, "image_tokens": 30},
            "total_tokens": 33,
        })
    );
}

#[tokio::test]
async fn base64_holds_the_same_bytes_as_the_address() {
    let server = Server::start().await;
    for (format, magic) in [("png", &b"\x89PNG"[..]), ("jpeg", b"\xff\xd8"), ("webp", b"RIFF")] {
        let body = json!({"prompt": "x", "seed": 1, "output_format": format, "n": 2});
        let reply = server.post(ROUTE, &body).await.json();
        assert_eq!(reply["output_format"], format);
        for i in 0..2 {
            let image = &reply["data"][i];
            assert_eq!((image["type"].as_str(), image.get("url")), (Some("b64_json"), None));
            let file = STANDARD.decode(image["b64_json"].as_str().unwrap()).unwrap();
            assert!(file.starts_with(magic));
            assert_eq!(server.get(path_of(reply["outputs"][i]["url"].as_str().unwrap())).await.bytes, file);
        }
    }
}

#[tokio::test]
async fn picture_i_of_n_is_the_picture_of_seed_plus_i() {
    let server = Server::start().await;
    let make = |seed: u64, n: u32| {
        let body = json!({"prompt": "x", "seed": seed, "n": n, "response_format": "b64_json"});
        let server = &server;
        async move { server.post(ROUTE, &body).await.json()["data"].take() }
    };
    let three = make(u64::MAX - 1, 3).await;
    assert_eq!(
        [&three[0]["seed"], &three[1]["seed"], &three[2]["seed"]],
        [&json!(u64::MAX - 1), &json!(u64::MAX), &json!(0)]
    );
    assert_eq!(make(0, 1).await[0]["b64_json"], three[2]["b64_json"]);
    let random = make_random(&server).await;
    assert_eq!(make(random.0, 1).await[0]["b64_json"], random.1);
}

async fn make_random(server: &Server) -> (u64, Value) {
    let image =
        server.post(ROUTE, &json!({"prompt": "x", "response_format": "b64_json"})).await.json()["data"][0].take();
    (image["seed"].as_u64().unwrap(), image["b64_json"].clone())
}

#[tokio::test]
async fn vendors_fixed_sizes_are_delivered_by_a_model_that_resizes() {
    let server = Server::start().await;
    for size in ["256x256", "1024x1024", "100x37"] {
        let body = json!({"prompt": "x", "model": "house", "size": size, "response_format": "b64_json"});
        let reply = server.post(ROUTE, &body).await.json();
        assert_eq!((reply["size"].as_str(), reply["model"].as_str()), (Some(size), Some("tiny")));
        let file = STANDARD.decode(reply["data"][0]["b64_json"].as_str().unwrap()).unwrap();
        let picture = image::load_from_memory(&file).unwrap();
        assert_eq!(format!("{}x{}", picture.width(), picture.height()), size);
        assert!(reply["warnings"][0].as_str().unwrap().contains(size));
    }
}

#[tokio::test]
async fn together_and_openai_vocabularies_are_one_request() {
    let server = Server::start().await;
    let body = json!({
        "model": "black-forest-labs/FLUX.1-schnell", "prompt": "x", "width": 64, "height": 72, "steps": 2, "n": 1,
        "seed": 3, "negative_prompt": "y", "guidance": 2.5, "response_format": "base64", "disable_safety_checker": true,
    });
    let reply = server.post(ROUTE, &body).await.json();
    assert_eq!((reply["size"].as_str(), reply["data"][0]["type"].as_str()), (Some("64x72"), Some("b64_json")));
    let job = server.get(&format!("/v1/jobs/{}", reply["id"].as_str().unwrap())).await.json();
    assert_eq!((&job["request"]["steps"], &job["request"]["guidance"]), (&json!(2), &json!(2.5)));
    let same = json!({"prompt": "x", "size": "64x72", "num_inference_steps": 2, "seed": 3, "negative_prompt": "y",
        "guidance_scale": 2.5, "response_format": "b64_json"});
    assert_eq!(server.post(ROUTE, &same).await.json()["data"], reply["data"]);
}

#[tokio::test]
async fn a_base_with_the_version_in_it_twice_is_understood() {
    let server = Server::start().await;
    assert_eq!(server.post("/v1/v1/images/generations", &red()).await.status, StatusCode::OK);
    let error = server.post("/v1/v1/images/generations", &json!({})).await.error();
    assert_eq!(error.1, "missing_required_parameter");
}

#[tokio::test]
async fn errors_have_openais_shape_and_names() {
    let server = Server::start().await;
    for (body, status, code, param) in [
        (json!({}), 400, "missing_required_parameter", Some("prompt")),
        (json!({"prompt": null}), 400, "missing_required_parameter", Some("prompt")),
        (json!({"prompt": ""}), 400, "invalid_value", Some("prompt")),
        (json!({"prompt": "x", "n": 0}), 400, "invalid_value", Some("n")),
        (json!({"prompt": "x", "n": 11}), 400, "invalid_value", Some("n")),
        (json!({"prompt": "x", "size": "large"}), 400, "invalid_value", Some("size")),
        (json!({"prompt": "x", "size": "65x64"}), 400, "unsupported_size", Some("size")),
        (json!({"prompt": "x", "quality": "best"}), 400, "invalid_value", Some("quality")),
        (json!({"prompt": "x", "background": "transparent"}), 400, "unsupported_parameter", Some("background")),
        (json!({"prompt": "x", "output_format": "gif"}), 400, "invalid_value", Some("output_format")),
        (json!({"prompt": "x", "output_format": "avif"}), 400, "unsupported_parameter", Some("output_format")),
        (json!({"prompt": "x", "stream": true, "partial_images": 4}), 400, "invalid_value", Some("partial_images")),
        (json!({"prompt": "x", "stream": true, "async": true}), 400, "invalid_value", Some("stream")),
        (json!({"prompt": "x", "image_url": "http://127.0.0.1/a.png"}), 400, "image_unreachable", Some("image_url")),
        (json!({"prompt": "x", "image_loras": [{"path": "a"}]}), 400, "unsupported_parameter", Some("image_loras")),
        (json!({"prompt": "x", "model": "nothing"}), 404, "model_not_found", Some("model")),
    ] {
        let reply = server.post(ROUTE, &body).await;
        assert_eq!(reply.error(), (status, code.into(), param.map(Into::into)), "{body}");
        assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
    }
    let native = server.post("/v1/jobs", &json!({"prompt": "x", "n": 0})).await;
    assert_eq!(native.error(), (400, "invalid_request".into(), Some("n".into())));
}

#[tokio::test]
async fn a_failure_while_rendering_is_a_500_that_tells_no_secrets() {
    let server = Server::start().await;
    let reply = server.post(ROUTE, &json!({"prompt": "panic"})).await;
    assert_eq!(reply.error(), (500, "internal".into(), None));
    assert_eq!(reply.json()["error"]["type"], "server_error");
    // The server goes on.
    assert_eq!(server.post(ROUTE, &red()).await.status, StatusCode::OK);
}

#[tokio::test]
async fn who_prefers_not_to_wait_gets_a_job() {
    let server = Server::start().await;
    for (request, what) in [
        (with_header(post(ROUTE, &red()), "prefer", "wait=5, Respond-Async"), "header"),
        (post(ROUTE, &json!({"prompt": "x", "async": true})), "field"),
    ] {
        let reply = server.send(request).await;
        assert_eq!(reply.status, StatusCode::ACCEPTED, "{what}");
        assert_eq!(reply.header("preference-applied"), (what == "header").then_some("respond-async"));
        let job = reply.json();
        assert_eq!(job["object"], "image.job");
        assert!(reply.header("location").unwrap().ends_with(job["id"].as_str().unwrap()));
        assert_eq!(server.ended(job["id"].as_str().unwrap()).await["status"], "succeeded");
    }
}

#[tokio::test]
async fn a_form_without_a_picture_is_refused_after_the_whole_of_it_was_read() {
    let server = Server::start().await;
    for path in ["/v1/images/edits", "/v1/images/variations"] {
        let form = Request::post(path).header("content-type", "multipart/form-data; boundary=x");
        let reply = server.send(form.body(Body::from("--x--".repeat(100_000))).unwrap()).await;
        assert_eq!(reply.error(), (400, "missing_required_parameter".into(), Some("image".into())));
    }
}

#[tokio::test]
async fn models_are_listed_and_found_by_every_name() {
    let server = Server::start().await;
    let list = server.get("/v1/models").await.json();
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!((list["object"].as_str(), ids), (Some("list"), vec!["quick", "slow", "tiny", "editor", "drawer"]));
    let quick = &list["data"][0];
    assert_eq!((quick["object"].as_str(), quick["default"].as_bool()), (Some("model"), Some(true)));
    assert!(quick["created"].as_i64().unwrap() > 0 && quick["owned_by"].is_string());
    assert_eq!(quick["defaults"], json!({"width": 64, "height": 64, "steps": 4, "guidance": 1.0, "sampler": "ddim"}));
    assert_eq!(list["data"][2]["aliases"], json!(["house"]));
    for (path, id) in [
        ("tiny", "tiny"),
        ("house", "tiny"),
        ("someone%2Ftiny", "tiny"),
        ("someone/tiny", "tiny"),
        ("dall-e-3", "quick"),
        ("fal-ai/flux/dev", "quick"),
    ] {
        assert_eq!(server.get(&format!("/v1/models/{path}")).await.json()["id"], id, "{path}");
    }
    for path in ["nothing", "a%2Fb", "a/b/c"] {
        let error = server.get(&format!("/v1/models/{path}")).await.error();
        assert_eq!(error, (404, "model_not_found".into(), Some("model".into())), "{path}");
    }
}

#[tokio::test]
async fn samplers_are_listed_with_what_goes_with_them() {
    let server = Server::start().await;
    let list = server.get("/v1/samplers").await.json();
    let euler = list["data"].as_array().unwrap().iter().find(|sampler| sampler["name"] == "euler").unwrap();
    assert!(euler["schedules"].as_array().unwrap().contains(&json!("karras")));
    assert!(euler["aliases"].to_string().contains("EulerDiscreteScheduler"));
}
