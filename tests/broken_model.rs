//! A model whose weights do not fit its configuration is known by that from the start, and takes no other down.

#![allow(clippy::unwrap_used, reason = "a test's helper may panic as the test may")]

mod common;

use std::path::Path;

use common::{Server, data, read};
use serde_json::json;

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() { copy(&entry.path(), &target) } else { drop(std::fs::copy(entry.path(), target)) }
    }
}

#[test]
fn a_model_with_a_tensor_missing_has_failed_before_anybody_asks_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy(&data("flux2/distilled"), &model);
    let weights = model.join("transformer/diffusion_pytorch_model.safetensors");
    let mut bytes = read(&weights);
    let key = b"\"x_embedder.weight\"";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap();
    bytes[at + 1] = b'y';
    std::fs::write(&weights, bytes).unwrap();

    let server = Server::start(&folder.path().join("data"), &["--model", &format!("klein={}", model.display())]);
    let models = server.get("/admin/v1/models");
    let klein = &models["data"][0];
    let error = klein["error"].as_str().unwrap_or_default();
    assert_eq!((&klein["id"], &klein["state"]), (&json!("klein"), &json!("failed")), "{klein}");
    assert!(
        error.starts_with("klein cannot be loaded: transformer/") && error.contains("x_embedder.weight"),
        "{error}"
    );

    let asked = json!({"prompt": "a cat", "size": "64x64", "steps": 1});
    let (status, reply) = server.post("/v1/images/generations", &asked);
    let told = &reply["error"];
    assert_eq!((status, &told["code"], &told["param"]), (503, &json!("model_failed"), &json!("model")), "{reply}");
    assert_eq!(told["message"], klein["error"]);
    let mini = json!({"prompt": "a cat", "model": "easel-mini", "steps": 1});
    let (status, reply) = server.post("/v1/images/generations", &mini);
    assert_eq!(status, 200, "{reply}");

    // Once its files are mended it need not be waited for.
    let mended = folder.path().join("mended");
    std::fs::copy(data("flux2/distilled/transformer/diffusion_pytorch_model.safetensors"), &mended).unwrap();
    std::fs::rename(mended, &weights).unwrap();
    let (status, reply) = server.post("/admin/v1/models/klein/load?wait=60", &json!({}));
    assert_eq!((status, &reply["state"]), (200, &json!("ready")), "{reply}");
    let (status, reply) = server.post("/v1/images/generations", &asked);
    assert_eq!(status, 200, "{reply}");
}
