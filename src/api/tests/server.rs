use super::*;
use axum::http::Method;

#[tokio::test]
async fn every_route_is_in_the_api_document_with_its_errors() {
    let server = Server::start().await;
    let spec = server.get("/openapi.json").await.json();
    assert_eq!(spec["openapi"], "3.1.0");
    let (_, table) = crate::api::all(&server.app).finish();
    assert!(table.routes().len() > 25);
    for route in table.routes() {
        let path = route.path.replace("{*", "{");
        let operation = &spec["paths"][&path][route.method.as_str().to_ascii_lowercase()];
        assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{} {path}", route.method);
        let replies = operation["responses"].as_object().unwrap();
        assert!(replies.keys().any(|status| status.starts_with(['1', '2'])) || path.ends_with('s'), "{path}");
        let open = route.access == crate::api::routes::Access::Open;
        assert_eq!(operation["security"].as_array().unwrap().is_empty(), open);
        assert_eq!(replies.contains_key("401"), !open, "{path}");
        for name in path.split('{').skip(1).filter_map(|part| part.split('}').next()) {
            let described = operation["parameters"].as_array().unwrap().iter().any(|p| p["name"] == name);
            assert!(described, "{path} does not describe {name}");
        }
    }
    let count: usize = spec["paths"].as_object().unwrap().values().map(|path| path.as_object().unwrap().len()).sum();
    assert_eq!(count, table.routes().len());
}

#[tokio::test]
async fn every_reference_of_the_api_document_is_defined_and_operations_have_names_of_their_own() {
    let server = Server::start().await;
    let spec = server.get("/openapi.json").await.json();
    let text = spec.to_string();
    let mut references = 0;
    for part in text.split("\"#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(spec["components"]["schemas"][name].is_object(), "{name} is not defined");
        references += 1;
    }
    assert!(references > 20);
    let mut ids: Vec<&str> =
        text.split("\"operationId\":\"").skip(1).map(|part| part.split('"').next().unwrap()).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all);
    for field in ["prompt", "seed", "quality", "response_format", "partial_images"] {
        assert!(spec["components"]["schemas"]["GenerationRequest"]["properties"][field].is_object(), "{field}");
    }
    assert!(spec["components"]["schemas"]["GenerationRequest"]["properties"]["loras"].is_null());
}

#[tokio::test]
async fn the_page_and_the_document_are_served_from_the_binary_unless_switched_off() {
    let server = Server::start().await;
    for path in ["/", "/docs", "/page/page.js", "/page/page.css", "/page/docs.js", "/page/docs.css"] {
        let reply = server.get(path).await;
        assert_eq!(reply.status, StatusCode::OK, "{path}");
        assert!(reply.header("content-security-policy").unwrap().contains("frame-ancestors 'none'"));
    }
    let server = Server::with(|config| config.server.docs = false).await;
    for path in ["/", "/docs", "/openapi.json"] {
        assert_eq!(server.get(path).await.error().0, 404, "{path}");
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_answer_in_our_shape() {
    let server = Server::start().await;
    for path in ["/nothing", "/v1/nothing", "/v1/jobs/", "//", "/v1/images"] {
        assert_eq!(server.get(path).await.error(), (404, "not_found".into(), None), "{path}");
    }
    for (method, path) in [(Method::PUT, "/v1/jobs"), (Method::GET, "/v1/images/generations"), (Method::PATCH, "/")] {
        let reply = server.send(Request::builder().method(&method).uri(path).body(Body::empty()).unwrap()).await;
        assert_eq!(reply.error(), (405, "method_not_allowed".into(), None), "{method} {path}");
        assert!(reply.header("allow").is_some(), "{method} {path}");
    }
}

#[tokio::test]
async fn a_request_id_is_taken_if_it_is_sane_and_made_if_not() {
    let server = Server::start().await;
    let ask = |id: &str| {
        let request = with_header(Request::get("/healthz").body(Body::empty()).unwrap(), "x-request-id", id);
        server.send(request)
    };
    assert_eq!(ask("trace-1.a").await.header("x-request-id"), Some("trace-1.a"));
    for bad in ["", "a b", "<script>", &"x".repeat(200)] {
        assert!(ask(bad).await.header("x-request-id").unwrap().starts_with("req_"), "{bad}");
    }
    let ids = [server.get("/healthz").await, server.get("/healthz").await];
    assert_ne!(ids[0].header("x-request-id"), ids[1].header("x-request-id"));
}

#[tokio::test]
async fn liveness_readiness_and_metrics_say_what_is() {
    let server = Server::start().await;
    assert_eq!(server.get("/healthz").await.json()["status"], "ok");
    assert_eq!(server.get("/readyz").await.json()["status"], "ready");
    assert_eq!(server.get("/metrics").await.error().1, "not_found");
    server.app.closing.cancel();
    let reply = server.get("/readyz").await;
    assert_eq!(reply.error(), (503, "shutting_down".into(), None));
    assert!(reply.header("retry-after").is_some());

    let mut app = server.app.clone();
    app.metrics = Some(metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle());
    let reply = router(app).oneshot(Request::get("/metrics").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(reply.status(), StatusCode::OK);
    assert!(reply.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
}

#[tokio::test]
async fn a_server_is_not_ready_while_it_refuses_jobs_or_its_engine_has_ended() {
    let server = Server::start().await;
    server.app.jobs.refuse();
    assert_eq!(server.post("/v1/jobs", &red()).await.error().0, 503);
    assert!(!server.app.closing.is_cancelled());
    assert_eq!(server.get("/readyz").await.error(), (503, "shutting_down".into(), None));

    let server = Server::start().await;
    server.app.engine.shutdown(Duration::ZERO).await;
    assert_eq!(server.get("/readyz").await.error(), (503, "shutting_down".into(), None));
    assert_eq!(server.get("/healthz").await.json()["status"], "ok");
}

#[test]
fn methods_without_a_meaning_share_one_metric() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let server = Server::start().await;
            for method in ["GET", "BREW", "X-1", "X-2"] {
                for path in ["/healthz", "/nothing/1", "/nothing/2"] {
                    let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
                    server.send(request).await;
                }
            }
        });
    });
    let text = metrics.render();
    let label = |name: &str| {
        let mark = format!("{name}=\"");
        let lines = text.lines().filter(|line| line.starts_with("easel_http_requests_total{"));
        let values = lines.filter_map(|line| line.split_once(&mark)?.1.split('"').next());
        values.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(label("method"), ["GET", "other"].into());
    assert_eq!(label("route"), ["/healthz", "none"].into());
}

