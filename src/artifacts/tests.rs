//! Picture files: what is in them, where they lie, and who gets them.

use std::io::Cursor;

use jiff::ToSpan;
use tempfile::TempDir;

use super::*;
use crate::request::{LongPrompt, Priority};

const JOB: &str = "job_01HF7YAT00M5GD3CAQPKSJ0V9E";

fn request() -> ResolvedRequest {
    ResolvedRequest {
        model: "tiny".into(),
        prompt: "a red circle".into(),
        negative_prompt: Some("blue".into()),
        n: 2,
        width: 64,
        height: 64,
        rendered: Size { width: 64, height: 64 },
        steps: 20,
        guidance: 5.0,
        seed: 42,
        sampler: "dpmpp_2m".into(),
        schedule: "karras".into(),
        sampling: Default::default(),
        clip_skip: 1,
        true_guidance: None,
        prompt_weighting: false,
        long_prompt: LongPrompt::Truncate,
        refiner: None,
        images: Vec::new(),
        mask: None,
        strength: None,
        output_format: OutputFormat::Png,
        output_compression: 100,
        partial_images: 0,
        priority: Priority::Normal,
        user: None,
    }
}

/// A smooth picture, so that the lossy formats stay near it.
fn picture(width: u32, height: u32) -> Arc<RgbImage> {
    let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| [(2 * x) as u8, (2 * y) as u8, 128]));
    Arc::new(RgbImage { width, height, pixels: pixels.collect() })
}

fn open() -> (TempDir, Artifacts) {
    let folder = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::open(folder.path(), &ArtifactsConfig::default()).unwrap();
    (folder, artifacts)
}

/// A PNG's text by keyword, from both kinds of chunks.
fn texts(file: &[u8]) -> Vec<(String, String)> {
    let reader = png::Decoder::new(Cursor::new(file)).read_info().unwrap();
    let info = reader.info();
    let latin = info.uncompressed_latin1_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.text.clone()));
    latin.chain(info.utf8_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.get_text().unwrap()))).collect()
}

fn decoded(picture: &Picture) -> image::RgbImage {
    image::load_from_memory(&picture.bytes).unwrap().into_rgb8()
}

fn mean_error(a: &[u8], b: &[u8]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
}

#[tokio::test]
async fn a_png_keeps_every_pixel_and_its_parameters() {
    let (_folder, artifacts) = open();
    let file = artifacts.encode(&request(), 1, picture(64, 64)).await.unwrap().0;
    assert_eq!(decoded(&file).into_raw(), picture(64, 64).pixels);
    let texts = texts(&file.bytes);
    let version = env!("CARGO_PKG_VERSION");
    let parameters = format!(
        "a red circle\nNegative prompt: blue\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, \
         Seed: 43, Size: 64x64, Model: tiny, Clip skip: 2, Version: easel {version}"
    );
    assert_eq!(texts[0], ("parameters".into(), parameters));
    assert_eq!(texts[1].0, "easel");
    let ours: serde_json::Value = serde_json::from_str(&texts[1].1).unwrap();
    assert_eq!((&ours["version"], &ours["request"]["seed"]), (&version.into(), &43.into()));
    assert_eq!(ours["request"]["prompt"], "a red circle");
}

#[tokio::test]
async fn one_picture_is_one_file_however_it_was_asked_for() {
    let (_folder, artifacts) = open();
    let of_two = artifacts.encode(&request(), 1, picture(64, 64)).await.unwrap().0;
    let alone = ResolvedRequest {
        n: 1,
        seed: 43,
        partial_images: 2,
        priority: Priority::High,
        user: Some("me".into()),
        output_compression: 7,
        ..request()
    };
    assert_eq!(artifacts.encode(&alone, 0, picture(64, 64)).await.unwrap().0, of_two);
    let other = ResolvedRequest { seed: 44, ..alone };
    assert_ne!(artifacts.encode(&other, 0, picture(64, 64)).await.unwrap().0, of_two);
}

