//! `report.html`: one file with everything inside.

use std::fmt::Write as _;

use super::{Load, Summary};

const STYLE: &str = "body{font:15px/1.5 system-ui,'DejaVu Sans',sans-serif;margin:2rem auto;max-width:78rem;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #e4e4e4}th:first-child,td:first-child,td.l{text-align:left}
.wide{overflow-x:auto}.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:.6rem}.plots svg{width:100%;height:auto}
.soft{color:#666}code{background:#f3f3f3;padding:.1rem .3rem;overflow-wrap:anywhere}";

/// The report's text.
pub(super) fn page(load: &Load, summaries: &[Summary], plots: &[(&str, String)]) -> String {
    let mut html = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>easel: load on {url}</title><style>{STYLE}</style><h1>Load on {url}</h1>",
        url = escape(&load.url)
    );
    let models = load.server["models"].as_array().into_iter().flatten().filter_map(|model| model["id"].as_str());
    let mix = load.kinds.iter().map(|kind| format!("<code>{}</code>", escape(&kind.name)));
    let facts = [
        ("Repeat it", format!("<code>{}</code>", escape(&load.command))),
        ("Load from", format!("easel {}, {}", escape(&load.version), escape(&load.machine))),
        ("Server", format!("easel {}", escape(load.server["version"].as_str().unwrap_or("of unknown version")))),
        ("Its models", escape(&models.collect::<Vec<_>>().join(", "))),
        ("Run", load.created.strftime("%Y-%m-%d %H:%M UTC").to_string()),
        ("Requests", mix.collect::<Vec<_>>().join(" ")),
        ("SLO", load.slo.map_or("none".to_owned(), |slo| format!("answered within {slo} s"))),
    ];
    html += "<table>";
    for (name, value) in facts {
        // Writing to a string cannot fail.
        let _ = write!(html, "<tr><td>{name}<td class=l>{value}");
    }
    html += "</table><p class=soft>Latency counts from the moment at which a request was due, so a queue before the \
        server is in it. Behind each percentile stands the interval that holds the true one with 95 % confidence.</p>";
    table(&mut html, summaries);
    html += "<h2>Curves</h2><div class=plots>";
    for (_, svg) in plots {
        html += svg;
    }
    html += "</div>";
    failures(&mut html, load);
    html += "</html>\n";
    html
}

fn table(html: &mut String, summaries: &[Summary]) {
    *html += "<h2>In numbers</h2><div class=wide><table><tr><th>load<th>offered/s<th>answered/s<th>pictures/s<th>goodput/s\
        <th>requests<th>failed<th>mean s<th>median s<th>90 % s<th>95 % s<th>99 % s<th>queue<th>encode<th>denoise<th>decode";
    for summary in summaries {
        let _ = write!(
            html,
            "<tr><td>{}<td>{:.2}<td>{:.2}<td>{:.2}<td>{:.2}<td>{}<td>{}<td>{:.3}",
            escape(&summary.load),
            summary.offered,
            summary.throughput,
            summary.pictures,
            summary.goodput,
            summary.requests,
            summary.failed,
            summary.mean
        );
        match &summary.percentiles {
            Some(percentiles) => {
                for (_, at) in percentiles {
                    let _ = write!(html, "<td>{:.3} <span class=soft>{:.3}–{:.3}</span>", at.value, at.low, at.high);
                }
            }
            None => *html += "<td>–<td>–<td>–<td>–",
        }
        match summary.shares {
            Some(shares) => shares.iter().for_each(|share| {
                let _ = write!(html, "<td>{:.1} %", share * 100.0);
            }),
            None => *html += "<td>–<td>–<td>–<td>–",
        }
    }
    *html += "</table></div>";
}

/// What failed, each message once with its count.
fn failures(html: &mut String, load: &Load) {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for error in load.runs.iter().flat_map(|run| &run.samples).filter_map(|sample| sample.error.as_deref()) {
        *counts.entry(error).or_default() += 1;
    }
    if counts.is_empty() {
        return;
    }
    *html += "<h2>What failed</h2><table>";
    for (error, count) in counts {
        let _ = write!(html, "<tr><td>{}<td>{count}", escape(error));
    }
    *html += "</table>";
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
