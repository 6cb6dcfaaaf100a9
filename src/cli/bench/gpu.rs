//! `easel bench gpu`: the operations' fast forms held to their plain ones, and denoisers at their true sizes.

use std::fmt::Write as _;
use std::path::PathBuf;

use candle_core::{DType, Device};
use clap::Args;
use easel_models::measure::{
    Denoiser, OperationCheck, ReplayCost, Scale, StepCost, Subject, ceilings, check_operations,
};

use super::{CliError, command};
use crate::cli::common;

/// `easel bench gpu`
#[derive(Debug, Args)]
pub(super) struct Gpu {
    /// The device to measure: cuda:N, metal or cpu.
    #[arg(long, default_value = "cuda:0")]
    device: String,
    /// What to measure; everything if nothing is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// The models whose shapes are measured: sd15, sdxl, flux-dev.
    #[arg(long, value_delimiter = ',', value_parser = subject, default_value = "sd15,sdxl,flux-dev")]
    models: Vec<Subject>,
    /// Rows of a call. A picture with guidance takes two; a number that finds no room ends its model's list.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16")]
    rows: Vec<usize>,
    /// The type of the models' weights: f32, bf16 or f16.
    #[arg(long, value_parser = dtype, default_value = "bf16")]
    dtype: DType,
    /// Calls to take the median of.
    #[arg(long, default_value_t = 10)]
    calls: usize,
    /// Divide the sides of pictures and the numbers of tokens by this, to try the bench where the true shapes take too long.
    #[arg(long, default_value_t = 1)]
    shrink: usize,
    /// Write the tables here, too.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// A part of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Each operation against its plain form.
    Operations,
    /// Denoisers at their true sizes.
    Models,
    /// The same denoisers' steps replayed from CUDA graphs.
    Graphs,
}

fn subject(name: &str) -> Result<Subject, String> {
    let known = Subject::ALL.map(Subject::name).join(", ");
    Subject::ALL.into_iter().find(|subject| subject.name() == name).ok_or_else(|| format!("it can be {known}"))
}

fn dtype(name: &str) -> Result<DType, String> {
    match name {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::BF16),
        "f16" => Ok(DType::F16),
        _ => Err("it can be f32, bf16 or f16".to_owned()),
    }
}

impl Gpu {
    pub(super) fn run(self) -> Result<(), CliError> {
        let device = common::device(&self.device)?;
        let mut report = Report { text: String::new() };
        report.line(&format!("# {}\n", easel_models::cuda_name(&device).unwrap_or_else(|| self.device.clone())));
        report.line(&format!("easel {}, {}", env!("CARGO_PKG_VERSION"), super::machine()));
        if let Some(driver) = driver() {
            report.line(&format!("driver: {driver}"));
        }
        report.line(&format!("command: `{}`\n", command()));
        let wants = |part| self.only.is_empty() || self.only.contains(&part);
        let failed = if wants(Part::Operations) { self.operations(&device, &mut report)? } else { 0 };
        if wants(Part::Models) {
            self.models(&device, &mut report)?;
        }
        // The last, as it is what no GPU may have run before.
        if wants(Part::Graphs) && device.is_cuda() {
            self.graphs(&device, &mut report)?;
        }
        if let Some(file) = &self.out {
            let doing = format!("cannot write {}", file.display());
            std::fs::write(file, &report.text).map_err(CliError::io(doing))?;
        }
        if failed > 0 {
            return Err(CliError::Usage(format!("{failed} operations are wrong on {}", self.device)));
        }
        Ok(())
    }

    /// The table of operations; says how many failed.
    fn operations(&self, device: &Device, report: &mut Report) -> Result<usize, CliError> {
        report.line("## Operations\n");
        report.line(
            "Error: distance to the plain form in f32, relative. Same bits: a row alone, among fewer and among all.\n",
        );
        report.line("| operation | type | error | allowed | same bits | ms | plain ms | |");
        report.line("|---|---|---|---|---|---|---|---|");
        let mut failed = 0;
        let row = |check: OperationCheck| {
            failed += usize::from(!check.passed());
            report.line(&operation_row(&check));
        };
        check_operations(device, self.shrink, self.calls, row).map_err(CliError::other)?;
        report.line("");
        Ok(failed)
    }

