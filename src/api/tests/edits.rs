//! `/v1/images/edits` and `/v1/images/variations`, as OpenAI's clients send them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::inputs::{data_uri, picture, png};
use super::*;

const EDITS: &str = "/v1/images/edits";
const VARIATIONS: &str = "/v1/images/variations";

enum Part<'a> {
    Text(&'a str, &'a str),
    File(&'a str, &'a [u8]),
}
use Part::{File, Text};

fn form(path: &str, boundary: &str, parts: &[Part<'_>]) -> Request<Body> {
    let mut body = Vec::new();
    for part in parts {
        let (name, head, value) = match part {
            Text(name, value) => (name, "", value.as_bytes()),
            File(name, value) => (name, "; filename=\"a.png\"\r\ncontent-type: application/octet-stream", *value),
        };
        let head = format!("--{boundary}\r\ncontent-disposition: form-data; name=\"{name}\"{head}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(value);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    let kind = format!("multipart/form-data; boundary={boundary}");
    Request::post(path).header("content-type", kind).body(Body::from(body)).unwrap()
}

/// A mask of this size whose left half is transparent.
fn mask(width: u32, height: u32) -> Vec<u8> {
    let alpha = |x: u32| if x < width / 2 { 0 } else { 255 };
    let mask = image::RgbaImage::from_fn(width, height, |x, _| image::Rgba([0, 0, 0, alpha(x)]));
    let mut file = std::io::Cursor::new(Vec::new());
    mask.write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

#[tokio::test]
async fn an_edit_paints_the_transparent_part_and_keeps_the_rest() {
    let server = Server::start().await;
    let (image, mask) = (png(40, 24, [90, 1, 2, 255]), mask(40, 24));
    for name in ["image", "image[]", "image[0]"] {
        let parts =
            [Text("n", "2"), File("mask", &mask), Text("prompt", "x"), File(name, &image), Text("size", "auto")];
        let reply = server.send(form(EDITS, "b", &parts)).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        let reply = reply.json();
        assert_eq!((reply["data"].as_array().unwrap().len(), reply["size"].as_str()), (2, Some("40x24")));
        let made = picture(&server, &reply).await;
        assert_eq!((made.get_pixel(2, 2).0, made.get_pixel(38, 2).0), ([90, 118, 128], [90, 1, 2]));
    }
}

#[tokio::test]
async fn several_pictures_go_to_a_model_that_looks_at_them_in_their_order() {
    let server = Server::start().await;
    let (first, second) = (png(16, 16, [10, 0, 0, 255]), png(16, 16, [20, 0, 0, 255]));
    let parts = |a, b| [Text("model", "editor"), Text("prompt", "x"), File("image[]", a), File("image[]", b)];
    let reply = server.send(form(EDITS, "b", &parts(&first, &second))).await.json();
    assert_eq!(picture(&server, &reply).await.get_pixel(0, 0).0[0], 12);
    let reply = server.send(form(EDITS, "b", &parts(&second, &first))).await.json();
    assert_eq!(picture(&server, &reply).await.get_pixel(0, 0).0[0], 22);
    let many = [&parts(&first, &second)[..], &parts(&first, &second)[2..]].concat_parts();
    assert_eq!(server.send(form(EDITS, "b", &many)).await.error().2.as_deref(), Some("image"));
    let two = [Text("prompt", "x"), File("image[]", &first), File("image[]", &second)];
    assert_eq!(server.send(form(EDITS, "b", &two)).await.error(), (400, "invalid_value".into(), Some("image".into())));
}

trait Concat<'a> {
    fn concat_parts(&self) -> Vec<Part<'a>>;
}

impl<'a> Concat<'a> for [&[Part<'a>]; 2] {
    fn concat_parts(&self) -> Vec<Part<'a>> {
        let again = |part: &Part<'a>| match part {
            Text(name, value) => Text(name, value),
            File(name, value) => File(name, value),
        };
        self.iter().flat_map(|parts| parts.iter().map(again)).collect()
    }
}

#[tokio::test]
async fn a_variation_needs_no_prompt() {
    let server = Server::start().await;
    let image = png(40, 24, [90, 1, 2, 255]);
    let parts = [File("image", &image), Text("n", "1"), Text("response_format", "b64_json"), Text("user", "u")];
    let reply = server.send(form(VARIATIONS, "b", &parts)).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    let file = STANDARD.decode(reply.json()["data"][0]["b64_json"].as_str().unwrap()).unwrap();
    let made = image::load_from_memory(&file).unwrap().into_rgb8();
    assert_eq!((made.dimensions(), made.get_pixel(0, 0).0[0]), ((40, 24), 90));
    let parts = [File("image", &image), File("mask", &image)];
    assert_eq!(server.send(form(VARIATIONS, "b", &parts)).await.error().2.as_deref(), Some("mask"));
}

#[tokio::test]
async fn an_edit_streams_under_its_own_names() {
    let server = Server::start().await;
    let image = png(40, 24, [90, 1, 2, 255]);
    let parts = [File("image", &image), Text("prompt", "x"), Text("stream", "true"), Text("partial_images", "2")];
    let reply = server.send(form(EDITS, "b", &parts)).await;
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    let text = reply.text();
    let types: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(types.last(), Some(&"image_edit.completed"), "{text}");
    assert!(types[..types.len() - 1].iter().all(|name| *name == "image_edit.partial_image"));
    assert!(text.contains("\"type\":\"image_edit.completed\""));
}

#[tokio::test]
async fn a_bad_form_is_refused_by_the_field_at_fault() {
    let server = Server::start().await;
    let (image, other, opaque) = (png(40, 24, [9, 1, 2, 255]), mask(48, 24), png(40, 24, [0, 0, 0, 255]));
    for (parts, code, param) in [
        (vec![Text("prompt", "x")], "missing_required_parameter", "image"),
        (vec![File("image", &image)], "missing_required_parameter", "prompt"),
        (vec![File("image", &image), Text("prompt", "")], "invalid_value", "prompt"),
        (vec![File("image", b"hello"), Text("prompt", "x")], "invalid_image", "image"),
        (vec![File("image", &image), Text("prompt", "x"), File("mask", &other)], "invalid_value", "mask"),
        (vec![File("image", &image), Text("prompt", "x"), File("mask", &opaque)], "invalid_image", "mask"),
        (vec![File("image", &image), Text("prompt", "x"), Text("n", "many")], "invalid_value", "n"),
        (vec![File("image", &image), Text("prompt", "x"), Text("n", "1"), Text("n", "2")], "invalid_value", "n"),
        (vec![File("image", &image), Text("prompt", "x"), Text("markup", "y")], "unsupported_parameter", "markup"),
        (vec![File("image", &image), Text("prompt", "x"), Text("model", "drawer")], "unsupported_parameter", "image"),
        (
            vec![File("image", &image), Text("prompt", "x"), Text("input_fidelity", "some")],
            "invalid_value",
            "input_fidelity",
        ),
    ] {
        let reply = server.send(form(EDITS, "b", &parts)).await;
        assert_eq!(reply.error(), (400, code.into(), Some(param.into())), "{}", reply.text());
    }
    let mut broken = form(EDITS, "b", &[File("image", &image)]);
    *broken.body_mut() = Body::from("--b\r\ncontent-disposition: form-data; name=\"image\"\r\n\r\nhalf");
    assert_eq!(server.send(broken).await.error().0, 400);
    let text = Request::post(EDITS).header("content-type", "text/plain").body(Body::from("x")).unwrap();
    assert_eq!(server.send(text).await.error(), (415, "unsupported_media_type".into(), None));
}

#[tokio::test]
async fn an_edit_may_come_as_json() {
    let server = Server::start().await;
    let uri = data_uri(&png(40, 24, [90, 1, 2, 255]));
    let body = json!({"prompt": "x", "images": [{"image_url": uri}], "mask": {"image_url": data_uri(&mask(40, 24))}});
    let reply = server.post(EDITS, &body).await.json();
    let made = picture(&server, &reply).await;
    assert_eq!((made.get_pixel(2, 2).0, made.get_pixel(38, 2).0), ([90, 118, 128], [90, 1, 2]));
}

#[tokio::test]
async fn a_form_sent_again_under_its_key_is_the_same_though_its_boundary_is_new() {
    let server = Server::start().await;
    let (image, other) = (png(40, 24, [90, 1, 2, 255]), png(40, 24, [91, 1, 2, 255]));
    let send = async |boundary: &str, parts: &[Part<'_>]| {
        server.send(with_header(form(EDITS, boundary, parts), "idempotency-key", "k")).await
    };
    let first = send("one", &[File("image", &image), Text("prompt", "x")]).await;
    let again = send("two", &[Text("prompt", "x"), File("image", &image)]).await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(again.json()["id"], first.json()["id"]);
    let mismatch = send("one", &[File("image", &other), Text("prompt", "x")]).await;
    assert_eq!(mismatch.error().0, 409);
}

#[tokio::test]
async fn a_form_of_many_megabytes_is_taken_up_to_the_limit_of_bodies() {
    let noise: Vec<u8> = (0..1100 * 1100 * 3_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut file = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_raw(1100, 1100, noise).unwrap().write_to(&mut file, image::ImageFormat::Png).unwrap();
    let parts = [File("image", file.get_ref()), Text("prompt", "x")];
    let server = Server::start().await;
    let reply = server.send(form(EDITS, "b", &parts)).await;
    assert!(file.get_ref().len() > 3 << 20);
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    let small = Server::with(|config| config.limits.max_body_bytes = 1 << 20).await;
    assert_eq!(small.send(form(EDITS, "b", &parts)).await.error(), (413, "body_too_large".into(), None));
}
