//! A load's curves, as SVG.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::stats::percentile;
use super::{Load, Summary};

/// A plot could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("a plot cannot be drawn: {0}")]
pub(super) struct PlotError(String);

/// A curve: its name and its points.
type Curve = (String, Vec<(f64, f64)>);

/// Every plot: (name, SVG).
pub(super) fn all(load: &Load, summaries: &[Summary]) -> Result<Vec<(&'static str, String)>, PlotError> {
    let mut plots = vec![
        ("latency-distribution", plot("share of the requests in %", "latency in s", &distributions(load, summaries))?),
        ("latency-over-time", plot("due, s after the start", "latency in s", &over_time(load, summaries))?),
    ];
    // One setting is no curve.
    if summaries.len() > 1 {
        plots.push(("latency-over-load", plot("offered, requests/s", "latency in s", &rate_latency(summaries))?));
        plots.push(("goodput-over-load", plot("offered, requests/s", "requests/s", &goodput(summaries))?));
    }
    Ok(plots)
}

/// Latency by percentile, a curve a run.
fn distributions(load: &Load, summaries: &[Summary]) -> Vec<Curve> {
    let curve = |samples: &[super::Sample]| {
        let mut latencies: Vec<f64> =
            samples.iter().filter(|sample| sample.error.is_none()).map(|sample| sample.seconds).collect();
        latencies.sort_by(f64::total_cmp);
        (0..=100).map(f64::from).filter(|_| !latencies.is_empty()).map(|p| (p, percentile(&latencies, p))).collect()
    };
    named(load, summaries, curve)
}

/// Latency by the moment at which a request was due, a curve a run.
fn over_time(load: &Load, summaries: &[Summary]) -> Vec<Curve> {
    let curve = |samples: &[super::Sample]| {
        let good = samples.iter().filter(|sample| sample.error.is_none());
        let mut points: Vec<(f64, f64)> = good.map(|sample| (sample.due, sample.seconds)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    named(load, summaries, curve)
}

fn named(load: &Load, summaries: &[Summary], curve: impl Fn(&[super::Sample]) -> Vec<(f64, f64)>) -> Vec<Curve> {
    summaries.iter().zip(&load.runs).map(|(summary, run)| (summary.load.clone(), curve(&run.samples))).collect()
}

/// The rate-latency curve: what waiting people see as the load grows.
fn rate_latency(summaries: &[Summary]) -> Vec<Curve> {
    let names = ["median", "90 %", "95 %", "99 %"];
    let curve = |(index, name): (usize, &&str)| {
        let point = |summary: &Summary| Some((summary.offered, summary.percentiles.as_ref()?.get(index)?.1.value));
        ((*name).to_owned(), summaries.iter().filter_map(point).collect())
    };
    names.iter().enumerate().map(curve).collect()
}

fn goodput(summaries: &[Summary]) -> Vec<Curve> {
    let curve = |of: fn(&Summary) -> f64| summaries.iter().map(|summary| (summary.offered, of(summary))).collect();
    vec![
        ("answered".into(), curve(|summary| summary.throughput)),
        ("answered within the SLO".into(), curve(|summary| summary.goodput)),
    ]
}

/// One plot of several curves, both axes from 0.
fn plot(across: &str, up: &str, curves: &[Curve]) -> Result<String, PlotError> {
    let mut svg = String::new();
    draw(&SVGBackend::with_string(&mut svg, (560, 400)).into_drawing_area(), across, up, curves)
        .map_err(|error| PlotError(error.to_string()))?;
    Ok(svg)
}

fn draw<'a>(
    root: &DrawingArea<SVGBackend<'a>, Shift>,
    across: &str,
    up: &str,
    curves: &[Curve],
) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>> {
    let most = |of: fn(&(f64, f64)) -> f64| {
        curves.iter().flat_map(|(_, points)| points).map(of).fold(0.0, f64::max).max(1e-3) * 1.05
    };
    let mut chart = ChartBuilder::on(root)
        .margin(10)
        .x_label_area_size(42)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..most(|point| point.0), 0.0..most(|point| point.1))?;
    let grey = RGBColor(225, 225, 225);
    chart.configure_mesh().light_line_style(WHITE).bold_line_style(grey).x_desc(across).y_desc(up).draw()?;
    for (index, (name, points)) in curves.iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        // A curve of many points is one without marks.
        if points.len() <= 20 {
            chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .draw()?;
    root.present()
}
