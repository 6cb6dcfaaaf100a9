use super::*;

const CREATING: [&str; 4] = ["/v1/images/generations", "/v1/jobs", "/v1/images/jobs", "/api/v1/images/generations"];

fn raw(path: &str, kind: Option<&str>, body: impl Into<Body>) -> Request<Body> {
    let mut request = Request::post(path);
    if let Some(kind) = kind {
        request = request.header("content-type", kind);
    }
    request.body(body.into()).unwrap()
}

/// A small generator, so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % sides
    }
}

#[tokio::test]
async fn damaged_bodies_are_never_a_server_error() {
    let server = Server::start().await;
    let good = json!({
        "model": "quick", "prompt": "a \"red\" circle \u{1F534}", "n": 2, "size": "64x72", "seed": 18446744073709551615u64,
        "guidance": 7.5, "steps": 3, "metadata": {"a": "b"}, "loras": [], "stream": false, "sampler": "euler",
    })
    .to_string()
    .into_bytes();
    let mut dice = Dice(42);
    let mut refused = 0;
    for round in 0..400 {
        let mut body = good.clone();
        match dice.roll(5) {
            0 => body.truncate(dice.roll(good.len())),
            1 => (0..=dice.roll(8)).for_each(|_| body[dice.roll(good.len())] = dice.roll(256) as u8),
            2 => drop(body.splice(dice.roll(good.len())..dice.roll(1) + good.len(), *b"}}]]")),
            3 => body.insert(dice.roll(good.len()), *b"{}[],:\"\\\x00\xff".get(dice.roll(10)).unwrap()),
            _ => {
                let (from, to) = (dice.roll(good.len()), dice.roll(good.len()));
                body.swap(from, to);
            }
        }
        // Asynchronous, so that those that are still good cost nothing.
        let reply = server.send(raw("/v1/jobs", Some("application/json"), body)).await;
        assert!(!reply.status.is_server_error(), "round {round}: {}", reply.text());
        if reply.status.is_client_error() {
            reply.error();
            refused += 1;
        }
    }
    assert!(refused > 200, "only {refused} were refused");
}

#[tokio::test]
async fn any_json_value_in_any_field_is_taken_or_refused_by_name() {
    let server = Server::start().await;
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(1e308),
        json!(-1e308),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(""),
        json!("x"),
        json!("\u{0}"),
        json!("🔴"),
        json!("9".repeat(400)),
        json!("64x64"),
        json!("16:9"),
        json!([]),
        json!([[]]),
        json!({}),
        json!({"width": -1, "height": 1e99}),
        json!({"a": {"b": [1]}}),
    ];
    for name in crate::request::fields::FIELDS.iter().flat_map(crate::request::fields::Field::names) {
        for value in &values {
            let mut body = json!({"prompt": "x", "steps": 1});
            body[name] = value.clone();
            let reply = server.post("/v1/jobs", &body).await;
            match reply.status.as_u16() {
                202 => {}
                400 | 404 => {
                    let param = reply.error().2.expect("an error of a field names it");
                    assert!(param == name || param.starts_with(&format!("{name}.")), "{name} {value}: {param}");
                }
                // Enough of them are good to fill the waiting list.
                429 => drop(reply.error()),
                other => panic!("{name} {value}: {other} {}", reply.text()),
            }
        }
    }
}

#[tokio::test]
async fn what_is_no_json_object_is_refused() {
    let server = Server::start().await;
    let deep = "[".repeat(100_000);
    let bodies: [&[u8]; 12] = [
        b"",
        b" ",
        b"null",
        b"[]",
        b"3",
        b"\"x\"",
        b"{",
        b"{\"prompt\":}",
        b"{\"prompt\": NaN}",
        b"\xff\xfe{}",
        b"{\"prompt\": \"\\ud800\"}",
        deep.as_bytes(),
    ];
    for path in CREATING {
        for body in bodies {
            let reply = server.send(raw(path, Some("application/json"), body.to_vec())).await;
            let (status, code, param) = reply.error();
            assert_eq!((status, code.as_str(), param), (400, "invalid_request", None), "{path} {body:?}");
        }
    }
}

