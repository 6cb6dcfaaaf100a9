//! Hostile and honest files, and the lengths that a fetch goes to.

use std::io::{Cursor, Read, Write};
use std::net::TcpListener;

use image::{DynamicImage, ImageFormat, Rgba, RgbaImage};

use super::*;
use crate::config::FetchConfig;
use crate::request::MaskInput;

const MOST: u64 = 1 << 20;

fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, format).unwrap();
    file.into_inner()
}

/// Left half red and opaque, right half green and transparent by this much.
fn halves(alpha: u8) -> DynamicImage {
    RgbaImage::from_fn(8, 4, |x, _| if x < 4 { Rgba([255, 0, 0, 255]) } else { Rgba([0, 255, 0, alpha]) }).into()
}

fn size_of(file: &[u8], most: u64) -> Result<Size, DecodeError> {
    look(file, None, most).map(|found| Size { width: found.width, height: found.height })
}

#[test]
fn png_jpeg_and_webp_are_taken_and_everything_else_is_refused_by_name() {
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
        let file = encoded(&halves(255).into_rgb8().into(), format);
        assert_eq!(size_of(&file, MOST), Ok(Size { width: 8, height: 4 }), "{format:?}");
    }
    assert_eq!(size_of(b"GIF89a\x01\0\x01\0\0\0\0", MOST), Err(DecodeError::Format("gif")));
    for nonsense in [&b""[..], b"hello", b"<svg/>", &[0; 100]] {
        assert_eq!(size_of(nonsense, MOST), Err(DecodeError::Unknown));
    }
}

#[test]
fn a_file_that_is_cut_or_altered_is_damaged() {
    for format in [ImageFormat::Png, ImageFormat::WebP] {
        let file = encoded(&halves(255).into_rgb8().into(), format);
        for length in [file.len() / 2, file.len() - 6] {
            assert!(matches!(size_of(&file[..length], MOST), Err(DecodeError::Damaged(_))), "{format:?} {length}");
        }
    }
    let mut file = encoded(&halves(255), ImageFormat::Png);
    file[40] ^= 0x40;
    assert!(matches!(size_of(&file, MOST), Err(DecodeError::Damaged(_))));
}

#[test]
fn a_small_file_of_a_huge_picture_is_refused_by_its_head() {
    // A header alone: nothing of the pixels is needed to see that there are too many.
    let mut file = Vec::new();
    file.extend_from_slice(b"\x89PNG\r\n\x1a\n");
    let mut header = b"IHDR".to_vec();
    header.extend_from_slice(&60_000_u32.to_be_bytes());
    header.extend_from_slice(&60_000_u32.to_be_bytes());
    header.extend_from_slice(&[8, 2, 0, 0, 0]);
    file.extend_from_slice(&13_u32.to_be_bytes());
    file.extend_from_slice(&header);
    file.extend_from_slice(&crc(&header).to_be_bytes());
    file.extend_from_slice(&[0, 0, 0, 0]);
    file.extend_from_slice(b"IDAT");
    file.extend_from_slice(&crc(b"IDAT").to_be_bytes());
    let refused = DecodeError::TooLarge { width: 60_000, height: 60_000, most: 64 << 20 };
    assert_eq!(size_of(&file, 64 << 20), Err(refused));
}

/// PNG's checksum.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[test]
fn a_picture_is_turned_upright() {
    // A TIFF block that says: turned by 90 degrees clockwise to be upright (6).
    let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
    let mut file = Vec::new();
    let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut file, 100);
    image::ImageEncoder::set_exif_metadata(&mut encoder, exif).unwrap();
    encoder.encode_image(&DynamicImage::from(halves(255).into_rgb8())).unwrap();
    assert_eq!(size_of(&file, MOST), Ok(Size { width: 4, height: 8 }));
    let upright = decode::rgb(decode::decode(&file, MOST).unwrap());
    // What was left is now on top.
    assert!(upright.pixels[0] > 200 && upright.pixels[upright.pixels.len() - 2] > 200);
}

#[test]
fn transparency_is_white_in_a_picture_and_black_in_a_mask() {
    let picture = decode::rgb(halves(0));
    assert_eq!((&picture.pixels[..3], &picture.pixels[15..18]), (&[255, 0, 0][..], &[255, 255, 255][..]));
    let half = decode::rgb(halves(128));
    assert_eq!(half.pixels[15..18], [127, 255, 127]);
    let white = RgbaImage::from_fn(2, 1, |x, _| if x == 0 { Rgba([255; 4]) } else { Rgba([255, 255, 255, 0]) });
    assert_eq!(decode::white_mask(white.into()).pixels, [255, 0]);
}

