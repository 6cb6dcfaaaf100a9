use super::jobs::path_of;
use super::*;

#[tokio::test]
async fn an_image_job_has_a_state_and_a_list_of_outputs() {
    let server = Server::start().await;
    let reply = server.post("/v1/images/jobs", &red()).await;
    assert_eq!(reply.status, StatusCode::ACCEPTED);
    let job = reply.json();
    let id = job["id"].as_str().unwrap();
    assert!(reply.header("location").unwrap().ends_with(&format!("/v1/images/jobs/{id}")));
    assert!(job["state"].is_string() && job["output"].is_array());
    server.ended(id).await;
    let job = server.get(&format!("/v1/images/jobs/{id}")).await.json();
    assert_eq!((job["state"].as_str(), &job["error"]), (Some("succeeded"), &Value::Null));
    let url = job["output"][0]["url"].as_str().unwrap();
    assert_eq!(server.get(path_of(url)).await.header("content-type"), Some("image/png"));
    assert_eq!(server.get("/v1/images/jobs/job_x").await.error().1, "job_not_found");
}

#[tokio::test]
async fn a_task_goes_from_pending_to_success() {
    let server = Server::start().await;
    let mut body = red();
    body["n"] = json!(2);
    let task = server.post("/api/v1/images/generations", &body).await.json();
    let id = task["id"].as_str().unwrap();
    assert!(matches!(task["status"].as_str(), Some("PENDING" | "PROCESSING")), "{task}");
    assert_eq!(task["output"], Value::Null);
    server.ended(id).await;
    let task = server.get(&format!("/api/v1/tasks/{id}")).await.json();
    assert_eq!(task["status"], "SUCCESS");
    assert_eq!(task["output"]["image_urls"].as_array().unwrap().len(), 2);
    assert_eq!(task["output"]["image_url"], task["output"]["image_urls"][0]);
}

#[tokio::test]
async fn a_task_that_fails_or_is_canceled_says_why() {
    let server = Server::start().await;
    for (body, cancel) in
        [(json!({"prompt": "panic"}), false), (json!({"prompt": "x", "model": "slow", "steps": 150}), true)]
    {
        let id = server.job(&body).await;
        if cancel {
            server.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).await;
        }
        server.ended(&id).await;
        let task = server.get(&format!("/api/v1/tasks/{id}")).await.json();
        assert_eq!((task["status"].as_str(), &task["output"]), (Some("FAILED"), &Value::Null));
        assert!(task["error"].is_string(), "{task}");
    }
}
