//! From what was asked to what is understood: validation against the model's card and the limits.

/// Why a request can never succeed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RequestError {}

/// Checks requests and fills in their defaults.
#[derive(Debug, Clone, Default)]
pub struct Resolver {}
