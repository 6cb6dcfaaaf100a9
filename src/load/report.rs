//! A load's files: `requests.csv`, `summary.csv`, `results.json`, `report.html`, and the report's plots by themselves.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use super::page::page;
use super::{Load, Summary, plots, summarise};

/// Writes the files into `folder`, which is made if it is not there, and gives the summaries that stand in them.
///
/// # Errors
/// When the folder or a file cannot be written; the error names it.
pub fn write(load: &Load, folder: &Path) -> io::Result<Vec<Summary>> {
    let named = |path: &Path, error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
    let plot_folder = folder.join("plots");
    std::fs::create_dir_all(&plot_folder).map_err(|error| named(&plot_folder, &error))?;
    let keep = |name: &str, text: &str| {
        let file = folder.join(name);
        std::fs::write(&file, text).map_err(|error| named(&file, &error))
    };
    let summaries: Vec<Summary> = load.runs.iter().map(|run| summarise(run, load.slo)).collect();
    let json = serde_json::json!({"load": load, "summaries": summaries});
    keep("results.json", &format!("{json:#}\n"))?;
    keep("requests.csv", &requests(load))?;
    keep("summary.csv", &summary(&summaries))?;
    let plots = plots::all(load, &summaries).map_err(|error| named(folder, &error))?;
    for (name, svg) in &plots {
        keep(&format!("plots/{name}.svg"), svg)?;
    }
    keep("report.html", &page(load, &summaries, &plots))?;
    Ok(summaries)
}

/// One line a request.
fn requests(load: &Load) -> String {
    let mut text =
        String::from("load,kind,due_s,latency_s,status,pictures,queue_ms,encode_ms,denoise_ms,decode_ms,error\n");
    for run in &load.runs {
        let arrivals = quoted(&run.arrivals.describe());
        for sample in &run.samples {
            let kind = quoted(load.kinds.get(sample.kind).map_or("", |kind| &kind.name));
            let error = quoted(sample.error.as_deref().unwrap_or_default());
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "{arrivals},{kind},{:.6},{:.6},{},{}",
                sample.due, sample.seconds, sample.status, sample.pictures
            );
            match sample.server {
                Some(ms) => {
                    let _ = write!(text, ",{},{},{},{}", ms.queue, ms.encode, ms.denoise, ms.decode);
                }
                None => text += ",,,,",
            }
            let _ = writeln!(text, ",{error}");
        }
    }
    text
}

/// One line a run.
fn summary(summaries: &[Summary]) -> String {
    let mut text = String::from(
        "load,offered_per_s,answered_per_s,pictures_per_s,goodput_per_s,requests,failed,mean_s,p50_s,p50_low_s,p50_high_s,\
         p90_s,p90_low_s,p90_high_s,p95_s,p95_low_s,p95_high_s,p99_s,p99_low_s,p99_high_s\n",
    );
    for summary in summaries {
        let _ = write!(
            text,
            "{},{:.4},{:.4},{:.4},{:.4},{},{},{:.6}",
            quoted(&summary.load),
            summary.offered,
            summary.throughput,
            summary.pictures,
            summary.goodput,
            summary.requests,
            summary.failed,
            summary.mean
        );
        match &summary.percentiles {
            Some(percentiles) => percentiles.iter().for_each(|(_, at)| {
                let _ = write!(text, ",{:.6},{:.6},{:.6}", at.value, at.low, at.high);
            }),
            None => text += &",".repeat(12),
        }
        text.push('\n');
    }
    text
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}
