//! The pictures that a request names, brought here: unpacked from it, read from this server's own, or fetched.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use futures::future::try_join_all;
use jiff::Timestamp;

use super::App;
use super::urls::Urls;
use crate::artifacts::ArtifactError;
use crate::config::Role;
use crate::inputs::DecodeError;
use crate::policy::Caller;
use crate::request::{GenerationRequest, Input, Inputs, MaskInput, Painted, Picture, RequestError, Source};

/// Base64 as clients write it: with its padding or without.
const STANDARD: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, LENIENT);
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);

/// Files by the SHA-256 in hex that they are kept under.
pub(crate) type Files = BTreeMap<String, Bytes>;

/// Brings a request's pictures here and notes in it what was found.
///
/// # Errors
/// Names the field of a picture that cannot be fetched or is none that can be used.
pub(crate) async fn load(
    app: &App,
    caller: &Caller,
    urls: &Urls,
    request: &mut GenerationRequest,
) -> Result<Files, RequestError> {
    let images: Vec<Picture> = request.images.drain(..).chain(request.references.drain(..)).collect();
    let (mask, painted) = (request.mask.take(), request.painted);
    let bring = |picture: Picture, painted| one(app, caller, urls, picture, painted);
    let images = try_join_all(images.into_iter().map(|picture| bring(picture, None))).await?;
    let mask = match mask {
        None => None,
        Some(picture) => {
            let field = picture.field;
            let (file, bytes) = bring(picture, Some(painted)).await?;
            same_size(field, &file, painted, images.first().map(|(image, _)| image))?;
            Some((MaskInput { file, painted }, bytes))
        }
    };
    let mut files = Files::new();
    let mut inputs = Inputs::default();
    for (image, bytes) in images {
        files.insert(image.sha256.clone(), bytes);
        inputs.images.push(image);
    }
    if let Some((mask, bytes)) = mask {
        files.insert(mask.file.sha256.clone(), bytes);
        inputs.mask = Some(mask);
    }
    request.inputs = inputs;
    Ok(files)
}

/// OpenAI's masks have the picture's size; others are brought to it.
fn same_size(field: &'static str, mask: &Input, painted: Painted, image: Option<&Input>) -> Result<(), RequestError> {
    let Some(image) = image.filter(|_| painted == Painted::Transparent) else { return Ok(()) };
    if (mask.width, mask.height) == (image.width, image.height) {
        return Ok(());
    }
    Err(RequestError::InvalidValue {
        param: field.into(),
        wanted: format!("a picture of the size of `image`, {}x{}", image.width, image.height),
        asked: format!("one of {}x{}", mask.width, mask.height),
    })
}

async fn one(
    app: &App,
    caller: &Caller,
    urls: &Urls,
    picture: Picture,
    painted: Option<Painted>,
) -> Result<(Input, Bytes), RequestError> {
    let invalid =
        |why: String| RequestError::InvalidImage { param: picture.field.into(), what: picture.to_string(), why };
    let unreachable =
        |why: String| RequestError::UnreachableImage { param: picture.field.into(), what: picture.to_string(), why };
    let bytes = match &picture.source {
        Source::File(bytes) => bytes.clone(),
        Source::Base64(text) => {
            let text = text.clone();
            // Megabytes take milliseconds, which are not the async thread's to spend.
            let decoded = tokio::task::spawn_blocking(move || unpack(&text)).await.ok().flatten();
            decoded.ok_or_else(|| invalid("it is neither an address nor a data URI nor base64".into()))?
        }
        Source::Url(url) => match own(app, caller, urls, url).await {
            Some(read) => read.map_err(unreachable)?,
            None => app.fetcher.fetch(url).await.map_err(|error| unreachable(error.to_string()))?,
        },
    };
    let input = app.artifacts.look(bytes.clone(), painted, app.config.limits.max_input_pixels).await;
    Ok((input.map_err(|error: DecodeError| invalid(error.to_string()))?, bytes))
}

fn unpack(text: &str) -> Option<Bytes> {
    let plain: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let decoded = STANDARD.decode(&plain).or_else(|_| URL_SAFE.decode(&plain));
    decoded.ok().map(Bytes::from)
}

/// A picture of this server, read without a request to it; `None` where the address is not one.
async fn own(app: &App, caller: &Caller, urls: &Urls, url: &str) -> Option<Result<Bytes, String>> {
    let within = urls.path_of(url);
    let parsed = reqwest::Url::parse(url).ok();
    let path = within.or_else(|| parsed.as_ref().map(reqwest::Url::path))?;
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match parts.as_slice() {
        // Whatever the host, a signature of ours says that the file is ours.
        ["files", token, job, file] => match app.artifacts.verify(token, job, file, Timestamp::now()) {
            Ok((index, _)) => Some(read(app, job, index).await),
            Err(error) => within.map(|_| Err(error.to_string())),
        },
        ["v1", "jobs", job, "outputs", index] if within.is_some() => {
            let index = index.parse().unwrap_or(usize::MAX);
            let known = caller.may(Role::Read)
                && app.jobs.get(caller, job).await.is_ok_and(|job| job.outputs.iter().any(|o| o.index == index));
            Some(if known { read(app, job, index).await } else { Err("there is no such picture here".into()) })
        }
        _ if url.starts_with('/') => Some(Err("there is no such picture here".into())),
        _ => None,
    }
}

async fn read(app: &App, job: &str, index: usize) -> Result<Bytes, String> {
    match app.artifacts.open_picture(job, index).await {
        Ok(picture) => Ok(picture.bytes),
        Err(ArtifactError::NotFound { .. }) => Err("the picture is no longer here".into()),
        Err(error) => {
            tracing::error!(job, index, %error, "cannot read a picture of our own");
            Err("the picture cannot be read now".into())
        }
    }
}
