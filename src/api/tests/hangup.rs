//! Over real connections: only there can a caller hang up.

use super::streaming::listen;
use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LONG: &str = r#"{"prompt": "x", "model": "slow", "steps": 150, "n": 2"#;

/// Sends a request that takes a while, waits until its job runs, and gives its connection and id.
async fn begin(server: &Server, more: &str, headers: &str) -> (TcpStream, String) {
    let mut connection = TcpStream::connect(listen(server).await).await.unwrap();
    let body = format!("{LONG}{more}}}");
    let head = format!(
        "POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{headers}\
         content-length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    for _ in 0..500 {
        let jobs = server.get("/v1/jobs").await.json();
        if jobs["data"][0]["status"] == "running" {
            return (connection, jobs["data"][0]["id"].as_str().unwrap().to_owned());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the job never ran");
}

#[tokio::test]
async fn a_caller_who_hangs_up_cancels_the_job() {
    let server = Server::start().await;
    let (connection, id) = begin(&server, "", "").await;
    drop(connection);
    assert_eq!(server.ended(&id).await["status"], "canceled");
}

#[tokio::test]
async fn a_listener_who_hangs_up_cancels_the_streamed_job() {
    let server = Server::start().await;
    let (mut connection, id) = begin(&server, r#", "stream": true, "partial_images": 3"#, "").await;
    let mut head = [0; 12];
    connection.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    drop(connection);
    assert_eq!(server.ended(&id).await["status"], "canceled");
}

#[tokio::test]
async fn a_job_with_an_idempotency_key_waits_for_its_caller_to_come_back() {
    let server = Server::start().await;
    let (connection, id) = begin(&server, "", "idempotency-key: again\r\n").await;
    drop(connection);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.get(&format!("/v1/jobs/{id}")).await.json()["status"], "running");
    server.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).await;
}

#[tokio::test]
async fn watching_a_job_and_leaving_does_not_cancel_it() {
    let server = Server::start().await;
    let id = server.job(&json!({"prompt": "x", "model": "slow", "steps": 30})).await;
    let mut connection = TcpStream::connect(listen(&server).await).await.unwrap();
    let head = format!("GET /v1/jobs/{id}/events HTTP/1.1\r\nhost: localhost\r\n\r\n");
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut some = [0; 64];
    connection.read_exact(&mut some).await.unwrap();
    drop(connection);
    assert_eq!(server.ended(&id).await["status"], "succeeded");
}

#[tokio::test]
async fn events_are_flushed_as_soon_as_they_exist() {
    let server = Server::start().await;
    let (mut connection, id) = begin(&server, r#", "stream": true, "partial_images": 3"#, "").await;
    // A preview arrives while the job still runs: 150 steps of 20 ms take three seconds.
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains("image_generation.partial_image") {
        let mut part = vec![0; 4096];
        let length = connection.read(&mut part).await.unwrap();
        assert_ne!(length, 0, "the stream ended without a preview");
        text.extend_from_slice(&part[..length]);
    }
    assert_eq!(server.get(&format!("/v1/jobs/{id}")).await.json()["status"], "running");
}
