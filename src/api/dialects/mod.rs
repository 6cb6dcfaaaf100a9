//! The vendors' APIs: each a file that translates in and out, and a line below.

pub(super) mod image_jobs;
pub(super) mod openai;
pub(super) mod tasks;

pub(super) use openai::shape as openai_shape;

use super::routes::Routes;

/// Every dialect's routes.
pub(super) const ALL: &[fn() -> Routes] = &[openai::routes, image_jobs::routes, tasks::routes];
