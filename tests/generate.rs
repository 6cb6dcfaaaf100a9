//! `easel generate` from pictures: the same pictures as the server makes, and flags that cannot be, by name.

#![allow(clippy::unwrap_used, reason = "a test's helper may panic as the test may")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Server, client, data, data_uri, read, tiny_klein};
use serde_json::{Value, json};

fn file(name: &str) -> PathBuf {
    data("flux2/pictures").join(name)
}

/// Runs the command in a folder of its own.
fn generate(folder: &Path, flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_easel"))
        .args(["generate", "a red circle", "--seed", "7", "--steps", "4", "-o", "made.png"])
        .args(flags)
        .current_dir(folder)
        .output()
        .unwrap()
}

/// What it says of flags that cannot be; no picture is made then.
fn refusal(flags: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = generate(folder.path(), flags);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && !folder.path().join("made.png").exists(), "{said}");
    said.lines().find_map(|line| line.strip_prefix("easel: ")).unwrap_or(&said).to_owned()
}

#[test]
fn a_picture_made_from_pictures_is_the_servers_to_the_byte() {
    let klein = tiny_klein();
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--model", &klein]);
    let (start, mask, other) = (file("start-64x64.png"), file("mask-64x64.png"), file("start-160x64.png"));
    let [start, mask, other] = [&start, &mask, &other].map(|path| path.to_str().unwrap());
    let uri = |path: &str| data_uri(&read(path));
    // A model's name is part of the file, and so the server's must be the command's.
    let (_, source) = klein.split_once('=').unwrap();
    let config = folder.path().join("easel.toml");
    std::fs::write(&config, format!("[models.sources]\nklein = {source:?}\n")).unwrap();
    let config = config.to_str().unwrap();
    let cases: [(&[&str], Value); 3] = [
        (
            &["--image", start, "--strength", "0.6"],
            json!({"model": "easel-mini", "image": uri(start), "strength": 0.6}),
        ),
        (&["--image", start, "--mask", mask], json!({"model": "easel-mini", "image": uri(start), "mask": uri(mask)})),
        (
            &["--config", config, "--model", "klein", "--size", "64x64", "--reference", start, "--reference", other],
            json!({"model": "klein", "size": "64x64", "reference_images": [uri(start), uri(other)]}),
        ),
    ];
    for (flags, mut body) in cases {
        for (key, value) in [("prompt", json!("a red circle")), ("seed", json!(7)), ("steps", json!(4))] {
            body[key] = value;
        }
        let (status, reply) = server.post("/v1/images/generations", &body);
        assert_eq!(status, 200, "{reply}");
        let url = reply["data"][0]["url"].as_str().unwrap();
        let expected = client().get(url).send().unwrap().bytes().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let output = generate(folder.path(), flags);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(read(folder.path().join("made.png")) == expected, "{flags:?}");
    }

    // A picture may be an address; the server's own is on a private host, which is not fetched from unless it is allowed.
    let (_, reply) =
        server.post("/v1/images/generations", &json!({"prompt": "a cat", "steps": 1, "model": "easel-mini"}));
    let url = reply["data"][0]["url"].as_str().unwrap();
    let refused = refusal(&["--image", url]);
    assert!(refused.starts_with("`--image` cannot be fetched: 127.0.0.1 has no address on the public"), "{refused}");
    std::fs::write(config, "[fetch]\nallow_private_hosts = [\"127.0.0.1\"]\n").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = generate(folder.path(), &["--config", config, "--image", url]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn flags_that_cannot_be_are_refused_by_name() {
    let (start, mask, text) = (file("start-64x64.png"), file("mask-64x64.png"), data("tokens.json"));
    let [start, mask, text] = [&start, &mask, &text].map(|path| path.to_str().unwrap());
    let klein = tiny_klein();
    let (_, klein) = klein.split_once('=').unwrap();
    let klein = ["--model", klein, "--size", "64x64"];
    for (flags, expected) in [
        (vec!["--mask", mask], "`--mask` is not supported: it says which part of `image` is painted anew".to_owned()),
        (
            vec!["--image", start, "--strength", "1.5"],
            "`--strength` must be a number from 0 to 1; 1.5 was asked".into(),
        ),
        (vec!["--image", "none.png"], "--image none.png: No such file".into()),
        (vec!["--image", text], "`--image` is not a picture that can be used: it is not a png, jpeg or webp".into()),
        (vec!["--image", start, "--mask", text], "`--mask` is not a picture that can be used".into()),
        (vec!["--reference", start], "`--reference` is not supported: easel-mini does not look at pictures".into()),
        (vec!["-n", "0"], "`--n` must be a whole number from 1".into()),
        ([&klein[..], &["--image", start, "--strength", "0.5"]].concat(), "`--strength` is not supported".into()),
        (
            [&klein[..], &["--image", start], &["--reference", start].repeat(4)].concat(),
            "`--image` must be at most 4 pictures".into(),
        ),
        ([&klein[..], &["--reference", start].repeat(5)].concat(), "`--reference` must be at most 4 pictures".into()),
        (
            [&klein[..], &["--reference", start, "--reference", text]].concat(),
            "picture 2 of `--reference` is not a picture that can be used".into(),
        ),
    ] {
        let said = refusal(&flags);
        assert!(said.starts_with(&expected), "{flags:?}: {said}");
    }
}
