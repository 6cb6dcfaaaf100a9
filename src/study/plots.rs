//! Curves of distance against cost, as SVG.

use std::collections::BTreeMap;

use plotters::prelude::*;

use super::Summary;

/// What a picture costs, across the plot.
#[derive(Debug, Clone, Copy)]
enum Cost {
    Steps,
    ModelCalls,
    Seconds,
}

/// How far it is from the reference, up the plot.
#[derive(Debug, Clone, Copy)]
enum Measure {
    Psnr,
    Ssim,
    Perceptual,
}

impl Cost {
    const ALL: [Self; 3] = [Self::Steps, Self::ModelCalls, Self::Seconds];

    fn title(self) -> &'static str {
        match self {
            Self::Steps => "steps",
            Self::ModelCalls => "model calls",
            Self::Seconds => "seconds",
        }
    }

    fn of(self, summary: &Summary) -> f64 {
        match self {
            Self::Steps => summary.setting.steps as f64,
            Self::ModelCalls => summary.model_calls as f64,
            Self::Seconds => summary.seconds,
        }
    }
}

impl Measure {
    fn name(self) -> &'static str {
        match self {
            Self::Psnr => "psnr",
            Self::Ssim => "ssim",
            Self::Perceptual => "perceptual",
        }
    }

    const ALL: [Self; 3] = [Self::Perceptual, Self::Psnr, Self::Ssim];

    fn title(self) -> &'static str {
        match self {
            Self::Psnr => "PSNR in dB (higher is closer)",
            Self::Ssim => "SSIM (higher is closer)",
            Self::Perceptual => "perceptual distance (lower is closer, cut at 150)",
        }
    }

    fn of(self, summary: &Summary) -> f64 {
        match self {
            Self::Psnr => summary.psnr,
            Self::Ssim => summary.ssim,
            // A picture that broke down is thousands away, and would press every other curve flat.
            Self::Perceptual => summary.perceptual.min(150.0),
        }
    }
}

/// The plot could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("a plot cannot be drawn: {0}")]
pub(super) struct PlotError(String);

/// Every measure against every cost: (name, SVG).
pub(super) fn all(summaries: &[Summary]) -> Result<Vec<(String, String)>, PlotError> {
    let pairs = Measure::ALL.into_iter().flat_map(|measure| Cost::ALL.into_iter().map(move |cost| (measure, cost)));
    let named = pairs.map(|(measure, cost)| {
        let name = format!("{}-{}", measure.name(), cost.title().replace(' ', "-"));
        Ok((name, plot(summaries, cost, measure)?))
    });
    named.collect()
}

/// One curve a sampler and schedule.
fn plot(summaries: &[Summary], cost: Cost, measure: Measure) -> Result<String, PlotError> {
    let failed = |error: &dyn std::fmt::Display| PlotError(error.to_string());
    let mut curves: BTreeMap<(&str, &str), Vec<(f64, f64)>> = BTreeMap::new();
    for summary in summaries {
        let curve = curves.entry((&summary.setting.sampler, &summary.setting.schedule)).or_default();
        curve.push((cost.of(summary), measure.of(summary)));
    }
    for curve in curves.values_mut() {
        curve.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    let points = || curves.values().flatten();
    let (left, right) = range(points().map(|point| point.0));
    let (low, high) = range(points().map(|point| point.1));

    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (560, 400)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(10)
            .x_label_area_size(42)
            .y_label_area_size(58)
            .build_cartesian_2d(left..right, low..high)
            .map_err(|error| failed(&error))?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .bold_line_style(RGBColor(225, 225, 225))
            .x_desc(cost.title())
            .y_desc(measure.title())
            .draw()
            .map_err(|error| failed(&error))?;
        for (index, ((sampler, schedule), curve)) in curves.iter().enumerate() {
            let colour = Palette99::pick(index).to_rgba();
            let name = if *schedule == "default" { (*sampler).to_owned() } else { format!("{sampler}, {schedule}") };
            chart
                .draw_series(LineSeries::new(curve.iter().copied(), colour.stroke_width(2)))
                .map_err(|error| failed(&error))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
            chart
                .draw_series(curve.iter().map(|point| Circle::new(*point, 3, colour.filled())))
                .map_err(|error| failed(&error))?;
        }
        let place = match measure {
            Measure::Perceptual => SeriesLabelPosition::UpperRight,
            Measure::Psnr | Measure::Ssim => SeriesLabelPosition::LowerRight,
        };
        chart
            .configure_series_labels()
            .position(place)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .draw()
            .map_err(|error| failed(&error))?;
        root.present().map_err(|error| failed(&error))?;
    }
    Ok(svg)
}

/// The values' range with a little room on both sides.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return (0.0, 1.0);
    }
    let room = ((high - low) * 0.05).max(1e-3);
    (low - room, high + room)
}
