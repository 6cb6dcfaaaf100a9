//! Pictures that a model is given to look at, over HTTP: FLUX.2 klein in the least size, whose pictures diffusers has made, too.

#![allow(clippy::unwrap_used, reason = "a test's helper may panic as the test may")]

mod common;

use std::collections::BTreeSet;

use common::{Server, client, data, data_uri, digests, read, tiny_klein};
use image::RgbImage;
use reqwest::blocking::multipart::{Form, Part};
use serde_json::{Value, json};

/// Sizes that need no change, are cut, and are wide.
const FILES: [&str; 5] =
    ["start-75x83.png", "start-160x64.png", "start-64x64.png", "start-64x80.png", "start-72x64.png"];

fn files(which: &[usize]) -> Vec<Vec<u8>> {
    which.iter().map(|&file| read(data("flux2/pictures").join(FILES[file]))).collect()
}

/// The picture of diffusers' that two references are part of, `distilled-04` of the models' own tests.
fn two_references() -> Value {
    let cases: Vec<Value> = serde_json::from_slice(&read(data("flux2/cases.json"))).unwrap();
    let case = cases.into_iter().find(|case| case["file"] == "distilled-04.png").unwrap();
    assert_eq!(case["references"], json!([[75, 83], [160, 64]]));
    json!({"prompt": case["prompt"], "size": format!("{}x{}", case["width"], case["height"]), "steps": case["steps"],
        "seed": case["seed"]})
}

/// The two references as JSON, in `image` and `reference_images`.
fn with_images(images: &[usize], references: &[usize]) -> Value {
    let uris = |which: &[usize]| files(which).iter().map(|file| data_uri(file)).collect::<Vec<_>>();
    let mut body = two_references();
    body["image"] = json!(uris(images));
    body["reference_images"] = json!(uris(references));
    body
}

/// The same as OpenAI's clients send it.
fn form(which: &[usize]) -> Form {
    let text = |form: Form, (name, value): (&String, &Value)| {
        form.text(name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    let form = two_references().as_object().unwrap().iter().fold(Form::new(), text);
    let file = |file| Part::bytes(file).file_name("picture.png").mime_str("image/png").unwrap();
    files(which).into_iter().fold(form, |form, bytes| form.part("image[]", file(bytes)))
}

impl Server {
    fn looks_at(&self, images: &[usize], references: &[usize]) -> Value {
        let (status, reply) = self.post("/v1/images/generations", &with_images(images, references));
        assert_eq!(status, 200, "{reply}");
        reply
    }

    fn edits(&self, which: &[usize]) -> (u16, Value) {
        let reply = client().post(format!("{}/v1/images/edits", self.url)).multipart(form(which)).send().unwrap();
        (reply.status().as_u16(), reply.json().unwrap())
    }
}

/// The first picture of a reply.
fn picture(reply: &Value) -> RgbImage {
    let url = reply["data"][0]["url"].as_str().unwrap();
    image::load_from_memory(&client().get(url).send().unwrap().bytes().unwrap()).unwrap().into_rgb8()
}

fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let squares = a.as_raw().iter().zip(b.as_raw()).map(|(&a, &b)| f64::from(a.abs_diff(b)).powi(2));
    let mean = squares.sum::<f64>() / a.as_raw().len() as f64;
    20.0 * 255f64.log10() - 10.0 * mean.max(1e-10).log10()
}

#[test]
fn a_picture_depends_on_each_reference_and_on_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--model", &tiny_klein()]);
    let both = server.looks_at(&[0, 1], &[]);
    let diffusers = image::load_from_memory(&read(data("flux2/pictures/distilled-04.png"))).unwrap().into_rgb8();
    let near = psnr(&picture(&both), &diffusers);
    assert!(near > 45.0, "{near} dB to diffusers' picture");
    // However the two are sent, they are the same.
    assert_eq!(digests(&server.looks_at(&[0], &[1])), digests(&both));
    let (status, edited) = server.edits(&[0, 1]);
    assert_eq!(status, 200, "{edited}");
    assert_eq!(digests(&edited), digests(&both));

    let others: [&[usize]; 6] = [&[], &[0], &[1, 0], &[0, 2], &[2, 1], &[0, 1, 2, 3]];
    let mut pictures: Vec<RgbImage> = others.map(|which| picture(&server.looks_at(which, &[]))).into();
    pictures.push(picture(&both));
    let different: BTreeSet<&[u8]> = pictures.iter().map(|picture| picture.as_raw().as_slice()).collect();
    assert_eq!(different.len(), others.len() + 1);
    assert_eq!(picture(&server.edits(&[0, 1, 2, 3]).1), pictures[5]);
}

#[test]
fn a_model_that_paints_into_a_picture_looks_at_others_too() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--model", &tiny_klein()]);
    let mask = data_uri(&read(data("flux2/pictures/mask-64x64.png")));
    let painted = |references: &[usize]| {
        let mut body = with_images(&[2], references);
        body["mask"] = json!(mask);
        server.post("/v1/images/generations", &body)
    };
    let made: Vec<RgbImage> = [&[][..], &[0], &[1], &[0, 1], &[1, 0]]
        .map(|references| {
            let (status, reply) = painted(references);
            assert_eq!(status, 200, "{reply}");
            picture(&reply)
        })
        .into();
    let different: BTreeSet<&[u8]> = made.iter().map(|picture| picture.as_raw().as_slice()).collect();
    assert_eq!(different.len(), made.len());
    // What the mask keeps is the first picture's, whatever it looks at.
    let start = image::load_from_memory(&files(&[2])[0]).unwrap().into_rgb8();
    let mask = image::load_from_memory(&read(data("flux2/pictures/mask-64x64.png"))).unwrap().into_luma8();
    let kept = |picture: &RgbImage| {
        mask.enumerate_pixels().all(|(x, y, share)| share.0[0] > 0 || picture.get_pixel(x, y) == start.get_pixel(x, y))
    };
    assert!(made.iter().all(kept));
    let (status, reply) = painted(&[0, 1, 3, 4]);
    assert_eq!((status, &reply["error"]["param"]), (400, &json!("image")), "{reply}");
}

#[test]
fn more_references_than_the_model_takes_are_refused_by_number() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--model", &tiny_klein()]);
    let message = "`image` must be at most 4 pictures for klein; 5 of them was asked";
    for (status, reply) in [
        server.post("/v1/jobs", &with_images(&[0, 1, 2, 3, 4], &[])),
        server.post("/v1/jobs", &with_images(&[0, 1], &[2, 3, 4])),
        server.edits(&[0, 1, 2, 3, 4]),
    ] {
        let error = &reply["error"];
        assert_eq!((status, &error["param"], &error["message"]), (400, &json!("image"), &json!(message)), "{reply}");
    }
    assert_eq!(server.get("/v1/jobs")["data"], json!([]));
}
