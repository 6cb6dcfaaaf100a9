//! Opening, fetching, resuming, and what goes wrong.

use std::cell::RefCell;
use std::path::Path;
use std::time::Duration;

use candle_core::{DType, Device};
use easel_models::weights::{HubOptions, Repository};
use easel_models::{Loading, Result};
use tempfile::TempDir;

use crate::stand_in::{COMMIT, Seen, StandIn, safetensors};

/// A folder in the diffusers layout, with weights of 300 kB.
fn model() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("model_index.json", br#"{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "X"]}"#.to_vec()),
        ("unet/config.json", br#"{"sizes": [1, 2]}"#.to_vec()),
        ("unet/diffusion_pytorch_model.safetensors", safetensors("a", 75_000)),
        ("unet/diffusion_pytorch_model.fp16.safetensors", safetensors("a", 10)),
        ("unet/diffusion_pytorch_model.bin", vec![0x80; 100]),
    ]
}

const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";

fn options(hub: &StandIn, cache: &TempDir) -> HubOptions {
    HubOptions {
        endpoint: Some(hub.endpoint()),
        token: None,
        cache: cache.path().to_owned(),
        offline: false,
        attempts: 4,
        pause: Duration::from_millis(1),
        stall: Duration::from_secs(5),
    }
}

fn open(source: &str, options: &HubOptions) -> Result<Repository> {
    Repository::hub(source, options)
}

fn cache() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn refusal(result: Result<impl Sized>) -> String {
    result.err().expect("an error is expected").to_string()
}

/// Reads all of the weights.
fn weights(repository: &Repository) -> Result<Vec<f32>> {
    let tensors = repository.tensors("unet", DType::F32, &Device::Cpu)?;
    Ok(tensors.try_get_any("a")?.unwrap().to_vec1()?)
}

fn ramp(count: usize) -> Vec<f32> {
    (0..count).map(|i| i as f32).collect()
}

#[test]
fn a_model_opens_by_its_small_files_and_fetches_its_weights_when_they_are_needed() {
    let (hub, cache) = (StandIn::serve(model()), cache());
    let repository = open("owner/name", &options(&hub, &cache)).unwrap();
    assert!(repository.text("unet/config.json").unwrap().contains("sizes"));
    let part = repository.part("unet", |shape| 4 * shape.iter().product::<usize>() as u64).unwrap();
    assert_eq!((part.parameters, part.stored, part.bytes), (75_000, vec!["F32".to_owned()], 300_000));
    let whole =
        |file: &str| hub.seen().iter().any(|seen| seen.method == "GET" && seen.is(file) && seen.range.is_none());
    assert!(!whole(WEIGHTS), "the header alone was asked for");

    let progress = RefCell::new(Vec::new());
    repository.fetch(&["unet"], &|loading| progress.borrow_mut().push(loading)).unwrap();
    let size = model()[2].1.len() as u64;
    let last = progress.borrow().last().copied();
    assert_eq!(last, Some(Loading { done: size, total: size, fetching: true }));
    assert!(progress.borrow().windows(2).all(|pair| pair[0].done <= pair[1].done));
    assert_eq!(weights(&repository).unwrap(), ramp(75_000));
    assert!(!hub.seen().iter().any(|seen| seen.is(".fp16.") || seen.is(".bin")), "only what is needed is fetched");
}

