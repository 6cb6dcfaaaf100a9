//! What operators are told of jobs.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use super::Status;

const JOBS: &str = "easel_jobs";
const ENDED: &str = "easel_jobs_total";
const LATENCY: &str = "easel_job_latency_seconds";
const PICTURE: &str = "easel_picture_seconds";

/// Names the numbers, and starts them at zero, so that a rate is there from the first job on.
pub(super) fn describe() {
    describe_gauge!(JOBS, "Jobs that have not ended, by status; those queued are the depth of the queue.");
    describe_counter!(ENDED, "Jobs that have ended, by status.");
    describe_histogram!(LATENCY, metrics::Unit::Seconds, "From a job's acceptance to its end, by status.");
    describe_histogram!(PICTURE, metrics::Unit::Seconds, "Making a picture's file (encode) and storing it (store).");
    for status in Status::ALL {
        if status.ended() {
            counter!(ENDED, "status" => status.name()).increment(0);
        } else {
            gauge!(JOBS, "status" => status.name()).increment(0);
        }
    }
}

/// A job is on its way here, in this status.
pub(super) fn enters(status: Status) {
    gauge!(JOBS, "status" => status.name()).increment(1);
}

/// A job is no longer in this status.
pub(super) fn leaves(status: Status) {
    gauge!(JOBS, "status" => status.name()).decrement(1);
}

/// A job has ended.
pub(super) fn ended(status: Status, latency: Duration) {
    counter!(ENDED, "status" => status.name()).increment(1);
    histogram!(LATENCY, "status" => status.name()).record(latency);
}

/// A picture's file has been made and stored; the time that each took, pauses for a full disk included.
pub(super) fn kept(encode: Duration, store: Duration) {
    histogram!(PICTURE, "stage" => "encode").record(encode);
    histogram!(PICTURE, "stage" => "store").record(store);
}
