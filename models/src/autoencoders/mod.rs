//! Between pixels and latents.