#[tokio::test]
async fn callers_who_wait_are_told_when_the_server_goes_down() {
    let server = Server::start().await;
    let closing = server.app.closing.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        closing.cancel();
    });
    let reply = server.post("/v1/images/generations", &json!({"prompt": "x", "model": "slow", "steps": 150})).await;
    assert_eq!(reply.error(), (503, "shutting_down".into(), None));
}

#[tokio::test]
async fn a_shutdown_cancels_the_jobs_whose_callers_are_told_to_ask_again_and_keeps_the_others() {
    let server = Server::start().await;
    let body = json!({"prompt": "x", "model": "slow", "steps": 150});
    let streamed = json!({"prompt": "x", "model": "slow", "steps": 150, "stream": true});
    let kept = server.job(&body).await;
    let keyed = with_header(post("/v1/images/generations", &body), "idempotency-key", "again");
    let stop = async {
        // All four have begun or wait when the signal comes.
        while server.get("/v1/jobs").await.json()["data"].as_array().unwrap().len() < 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server.app.jobs.refuse();
        server.app.engine.shutdown(Duration::ZERO).await;
        assert!(server.app.jobs.close(Duration::from_secs(10)).await);
        server.app.closing.cancel();
    };
    let (plain, streamed, keyed, ()) = tokio::join!(
        server.post("/v1/images/generations", &body),
        server.post("/v1/images/generations", &streamed),
        server.send(keyed),
        stop,
    );
    assert_eq!(plain.error(), (503, "shutting_down".into(), None));
    assert!(String::from_utf8_lossy(&streamed.bytes).contains("shutting_down"));
    assert_eq!(keyed.error(), (503, "shutting_down".into(), None));
    let jobs = server.get("/v1/jobs").await.json();
    let with = |status: &str| jobs["data"].as_array().unwrap().iter().filter(|job| job["status"] == status).count();
    assert_eq!((with("canceled"), with("queued")), (2, 2), "{jobs}");
    assert_eq!(server.get(&format!("/v1/jobs/{kept}")).await.json()["status"], "queued");
}

#[tokio::test]
async fn a_panicking_handler_is_a_500_in_our_shape() {
    let panicking = Router::new()
        .route(
            "/",
            axum::routing::get(|| async {
                if true {
                    panic!("as tested")
                }
            }),
        )
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(crate::api::errors::panicked));
    let reply = panicking.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
    let error = reply.extensions().get::<crate::api::errors::ApiError>().unwrap();
    assert_eq!(error.code, crate::api::errors::Code::Internal);
    assert!(!error.message.contains("as tested"));
}

#[tokio::test]
async fn what_a_model_cannot_do_with_pictures_is_not_advertised_and_refused_by_name() {
    let server = Server::start().await;
    let picture = "data:image/png;base64,aGFsbG8=";
    let able = server.get("/v1/models/quick").await.json()["abilities"].take();
    assert_eq!((&able["image_to_image"], &able["inpaint"], &able["edit"]), (&json!(true), &json!(true), &json!(false)));
    let model = server.get("/v1/models/drawer").await.json();
    for (ability, field, able) in
        [("image_to_image", "image", "quick"), ("inpaint", "mask", "quick"), ("edit", "reference_images", "editor")]
    {
        assert_eq!(model["abilities"][ability], false);
        let mut body = json!({"model": "drawer", "prompt": "x", "image": picture});
        body[field] = json!([picture]);
        if field == "mask" {
            body["mask"] = json!(picture);
        }
        let reply = server.post("/v1/jobs", &body).await;
        assert_eq!(reply.error(), (400, "unsupported_parameter".into(), Some(field.into())));
        assert!(reply.text().contains(able), "{}", reply.text());
    }
}

#[tokio::test]
async fn vendors_fields_that_take_anything_name_no_type() {
    let server = Server::start().await;
    let spec = server.get("/openapi.json").await.json();
    let properties = &spec["components"]["schemas"]["GenerationRequest"]["properties"];
    assert!(properties["svg"].is_object() && properties["svg"]["type"].is_null());
    assert_eq!(properties["quality"]["type"], "string");
    assert_eq!(properties["background"]["enum"], json!(["auto", "opaque"]));
}
