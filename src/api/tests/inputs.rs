//! Pictures in JSON bodies: data URIs, base64, addresses of this server and of others.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};

use super::jobs::path_of;
use super::*;

/// A PNG of one colour.
pub(super) fn png(width: u32, height: u32, colour: [u8; 4]) -> Vec<u8> {
    let mut file = std::io::Cursor::new(Vec::new());
    let picture = image::RgbaImage::from_pixel(width, height, image::Rgba(colour));
    picture.write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

pub(super) fn data_uri(file: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(file))
}

/// The pixels of the first picture of a reply.
pub(super) async fn picture(server: &Server, reply: &Value) -> image::RgbImage {
    let url = reply["outputs"][0]["url"].as_str().unwrap_or_else(|| panic!("{reply}"));
    image::load_from_memory(&server.get(path_of(url)).await.bytes).unwrap().into_rgb8()
}

const ROUTE: &str = "/v1/images/generations";

#[tokio::test]
async fn a_picture_is_taken_in_every_form_and_under_every_name() {
    let server = Server::start().await;
    let file = png(40, 24, [77, 0, 0, 255]);
    let uri = data_uri(&file);
    for body in [
        json!({"prompt": "x", "image": uri}),
        json!({"prompt": "x", "init_image": STANDARD.encode(&file)}),
        json!({"prompt": "x", "image_url": STANDARD_NO_PAD.encode(&file), "strength": 0.4}),
        json!({"prompt": "x", "image": [URL_SAFE.encode(&file)]}),
        json!({"prompt": "x", "images": [{"image_url": uri}]}),
        json!({"prompt": "x", "image_to_image": {"init_image_url": uri, "strength": 0.4}}),
        json!({"prompt": "x", "image": uri, "image_strength": 0.6}),
    ] {
        let reply = server.post(ROUTE, &body).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        let reply = reply.json();
        assert_eq!((reply["size"].as_str(), &reply["warnings"]), (Some("40x24"), &json!([])));
        let made = picture(&server, &reply).await;
        assert_eq!((made.dimensions(), made.get_pixel(3, 3).0), ((40, 24), [77, 27, 128]));
        let job = server.get(&format!("/v1/jobs/{}", reply["id"].as_str().unwrap())).await.json();
        let named =
            body.get("strength").is_some() || body.get("image").is_none() && body.get("image_to_image").is_some();
        let strength = if named || body.get("image_strength").is_some() { 0.4 } else { 0.8 };
        assert!((job["request"]["strength"].as_f64().unwrap() - strength).abs() < 1e-9, "{job}");
        assert_eq!(job["request"]["images"][0]["width"], 40);
        assert!(!job.to_string().contains(&STANDARD.encode(&file)), "a job does not repeat the file");
    }
}

#[tokio::test]
async fn a_mask_paints_what_is_white_and_keeps_the_rest_to_the_bit() {
    let server = Server::start().await;
    let original = image::RgbImage::from_fn(64, 48, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]));
    let mut file = std::io::Cursor::new(Vec::new());
    original.write_to(&mut file, image::ImageFormat::Png).unwrap();
    let mask = image::GrayImage::from_fn(64, 48, |x, _| image::Luma([if x < 32 { 255 } else { 0 }]));
    let mut mask_file = std::io::Cursor::new(Vec::new());
    mask.write_to(&mut mask_file, image::ImageFormat::Png).unwrap();
    let body = json!({"prompt": "x", "image": data_uri(file.get_ref()), "mask": data_uri(mask_file.get_ref())});
    let reply = server.post(ROUTE, &body).await.json();
    let made = picture(&server, &reply).await;
    for (x, y, pixel) in made.enumerate_pixels() {
        let kept = pixel == original.get_pixel(x, y);
        assert!(if x < 32 { pixel.0 == [0, 0, 128] } else { kept }, "{x} {y} {pixel:?}");
    }
    assert_eq!(reply["usage"]["input_tokens_details"]["image_tokens"], 24);
    // A model that makes one size only: what is kept is kept in the delivered size.
    let body = json!({"prompt": "x", "model": "tiny", "image": data_uri(file.get_ref()), "mask": data_uri(mask_file.get_ref())});
    let reply = server.post(ROUTE, &body).await.json();
    assert_eq!(reply["size"], "64x48");
    let made = picture(&server, &reply).await;
    assert!(made.enumerate_pixels().filter(|(x, ..)| *x >= 32).all(|(x, y, pixel)| pixel == original.get_pixel(x, y)));
}

#[tokio::test]
async fn an_editing_model_looks_at_several_pictures() {
    let server = Server::start().await;
    let uri = data_uri(&png(80, 40, [50, 0, 0, 255]));
    let body = json!({"prompt": "x", "model": "editor", "image": [uri, uri], "reference_images": [uri]});
    let reply = server.post(ROUTE, &body).await.json();
    let made = picture(&server, &reply).await;
    assert_eq!(made.get_pixel(0, 0).0[0], 53);
    // Of the native number of pixels, in the first one's shape.
    assert!(made.width() > made.height() && made.width() * made.height() <= 64 * 64, "{:?}", made.dimensions());
}

