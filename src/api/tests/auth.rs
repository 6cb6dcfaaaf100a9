use super::*;
use crate::api::routes::Access;
use axum::http::Method;

/// Every route with values in its path, as (method, path, access).
fn routes(server: &Server) -> Vec<(Method, String, Access)> {
    let (_, table) = crate::api::all(&server.app).finish();
    let filled = |path: &str| {
        let path = path.replace("{id}", "job_01JZZZZZZZZZZZZZZZZZZZZZZZ").replace("{index}", "0");
        path.replace("{*id}", "quick").replace("{token}", "1.AA").replace("{job}", "job_x").replace("{file}", "0.png")
    };
    table.routes().iter().map(|route| (route.method.clone(), filled(route.path), route.access)).collect()
}

fn request(method: &Method, path: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    request.body(Body::from("{}")).unwrap()
}

#[tokio::test]
async fn every_route_is_protected_unless_it_is_listed_as_open() {
    let server = Server::with_keys().await;
    let open = [
        "/",
        "/docs",
        "/openapi.json",
        "/healthz",
        "/readyz",
        "/files/1.AA/job_x/0.png",
        "/page/page.css",
        "/page/page.js",
        "/page/picture.js",
        "/page/docs.css",
        "/page/docs.js",
    ];
    let routes = routes(&server);
    assert!(routes.len() > 25);
    for (method, path, access) in &routes {
        assert_eq!(*access == Access::Open, open.contains(&path.as_str()), "{path}");
        let reply = server.send(request(method, path)).await;
        if *access == Access::Open {
            assert_ne!(reply.status, StatusCode::UNAUTHORIZED, "{path}");
            continue;
        }
        assert_eq!(reply.error(), (401, "invalid_api_key".into(), None), "{method} {path}");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        let wrong = with_header(request(method, path), "authorization", "Bearer wrong");
        assert_eq!(server.send(wrong).await.status, StatusCode::UNAUTHORIZED, "{method} {path}");
    }
    for path in ["/nothing", "/v1/nothing", "/v1/jobs/a/b/c/d"] {
        assert_eq!(server.get(path).await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    let wrong_method = Request::put("/v1/jobs").body(Body::empty()).unwrap();
    assert_eq!(server.send(wrong_method).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn every_form_of_a_key_opens_the_door() {
    let server = Server::with_keys().await;
    // base64("someone:secret-of-maker")
    for (name, value) in [
        ("authorization", "Bearer secret-of-maker"),
        ("authorization", "Key secret-of-maker"),
        ("authorization", "token secret-of-maker"),
        ("authorization", "Basic c29tZW9uZTpzZWNyZXQtb2YtbWFrZXI="),
        ("x-key", "secret-of-maker"),
    ] {
        let request = with_header(Request::get("/v1/queue").body(Body::empty()).unwrap(), name, value);
        assert_eq!(server.send(request).await.status, StatusCode::OK, "{value}");
    }
}

#[tokio::test]
async fn a_role_opens_its_own_routes_and_no_others() {
    let server = Server::with_keys().await;
    for (method, path, access) in routes(&server) {
        let Access::Needs(role) = access else { continue };
        let reply = server.send(bearer(request(&method, &path), "reader")).await;
        if role == Role::Read {
            assert!(!matches!(reply.status.as_u16(), 401 | 403), "{method} {path}: {}", reply.status);
        } else {
            assert_eq!(reply.error(), (403, "insufficient_role".into(), None), "{method} {path}");
        }
        let reply = server.send(bearer(request(&method, &path), "admin")).await;
        assert!(!matches!(reply.status.as_u16(), 401 | 403), "{method} {path}: {}", reply.status);
    }
}

#[tokio::test]
async fn the_key_is_checked_before_the_body_is_read() {
    let server = Server::with_keys().await;
    let endless = futures::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
    let request = Request::post("/v1/images/generations").header("content-type", "application/json");
    let reply = server.send(request.body(Body::from_stream(endless)).unwrap()).await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn another_workspaces_job_is_not_found_on_any_route() {
    let server = Server::with_keys().await;
    let reply = server.send(bearer(post("/v1/jobs?", &red()), "maker")).await;
    let id = reply.json()["id"].as_str().unwrap().to_owned();
    for (method, path, _) in routes(&server).into_iter().filter(|(_, path, _)| path.contains("job_01")) {
        let path = path.replace("job_01JZZZZZZZZZZZZZZZZZZZZZZZ", &id);
        let reply = server.send(bearer(request(&method, &path), "other")).await;
        assert_eq!(reply.error(), (404, "job_not_found".into(), Some("id".into())), "{method} {path}");
    }
    let list = |who: &'static str| async {
        let list = server.send(bearer(Request::get("/v1/jobs").body(Body::empty()).unwrap(), who)).await.json();
        list["data"].as_array().unwrap().len()
    };
    assert_eq!((list("other").await, list("reader").await), (0, 1));
    let own = Request::get(format!("/v1/jobs/{id}")).body(Body::empty()).unwrap();
    assert_eq!(server.send(bearer(own, "reader")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn only_the_operator_sees_whose_jobs_run() {
    let server = Server::with_keys().await;
    let queue = |who: &'static str| async {
        server.send(bearer(Request::get("/v1/queue").body(Body::empty()).unwrap(), who)).await.json()
    };
    assert_eq!(queue("reader").await.get("jobs"), None);
    assert!(queue("admin").await["jobs"].is_array());
}

#[tokio::test]
async fn a_priority_above_the_keys_class_is_lowered_and_said_so() {
    let server = Server::with_keys().await;
    let mut body = red();
    body["priority"] = json!("high");
    let job = server.send(bearer(post("/v1/jobs", &body), "maker")).await.json();
    assert_eq!(job["request"]["priority"], "normal");
    assert!(job["warnings"][0].as_str().unwrap().contains("priority"));
}

#[tokio::test]
async fn pages_of_other_sites_cannot_use_the_local_users_server() {
    let server = Server::start().await;
    let ask = |host: &'static str, origin: Option<&'static str>, path: &'static str| {
        let mut request = with_header(Request::get(path).body(Body::empty()).unwrap(), "host", host);
        if let Some(origin) = origin {
            request = with_header(request, "origin", origin);
        }
        let server = &server;
        async move {
            let reply = server.send(request).await;
            if reply.status == StatusCode::OK { None } else { Some(reply.error().1) }
        }
    };
    assert_eq!(ask("localhost:8080", None, "/v1/queue").await, None);
    assert_eq!(ask("127.0.0.1:8080", Some("http://127.0.0.1:8080"), "/v1/queue").await, None);
    assert_eq!(ask("evil.example", None, "/v1/queue").await.as_deref(), Some("host_not_allowed"));
    assert_eq!(ask("evil.example", None, "/").await.as_deref(), Some("host_not_allowed"));
    let foreign = ask("localhost:8080", Some("https://evil.example"), "/v1/queue").await;
    assert_eq!(foreign.as_deref(), Some("origin_not_allowed"));
    assert_eq!(ask("localhost:8080", Some("null"), "/v1/queue").await.as_deref(), Some("origin_not_allowed"));
    assert_eq!(ask("localhost:8080", Some("https://evil.example"), "/healthz").await, None);
}

#[tokio::test]
async fn with_keys_any_host_will_do_but_basic_credentials_stay_with_their_origin() {
    let server = Server::with_keys().await;
    let request = |auth: &str| {
        let request = bearer(Request::get("/v1/queue").body(Body::empty()).unwrap(), "maker");
        let request = with_header(with_header(request, "host", "art.example"), "origin", "https://app.example");
        if auth.is_empty() { request } else { with_header(request, "authorization", auth) }
    };
    assert_eq!(server.send(request("")).await.status, StatusCode::OK);
    let reply = server.send(request("Basic c29tZW9uZTpzZWNyZXQtb2YtbWFrZXI=")).await;
    assert_eq!(reply.error().1, "origin_not_allowed");
}

#[tokio::test]
async fn listed_origins_get_their_preflight_and_others_do_not() {
    let server = Server::with(|config| config.server.cors_origins = vec!["https://app.example".into()]).await;
    let preflight = |origin: &'static str| {
        let request = Request::options("/v1/images/generations")
            .header("host", "localhost")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,x-stainless-os");
        server.send(request.body(Body::empty()).unwrap())
    };
    let reply = preflight("https://app.example").await;
    assert_eq!(reply.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(reply.header("access-control-allow-headers"), Some("authorization,x-stainless-os"));
    assert_eq!(preflight("https://evil.example").await.header("access-control-allow-origin"), None);
    let bad = with_header(post("/v1/images/generations", &json!({})), "origin", "https://app.example");
    let reply = server.send(with_header(bad, "host", "localhost")).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert_eq!(reply.header("access-control-allow-origin"), Some("https://app.example"));
    assert!(reply.header("access-control-expose-headers").unwrap().contains("x-request-id"));
}
