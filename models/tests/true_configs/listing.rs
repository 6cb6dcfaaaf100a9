//! The tensors of a network by their list.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;

use candle_core::Tensor;
use easel_models::Result;
use easel_models::weights::{TensorInfo, TensorSource};

/// Reads a list: on each line a key with `#` in the place of numbers, its shape, and the numbers.
pub(crate) fn read(file: &Path) -> BTreeMap<String, Vec<usize>> {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut shapes = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let (pattern, size) = (words.next().unwrap(), words.next().unwrap());
        let shape: Vec<usize> = match size {
            "scalar" => Vec::new(),
            _ => size.split('x').map(|side| side.parse().unwrap()).collect(),
        };
        let numbers: Vec<&str> = words.collect();
        let keys = if numbers.is_empty() {
            vec![pattern.to_owned()]
        } else {
            numbers.into_iter().flat_map(|numbers| fill(pattern, numbers)).collect()
        };
        shapes.extend(keys.into_iter().map(|key| (key, shape.clone())));
    }
    shapes
}

/// The keys of a pattern with these numbers, of which the last may be a range.
fn fill(pattern: &str, numbers: &str) -> Vec<String> {
    let (first, last) = numbers.rsplit_once('.').unwrap_or(("", numbers));
    let (from, to) = last.split_once('-').unwrap_or((last, last));
    let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
    let key = |last: usize| {
        let last = last.to_string();
        let mut numbers = first.split('.').filter(|number| !number.is_empty()).chain([last.as_str()]);
        let words = pattern.split('.').map(|word| if word == "#" { numbers.next().unwrap() } else { word });
        words.collect::<Vec<_>>().join(".")
    };
    (from..=to).map(key).collect()
}

/// Tensors that have shapes and no memory, and which of them were asked for.
pub(crate) struct Listing {
    shapes: BTreeMap<String, Vec<usize>>,
    asked: Mutex<BTreeSet<String>>,
}

impl Listing {
    pub(crate) fn new(shapes: BTreeMap<String, Vec<usize>>) -> Self {
        Self { shapes, asked: Mutex::default() }
    }

    /// The keys that nobody asked for.
    pub(crate) fn left(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        self.shapes.keys().filter(|key| !asked.contains(*key)).cloned().collect()
    }
}

impl TensorSource for Listing {
    fn tensor(&self, key: &str) -> Result<Option<Tensor>> {
        let blank = self.blank(key)?;
        if blank.is_some() {
            self.asked.lock().unwrap().insert(key.to_owned());
        }
        Ok(blank)
    }

    fn info(&self, key: &str) -> Option<TensorInfo> {
        let shape = self.shapes.get(key)?.clone();
        Some(TensorInfo { shape, dtype: "F32".to_owned(), fractional: true })
    }

    fn keys(&self) -> Vec<String> {
        self.shapes.keys().cloned().collect()
    }

    fn file(&self) -> &str {
        "the list"
    }
}