#[tokio::test]
async fn a_seed_wraps_around() {
    let (_folder, artifacts) = open();
    let last = ResolvedRequest { seed: u64::MAX, ..request() };
    let file = artifacts.encode(&last, 1, picture(64, 64)).await.unwrap().0;
    assert!(texts(&file.bytes)[0].1.contains("Seed: 0,"));
}

#[tokio::test]
async fn any_prompt_fits_into_a_png() {
    let (_folder, artifacts) = open();
    for prompt in ["赤い円 🟥 é", "", "two\nlines: \"quoted\", a=b", "nul\0byte"] {
        let asked = ResolvedRequest { prompt: prompt.into(), ..request() };
        let file = artifacts.encode(&asked, 0, picture(64, 64)).await.unwrap().0;
        let texts = texts(&file.bytes);
        let parameters = &texts.iter().find(|(keyword, _)| keyword == "parameters").unwrap().1;
        assert!(parameters.starts_with(&format!("{}\nNegative prompt: ", prompt.replace('\0', ""))), "{parameters}");
        let easel = &texts.iter().find(|(keyword, _)| keyword == "easel").unwrap().1;
        let ours: serde_json::Value = serde_json::from_str(easel).unwrap();
        assert_eq!(ours["request"]["prompt"], prompt);
    }
}

#[test]
fn a_value_that_holds_a_separator_is_quoted() {
    let odd = ResolvedRequest { model: "a, b: c".into(), negative_prompt: None, clip_skip: 0, ..request() };
    let text = parameters(&odd);
    assert!(text.contains("Model: \"a, b: c\", Version"), "{text}");
    assert!(!text.contains("Negative") && !text.contains("Clip skip"), "{text}");
}

#[tokio::test]
async fn jpeg_and_webp_are_near_the_picture_and_carry_its_parameters() {
    let (_folder, artifacts) = open();
    for format in [OutputFormat::Jpeg, OutputFormat::Webp] {
        let asked =
            ResolvedRequest { output_format: format, output_compression: 90, prompt: "赤".into(), ..request() };
        let file = artifacts.encode(&asked, 0, picture(64, 64)).await.unwrap().0;
        let kind = image::guess_format(&file.bytes).unwrap();
        assert_eq!(kind.to_mime_type(), format.content_type());
        assert!(mean_error(decoded(&file).as_raw(), &picture(64, 64).pixels) < 3.0);
        let mut reader = image::ImageReader::with_format(Cursor::new(&file.bytes), kind).into_decoder().unwrap();
        let exif = image::ImageDecoder::exif_metadata(&mut reader).unwrap().unwrap();
        let start = exif.windows(8).position(|window| window == b"UNICODE\0").unwrap() + 8;
        let units: Vec<u16> =
            exif[start..].chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
        assert!(String::from_utf16(&units).unwrap().starts_with("赤\nNegative prompt: blue\nSteps: 20"));
        let low = ResolvedRequest { output_compression: 0, ..asked };
        assert!(artifacts.encode(&low, 0, picture(64, 64)).await.unwrap().0.bytes.len() < file.bytes.len());
    }
}

#[tokio::test]
async fn a_prompt_too_long_for_exif_is_left_out_of_it() {
    let (_folder, artifacts) = open();
    for format in OutputFormat::ALL {
        let asked = ResolvedRequest { output_format: format, prompt: "long ".repeat(10_000), ..request() };
        let file = artifacts.encode(&asked, 0, picture(64, 64)).await.unwrap().0;
        assert_eq!(decoded(&file).dimensions(), (64, 64));
    }
}

#[tokio::test]
async fn metadata_can_be_switched_off() {
    let folder = tempfile::tempdir().unwrap();
    let config = ArtifactsConfig { embed_metadata: false, ..ArtifactsConfig::default() };
    let artifacts = Artifacts::open(folder.path(), &config).unwrap();
    let file = artifacts.encode(&request(), 0, picture(64, 64)).await.unwrap().0;
    assert!(texts(&file.bytes).is_empty());
}

