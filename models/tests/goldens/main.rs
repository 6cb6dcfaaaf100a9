//! Parity with Hugging Face diffusers: every part and whole pictures against the golden files in `tests/data`, which
//! `scripts/goldens.py` and `scripts/goldens_sampler_pictures.py` make with the real diffusers, transformers and torch.
//!
//! One program for all subjects, because linking candle six times would take longer than the tests.

#[cfg(test)]
mod cases;
#[cfg(test)]
mod common;
#[cfg(test)]
mod flux;
#[cfg(test)]
mod flux2;
#[cfg(test)]
mod folders;
#[cfg(test)]
mod gguf;
#[cfg(test)]
mod image_prompts;
#[cfg(test)]
mod noise;
#[cfg(test)]
mod pictures;
#[cfg(test)]
mod sd3;
#[cfg(test)]
mod sdxl;
#[cfg(test)]
mod text;
#[cfg(test)]
mod tokenizer;
#[cfg(test)]
mod unet;
#[cfg(test)]
mod vae;
#[cfg(test)]
mod z_image;
