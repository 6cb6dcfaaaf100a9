//! easel: a self-hosted image generation server.
//!
//! This crate is everything that knows HTTP, jobs, users and storage; tensors and diffusion
//! are in `easel-models`. The way of a request: a dialect ([`api`]) turns a vendor's body into a
//! [`request::GenerationRequest`], which is validated and becomes a stored job ([`jobs`]); the
//! [`engine`] renders it; [`artifacts`] keeps the pictures.

pub mod api;
pub mod artifacts;
pub mod cli;
pub mod config;
pub mod engine;
pub mod inputs;
pub mod jobs;
pub mod load;
pub mod policy;
pub mod request;
pub mod study;
pub mod telemetry;
