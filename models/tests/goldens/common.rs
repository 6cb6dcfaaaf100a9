//! The golden files, and how their numbers are compared.

use std::collections::HashMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::LazyLock;

use candle_core::{DType, Device, Tensor};
use easel_models::weights::Repository;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The relative error of a whole module: f32 rounds at 6e-8, and these networks are some fifty layers deep.
pub(crate) const MODULE_ERROR: f64 = 1e-5;

/// `manifest.json`: what there is to compare.
#[derive(Deserialize)]
pub(crate) struct Manifest {
    pub(crate) models: Vec<Model>,
    pub(crate) noise: Vec<Stream>,
}

/// One of the tiny pipelines in `pipelines/`.
#[derive(Deserialize)]
pub(crate) struct Model {
    pub(crate) name: String,
}

/// What one seeded generator drew, one tensor after the other.
#[derive(Deserialize)]
pub(crate) struct Stream {
    pub(crate) key: String,
    pub(crate) seed: u64,
    pub(crate) draws: Vec<Vec<usize>>,
}

/// The manifest, read once.
pub(crate) static MANIFEST: LazyLock<Manifest> = LazyLock::new(|| json("manifest.json"));

/// A golden file's path.
pub(crate) fn data(name: impl Display) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name.to_string())
}

/// A golden JSON file.
pub(crate) fn json<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(data(name)).unwrap()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A golden safetensors file. Values that f16 holds exactly are stored in it; all come back as f32 or integers.
pub(crate) fn tensors(name: impl Display) -> HashMap<String, Tensor> {
    let tensors = candle_core::safetensors::load(data(name), &Device::Cpu).unwrap();
    let widen = |tensor: Tensor| match tensor.dtype() {
        DType::F16 => tensor.to_dtype(DType::F32).unwrap(),
        _ => tensor,
    };
    tensors.into_iter().map(|(key, tensor)| (key, widen(tensor))).collect()
}

/// The files of a tiny pipeline, or of the model inside the program, which is called `default`.
pub(crate) fn repository(model: &str) -> Repository {
    match model {
        "default" => Repository::builtin(),
        _ => Repository::folder(data(format_args!("pipelines/{model}"))).unwrap(),
    }
}

/// A part's configuration.
pub(crate) fn config<T: DeserializeOwned>(model: &str, part: &str) -> T {
    repository(model).json(&format!("{part}/config.json")).unwrap()
}

/// The relative L2 error of `found`.
pub(crate) fn relative_error(found: &Tensor, wanted: &Tensor) -> f64 {
    assert_eq!(found.dims(), wanted.dims());
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (found, wanted) = (values(found), values(wanted));
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let error = squares(&mut found.iter().zip(&wanted).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    (error / squares(&mut wanted.iter().map(|&value| f64::from(value)))).sqrt()
}

/// Collects what is wrong over all cases, so that one failure does not hide the others.
#[derive(Default)]
pub(crate) struct Faults(Vec<String>);

impl Faults {
    /// Notes that `what` has this relative error, which is a fault above `limit`.
    pub(crate) fn error(&mut self, what: impl Display, error: f64, limit: f64) {
        println!("{what}: relative error {error:.1e}");
        self.check(error <= limit, format_args!("{what}: relative error {error:.1e} is above {limit:.0e}"));
    }

    /// Notes a fault unless `right`.
    pub(crate) fn check(&mut self, right: bool, what: impl Display) {
        if !right {
            self.0.push(what.to_string());
        }
    }

    /// Fails with all faults, if there are any.
    pub(crate) fn finish(self) {
        assert!(self.0.is_empty(), "\n{}", self.0.join("\n"));
    }
}
