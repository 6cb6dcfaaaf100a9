//! Tracing and metrics.

use std::io::IsTerminal;
use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Seconds; from a step of a tiny model to a long job.
const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

/// Between two drainings of the histograms.
const UPKEEP: Duration = Duration::from_secs(5);

/// Rows in a model call.
const ROWS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0];

/// Sends log lines to standard error, at the level that `EASEL_LOG` names (as in `EASEL_LOG=easel=debug`), else `info`.
/// A second call does nothing.
pub fn log(format: LogFormat) {
    start(format, "info");
}

/// The same for commands that show their progress themselves: warnings and errors only, unless `EASEL_LOG` says more.
pub fn log_quietly(format: LogFormat) {
    start(format, "warn");
}

fn start(format: LogFormat, level: &str) {
    let filter = EnvFilter::try_from_env("EASEL_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let colours = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    // Only a second call fails, and the first one's settings stand.
    let _ = match format {
        LogFormat::Human => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    easel_models::on_refused_replay(|reason| tracing::warn!(reason, "no CUDA graph; the step is launched plainly"));
}

/// Installs the process's metrics recorder, whose handle renders `/metrics`.
///
/// # Errors
/// When a recorder is installed already.
pub fn metrics() -> Result<PrometheusHandle, BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_rows".into()), ROWS)?
        .install_recorder()
}

/// Drains what the histograms have gathered, for as long as the server runs: without it they grow until somebody
/// reads `/metrics`.
pub async fn upkeep(metrics: PrometheusHandle) {
    let mut tick = tokio::time::interval(UPKEEP);
    loop {
        tick.tick().await;
        metrics.run_upkeep();
    }
}
