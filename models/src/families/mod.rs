//! Model families: each puts text encoder, denoiser, autoencoder and samplers together.
