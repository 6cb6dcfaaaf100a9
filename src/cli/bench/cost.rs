//! `easel bench cost`: what the server has measured of its models' calls.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, json};

use super::CliError;
use crate::cli::common::ModelFlags;
use crate::engine::{CostRow, cost_rows};

/// `easel bench cost`
#[derive(Debug, Args)]
pub(super) struct Cost {
    /// Only this model, by the name that it was served under last.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Where the server keeps its data.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Write CSV.
    #[arg(long)]
    csv: bool,
    #[command(flatten)]
    flags: ModelFlags,
}

impl Cost {
    pub(super) fn run(&self) -> Result<(), CliError> {
        let server = self.data_dir.as_ref().map_or_else(|| json!({}), |dir| json!({"data_dir": dir}));
        let config = self.flags.load(Map::from_iter([("server".to_owned(), server)]))?;
        let data = &config.server.data_dir;
        let doing = format!("cannot read what was measured in {}; a server measures while it draws", data.display());
        let mut rows = cost_rows(data).map_err(CliError::io(doing))?;
        if let Some(model) = &self.model {
            let known: Vec<String> = rows.iter().map(|row| row.model.clone()).collect();
            rows.retain(|row| row.model == *model);
            if rows.is_empty() {
                let mut known = known;
                known.dedup();
                return Err(CliError::Usage(format!("nothing was measured of {model}; there is {}", known.join(", "))));
            }
        }
        print_line(&if self.csv { csv(&rows) } else { table(&rows) });
        Ok(())
    }
}

/// One line a batch size, with the cost of a row, by which batch sizes are chosen.
fn table(rows: &[CostRow]) -> String {
    let mut lines = Vec::new();
    let mut last: Option<(&str, &str)> = None;
    for row in rows {
        if last != Some((&row.model, &row.device)) {
            last = Some((&row.model, &row.device));
            lines.push(format!("{} on {}", row.model, row.device));
            let head = format!(
                "{:>11} {:>5} {:>12} {:>12} {:>8} {:>12}",
                "size", "rows", "ms a call", "ms a row", "calls", "ms decode"
            );
            lines.push(head);
        }
        let (size, a_row) = (format!("{}x{}", row.width, row.height), row.call_ms / row.rows as f64);
        let decode = row.decode_ms.map(|ms| format!("{ms:.2}")).unwrap_or_default();
        let line =
            format!("{size:>11} {:>5} {:>12.2} {a_row:>12.2} {:>8} {decode:>12}", row.rows, row.call_ms, row.samples);
        lines.push(line.trim_end().to_owned());
    }
    lines.join("\n")
}

fn csv(rows: &[CostRow]) -> String {
    let mut lines = vec!["model,device,width,height,rows,call_ms,samples,decode_ms".to_owned()];
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    for row in rows {
        let CostRow { model, device, width, height, rows, call_ms, samples, decode_ms } = row;
        let decode = decode_ms.map(|ms| ms.to_string()).unwrap_or_default();
        let (model, device) = (quoted(model), quoted(device));
        lines.push(format!("{model},{device},{width},{height},{rows},{call_ms},{samples},{decode}"));
    }
    lines.join("\n")
}

#[allow(clippy::print_stdout, reason = "the table is what the command is for")]
fn print_line(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(model: &str, rows: usize, decode_ms: Option<f64>) -> CostRow {
        let (width, height, call_ms, samples) = (64, 32, 10.0 * rows as f64, 3);
        CostRow { model: model.into(), device: "a \"chip\"".into(), width, height, rows, call_ms, samples, decode_ms }
    }

    #[test]
    fn the_table_has_a_head_for_each_model_and_the_cost_of_a_row() {
        let table = table(&[row("a", 1, None), row("a", 4, None), row("b", 2, Some(5.0))]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!((lines.len(), lines[0], lines[4]), (7, "a on a \"chip\"", "b on a \"chip\""));
        assert_eq!(lines[3].split_whitespace().collect::<Vec<_>>(), ["64x32", "4", "40.00", "10.00", "3"]);
        assert!(lines[6].ends_with("5.00"));
    }

    #[test]
    fn csv_quotes_names() {
        let text = csv(&[row("a,b", 2, Some(1.5))]);
        assert_eq!(text.lines().nth(1), Some("\"a,b\",\"a \"\"chip\"\"\",64,32,2,20,3,1.5"));
    }
}
