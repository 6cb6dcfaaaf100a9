//! The pictures that flags name, read from the disk or fetched, within the bounds that a server's callers have, too.

use bytes::Bytes;

use super::super::common::CliError;
use crate::config::Config;
use crate::inputs::{self, Fetcher, Files};
use crate::request::{GenerationRequest, Input, Inputs, MaskInput, Painted, Picture, RequestError, Source};

/// The picture that a flag names. A file is read here; an address is looked at later.
pub(super) fn picture(flag: &'static str, number: Option<usize>, text: &str) -> Result<Picture, CliError> {
    let begins = |prefix: &str| text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix));
    let source = if begins("http://") || begins("https://") {
        Source::Url(text.to_owned())
    } else {
        Source::File(std::fs::read(text).map_err(CliError::io(format!("{flag} {text}")))?.into())
    };
    Ok(Picture { field: flag, number, source })
}

/// Brings a request's pictures here and notes in it what was found.
pub(super) fn bring(config: &Config, request: &mut GenerationRequest) -> Result<Files, CliError> {
    let pictures: Vec<Picture> = request.images.drain(..).chain(request.references.drain(..)).collect();
    let (mut files, mut found) = (Files::default(), Inputs::default());
    for picture in &pictures {
        let (input, file) = one(config, picture, None)?;
        found.images.push(input);
        files.images.push(file);
    }
    if let Some(mask) = request.mask.take() {
        let (file, bytes) = one(config, &mask, Some(Painted::White))?;
        found.mask = Some(MaskInput { file, painted: Painted::White });
        files.mask = Some(bytes);
    }
    request.inputs = found;
    Ok(files)
}

fn one(config: &Config, picture: &Picture, painted: Option<Painted>) -> Result<(Input, Bytes), CliError> {
    let (param, what) = (picture.field.to_owned(), picture.to_string());
    let file = match &picture.source {
        Source::File(bytes) => bytes.clone(),
        Source::Url(url) => {
            let fetched = fetch(config, url)?;
            fetched.map_err(|why| CliError::other(RequestError::UnreachableImage { param, what, why }))?
        }
        // No flag brings any.
        Source::Base64(_) => return Err(CliError::Usage(format!("{what}: a file or an address is expected"))),
    };
    match inputs::look(&file, painted, config.limits.max_input_pixels) {
        Ok(input) => Ok((input, file)),
        Err(error) => Err(CliError::other(RequestError::InvalidImage {
            param: picture.field.to_owned(),
            what: picture.to_string(),
            why: error.to_string(),
        })),
    }
}

/// The file behind an address, or why it cannot be had.
fn fetch(config: &Config, url: &str) -> Result<Result<Bytes, String>, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(CliError::io("starting"))?;
    let fetcher = Fetcher::new(&config.fetch).map_err(CliError::other)?;
    Ok(runtime.block_on(fetcher.fetch(url)).map_err(|error| error.to_string()))
}
