use super::*;
use futures::StreamExt;
use tokio_tungstenite::tungstenite::Message;

/// (event, id, data) of each event of a stream.
fn events(text: &str) -> Vec<(String, Option<String>, Value)> {
    let mut events = Vec::new();
    for block in text.split("\n\n").filter(|block| block.contains("data:")) {
        let line = |name: &str| {
            block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(|rest| rest.trim().to_owned())
        };
        let data = serde_json::from_str(&line("data").unwrap()).unwrap();
        events.push((line("event").unwrap_or_default(), line("id"), data));
    }
    events
}

async fn stream(server: &Server, body: Value) -> Vec<(String, Option<String>, Value)> {
    let reply = server.post("/v1/images/generations", &body).await;
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (StatusCode::OK, Some("text/event-stream")),
        "{}",
        reply.text()
    );
    assert_eq!(reply.header("cache-control"), Some("no-cache"));
    events(&reply.text())
}

#[tokio::test]
async fn a_stream_brings_partial_pictures_and_then_the_one_of_the_plain_reply() {
    let server = Server::start().await;
    for wanted in 0..=3 {
        let body =
            json!({"prompt": "x", "model": "slow", "steps": 8, "seed": 5, "stream": true, "partial_images": wanted});
        let events = stream(&server, body).await;
        let (last, partials) = events.split_last().unwrap();
        assert_eq!(partials.len(), wanted, "{partials:?}");
        for (i, (name, _, data)) in partials.iter().enumerate() {
            assert_eq!((name.as_str(), &data["type"]), ("image_generation.partial_image", &json!(name)));
            assert_eq!(data["partial_image_index"], i);
            assert!(data["b64_json"].as_str().unwrap().starts_with("iVBORw0KGgo"));
        }
        let data = &last.2;
        assert_eq!((last.0.as_str(), &data["type"]), ("image_generation.completed", &json!(last.0)));
        for (member, expected) in [
            ("size", json!("64x64")),
            ("quality", json!("auto")),
            ("background", json!("opaque")),
            ("output_format", json!("png")),
        ] {
            assert_eq!(data[member], expected);
        }
        assert!(data["created_at"].is_i64() && data["usage"]["total_tokens"].is_u64());
        let plain = json!({"prompt": "x", "model": "slow", "steps": 8, "seed": 5, "response_format": "b64_json"});
        let plain = server.post("/v1/images/generations", &plain).await.json();
        assert_eq!(plain["data"][0]["b64_json"], data["b64_json"]);
    }
}

#[tokio::test]
async fn several_pictures_are_completed_in_order_and_partials_are_of_the_first() {
    let server = Server::start().await;
    let body =
        json!({"prompt": "x", "model": "slow", "steps": 6, "seed": 5, "n": 3, "stream": true, "partial_images": 2});
    let events = stream(&server, body).await;
    let names: Vec<&str> = events.iter().map(|event| event.0.as_str()).collect();
    let (partial, completed) = ("image_generation.partial_image", "image_generation.completed");
    assert_eq!(names, [partial, partial, completed, completed, completed]);
    let seeds: Vec<&Value> = events[2..].iter().map(|event| &event.2["seed"]).collect();
    assert_eq!(seeds, [&json!(5), &json!(6), &json!(7)]);
}

#[tokio::test]
async fn an_error_before_the_start_is_a_status_and_later_an_event() {
    let server = Server::start().await;
    let early = server.post("/v1/images/generations", &json!({"prompt": "x", "stream": true, "n": 0})).await;
    assert_eq!(early.error().0, 400);
    let events = stream(&server, json!({"prompt": "panic", "stream": true})).await;
    let (name, _, data) = events.last().unwrap();
    assert_eq!((name.as_str(), data["error"]["code"].as_str()), ("error", Some("internal")));
    assert!(data["error"]["request_id"].as_str().unwrap().starts_with("req_"));
}

#[tokio::test]
async fn a_jobs_events_tell_its_life_in_order_and_resume_where_a_listener_left() {
    let server = Server::start().await;
    let id = server.job(&json!({"prompt": "x", "model": "slow", "steps": 5, "partial_images": 1})).await;
    let path = format!("/v1/jobs/{id}/events");
    let all = events(&server.get(&path).await.text());
    let names: Vec<&str> = all.iter().map(|event| event.0.as_str()).collect();
    assert_eq!((names[0], *names.last().unwrap()), ("queued", "succeeded"));
    for name in ["started", "progress", "preview", "output"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    let ids: Vec<u64> = all.iter().map(|event| event.1.as_deref().unwrap().parse().unwrap()).collect();
    assert!(ids.is_sorted_by(|a, b| a < b));
    let progress = all.iter().find(|event| event.0 == "progress").unwrap();
    assert_eq!((&progress.2["steps"], &progress.2["job_id"]), (&json!(5), &json!(id)));
    assert_eq!(all.last().unwrap().2["job"]["outputs"].as_array().unwrap().len(), 1);

    // After the end only the end is known, and that once.
    let resume = |after: String| {
        let request = Request::get(&path).body(Body::empty()).unwrap();
        server.send(with_header(request, "last-event-id", &after))
    };
    let rest = resume(ids[0].to_string()).await;
    assert_eq!(events(&rest.text()).last().unwrap().0, "succeeded");
    let nothing = resume(ids.last().unwrap().to_string()).await;
    assert_eq!((nothing.status, nothing.bytes.len()), (StatusCode::NO_CONTENT, 0));
    assert_eq!(server.get("/v1/jobs/job_x/events").await.error().1, "job_not_found");
}

#[tokio::test]
async fn a_websocket_tells_the_same_events_and_says_goodbye() {
    let server = Server::start().await;
    let address = listen(&server).await;
    let id = server.job(&json!({"prompt": "x", "model": "slow", "steps": 5})).await;
    let (mut socket, _) = tokio_tungstenite::connect_async(format!("ws://{address}/v1/jobs/{id}/ws")).await.unwrap();
    let mut names = Vec::new();
    let mut goodbye = None;
    while let Some(message) = socket.next().await {
        match message.unwrap() {
            Message::Text(text) => {
                let data: Value = serde_json::from_str(&text).unwrap();
                assert!(data["event_id"].is_u64());
                names.push(data["type"].as_str().unwrap().to_owned());
            }
            Message::Close(frame) => goodbye = frame,
            _ => {}
        }
    }
    assert_eq!((names[0].as_str(), names.last().unwrap().as_str()), ("queued", "succeeded"));
    assert_eq!(u16::from(goodbye.unwrap().code), 1000);

    let refused = tokio_tungstenite::connect_async(format!("ws://{address}/v1/jobs/job_x/ws")).await.unwrap_err();
    assert!(refused.to_string().contains("404"), "{refused}");
    assert_eq!(server.get(&format!("/v1/jobs/{id}/ws")).await.error().0, 400);
}

/// Serves on a free port of the loopback address.
pub(super) async fn listen(server: &Server) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = server.router.clone();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}
