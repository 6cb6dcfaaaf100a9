//! Model names as vendors' clients spell them.

/// Names that applications written for a vendor send. An operator may point any of them at a served model
/// (`[models] aliases`); otherwise they mean the default model, unless `any_name` is off.
///
/// Lower case; compared without regard to case. An entry without a slash also matches as the `name` of `owner/name`.
const WELL_KNOWN: &[&str] = &[
    // OpenAI
    "dall-e-2",
    "dall-e-3",
    "gpt-image-1",
    "gpt-image-1-mini",
    "gpt-image-1.5",
    "gpt-image-2",
    "chatgpt-image-latest",
    // Black Forest Labs, and the names that Together, Replicate and Hugging Face serve them under
    "flux-dev",
    "flux-schnell",
    "flux-pro",
    "flux-pro-1.1",
    "flux-pro-1.1-ultra",
    "flux-1.1-pro",
    "flux-1.1-pro-ultra",
    "flux-kontext-pro",
    "flux-kontext-max",
    "flux-kontext-dev",
    "flux-2-pro",
    "flux-2-dev",
    "flux-2-flex",
    "flux-2-max",
    "flux-2-klein-4b",
    "flux-2-klein-9b",
    "flux.1-dev",
    "flux.1-schnell",
    "flux.1-schnell-free",
    "flux.1-pro",
    "flux.1.1-pro",
    "flux.1-kontext-dev",
    "flux.1-kontext-pro",
    "flux.1-kontext-max",
    "flux.1-krea-dev",
    "flux.2-dev",
    "flux.2-pro",
    // fal
    "fal-ai/flux/dev",
    "fal-ai/flux/schnell",
    "fal-ai/flux/krea",
    "fal-ai/flux-pro",
    "fal-ai/flux-pro/new",
    "fal-ai/flux-pro/v1.1",
    "fal-ai/flux-pro/v1.1-ultra",
    "fal-ai/fast-sdxl",
    "fal-ai/fast-lightning-sdxl",
    "fal-ai/lcm",
    "fal-ai/stable-diffusion-v15",
    "fal-ai/stable-diffusion-v3-medium",
    "fal-ai/stable-diffusion-v35-large",
    "fal-ai/qwen-image",
    "fal-ai/z-image/turbo",
    // Stability AI
    "stable-diffusion-v1-5",
    "stable-diffusion-v1-6",
    "stable-diffusion-512-v2-1",
    "stable-diffusion-xl-1024-v0-9",
    "stable-diffusion-xl-1024-v1-0",
    "stable-image-core",
    "stable-image-ultra",
    "sd3",
    "sd3-medium",
    "sd3-large",
    "sd3-large-turbo",
    "sd3.5-medium",
    "sd3.5-large",
    "sd3.5-large-turbo",
    "sd3.5-flash",
    // Hugging Face and Replicate
    "stable-diffusion",
    "stable-diffusion-v1-4",
    "stable-diffusion-2-1",
    "stable-diffusion-xl-base-1.0",
    "stable-diffusion-3-medium-diffusers",
    "stable-diffusion-3.5-medium",
    "stable-diffusion-3.5-large",
    "stable-diffusion-3.5-large-turbo",
    "sdxl",
    "sdxl-turbo",
    "sd-turbo",
    "sdxl-lightning-4step",
    "qwen-image",
    "z-image-turbo",
];

/// Whether `name` is a name that a vendor's clients send.
pub(crate) fn well_known(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    WELL_KNOWN.contains(&name.as_str()) || second(&name).is_some_and(|name| WELL_KNOWN.contains(&name))
}

/// The `name` of `owner/name[/rest]`.
pub(crate) fn second(name: &str) -> Option<&str> {
    name.split('/').nth(1).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_lower_case_without_repeats() {
        for (i, name) in WELL_KNOWN.iter().enumerate() {
            assert_eq!(*name, name.to_ascii_lowercase());
            assert!(!WELL_KNOWN[..i].contains(name), "{name} is there twice");
        }
    }

    #[test]
    fn vendor_names_are_known_in_every_spelling_of_theirs() {
        for name in [
            "dall-e-3",
            "DALL-E-3",
            "gpt-image-1",
            "black-forest-labs/FLUX.1-schnell",
            "fal-ai/flux/dev",
            "stabilityai/stable-diffusion-xl-base-1.0",
        ] {
            assert!(well_known(name), "{name}");
        }
        for name in ["", "/", "my-model", "dall-e-3/", "owner/", "fal-ai/flux"] {
            assert!(!well_known(name), "{name}");
        }
    }
}
