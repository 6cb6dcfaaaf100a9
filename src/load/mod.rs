//! Load on a running server: who asks when, how long they wait, and what that says of the server.
//!
//! A closed loop keeps a number of callers busy and tells throughput; an open loop lets requests come when they come,
//! and tells what waiting people see. In the open loop a request's latency counts from the moment at which it was due,
//! so that a slow server cannot hide its queue by slowing the caller down.

mod arrivals;
mod drive;
mod mix;
mod page;
mod plots;
mod report;
mod stats;

pub use arrivals::{Arrivals, TraceError, read_trace};
pub use drive::{LoadError, Target, drive};
pub use mix::{Kind, KindError};
pub use report::write;
pub use stats::{Estimate, Summary, summarise};

use serde::Serialize;

/// One request's fate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// Which of the run's kinds of request.
    pub kind: usize,
    /// Seconds from the run's start to the moment at which it was due.
    pub due: f64,
    /// Seconds from that moment to the end of the reply.
    pub seconds: f64,
    /// The reply's status; 0 when there was none.
    pub status: u16,
    /// What the server or the connection said of a failure.
    pub error: Option<String>,
    /// Pictures in the reply.
    pub pictures: usize,
    /// Milliseconds that the server says it spent waiting, denoising and decoding; of servers that say it.
    pub server: Option<ServerTimes>,
}

/// What the server says of where the time went, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ServerTimes {
    /// In the queue.
    pub queue: f64,
    /// In text encoders.
    pub encode: f64,
    /// From the first step to the last.
    pub denoise: f64,
    /// Latents to pixels.
    pub decode: f64,
}

/// One run at one setting of the load.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// How the requests came.
    pub arrivals: Arrivals,
    /// Seconds from the first request to the last reply.
    pub seconds: f64,
    /// Every request that counts; those of the warm-up are left out.
    pub samples: Vec<Sample>,
}

/// Everything that a report is made of.
#[derive(Debug, Clone, Serialize)]
pub struct Load {
    /// The program that drove the load, its version.
    pub version: String,
    /// When.
    pub created: jiff::Timestamp,
    /// The command that repeats it.
    pub command: String,
    /// Where the load came from.
    pub machine: String,
    /// What was asked, by address.
    pub url: String,
    /// What the server says of itself.
    pub server: serde_json::Value,
    /// The kinds of request.
    pub kinds: Vec<Kind>,
    /// Seconds within which a reply counts as good; none, every success does.
    pub slo: Option<f64>,
    /// One run a setting, in the order in which they were made.
    pub runs: Vec<Run>,
}