#[test]
fn an_openai_mask_is_painted_where_it_is_transparent() {
    let mask = decode::transparency_mask(halves(0)).unwrap();
    assert_eq!(mask.pixels[..8], [0, 0, 0, 0, 255, 255, 255, 255]);
    assert_eq!(decode::transparency_mask(halves(255)), Err(DecodeError::Opaque));
}

#[test]
fn a_mask_is_as_grey_as_pil_makes_it() {
    let colours =
        image::RgbImage::from_fn(3, 1, |x, _| image::Rgb([[255, 0, 0], [0, 255, 0], [10, 20, 200]][x as usize]));
    // From PIL's convert("L").
    assert_eq!(decode::white_mask(colours.into()).pixels, [76, 150, 38]);
}

#[test]
fn pictures_are_resampled_as_pil_does_but_for_rounding() {
    let ramp: Vec<u8> = (0..8 * 6 * 3).map(|i: u32| (i * 37 % 256) as u8).collect();
    let picture = RgbImage { width: 8, height: 6, pixels: ramp };
    let small = picture.resized(5, 4).unwrap();
    let near = |ours: &[u8], pils: [u8; 15]| ours.iter().zip(pils).all(|(ours, pils)| ours.abs_diff(pils) <= 1);
    assert!(near(&small.pixels, PIL_SMALL), "{:?}", &small.pixels[..15]);
    let large = picture.resized(11, 9).unwrap();
    assert!(near(&large.pixels, PIL_LARGE), "{:?}", &large.pixels[..15]);
}

/// The first row of PIL 13's `resize((5, 4), LANCZOS)` and the first pixels of its `resize((11, 9), LANCZOS)`.
const PIL_SMALL: [u8; 15] = [83, 86, 128, 169, 66, 105, 127, 167, 58, 105, 141, 151, 65, 111, 154];
const PIL_LARGE: [u8; 15] = [0, 7, 44, 30, 122, 160, 169, 130, 157, 234, 0, 25, 83, 51, 149];

fn kept(file: &[u8]) -> Input {
    Input { sha256: String::new(), width: 8, height: 4, bytes: file.len() as u64 }
}

#[test]
fn what_the_mask_keeps_is_the_file_and_what_it_paints_is_the_models() {
    let (image, mask) = (encoded(&halves(255), ImageFormat::Png), encoded(&halves(0), ImageFormat::Png));
    let mut request: ResolvedRequest = serde_json::from_value(serde_json::json!({
        "model": "m", "prompt": "p", "negative_prompt": null, "n": 1, "width": 8, "height": 4,
        "rendered": {"width": 8, "height": 4}, "steps": 1, "guidance": 1.0, "seed": 1, "sampler": "ddim",
        "schedule": "default", "clip_skip": 0, "output_format": "png", "output_compression": 100, "partial_images": 0,
        "priority": "normal", "user": null,
    }))
    .unwrap();
    let files = Files { images: vec![image.clone().into()], mask: Some(mask.clone().into()) };
    let blue = RgbImage { width: 8, height: 4, pixels: [0, 0, 255].repeat(32) };
    let mut made = blue.clone();
    restore(&request, &files, &mut made).unwrap();
    assert_eq!(made, blue, "no mask, nothing kept");
    request.images = vec![kept(&image)];
    request.mask = Some(MaskInput { file: kept(&mask), painted: Painted::Transparent });
    restore(&request, &files, &mut made).unwrap();
    assert_eq!((&made.pixels[..3], &made.pixels[15..18]), (&[255, 0, 0][..], &[0, 0, 255][..]));
}

// ---------------------------------------------------------------- fetching

/// A server that answers every request by its path, on loopback.
fn serve(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut asked = Vec::new();
            let mut part = [0; 1024];
            while !asked.windows(4).any(|end| end == b"\r\n\r\n") {
                match connection.read(&mut part) {
                    Ok(0) | Err(_) => break,
                    Ok(read) => asked.extend_from_slice(&part[..read]),
                }
            }
            let head = String::from_utf8_lossy(&asked).into_owned();
            let path = head.split_whitespace().nth(1).unwrap_or("/").to_owned();
            // A client that has seen enough hangs up.
            let _ = connection.write_all(&answer(&path));
        }
    });
    port
}

fn reply(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut reply = format!("HTTP/1.1 {status}\r\nconnection: close\r\n{headers}\r\n").into_bytes();
    reply.extend_from_slice(body);
    reply
}

fn fetcher(allowed: &[&str]) -> Fetcher {
    let allow_private_hosts = allowed.iter().map(|host| (*host).to_owned()).collect();
    Fetcher::new(&FetchConfig { allow_private_hosts, max_bytes: 1000, timeout_seconds: 5 }).unwrap()
}

