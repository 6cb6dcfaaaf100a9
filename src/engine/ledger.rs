//! What calls cost, kept on the disk from one start to the next, so that the first batches are as large as the last
//! ones were, and the first callers are told when they will be done.
//!
//! A curve belongs to what was measured: the model by what it is made of, not by its name, since two fine-tunes of one
//! architecture cost the same; the device; and the version of easel. Curves of other devices and models stay in the
//! file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Device;
use easel_models::Pipeline;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::cost::Curve;

/// The file's name in the data folder.
const FILE: &str = "costs.json";

/// The file's form; another one is not read.
const FORMAT: u32 = 1;

/// What is in the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    format: u32,
    easel: String,
    models: Vec<Measured>,
}

/// One model on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Measured {
    /// A digest of what it is made of.
    identity: String,
    device: String,
    /// What it was served as last, for people.
    name: String,
    shapes: Vec<Shape>,
}

/// One shape of its pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shape {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) latent: [usize; 3],
    pub(super) curve: Curve,
}

/// One measured batch size, as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CostRow {
    /// The name that the model was served under last.
    pub model: String,
    /// The device.
    pub device: String,
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// Rows of the call.
    pub rows: usize,
    /// Milliseconds of the call; a moving average.
    pub call_ms: f64,
    /// Calls measured.
    pub samples: u32,
    /// Milliseconds to decode one picture, where that was measured.
    pub decode_ms: Option<f64>,
}

/// Reads what was measured by servers with this data folder: by model, device, size and rows.
///
/// # Errors
/// When there is no such file, or it cannot be understood.
pub fn cost_rows(data: &Path) -> std::io::Result<Vec<CostRow>> {
    let contents = read(&data.join(FILE))?;
    let mut rows = Vec::new();
    for Measured { device, name, shapes, .. } in contents.models {
        for Shape { width, height, curve, .. } in shapes {
            let decode_ms = curve.decode_seconds().map(|seconds| seconds * 1000.0);
            rows.extend(curve.measured().map(|(rows, seconds, samples)| CostRow {
                model: name.clone(),
                device: device.clone(),
                width,
                height,
                rows,
                call_ms: seconds * 1000.0,
                samples,
                decode_ms,
            }));
        }
    }
    Ok(rows)
}

fn read(path: &Path) -> std::io::Result<Contents> {
    let invalid = |message: String| std::io::Error::new(std::io::ErrorKind::InvalidData, message);
    let contents: Contents =
        serde_json::from_slice(&std::fs::read(path)?).map_err(|error| invalid(error.to_string()))?;
    if contents.format != FORMAT {
        return Err(invalid(format!("its form is {}; {FORMAT} is known", contents.format)));
    }
    let mut shapes = contents.models.iter().flat_map(|model| &model.shapes);
    match shapes.find(|shape| !shape.curve.sound()) {
        Some(shape) => Err(invalid(format!("its numbers for {}x{} cannot be", shape.width, shape.height))),
        None => Ok(contents),
    }
}

/// The file of one engine.
pub(super) struct Ledger {
    path: PathBuf,
    device: String,
    contents: Contents,
}

impl Ledger {
    /// Opens the file in the data folder. One that is missing, damaged or of another version of easel counts as empty.
    pub(super) fn open(data: &Path, device: &Device) -> Self {
        let path = data.join(FILE);
        let empty = || Contents { format: FORMAT, easel: env!("CARGO_PKG_VERSION").into(), models: Vec::new() };
        let contents = match read(&path) {
            Ok(contents) if contents.easel == env!("CARGO_PKG_VERSION") => contents,
            Ok(contents) => {
                tracing::info!(measured_with = contents.easel, "another version's costs are measured anew");
                empty()
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => empty(),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "the measured costs cannot be read; they are measured anew");
                empty()
            }
        };
        Self { path, device: device_name(device), contents }
    }

    /// What is known of a model.
    pub(super) fn shapes(&self, model: &dyn Pipeline) -> &[Shape] {
        let identity = identity(model);
        let mut models = self.contents.models.iter();
        let known = models.find(|known| known.identity == identity && known.device == self.device);
        known.map(|known| known.shapes.as_slice()).unwrap_or_default()
    }

    /// Takes what is known of a model now.
    pub(super) fn put(&mut self, name: &str, model: &dyn Pipeline, shapes: Vec<Shape>) {
        if shapes.is_empty() {
            return;
        }
        let (identity, device) = (identity(model), self.device.clone());
        self.contents.models.retain(|known| known.identity != identity || known.device != device);
        self.contents.models.push(Measured { identity, device, name: name.to_owned(), shapes });
    }

    /// What is to be written, and where: for a thread that may wait for the disk.
    pub(super) fn page(&self) -> Page {
        Page { path: self.path.clone(), contents: self.contents.clone() }
    }
}

