//! `report.html`: one file with everything inside.

use std::fmt::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Setting, Study, StudyError, Summary};

const STYLE: &str = "body{font:15px/1.5 system-ui,'DejaVu Sans',sans-serif;margin:2rem auto;max-width:78rem;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #e4e4e4}th:first-child,td:first-child,td.l,th.l{text-align:left}
tr.front td{background:#eef6ec}.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:.6rem}.plots svg{width:100%;height:auto}
.grid{overflow-x:auto}.grid td,.grid th{text-align:center;padding:.2rem;font-size:.8rem;border:0}.grid th:first-child{position:sticky;left:0;background:#fff;text-align:left;white-space:nowrap;padding-right:.6rem}
.grid img{display:block;width:112px;height:auto}.soft{color:#666}code{background:#f3f3f3;padding:.1rem .3rem;overflow-wrap:anywhere}";

/// The report's text.
pub(super) fn page(
    study: &Study,
    summaries: &[Summary],
    plots: &[(String, String)],
    folder: &Path,
) -> Result<String, StudyError> {
    let mut html = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        html,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>easel: samplers on {model}</title><style>{STYLE}</style><h1>Samplers on {model}</h1>",
        model = escape(&study.plan.model)
    );
    about(&mut html, study);
    table(&mut html, study, summaries);
    let _ = write!(html, "<h2>Distance to the reference</h2><div class=plots>");
    for (_, svg) in plots {
        html += svg;
    }
    html += "</div>";
    for prompt in 0..study.plan.prompts.len() {
        for &seed in &study.plan.seeds {
            grid(&mut html, study, prompt, seed, folder)?;
        }
    }
    html += "</html>\n";
    Ok(html)
}

fn about(html: &mut String, study: &Study) {
    let Study { plan, .. } = study;
    let Setting { sampler, schedule, steps } = &plan.reference;
    let seeds: Vec<_> = plan.seeds.iter().map(u64::to_string).collect();
    let facts = [
        ("Repeat it", format!("<code>{}</code>", escape(&study.command))),
        ("easel", escape(&study.version)),
        ("Run", study.created.strftime("%Y-%m-%d %H:%M UTC").to_string()),
        ("Machine", escape(&study.machine)),
        ("Device", escape(&study.device)),
        ("Size, guidance", format!("{}x{}, {}", plan.width, plan.height, plan.guidance)),
        ("Seeds", seeds.join(", ")),
        ("Reference", format!("{sampler}, {schedule} schedule, {steps} steps, of the same prompt and seed")),
    ];
    *html += "<table>";
    for (name, value) in facts {
        let _ = write!(html, "<tr><td class=l>{name}<td class=l>{value}");
    }
    *html += "</table><p class=soft>Seconds are of denoising alone, one picture at a time. Samplers that draw noise on the \
        way do not approach the reference, which is one of many pictures that their noise could have led to.</p>";
    if !study.left_out.is_empty() {
        *html += "<p>Left out:<ul>";
        for reason in &study.left_out {
            let _ = write!(html, "<li>{}", escape(reason));
        }
        *html += "</ul>";
    }
}

fn table(html: &mut String, study: &Study, summaries: &[Summary]) {
    let _ = write!(
        html,
        "<h2>What each costs and brings</h2><p class=soft>Means over {} prompts and {} seeds. Shaded: nothing else is both \
         closer and cheaper in model calls (the Pareto front).</p><table><tr><th>sampler<th class=l>schedule<th>steps<th>model \
         calls<th>seconds<th>perceptual<th>PSNR<th>SSIM",
        study.plan.prompts.len(),
        study.plan.seeds.len()
    );
    let mut ordered: Vec<_> = summaries.iter().collect();
    ordered.sort_by(|a, b| a.model_calls.cmp(&b.model_calls).then(a.perceptual.total_cmp(&b.perceptual)));
    for summary in ordered {
        let Setting { sampler, schedule, steps } = &summary.setting;
        let _ = write!(
            html,
            "<tr{}><td>{sampler}<td class=l>{schedule}<td>{steps}<td>{}<td>{:.2}<td>{:.1}<td>{:.1}<td>{:.3}",
            if summary.pareto { " class=front" } else { "" },
            summary.model_calls,
            summary.seconds,
            summary.perceptual,
            summary.psnr,
            summary.ssim,
        );
    }
    *html += "</table>";
}

/// Samplers down, steps across, of one prompt and seed.
fn grid(html: &mut String, study: &Study, prompt: usize, seed: u64, folder: &Path) -> Result<(), StudyError> {
    let text = study.plan.prompts.get(prompt).map(|text| escape(text)).unwrap_or_default();
    let _ = write!(html, "<h2>{text} <span class=soft>seed {seed}</span></h2><div class=grid><table><tr><th>");
    for steps in &study.plan.steps {
        let _ = write!(html, "<th>{steps} steps");
    }
    if let Some((_, _, file)) = study.references.iter().find(|(p, s, _)| (*p, *s) == (prompt, seed)) {
        let _ = write!(html, "<tr><th>reference<td>{}", picture(folder, file)?);
    }
    let mine: Vec<_> = study.rows.iter().filter(|row| (row.prompt, row.seed) == (prompt, seed)).collect();
    let mut last = None;
    for row in mine {
        let name = (&row.setting.sampler, &row.setting.schedule);
        if last != Some(name) {
            let _ = write!(html, "<tr><th>{}<br><span class=soft>{}</span>", name.0, name.1);
            last = Some(name);
        }
        let _ = write!(html, "<td>{}{:.1}", picture(folder, &row.file)?, row.distances.perceptual);
    }
    *html += "</table></div>";
    Ok(())
}

fn picture(folder: &Path, file: &str) -> Result<String, StudyError> {
    let path = folder.join(file);
    let bytes = std::fs::read(&path).map_err(|error| StudyError::file(&path, error))?;
    Ok(format!("<img alt=\"\" src=\"data:image/png;base64,{}\">", STANDARD.encode(bytes)))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