#[test]
fn the_cache_has_the_layout_that_python_has() {
    let (hub, cache) = (StandIn::serve(model()), cache());
    let repository = open("owner/name", &options(&hub, &cache)).unwrap();
    repository.text("model_index.json").unwrap();
    weights(&repository).unwrap();
    let root = cache.path().join("models--owner--name");
    assert_eq!(std::fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    let pointer = root.join("snapshots").join(COMMIT).join(WEIGHTS);
    let etag = hub.etag(WEIGHTS);
    assert_eq!(etag.len(), 64);
    assert_eq!(std::fs::read_link(&pointer).unwrap(), Path::new("../../../blobs").join(&etag));
    assert_eq!(std::fs::read(pointer).unwrap(), model()[2].1);
    let small = std::fs::read_link(root.join("snapshots").join(COMMIT).join("model_index.json")).unwrap();
    assert_eq!(small, Path::new("../../blobs").join(hub.etag("model_index.json")));
    assert!(!root.join("blobs").join(format!("{etag}.incomplete")).exists());
}

#[test]
fn what_is_in_the_cache_is_not_fetched_again_and_serves_offline() {
    let (hub, cache) = (StandIn::serve(model()), cache());
    let online = options(&hub, &cache);
    let repository = open("owner/name", &online).unwrap();
    repository.text("model_index.json").unwrap();
    weights(&repository).unwrap();
    hub.forget();
    weights(&open("owner/name", &online).unwrap()).unwrap();
    assert!(hub.seen().iter().all(|seen| seen.path.starts_with("/api/")), "{:?}", hub.seen());

    let offline = HubOptions { offline: true, ..online.clone() };
    hub.forget();
    let repository = open("owner/name", &offline).unwrap();
    assert_eq!(weights(&repository).unwrap().len(), 75_000);
    assert!(hub.seen().is_empty(), "offline, nothing is asked");
    let absent = refusal(repository.text("unet/config.json"));
    assert!(absent.contains("unet/config.json: is not in the cache") && absent.contains("HF_HUB_OFFLINE"), "{absent}");
    let other = refusal(open("owner/other", &offline));
    assert!(other.starts_with("owner/other: is not in the cache") && other.contains("HF_HUB_OFFLINE"), "{other}");

    // A hub out of reach is no reason not to serve what is there.
    let unreachable = HubOptions { endpoint: Some(StandIn::nobody()), attempts: 2, ..online };
    assert_eq!(weights(&open("owner/name", &unreachable).unwrap()).unwrap().len(), 75_000);
    let other = refusal(open("owner/other", &unreachable));
    assert!(other.contains("is not in the cache") && other.contains("cannot be reached"), "{other}");
}

#[test]
fn a_cut_transfer_goes_on_where_it_was_cut() {
    let (hub, cache) = (StandIn::serve(model()), cache());
    let repository = open("owner/name", &options(&hub, &cache)).unwrap();
    hub.cut(WEIGHTS, &[100_000, 50_000, 0, 1]);
    assert_eq!(weights(&repository).unwrap(), ramp(75_000));
    let whole = |seen: &&Seen| seen.method == "GET" && seen.is("/store/") && seen.is("pytorch_model.safetensors");
    let ranges: Vec<_> = hub.seen().iter().filter(whole).map(|seen| seen.range.clone()).collect();
    // Each begins behind what had arrived.
    let starts: Vec<u64> = ranges.iter().map(|range| start(range.as_deref())).collect();
    assert_eq!(starts.len(), 5, "{ranges:?}");
    assert!(starts.windows(2).all(|pair| pair[0] <= pair[1]) && starts[4] > 0, "{starts:?}");
    assert!(hub.sent(WEIGHTS) < 2 * 300_000, "what had arrived is not sent again");
}

fn start(range: Option<&str>) -> u64 {
    range.map_or(0, |range| range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap())
}

#[test]
fn what_arrived_before_is_taken_up_by_the_next_process() {
    let (hub, cache) = (StandIn::serve(model()), cache());
    let once = HubOptions { attempts: 1, ..options(&hub, &cache) };
    let repository = open("owner/name", &once).unwrap();
    hub.cut(WEIGHTS, &[120_000]);
    let message = refusal(weights(&repository));
    assert!(
        message.contains("could not be fetched in 1 attempts") && message.contains("What has arrived is kept"),
        "{message}"
    );
    let partial = cache.path().join("models--owner--name/blobs").join(format!("{}.incomplete", hub.etag(WEIGHTS)));
    let there = partial.metadata().unwrap().len();
    assert!(there > 0);
    hub.forget();
    assert_eq!(weights(&open("owner/name", &once).unwrap()).unwrap(), ramp(75_000));
    assert!(hub.seen().iter().any(|seen| start(seen.range.as_deref().filter(|r| r.ends_with('-'))) == there));
}

#[test]
fn a_hub_without_ranges_serves_too() {
    let (hub, cache) = (StandIn::serve(model()), cache());
    hub.without_ranges();
    let repository = open("owner/name", &options(&hub, &cache)).unwrap();
    hub.cut(WEIGHTS, &[100_000]);
    assert_eq!(weights(&repository).unwrap(), ramp(75_000));
}

#[test]
fn what_arrives_wrong_is_fetched_again_and_never_used() {
    let (hub, cache) = (StandIn::serve(model()), cache());
    let repository = open("owner/name", &options(&hub, &cache)).unwrap();
    hub.corrupt(WEIGHTS, 1);
    assert_eq!(weights(&repository).unwrap(), ramp(75_000));

    let second = self::cache();
    let repository = open("owner/name", &options(&hub, &second)).unwrap();
    hub.corrupt(WEIGHTS, 100);
    let message = refusal(weights(&repository));
    assert!(message.contains("checksum") && message.contains(&hub.etag(WEIGHTS)), "{message}");
    hub.corrupt("unet/config.json", 100);
    assert!(refusal(repository.text("unet/config.json")).contains("checksum"));
    let left = std::fs::read_dir(second.path().join("models--owner--name/blobs")).unwrap();
    let whole = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(!whole.into_iter().any(|name| name == hub.etag(WEIGHTS)));
}

#[test]
fn a_busy_hub_is_asked_again() {
    let (hub, cache) = (StandIn::serve(model()), cache());
    hub.answer(&[503, 429, 500]);
    let repository = open("owner/name", &options(&hub, &cache)).unwrap();
    hub.answer(&[503, 502]);
    assert!(repository.try_bytes("unet/config.json").unwrap().is_some());
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let (hub, cache) = (StandIn::serve(model()), cache());
    hub.want_token("hf_secret", "");
    let message = refusal(open("owner/name", &options(&hub, &cache)));
    assert!(message.contains("(401)") && message.contains("HF_TOKEN"), "{message}");

    let token = HubOptions { token: Some("hf_secret".into()), ..options(&hub, &cache) };
    assert!(!format!("{token:?}").contains("hf_secret"));
    hub.forget();
    weights(&open("owner/name", &token).unwrap()).unwrap();
    for seen in hub.seen() {
        let expected = if seen.is("/store/") { None } else { Some("Bearer hf_secret".to_owned()) };
        assert_eq!(seen.token, expected, "{seen:?}");
    }
    assert!(hub.seen().iter().any(|seen| seen.is("/store/")));
}

#[test]
fn a_refusal_says_what_to_do() {
    let (hub, cache) = (StandIn::serve(model()), cache());
    let options = options(&hub, &cache);
    hub.want_token("hf_secret", "GatedRepo");
    let gated = refusal(open("owner/name", &options));
    let licence = format!("accept its licence at {}/owner/name", hub.endpoint());
    assert!(gated.starts_with("owner/name: is gated (401)") && gated.contains(&licence), "{gated}");
    let wrong = HubOptions { token: Some("hf_other".into()), ..options.clone() };
    let gated = refusal(open("owner/name", &wrong));
    assert!(gated.contains("is gated (403)") && gated.contains("HF_TOKEN"), "{gated}");
    hub.want_token("hf_secret", "RepoNotFound");
    let private = refusal(open("owner/name", &options));
    assert!(private.contains("no public repository owner/name") && private.contains("HF_TOKEN"), "{private}");
}

#[test]
fn what_is_not_there_is_told_by_name() {
    let (hub, cache) = (StandIn::serve(model()), cache());
    let options = options(&hub, &cache);
    let repository = refusal(open("owner/other", &options));
    assert!(repository.contains("no repository owner/other"), "{repository}");
    let revision = refusal(open("owner/name@v9", &options));
    assert!(revision.contains(r#"has no revision "v9""#), "{revision}");
    let model = open("owner/name", &options).unwrap();
    assert!(model.try_bytes("vae/config.json").unwrap().is_none());
    assert_eq!(refusal(model.text("vae/config.json")), "vae/config.json: is missing");
    let name = refusal(open("../name", &options));
    assert!(name.contains("is no name on the hub"), "{name}");
}

#[test]
fn a_revision_is_a_branch_a_tag_or_a_commit() {
    let (hub, cache) = (StandIn::serve(model()), cache());
    let options = options(&hub, &cache);
    for revision in ["refs/pr/1", COMMIT] {
        hub.forget();
        let repository = open(&format!("owner/name@{revision}"), &options).unwrap();
        repository.text("unet/config.json").unwrap();
        let asked = revision.replace('/', "%2F");
        assert!(hub.seen()[0].path.ends_with(&format!("/revision/{asked}")), "{:?}", hub.seen());
    }
    let refs = cache.path().join("models--owner--name/refs");
    assert_eq!(std::fs::read_to_string(refs.join("refs/pr/1")).unwrap(), COMMIT);
    assert!(!refs.join(COMMIT).exists());
}

#[test]
fn a_repository_is_found_under_its_former_name() {
    let (hub, cache) = (StandIn::serve(model()), cache());
    let repository = open("former/name", &options(&hub, &cache)).unwrap();
    assert!(repository.text("unet/config.json").unwrap().contains("sizes"));
    assert_eq!(weights(&repository).unwrap(), ramp(75_000));
}

#[test]
fn a_variant_is_read_where_it_is_asked_for_or_the_only_one() {
    let (hub, cache) = (StandIn::serve(model()), cache());
    let repository = open("owner/name?variant=fp16", &options(&hub, &cache)).unwrap();
    assert_eq!(weights(&repository).unwrap(), ramp(10));

    let only = model().into_iter().filter(|(name, _)| *name != WEIGHTS).collect();
    let (hub, cache) = (StandIn::serve(only), self::cache());
    let repository = open("owner/name", &options(&hub, &cache)).unwrap();
    assert_eq!(weights(&repository).unwrap(), ramp(10));
}

#[test]
fn pickles_are_refused_with_the_way_to_convert_them() {
    let pickles = vec![("model_index.json", b"{}".to_vec()), ("unet/diffusion_pytorch_model.bin", vec![0x80; 10])];
    let (hub, cache) = (StandIn::serve(pickles), cache());
    let repository = open("owner/name", &options(&hub, &cache)).unwrap();
    let message = refusal(repository.part("unet", |_| 0));
    assert!(message.contains("is a pickle") && message.contains("save_pretrained"), "{message}");

    let hub = StandIn::serve(vec![("v1-5.ckpt", vec![0x80; 10])]);
    let message = refusal(open("owner/name", &options(&hub, &self::cache())));
    assert!(message.contains("v1-5.ckpt: is a pickle"), "{message}");
}

#[test]
fn a_repository_of_single_files_says_how_to_name_one() {
    let hub = StandIn::serve(vec![("flux1-dev.safetensors", safetensors("a", 3)), ("README.md", Vec::new())]);
    let message = refusal(open("owner/name", &options(&hub, &cache())));
    assert!(message.contains("name it as owner/name:flux1-dev.safetensors"), "{message}");
}

#[test]
fn a_source_has_a_short_name() {
    let name = |source| Repository::hub_name(source).unwrap_or_default();
    assert_eq!(name("owner/name@refs/pr/1"), "name");
    assert_eq!(name("owner/name?variant=fp16"), "name");
    assert_eq!(name("owner/name/sub/flux1-dev.safetensors"), "flux1-dev");
    assert_eq!(name("./models/mine"), "");
}

#[test]
fn a_single_file_is_fetched_by_its_name() {
    let hub = StandIn::serve(vec![("a/flux1-dev.safetensors", safetensors("a", 3)), ("old.ckpt", vec![0x80])]);
    let (cache, seen) = (cache(), RefCell::new(0));
    let options = options(&hub, &cache);
    let fetch = |source: &str| Repository::hub_file(source, &options, &|loading| *seen.borrow_mut() = loading.total);
    let path = fetch("owner/name:a/flux1-dev.safetensors").unwrap().unwrap();
    assert_eq!(std::fs::read(path).unwrap(), safetensors("a", 3));
    assert_eq!(*seen.borrow(), safetensors("a", 3).len() as u64);
    assert!(fetch("owner/name").unwrap().is_none());
    assert!(refusal(fetch("owner/name/b.safetensors")).contains("b.safetensors is not among its files"));
    assert!(refusal(fetch("owner/name:old.ckpt")).contains("is a pickle"));
}

#[test]
fn a_single_file_comes_with_what_its_model_needs_of_the_repository() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gguf/flux");
    let read = |name: &str| std::fs::read(golden.join(name)).unwrap();
    let mut files = Vec::new();
    for folder in ["scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae"] {
        for entry in golden.join(folder).read_dir().unwrap() {
            let name = format!("{folder}/{}", entry.unwrap().file_name().to_string_lossy());
            // As ComfyUI has them: the transformer and T5 are files beside each other.
            let at = if name.ends_with(".gguf") { name.split_once('/').unwrap().1.to_owned() } else { name.clone() };
            files.push((format!("models/{at}"), read(&name)));
        }
    }
    files.push(("models/model_index.json".to_owned(), read("model_index.json")));
    let strangers =
        ["models/transformer/diffusion_pytorch_model.safetensors", "models/flux1-dev.safetensors", "ae.safetensors"];
    files.extend(strangers.map(|name| (name.to_owned(), safetensors("a", 3))));
    let hub = StandIn::serve(files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect());
    let cache = cache();
    let source = "owner/name:models/flux1-tiny-Q4_K_S.gguf";
    let path = Repository::hub_file(source, &options(&hub, &cache), &|_| {}).unwrap().unwrap();
    easel_models::families::check(&Repository::open_file(&path).unwrap()).unwrap();
    for stranger in strangers {
        assert_eq!(hub.sent(stranger), 0, "{stranger}");
    }
    // All of it is in the cache now.
    let offline = HubOptions { offline: true, ..options(&hub, &cache) };
    assert_eq!(Repository::hub_file(source, &offline, &|_| {}).unwrap(), Some(path));
}