    fn models(&self, device: &Device, report: &mut Report) -> Result<(), CliError> {
        let side = (8192 / self.shrink).max(64);
        let ceiling = ceilings(side, self.dtype, device).map_err(CliError::other)?;
        report.line("## Models\n");
        report.line(&format!(
            "Random weights in {}. Measured ceilings: {:.1} TFLOP/s (product of {side}x{side} matrices), {:.0} GB/s (copy). The \
             floor is the larger of operations over the one and weights read once over the other. Pictures a second: whole \
             pictures of the given steps, with guidance where the model uses it, decoded one by one; without text encoding.\n",
            self.dtype.as_str(),
            ceiling.0 * 1e-12,
            ceiling.1 * 1e-9
        ));
        report.line("| model | pixels | rows | ms a step | TFLOP/s | of the floor | pictures/s (steps) | GiB taken |");
        report.line("|---|---|---|---|---|---|---|---|");
        for &subject in &self.models {
            let scale = Scale { shrink: self.shrink };
            let denoiser = Denoiser::new(subject, scale, self.dtype, device).map_err(CliError::other)?;
            let decode = denoiser.decode(self.calls);
            for &rows in &self.rows {
                let step = match denoiser.step(rows, self.calls) {
                    Ok(step) => step,
                    Err(error) => {
                        report.line(&format!(
                            "| {} | {} | {rows} | {error} | | | | |",
                            subject.name(),
                            denoiser.pixels()
                        ));
                        break;
                    }
                };
                let taken = easel_models::cuda_memory(device).map(|(free, total)| total.saturating_sub(free));
                let weights = denoiser.parameters() * self.dtype.size_in_bytes() as u64;
                let floor = floor(&step, weights, ceiling);
                let pictures = decode.as_ref().ok().map(|decode| pictures_a_second(subject, rows, &step, decode));
                let figures = Figures { rows, step, floor, pictures, taken };
                report.line(&model_row(subject, denoiser.pixels(), &figures));
            }
            match decode {
                Ok(decode) => report.line(&format!(
                    "| {}, decoding | {} | 1 | {:.2} | {:.1} | | | |",
                    subject.name(),
                    denoiser.pixels(),
                    milliseconds(&decode),
                    decode.teraflops()
                )),
                Err(error) => report.line(&format!("| {}, decoding | | 1 | {error} | | | | |", subject.name())),
            }
        }
        report.line("");
        Ok(())
    }
}

impl Gpu {
    /// The table of steps that are replayed.
    fn graphs(&self, device: &Device, report: &mut Report) -> Result<(), CliError> {
        report.line("## CUDA graphs\n");
        report.line("What EASEL_CUDA_GRAPHS=1 gains. Same bits: each replay against the plain call of its inputs.\n");
        report.line("| model | rows | ms a step | replayed | same bits |");
        report.line("|---|---|---|---|---|");
        for &subject in &self.models {
            let scale = Scale { shrink: self.shrink };
            let denoiser = Denoiser::new(subject, scale, self.dtype, device).map_err(CliError::other)?;
            for &rows in &self.rows {
                let measured = denoiser.step(rows, self.calls).and_then(|step| {
                    let replay = denoiser.replay(rows, self.calls)?;
                    Ok((step, replay))
                });
                match measured {
                    Ok((step, replay)) => report.line(&graph_row(subject, rows, &step, replay)),
                    Err(error) => {
                        report.line(&format!("| {} | {rows} | {error} | | |", subject.name()));
                        break;
                    }
                }
            }
        }
        report.line("");
        Ok(())
    }
}

/// What is printed while it is found, and kept for the file.
struct Report {
    text: String,
}

impl Report {
    #[allow(clippy::print_stdout, reason = "the table is what the command is for")]
    fn line(&mut self, line: &str) {
        println!("{line}");
        _ = writeln!(self.text, "{line}");
    }
}

fn operation_row(check: &OperationCheck) -> String {
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    format!(
        "| {} | {} | {:.1e} | {:.0e} | {} | {:.3} | {:.3} | {} |",
        check.name,
        check.dtype.as_str(),
        check.error,
        check.tolerance,
        if check.invariant { "yes" } else { "NO" },
        ms(check.fast),
        ms(check.plain),
        if check.passed() { "" } else { "FAILED" }
    )
}

/// What was found of a model with some rows.
struct Figures {
    rows: usize,
    step: StepCost,
    /// Seconds.
    floor: f64,
    pictures: Option<f64>,
    /// Bytes.
    taken: Option<u64>,
}