#[tokio::test]
async fn nothing_is_fetched_from_an_address_that_is_not_public_however_it_is_written() {
    let port = serve(|_| reply("200 OK", "", b"secret"));
    for url in [
        format!("http://127.0.0.1:{port}/"),
        format!("http://localhost:{port}/"),
        format!("http://LOCALHOST.:{port}/"),
        format!("http://127.1:{port}/"),
        format!("http://2130706433:{port}/"),
        format!("http://0x7f000001:{port}/"),
        format!("http://0177.0.0.1:{port}/"),
        format!("http://0.0.0.0:{port}/"),
        format!("http://[::1]:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        format!("http://user:word@127.0.0.1:{port}/"),
        "http://169.254.169.254/latest/meta-data/".into(),
        "http://[fd00:ec2::254]/".into(),
        "http://10.0.0.1/".into(),
        "http://no-such-name.invalid/".into(),
    ] {
        assert!(matches!(fetcher(&[]).fetch(&url).await, Err(FetchError::Private(_))), "{url}");
    }
    for url in ["ftp://127.0.0.1/", "file:///etc/passwd", "gopher://x", "//x", "x", "http://", "data:,x"] {
        assert_eq!(fetcher(&[]).fetch(url).await, Err(FetchError::NotWeb), "{url}");
    }
    for (host, allowed) in [("127.0.0.1", "127.0.0.1"), ("localhost", "Localhost")] {
        let fetched = fetcher(&[allowed]).fetch(&format!("http://{host}:{port}/")).await;
        assert_eq!(fetched.unwrap(), "secret");
    }
    // One host's permission is not another's.
    let other = fetcher(&["127.0.0.1"]).fetch(&format!("http://localhost:{port}/")).await;
    assert_eq!(other, Err(FetchError::Private("localhost".into())));
}

#[tokio::test]
async fn redirects_are_followed_a_few_times_and_each_hop_is_checked() {
    let port = serve(|path| {
        let to = |location: &str| reply("302 Found", &format!("location: {location}\r\n"), b"");
        match path {
            "/inside" => to("http://169.254.169.254/"),
            "/scheme" => to("file:///etc/passwd"),
            "/loop" => to("/loop"),
            "/5" | "/4" | "/3" | "/2" | "/1" => to(&format!("/{}", path[1..].parse::<u32>().unwrap() - 1)),
            "/0" => reply("200 OK", "", b"there"),
            "/lost" => reply("301 Moved", "", b"nowhere"),
            _ => reply("404 Not Found", "", b"no"),
        }
    });
    let fetcher = fetcher(&["127.0.0.1"]);
    let fetch = async |path: &str| fetcher.fetch(&format!("http://127.0.0.1:{port}{path}")).await;
    assert_eq!(fetch("/5").await.unwrap(), "there");
    assert_eq!(fetch("/inside").await, Err(FetchError::Private("169.254.169.254".into())));
    assert_eq!(fetch("/scheme").await, Err(FetchError::NotWeb));
    assert_eq!(fetch("/loop").await, Err(FetchError::Redirects));
    let status = |status| Err(FetchError::Status { host: "127.0.0.1".into(), status });
    assert_eq!(fetch("/lost").await, status(301));
    assert_eq!(fetch("/gone").await, status(404));
}

#[tokio::test]
async fn a_file_is_bounded_whatever_its_sender_says_of_it() {
    let port = serve(|path| match path {
        "/honest" => reply("200 OK", "content-length: 5000\r\n", &[0; 5000]),
        "/silent" => reply("200 OK", "", &[0; 5000]),
        "/chunked" => {
            let mut body = Vec::new();
            for _ in 0..50 {
                body.extend_from_slice(b"64\r\n");
                body.extend_from_slice(&[0; 100]);
                body.extend_from_slice(b"\r\n");
            }
            reply("200 OK", "transfer-encoding: chunked\r\n", &body)
        }
        "/short" => reply("200 OK", "content-length: 900\r\n", &[0; 10]),
        _ => reply("200 OK", "", &[7; 1000]),
    });
    let fetcher = fetcher(&["127.0.0.1"]);
    let fetch = async |path: &str| fetcher.fetch(&format!("http://127.0.0.1:{port}{path}")).await;
    for path in ["/honest", "/silent", "/chunked"] {
        assert_eq!(fetch(path).await, Err(FetchError::TooLarge(1000)), "{path}");
    }
    assert!(matches!(fetch("/short").await, Err(FetchError::Unreachable(_))));
    assert_eq!(fetch("/fits").await.unwrap(), vec![7; 1000]);
}

#[tokio::test]
async fn a_sender_who_takes_too_long_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let allow_private_hosts = vec!["127.0.0.1".to_owned()];
    let slow = FetchConfig { allow_private_hosts, max_bytes: 1000, timeout_seconds: 1 };
    let fetched = Fetcher::new(&slow).unwrap().fetch(&format!("http://127.0.0.1:{port}/")).await;
    assert_eq!(fetched, Err(FetchError::Unreachable("it did not come within 1 s".into())));
}
