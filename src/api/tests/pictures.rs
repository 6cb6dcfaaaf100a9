use super::jobs::path_of;
use super::*;

#[tokio::test]
async fn an_output_comes_in_the_format_and_size_that_are_asked_for() {
    let server = Server::start().await;
    let id = server.job(&json!({"prompt": "x", "size": "128x64"})).await;
    server.ended(&id).await;
    let get = |query: &'static str, accept: &'static str| {
        let request = Request::get(format!("/v1/jobs/{id}/outputs/0{query}")).body(Body::empty()).unwrap();
        server.send(with_header(request, "accept", accept))
    };
    for (query, accept, kind, size) in [
        ("", "*/*", "image/png", (128, 64)),
        ("", "image/avif,image/webp,image/*,*/*;q=0.8", "image/png", (128, 64)),
        ("", "image/webp", "image/webp", (128, 64)),
        ("?w=32", "image/jpeg", "image/jpeg", (32, 16)),
        ("?w=9999", "image/png", "image/png", (128, 64)),
    ] {
        let reply = get(query, accept).await;
        assert_eq!((reply.status, reply.header("content-type")), (StatusCode::OK, Some(kind)), "{query} {accept}");
        let picture = image::load_from_memory(&reply.bytes).unwrap();
        assert_eq!((picture.width(), picture.height()), size);
        assert!(reply.header("content-disposition").unwrap().starts_with("inline; filename=\"easel-"));
        assert!(reply.header("cache-control").unwrap().starts_with("private"));
    }
    assert_eq!(get("?w=0", "*/*").await.error().2.as_deref(), Some("w"));
    assert_eq!(server.get(&format!("/v1/jobs/{id}/outputs/1")).await.error().1, "not_found");
    assert_eq!(server.get(&format!("/v1/jobs/{id}/outputs/x")).await.error().1, "not_found");
}

#[tokio::test]
async fn a_picture_address_is_a_public_file_that_browsers_show_and_keep() {
    let server = Server::with_keys().await;
    let reply = server.send(bearer(post("/v1/images/generations", &red()), "maker")).await.json();
    let path = path_of(reply["data"][0]["url"].as_str().unwrap()).to_owned();
    let file = server.get(&path).await;
    assert_eq!((file.status, file.header("content-type")), (StatusCode::OK, Some("image/png")));
    assert!(file.header("cache-control").unwrap().starts_with("public, max-age="));
    assert_eq!(file.header("x-content-type-options"), Some("nosniff"));
    let etag = file.header("etag").unwrap().to_owned();
    assert_eq!(etag.trim_matches('"'), reply["outputs"][0]["sha256"].as_str().unwrap());
    let again = with_header(Request::get(&path).body(Body::empty()).unwrap(), "if-none-match", &etag);
    let again = server.send(again).await;
    assert_eq!((again.status, again.bytes.len()), (StatusCode::NOT_MODIFIED, 0));
    let head = server.send(Request::head(&path).body(Body::empty()).unwrap()).await;
    assert_eq!((head.status, head.bytes.len()), (StatusCode::OK, 0));
}

#[tokio::test]
async fn a_changed_address_opens_nothing() {
    let server = Server::start().await;
    let reply = server.post("/v1/images/generations", &red()).await.json();
    let path = path_of(reply["data"][0]["url"].as_str().unwrap()).to_owned();
    let (job, other) = (reply["id"].as_str().unwrap(), "job_01JZZZZZZZZZZZZZZZZZZZZZZZ");
    for changed in [
        path.replace("/0.png", "/1.png"),
        path.replace("/0.png", "/..%2F0.png"),
        path.replace("/0.png", "/0.jpeg"),
        path.replace(job, other),
        path.replacen('.', "0.", 1),
        "/files/x/y/z".into(),
        "/files/%FF/%FF/%FF".into(),
    ] {
        let reply = server.get(&changed).await;
        assert!(matches!(reply.status.as_u16(), 400 | 404), "{changed}: {}", reply.status);
        reply.error();
    }
}

#[tokio::test]
async fn addresses_are_absolute_and_follow_the_proxy_or_the_configuration() {
    let server = Server::with(|config| config.limits.max_queue = 9).await;
    let base = |headers: &'static [(&'static str, &'static str)], server: &Server| {
        let mut request = post("/v1/images/generations", &red());
        for (name, value) in headers {
            request = with_header(request, name, value);
        }
        let sent = server.router.clone().oneshot(request);
        async move {
            let body = axum::body::to_bytes(sent.await.unwrap().into_body(), usize::MAX).await.unwrap();
            let reply: Value = serde_json::from_slice(&body).unwrap();
            let url = reply["data"][0]["url"].as_str().unwrap().to_owned();
            url[..url.find("/files/").unwrap()].to_owned()
        }
    };
    assert_eq!(base(&[], &server).await, "http://127.0.0.1:8080");
    assert_eq!(base(&[("host", "localhost:99")], &server).await, "http://localhost:99");
    let proxied = base(&[("host", "localhost"), ("x-forwarded-proto", "https, http")], &server).await;
    assert_eq!(proxied, "https://localhost");
    let server = Server::with(|config| config.server.public_url = Some("https://art.example/easel/".into())).await;
    assert_eq!(base(&[("host", "localhost")], &server).await, "https://art.example/easel");
}

#[tokio::test]
async fn caches_keep_a_picture_no_longer_than_its_address_opens() {
    let server = Server::start().await;
    let id = server.job(&json!({"prompt": "x"})).await;
    server.ended(&id).await;
    for (seconds, least, most) in [(60, 50, 60), (100_000, 3600, 3600)] {
        let expires = Timestamp::now() + std::time::Duration::from_secs(seconds);
        let path = server.app.artifacts.signed_path(&id, 0, crate::request::OutputFormat::Png, expires);
        let reply = server.get(&path).await;
        let cache = reply.header("cache-control").unwrap();
        let age: u64 = cache.strip_prefix("public, max-age=").unwrap().split(',').next().unwrap().parse().unwrap();
        assert!((least..=most).contains(&age), "{cache}");
    }
}
