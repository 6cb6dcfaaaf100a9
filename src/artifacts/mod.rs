//! Finished pictures as files: encoded, with their metadata, kept on disk, served by signed URLs.