#[tokio::test]
async fn a_picture_rendered_in_another_size_is_delivered_in_the_asked_one() {
    let (_folder, artifacts) = open();
    let asked = ResolvedRequest { width: 192, height: 128, ..request() };
    let file = artifacts.encode(&asked, 0, picture(64, 64)).await.unwrap().0;
    assert_eq!(decoded(&file).dimensions(), (192, 128));
    assert!(texts(&file.bytes)[0].1.contains("Size: 192x128, Model: tiny, Rendered size: 64x64"));
}

#[tokio::test]
async fn a_preview_has_the_delivered_shape_and_at_most_512_pixels_a_side() {
    let (_folder, artifacts) = open();
    for (delivered, expected) in [((512, 256), (512, 256)), ((1024, 2048), (256, 512))] {
        let size = Size { width: delivered.0, height: delivered.1 };
        let png = artifacts.preview(size, picture(8, 8)).await.unwrap();
        assert_eq!(image::load_from_memory(&png).unwrap().into_rgb8().dimensions(), expected);
    }
}

#[tokio::test]
async fn a_picture_is_found_again_until_its_job_is_removed() {
    let (folder, artifacts) = open();
    let file = artifacts.encode(&request(), 0, picture(64, 64)).await.unwrap().0;
    artifacts.keep(JOB, 0, file.clone()).await.unwrap();
    artifacts.keep(JOB, 0, file.clone()).await.unwrap();
    let again = Artifacts::open(folder.path(), &ArtifactsConfig::default()).unwrap();
    assert_eq!(again.open_picture(JOB, 0).await.unwrap(), file);
    assert!(matches!(artifacts.open_picture(JOB, 1).await, Err(ArtifactError::NotFound { index: 1, .. })));
    artifacts.remove(JOB).await.unwrap();
    artifacts.remove(JOB).await.unwrap();
    assert!(matches!(artifacts.open_picture(JOB, 0).await, Err(ArtifactError::NotFound { .. })));
}

#[tokio::test]
async fn a_name_from_a_request_never_becomes_a_path() {
    let (folder, artifacts) = open();
    let outside = folder.path().join("artifacts/0.png");
    std::fs::write(&outside, b"secret").unwrap();
    let lower = JOB.to_lowercase();
    for job in ["", "..", "job_..", "job_../..", "/etc", "job_01HF7YAT00M5GD3CAQPKSJ0V9E/..", &lower] {
        assert!(matches!(artifacts.open_picture(job, 0).await, Err(ArtifactError::NotFound { .. })), "{job}");
        let file = Picture { bytes: Bytes::from_static(b"x"), format: OutputFormat::Png };
        assert!(artifacts.keep(job, 0, file).await.is_err(), "{job}");
        artifacts.remove(job).await.unwrap();
    }
    assert!(outside.exists());
}

#[tokio::test]
async fn copies_are_smaller_and_in_other_formats() {
    let (_folder, artifacts) = open();
    let file = artifacts.encode(&request(), 0, picture(64, 32)).await.unwrap().0;
    artifacts.keep(JOB, 0, file.clone()).await.unwrap();
    // 64x32 was resampled to the asked 64x64.
    let copy = async |width, format| artifacts.copy(JOB, 0, width, format).await.unwrap();
    assert_eq!(copy(None, None).await, file);
    assert_eq!(copy(Some(64), Some(OutputFormat::Png)).await, file);
    assert_eq!(copy(Some(1000), None).await, file);
    let small = copy(Some(16), None).await;
    assert_eq!((decoded(&small).dimensions(), small.format), ((16, 16), OutputFormat::Png));
    let webp = copy(None, Some(OutputFormat::Webp)).await;
    assert_eq!(image::guess_format(&webp.bytes).unwrap(), image::ImageFormat::WebP);
    assert_eq!(decoded(&webp).dimensions(), (64, 64));
    assert_eq!(decoded(&copy(Some(0), Some(OutputFormat::Jpeg)).await).dimensions(), (1, 1));
}

/// The parts of a URL's path after `/files/`.
fn parts(path: &str) -> [String; 3] {
    let parts: Vec<String> = path.strip_prefix("/files/").unwrap().split('/').map(Into::into).collect();
    parts.try_into().unwrap()
}

