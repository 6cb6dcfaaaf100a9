//! Which format a client wants.

use crate::request::OutputFormat;

/// The format that an `Accept` header prefers: the picture's own, unless the header ranks another one higher.
///
/// A header that accepts none of ours gets the picture's own too: it is better than no picture.
pub fn negotiate(accept: &str, own: OutputFormat) -> OutputFormat {
    let ranges: Vec<(&str, f32)> = accept.split(',').filter_map(range).collect();
    let quality = |format: OutputFormat| {
        // The most specific range decides (RFC 9110, 12.5.1).
        let find = |name: &str| ranges.iter().find(|(range, _)| range.eq_ignore_ascii_case(name)).map(|(_, q)| *q);
        find(format.content_type()).or_else(|| find("image/*")).or_else(|| find("*/*")).unwrap_or(0.0)
    };
    let mut best = own;
    for format in OutputFormat::ALL {
        if quality(format) > quality(best) {
            best = format;
        }
    }
    best
}

/// One media range and its weight; `None` where the weight is no number.
fn range(text: &str) -> Option<(&str, f32)> {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next()?;
    let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    Some((name, weight.map_or(Some(1.0), |weight| weight.parse().ok())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_format_is_kept_unless_another_is_preferred() {
        use OutputFormat::{Jpeg, Png, Webp};
        // What Chrome and Firefox send for an <img>.
        let chrome = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8";
        let firefox = "image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5";
        for (accept, own, expected) in [
            ("", Png, Png),
            ("*/*", Jpeg, Jpeg),
            (chrome, Png, Png),
            (firefox, Png, Png),
            (firefox, Jpeg, Png),
            ("image/webp", Png, Webp),
            ("image/webp, */*;q=0.8", Png, Webp),
            ("IMAGE/JPEG;q=0.9, image/png; q=0.2", Png, Jpeg),
            ("image/png;q=0, image/*", Png, Jpeg),
            ("image/gif", Webp, Webp),
            ("image/jpeg;q=x", Png, Png),
        ] {
            assert_eq!(negotiate(accept, own), expected, "{accept:?} for {own:?}");
        }
    }
}
