use super::*;

#[tokio::test]
async fn a_job_goes_from_accepted_to_succeeded_and_tells_all_of_it() {
    let server = Server::start().await;
    let mut body = red();
    body["n"] = json!(2);
    body["metadata"] = json!({"order": "66"});
    let reply = server.post("/v1/jobs", &body).await;
    assert_eq!(reply.status, StatusCode::ACCEPTED);
    let job = reply.json();
    let id = job["id"].as_str().unwrap();
    assert!(reply.header("location").unwrap().ends_with(&format!("/v1/jobs/{id}")));
    assert_eq!((job["object"].as_str(), &job["job_id"]), (Some("image.job"), &job["id"]));
    assert_eq!(job["metadata"], json!({"order": "66"}));

    let job = server.ended(id).await;
    assert_eq!((job["status"].as_str(), job["progress"].as_f64()), (Some("succeeded"), Some(1.0)), "{job}");
    assert_eq!(job["error"], Value::Null);
    assert_eq!(job["request"]["steps"], 4);
    assert!(job["metrics"]["latency_ms"].as_f64().unwrap() > 0.0);
    let seeds: Vec<u64> = job["outputs"].as_array().unwrap().iter().map(|o| o["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds, [7, 8]);
    let output = &job["outputs"][1];
    assert_eq!((&output["index"], &output["width"], &output["height"]), (&json!(1), &json!(64), &json!(64)));
    assert_eq!(output["url"], output["image_url"]);
    assert_eq!(output["safety"], json!({"allowed": true, "categories": []}));
}

#[tokio::test]
async fn a_wait_that_runs_out_answers_with_the_job_as_it_is() {
    let server = Server::start().await;
    let id = server.job(&json!({"prompt": "x", "model": "slow", "steps": 150})).await;
    let start = std::time::Instant::now();
    let job = server.get(&format!("/v1/jobs/{id}?wait=1")).await.json();
    assert!(start.elapsed() >= Duration::from_millis(900));
    assert!(matches!(job["status"].as_str(), Some("queued" | "running")));
    assert_eq!(server.get(&format!("/v1/jobs/{id}?wait=601")).await.error().2.as_deref(), Some("wait"));
    assert_eq!(server.get(&format!("/v1/jobs/{id}?wait=x")).await.error().2.as_deref(), Some("wait"));
}

#[tokio::test]
async fn a_canceled_job_says_so_and_an_ended_one_is_given_back() {
    let server = Server::start().await;
    let id = server.job(&json!({"prompt": "x", "model": "slow", "steps": 150})).await;
    let path = format!("/v1/jobs/{id}/cancel");
    assert_eq!(server.post(&path, &json!({})).await.status, StatusCode::OK);
    assert_eq!(server.ended(&id).await["status"], "canceled");
    assert_eq!(server.post(&path, &json!({})).await.json()["status"], "canceled");
}

#[tokio::test]
async fn a_deleted_job_is_gone_with_its_pictures() {
    let server = Server::start().await;
    let id = server.job(&red()).await;
    let job = server.ended(&id).await;
    let url = path_of(job["outputs"][0]["url"].as_str().unwrap()).to_owned();
    assert_eq!(server.get(&url).await.status, StatusCode::OK);
    let delete = || server.send(Request::delete(format!("/v1/jobs/{id}")).body(Body::empty()).unwrap());
    let reply = delete().await;
    assert_eq!((reply.status, reply.bytes.len()), (StatusCode::NO_CONTENT, 0));
    assert_eq!(server.get(&format!("/v1/jobs/{id}")).await.error().1, "job_not_found");
    assert_eq!(server.get(&url).await.error().1, "not_found");
    assert_eq!(delete().await.error().1, "job_not_found");
}

#[tokio::test]
async fn the_list_is_newest_first_in_pages_and_can_be_filtered() {
    let server = Server::start().await;
    let mut ids = Vec::new();
    for model in ["quick", "tiny", "quick"] {
        ids.push(server.job(&json!({"prompt": "x", "model": model})).await);
    }
    for id in &ids {
        server.ended(id).await;
    }
    ids.reverse();
    let listed = |query: String| {
        let server = &server;
        async move {
            let page = server.get(&format!("/v1/jobs{query}")).await.json();
            let ids: Vec<String> =
                page["data"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect();
            (ids, page["has_more"].as_bool().unwrap())
        }
    };
    assert_eq!(listed(String::new()).await, (ids.clone(), false));
    assert_eq!(listed("?limit=2".into()).await, (ids[..2].to_vec(), true));
    assert_eq!(listed(format!("?limit=2&after={}", ids[1])).await, (ids[2..].to_vec(), false));
    assert_eq!(listed("?model=tiny".into()).await, (ids[1..2].to_vec(), false));
    assert_eq!(listed("?status=failed".into()).await, (Vec::new(), false));
    for (query, param) in
        [("limit=0", "limit"), ("limit=101", "limit"), ("status=done", "status"), ("after=zz", "after")]
    {
        let error = server.get(&format!("/v1/jobs?{query}")).await.error();
        assert_eq!(error, (400, "invalid_request".into(), Some(param.into())), "{query}");
    }
}

#[tokio::test]
async fn a_repeat_with_the_same_idempotency_key_gives_the_same_job_back() {
    let server = Server::start().await;
    let send = |path: &'static str, body: Value| server.send(with_header(post(path, &body), "idempotency-key", "one"));
    let first = send("/v1/jobs", red()).await;
    assert_eq!(first.header("idempotency-replayed"), None);
    let again = send("/v1/jobs", red()).await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(again.json()["id"], first.json()["id"]);
    // The same body on a waiting route gives the same job, finished.
    let waited = send("/v1/images/generations", red()).await;
    assert_eq!((waited.status, waited.header("idempotency-replayed")), (StatusCode::OK, Some("true")));
    assert_eq!(waited.json()["job_id"], first.json()["id"]);
    let other = send("/v1/jobs", json!({"prompt": "another"})).await;
    assert_eq!(other.error(), (409, "idempotency_mismatch".into(), None));
    assert_eq!(other.header("x-should-retry"), Some("false"));
    let empty = server.send(with_header(post("/v1/jobs", &red()), "idempotency-key", "")).await;
    assert_eq!(empty.error().0, 400);
}

#[tokio::test]
async fn a_full_queue_is_429_with_a_pause() {
    let server = Server::with(|config| config.limits.max_queue = 1).await;
    let mut last = None;
    for _ in 0..40 {
        let reply = server.post("/v1/jobs", &json!({"prompt": "x", "model": "slow", "steps": 150, "n": 10})).await;
        if reply.status != StatusCode::ACCEPTED {
            last = Some(reply);
            break;
        }
    }
    let reply = last.expect("a queue of one takes no forty jobs");
    assert_eq!(reply.error(), (429, "queue_full".into(), None));
    assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(reply.json()["error"]["type"], "rate_limit_error");
}

#[tokio::test]
async fn wishes_for_a_reply_that_a_job_cannot_have_are_warned_of() {
    let server = Server::start().await;
    let body = json!({"prompt": "x", "stream": true, "response_format": "b64_json", "stepz": 3});
    let job = server.post("/v1/jobs", &body).await.json();
    let warnings = job["warnings"].to_string();
    for word in ["`stream`", "`response_format`", "`stepz`", "`steps`"] {
        assert!(warnings.contains(word), "{warnings}");
    }
}

pub(super) fn path_of(url: &str) -> &str {
    let rest = url.split_once("://").expect("an absolute address").1;
    &rest[rest.find('/').unwrap()..]
}
