//! HTTP: the router, authentication, errors and the native routes; one file a vendor in `dialects`.

pub mod dialects;