#[tokio::test]
async fn another_media_type_is_415() {
    let server = Server::start().await;
    let body = red().to_string();
    for path in CREATING {
        for kind in [
            None,
            Some("text/plain"),
            Some("application/x-www-form-urlencoded"),
            Some("multipart/form-data; boundary=x"),
        ] {
            let reply = server.send(raw(path, kind, body.clone())).await;
            assert_eq!(reply.error(), (415, "unsupported_media_type".into(), None), "{kind:?}");
        }
        let zipped = with_header(raw(path, Some("application/json"), body.clone()), "content-encoding", "gzip");
        assert_eq!(server.send(zipped).await.error().0, 415);
    }
    for kind in ["application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.api+json"] {
        assert_eq!(server.send(raw("/v1/jobs", Some(kind), body.clone())).await.status, StatusCode::ACCEPTED, "{kind}");
    }
}

#[tokio::test]
async fn a_body_above_the_limit_is_413() {
    let server = Server::with(|config| config.limits.max_body_bytes = 1000).await;
    let body = |bytes: usize| {
        let frame = json!({"prompt": ""}).to_string().len();
        json!({"prompt": "x".repeat(bytes - frame)}).to_string()
    };
    for path in CREATING {
        let reply = server.send(raw(path, Some("application/json"), body(1001))).await;
        assert_eq!(reply.error(), (413, "body_too_large".into(), None), "{path}");
        let pieces =
            futures::stream::iter((0..50).map(|_| Ok::<_, std::io::Error>(bytes::Bytes::from(vec![b' '; 100]))));
        let reply = server.send(raw(path, Some("application/json"), Body::from_stream(pieces))).await;
        assert_eq!(reply.error().0, 413, "{path}");
    }
    assert_eq!(server.send(raw("/v1/jobs", Some("application/json"), body(1000))).await.status, StatusCode::ACCEPTED);
    let reply = server.send(raw("/v1/images/edits", Some("multipart/form-data; boundary=x"), vec![0; 2000])).await;
    assert_eq!(reply.error().0, 413);
}

#[tokio::test]
async fn odd_paths_and_queries_are_never_a_server_error() {
    let server = Server::start().await;
    for path in [
        "/v1/jobs/%00",
        "/v1/jobs/%FF",
        "/v1/jobs/..%2F..%2Fetc%2Fpasswd",
        "/v1/jobs/job_",
        "/v1/jobs/job_%F0%9F%94%B4",
        "/v1/jobs?limit=99999999999999999999",
        "/v1/jobs?limit=-1",
        "/v1/jobs?after=%00",
        "/v1/jobs?%FF=%FF",
        "/v1/jobs?model=%00'",
        "/v1/models/%FF",
        "/v1/models/..",
        "/v1/jobs/x/outputs/99999999999999999999",
        "/v1/jobs/x/ws",
        "/api/v1/tasks/%2e%2e",
    ] {
        let reply = server.get(path).await;
        assert!(!reply.status.is_server_error(), "{path}: {}", reply.status);
        if reply.status.is_client_error() {
            reply.error();
        }
    }
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let server = Server::with_keys().await;
    let address = super::streaming::listen(&server).await;
    let client = reqwest::Client::new();
    for (method, path, key, status) in [
        ("POST", "/v1/jobs", None, 401),
        ("POST", "/v1/jobs", Some("reader"), 403),
        ("POST", "/v1/nothing", Some("maker"), 404),
        ("PUT", "/v1/jobs", Some("maker"), 405),
        ("POST", "/v1/jobs", Some("maker"), 415),
    ] {
        let mut request = client.request(method.parse().unwrap(), format!("http://{address}{path}"));
        if let Some(key) = key {
            request = request.bearer_auth(format!("secret-of-{key}"));
        }
        let reply = request.body(vec![b' '; 12 << 20]).send().await.unwrap_or_else(|e| panic!("{status}: {e:?}"));
        assert_eq!(reply.status().as_u16(), status, "{method} {path}");
    }
}

#[tokio::test]
async fn a_body_without_end_is_read_for_a_while_only() {
    let server = Server::with_keys().await;
    let read = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = read.clone();
    let endless = futures::stream::repeat_with(move || {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok::<_, std::io::Error>(bytes::Bytes::from_static(&[b' '; 1 << 20]))
    });
    let reply = server.send(raw("/v1/jobs", Some("application/json"), Body::from_stream(endless))).await;
    assert_eq!(reply.error().0, 401);
    let read = read.load(std::sync::atomic::Ordering::Relaxed);
    assert!((16..=18).contains(&read), "{read} MiB");
}
