//! The networks that predict noise, velocity or the clean latents.