fn model_row(subject: Subject, pixels: usize, figures: &Figures) -> String {
    let Figures { rows, step, floor, pictures, taken } = figures;
    let unknown = || "-".to_owned();
    format!(
        "| {} | {pixels} | {rows} | {:.2} | {:.1} | {:.0} % | {} | {} |",
        subject.name(),
        milliseconds(step),
        step.teraflops(),
        floor / step.time.as_secs_f64() * 100.0,
        pictures.map_or_else(unknown, |pictures| format!("{pictures:.2} ({})", subject.steps())),
        taken.map_or_else(unknown, |bytes| format!("{:.1}", bytes as f64 / f64::from(1 << 30)))
    )
}

fn graph_row(subject: Subject, rows: usize, step: &StepCost, replay: Option<ReplayCost>) -> String {
    let (replayed, same_bits) = match replay {
        Some(ReplayCost { time, same_bits }) => {
            (format!("{:.2}", time.as_secs_f64() * 1e3), if same_bits { "yes" } else { "NO" })
        }
        None => ("refused".to_owned(), ""),
    };
    format!("| {} | {rows} | {:.2} | {replayed} | {same_bits} |", subject.name(), milliseconds(step))
}

fn milliseconds(cost: &StepCost) -> f64 {
    cost.time.as_secs_f64() * 1e3
}

/// The seconds that a call takes at least: its operations at the measured rate, or its weights' bytes at that of memory.
fn floor(step: &StepCost, weights: u64, (operations, bytes): (f64, f64)) -> f64 {
    // The rate of a copy counts what is read and what is written.
    (step.operations as f64 / operations).max(weights as f64 / bytes)
}

/// Pictures a second where `rows` rows are always full.
fn pictures_a_second(subject: Subject, rows: usize, step: &StepCost, decode: &StepCost) -> f64 {
    let together = rows as f64 / subject.rows_a_picture() as f64;
    1.0 / (subject.steps() as f64 * step.time.as_secs_f64() / together + decode.time.as_secs_f64())
}

/// The driver's version, as the kernel tells it.
fn driver() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    Some(text.lines().next()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn cost(seconds: f64, operations: u64) -> StepCost {
        StepCost { time: Duration::from_secs_f64(seconds), operations }
    }

    #[test]
    fn a_picture_with_guidance_takes_two_rows_of_each_step() {
        let pictures = pictures_a_second(Subject::Sd15, 8, &cost(0.1, 1), &cost(0.25, 1));
        assert!((pictures - 1.0 / (30.0 * 0.1 / 4.0 + 0.25)).abs() < 1e-9);
        let pictures = pictures_a_second(Subject::FluxDev, 1, &cost(0.1, 1), &cost(0.2, 1));
        assert!((pictures - 1.0 / (28.0 * 0.1 + 0.2)).abs() < 1e-9);
    }

    #[test]
    fn the_floor_is_what_takes_longer() {
        assert!((floor(&cost(1.0, 1000), 10, (100.0, 100.0)) - 10.0).abs() < 1e-9);
        assert!((floor(&cost(1.0, 10), 1000, (100.0, 100.0)) - 10.0).abs() < 1e-9);
    }

    #[test]
    fn a_step_stands_beside_its_replay() {
        let row = |replay| graph_row(Subject::Sd15, 2, &cost(0.02, 1), replay);
        let replay = |same_bits| Some(ReplayCost { time: Duration::from_micros(12_500), same_bits });
        assert_eq!(row(replay(true)), "| sd15 | 2 | 20.00 | 12.50 | yes |");
        assert_eq!(row(replay(false)), "| sd15 | 2 | 20.00 | 12.50 | NO |");
        assert_eq!(row(None), "| sd15 | 2 | 20.00 | refused |  |");
    }

    #[test]
    fn a_wrong_operation_is_marked() {
        let check = OperationCheck {
            name: "silu",
            dtype: DType::BF16,
            error: 0.5,
            tolerance: 1e-2,
            invariant: false,
            fast: Duration::from_millis(1),
            plain: Duration::from_millis(2),
        };
        assert_eq!(operation_row(&check), "| silu | bf16 | 5.0e-1 | 1e-2 | NO | 1.000 | 2.000 | FAILED |");
    }
}