/// The file's new contents.
pub(super) struct Page {
    path: PathBuf,
    contents: Contents,
}

impl Page {
    /// Writes them, all or nothing. What cannot be written is measured again.
    pub(super) fn write(&self) {
        let attempt = || {
            let text = serde_json::to_vec(&self.contents)?;
            let new = self.path.with_extension("json.new");
            std::fs::write(&new, text)?;
            std::fs::rename(&new, &self.path)
        };
        if let Err(error) = attempt() {
            tracing::warn!(file = %self.path.display(), %error, "the measured costs cannot be written");
        }
    }
}

/// A digest of what decides a call's cost: the family, its parts, and the types that they are stored and computed in.
fn identity(model: &dyn Pipeline) -> String {
    let card = model.card();
    let parts: BTreeMap<String, (u64, Vec<String>, u64)> =
        model.parts().into_iter().map(|part| (part.name, (part.parameters, part.stored, part.bytes))).collect();
    let text = format!("{} {} {} {parts:?}", card.family, card.parameters, card.dtype);
    Sha256::digest(text.as_bytes()).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// What the device is called; a CPU by its cores, too, since the process may not have them all.
fn device_name(device: &Device) -> String {
    if let Some(name) = easel_models::cuda_name(device) {
        return name;
    }
    if !device.is_cpu() {
        return format!("{:?}", device.location()).to_lowercase();
    }
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = named.map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    format!("{name}, {} cores", std::thread::available_parallelism().map_or(1, usize::from))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::cost::{Costs, Place};
    use super::super::tests::fake::Fake;
    use super::*;

    fn shapes() -> Vec<Shape> {
        let (mut costs, place) = (Costs::default(), Place { model: 0, latent: [4, 8, 8] });
        for rows in [1, 2, 8] {
            costs.called(place, rows, Duration::from_millis(10 * rows as u64), false);
        }
        costs.decoded(place, Duration::from_millis(5));
        let curve = costs.curve(place).unwrap().clone();
        vec![Shape { width: 64, height: 64, latent: place.latent, curve }]
    }

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let model = Fake::new("a");
        let mut ledger = Ledger::open(dir.path(), &Device::Cpu);
        assert!(ledger.shapes(&model).is_empty());
        ledger.put("a", &model, shapes());
        ledger.page().write();
        let again = Ledger::open(dir.path(), &Device::Cpu);
        assert_eq!(again.shapes(&model), shapes());
        // It is the model's by what it is made of, not by its name.
        assert_eq!(again.shapes(&Fake::new("b")), shapes());
        let mut other = Fake::new("a");
        other.card.dtype = "bf16".into();
        assert!(again.shapes(&other).is_empty());
        let rows = cost_rows(dir.path()).unwrap();
        assert_eq!(
            rows.iter().map(|row| (row.rows, row.call_ms)).collect::<Vec<_>>(),
            [(1, 10.0), (2, 20.0), (8, 80.0)]
        );
        assert_eq!((rows[0].model.as_str(), rows[0].decode_ms), ("a", Some(5.0)));
    }

    #[test]
    fn other_devices_and_models_stay_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let model = Fake::new("a");
        let mut ledger = Ledger::open(dir.path(), &Device::Cpu);
        ledger.put("a", &model, shapes());
        ledger.contents.models[0].device = "another".into();
        ledger.put("a", &model, shapes());
        ledger.put("a", &model, shapes());
        assert_eq!(ledger.contents.models.len(), 2);
    }

    #[test]
    fn a_file_that_is_damaged_or_of_another_version_counts_as_empty() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        let model = Fake::new("a");
        let mut ledger = Ledger::open(dir.path(), &Device::Cpu);
        ledger.put("a", &model, shapes());
        ledger.page().write();
        let good = std::fs::read_to_string(&file).unwrap();
        let version = format!("\"easel\":\"{}\"", env!("CARGO_PKG_VERSION"));
        for bad in [
            good[..good.len() / 2].to_owned(),
            "[]".to_owned(),
            good.replace("\"format\":1", "\"format\":2"),
            good.replace(&version, "\"easel\":\"0.0.1\""),
            good.replace("\"seconds\":0.01", "\"seconds\":-0.01"),
        ] {
            assert_ne!(bad, good);
            std::fs::write(&file, &bad).unwrap();
            assert!(Ledger::open(dir.path(), &Device::Cpu).shapes(&model).is_empty(), "{bad}");
        }
        std::fs::write(&file, &good).unwrap();
        assert_eq!(Ledger::open(dir.path(), &Device::Cpu).shapes(&model), shapes());
    }
}