#[tokio::test]
async fn pictures_of_this_server_are_read_without_a_request_to_it() {
    let server = Server::with_keys().await;
    let send = async |who: &str, path: &str, body: &Value| server.send(bearer(post(path, body), who)).await;
    let made = send("maker", ROUTE, &json!({"prompt": "x", "seed": 1})).await.json();
    let (url, id) = (made["outputs"][0]["url"].as_str().unwrap(), made["id"].as_str().unwrap());
    let again = async |who: &str, image: &str| send(who, ROUTE, &json!({"prompt": "y", "image": image})).await;
    for image in [url, path_of(url), &format!("/v1/jobs/{id}/outputs/0")] {
        let reply = again("maker", image).await;
        assert_eq!(reply.status, StatusCode::OK, "{image}: {}", reply.text());
    }
    // An address is a permission; a job's id is not.
    assert_eq!(again("other", url).await.status, StatusCode::OK);
    let outputs = format!("/v1/jobs/{id}/outputs/0");
    let refused = (400, "image_unreachable".into(), Some("image".into()));
    assert_eq!(again("other", &outputs).await.error(), refused);
    for image in [&outputs.replace("/0", "/1"), &path_of(url).replace("0.png", "1.png"), "/files/x/y/z"] {
        assert_eq!(again("maker", image).await.error(), refused, "{image}");
    }
}

#[tokio::test]
async fn pictures_elsewhere_are_fetched_where_that_is_allowed() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/a.png", listener.local_addr().unwrap());
    let file = png(16, 16, [5, 0, 0, 255]);
    let router = Router::new().route("/a.png", axum::routing::get(async move || file.clone()));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let closed = Server::start().await;
    let reply = closed.post(ROUTE, &json!({"prompt": "x", "init_image": url})).await;
    assert_eq!(reply.error(), (400, "image_unreachable".into(), Some("init_image".into())));
    let open = Server::with(|config| config.fetch.allow_private_hosts = vec!["127.0.0.1".into()]).await;
    let reply = open.post(ROUTE, &json!({"prompt": "x", "init_image": url})).await.json();
    assert_eq!(picture(&open, &reply).await.get_pixel(0, 0).0[0], 5);
    let gone = open.post(ROUTE, &json!({"prompt": "x", "image": url.replace("a.png", "b.png")})).await;
    assert!(gone.text().contains("404"), "{}", gone.text());
}

#[tokio::test]
async fn a_picture_that_cannot_be_used_is_refused_by_its_field_and_leaves_nothing_behind() {
    let server = Server::with(|config| config.limits.max_input_pixels = 1000).await;
    let good = data_uri(&png(16, 16, [1, 2, 3, 255]));
    let large = data_uri(&png(40, 40, [1, 2, 3, 255]));
    let broken = data_uri(&png(16, 16, [1, 2, 3, 255])[..40]);
    for (body, param) in [
        (json!({"image": "not base64!"}), "image"),
        (json!({"image": STANDARD.encode("hello")}), "image"),
        (json!({"init_image": broken}), "init_image"),
        (json!({"image": large}), "image"),
        (json!({"image": good, "mask": broken}), "mask"),
        (json!({"image": good, "mask_image": STANDARD.encode("GIF89a\x01\0\x01\0\0\0\0")}), "mask_image"),
        (json!({"image_to_image": {"init_image_url": broken}}), "image_to_image.init_image_url"),
    ] {
        let mut body = body;
        body["prompt"] = json!("x");
        for route in [ROUTE, "/v1/jobs", "/v1/images/jobs", "/api/v1/images/generations"] {
            let reply = server.post(route, &body).await;
            assert_eq!(reply.error(), (400, "invalid_image".into(), Some(param.into())), "{route} {body}");
        }
    }
    assert_eq!(server.get("/v1/jobs").await.json()["data"], json!([]));
    assert!(server.app.artifacts.kept_inputs().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_repeated_key_finds_its_job_though_the_picture_is_gone() {
    let (gone, mut once) = tokio::sync::watch::channel(false);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let file = png(16, 16, [5, 0, 0, 255]);
    let router = Router::new().route(
        "/",
        axum::routing::get(
            async move || if gone.send_replace(true) { Err(StatusCode::GONE) } else { Ok(file.clone()) },
        ),
    );
    tokio::spawn(async move { axum::serve(listener, router).await });
    let server = Server::with(|config| config.fetch.allow_private_hosts = vec!["127.0.0.1".into()]).await;
    let call =
        |prompt: &str| with_header(post("/v1/jobs", &json!({"prompt": prompt, "image": url})), "idempotency-key", "k");
    let first = server.send(call("x")).await;
    assert_eq!(first.status, StatusCode::ACCEPTED, "{}", first.text());
    assert!(*once.borrow_and_update());
    let again = server.send(call("x")).await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (StatusCode::ACCEPTED, Some("true")));
    assert_eq!(again.json()["id"], first.json()["id"]);
    assert_eq!(server.send(call("y")).await.error(), (409, "idempotency_mismatch".into(), None));
}

#[tokio::test]
async fn deleting_a_job_removes_its_pictures() {
    let server = Server::start().await;
    let id = server.job(&json!({"prompt": "x", "image": data_uri(&png(16, 16, [5, 0, 0, 255]))})).await;
    server.ended(&id).await;
    assert_eq!(server.app.artifacts.kept_inputs().await.unwrap().len(), 1);
    let delete = Request::delete(format!("/v1/jobs/{id}")).body(Body::empty()).unwrap();
    assert_eq!(server.send(delete).await.status, StatusCode::NO_CONTENT);
    assert!(server.app.artifacts.kept_inputs().await.unwrap().is_empty());
}