#[tokio::test]
async fn a_signed_url_opens_its_picture_only_and_until_it_expires() {
    let (folder, artifacts) = open();
    let now = Timestamp::from_second(1_700_000_000).unwrap();
    let [token, job, file] = parts(&artifacts.signed_path(JOB, 3, OutputFormat::Jpeg, now + 1.minute()));
    assert_eq!((job.as_str(), file.as_str()), (JOB, "3.jpeg"));
    let verify = |token: &str, job: &str, file: &str, at| artifacts.verify(token, job, file, at);
    assert_eq!(verify(&token, &job, &file, now), Ok((3, now + 1.minute())));
    assert_eq!(verify(&token, &job, &file, now + 2.minutes()), Err(LinkError::Expired));
    let later = token.replacen("17", "18", 1);
    let other = JOB.replace('E', "F");
    for (token, job, file) in [
        (token.as_str(), job.as_str(), "4.jpeg"),
        (&token, &job, "3.png"),
        (&token, &other, &file),
        (&later, &job, &file),
        ("", &job, &file),
        (&token[..token.len() - 1], &job, &file),
        (token.split('.').next().unwrap(), &job, &file),
    ] {
        assert_eq!(verify(token, job, file, now), Err(LinkError::Invalid), "{token} {job} {file}");
    }
    // The secret outlives the process, and another server has another one.
    let again = Artifacts::open(folder.path(), &ArtifactsConfig::default()).unwrap();
    assert!(again.verify(&token, &job, &file, now).is_ok());
    let (_elsewhere, foreign) = open();
    assert_eq!(foreign.verify(&token, &job, &file, now), Err(LinkError::Invalid));
}

#[test]
fn a_public_url_lasts_as_configured_and_stays_the_same_for_an_hour() {
    let (_folder, artifacts) = open();
    let hour = Timestamp::from_second(1_700_000_000 / 3600 * 3600).unwrap();
    let path = |at| artifacts.public_path(JOB, 0, OutputFormat::Png, at);
    assert_eq!(path(hour + 1.second()), path(hour + 59.minutes()));
    let [token, job, file] = parts(&path(hour + 59.minutes()));
    assert!(artifacts.verify(&token, &job, &file, hour + 59.minutes() + (7 * 24).hours() - 1.second()).is_ok());
}

#[test]
fn a_short_lived_url_outlives_its_time_by_a_tenth_at_most() {
    let folder = tempfile::tempdir().unwrap();
    let now = Timestamp::from_second(1_700_000_001).unwrap();
    for ttl in [1, 60, 3600] {
        let config = ArtifactsConfig { signed_url_ttl_seconds: ttl, ..ArtifactsConfig::default() };
        let artifacts = Artifacts::open(folder.path(), &config).unwrap();
        let [token, job, file] = parts(&artifacts.public_path(JOB, 0, OutputFormat::Png, now));
        let after = |seconds: u64| artifacts.verify(&token, &job, &file, now + (seconds as i64).seconds());
        assert!(after(ttl - 1).is_ok(), "{ttl}");
        assert_eq!(after(ttl + ttl / 10), Err(LinkError::Expired), "{ttl}");
    }
}

#[tokio::test]
async fn an_encoded_picture_comes_with_the_hash_of_its_file() {
    let (_folder, artifacts) = open();
    let (file, sha256) = artifacts.encode(&request(), 0, picture(64, 64)).await.unwrap();
    assert_eq!(sha256, file.sha256());
}

#[cfg(unix)]
#[test]
fn the_secret_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, _artifacts) = open();
    let secret = std::fs::metadata(folder.path().join("url-secret")).unwrap();
    assert_eq!((secret.permissions().mode() & 0o777, secret.len()), (0o600, 64));
}

#[test]
fn a_damaged_secret_is_told_with_its_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("url-secret"), b"short").unwrap();
    let Err(error) = Artifacts::open(folder.path(), &ArtifactsConfig::default()) else { panic!("it was taken") };
    assert!(error.to_string().contains("url-secret"), "{error}");
}
