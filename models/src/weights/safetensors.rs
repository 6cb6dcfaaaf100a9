//! The safetensors files of one part of a model: a single one, or shards with an index.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use easel_kernels::{Float8, Quantized, QuantizedFormat, QuantizedScale};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;

use super::deferred::Deferred;
use super::repository::Repository;
use super::tensors::{TensorInfo, TensorSource};
use crate::{Error, Result};

/// Whether a file's name says that it is a pickle, or a zip of pickles, of PyTorch.
pub(super) fn is_pickle(name: &str) -> bool {
    let extension = Path::new(name).extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    matches!(extension.as_deref(), Some("bin" | "ckpt" | "pt" | "pth" | "pkl"))
}

/// The error about weights that are a pickle.
pub(super) fn refuse_pickle(file: &str) -> Error {
    Error::file(
        file,
        "is a pickle, which can run any code when it is loaded, so easel never reads one. Convert it to safetensors on \
         a machine that may run it: in Python, diffusers.StableDiffusionPipeline.from_pretrained(FOLDER) (or \
         .from_single_file(FILE)), then .save_pretrained(NEW_FOLDER), and serve the new folder",
    )
}

/// The first bytes that are asked for of a file that is not here: most headers fit into them.
const FIRST: u64 = 256 << 10;
/// The longest header that the format allows.
const LONGEST: u64 = 100_000_000;

/// The types of stored values.
enum Kind {
    /// One that candle computes with.
    Usual(DType),
    /// One of a byte, which stays so where a layer can keep it.
    Byte(Float8),
}

/// One file, its header read and checked.
struct Shard {
    bytes: Deferred,
    header: Metadata,
    /// Where the tensors' bytes begin.
    data: usize,
}

impl Shard {
    fn new(repository: &Repository, file: String) -> Result<Self> {
        let wrong = |error: &dyn std::fmt::Display| {
            Error::file(file.as_str(), format_args!("is no whole safetensors file: {error}"))
        };
        let mut beginning = repository.beginning(&file, FIRST)?;
        // A clone made without Git LFS has small text files in the weights' place.
        if beginning.bytes.starts_with(b"version https://git-lfs") {
            return Err(Error::file(
                file,
                "is a pointer of Git LFS instead of the weights; fetch them with git lfs pull",
            ));
        }
        let (header_bytes, header) = if beginning.is_whole() {
            SafeTensors::read_metadata(&beginning.bytes).map_err(|error| wrong(&error))?
        } else {
            let length = beginning.bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
            let end = 8 + length.min(LONGEST);
            if beginning.bytes.len() as u64 <= end {
                beginning = repository.beginning(&file, end)?;
            }
            let text = beginning.bytes.get(8..end as usize).ok_or_else(|| wrong(&"its header is cut"))?;
            let header: Metadata = serde_json::from_slice(text).map_err(|error| wrong(&error))?;
            let last =
                header.offset_keys().last().and_then(|key| header.info(key)).map_or(0, |info| info.data_offsets.1);
            if beginning.size.checked_sub(end) != Some(last as u64) {
                return Err(wrong(&format_args!("it has {} bytes, which its header does not tell of", beginning.size)));
            }
            (length as usize, header)
        };
        Ok(Self { bytes: Deferred::new(repository, file, beginning), header, data: size_of::<u64>() + header_bytes })
    }

    /// The type of a tensor, if it can be computed with.
    fn dtype(&self, key: &str, stored: Dtype) -> Result<Kind> {
        match stored {
            Dtype::F8_E4M3 => Ok(Kind::Byte(Float8::E4M3)),
            Dtype::F8_E5M2 => Ok(Kind::Byte(Float8::E5M2)),
            Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::I64 | Dtype::I32 | Dtype::U8 => {
                Ok(Kind::Usual(DType::try_from(stored)?))
            }
            _ => {
                let possible = "F32, F16, BF16, F8_E4M3 and F8_E5M2 can";
                Err(self.error(key, format_args!("has the type {stored:?}, which cannot be read; {possible}")))
            }
        }
    }

    /// A tensor of one byte a value, with the scale that another tensor holds; `None` when it has another type.
    fn bytes(&self, key: &str, scale: QuantizedScale) -> Result<Option<Quantized>> {
        let Some(info) = self.header.info(key) else { return Ok(None) };
        let Kind::Byte(format) = self.dtype(key, info.dtype)? else { return Ok(None) };
        let (start, end) = info.data_offsets;
        let bytes = self.bytes.shared(key, self.data + start..self.data + end)?;
        let stored = Quantized::new(QuantizedFormat::F8(format), bytes, scale, info.shape.clone());
        stored.map(Some).map_err(|error| self.error(key, error))
    }

    /// A tensor that candle knows the type of, or some of its rows.
    fn tensor(&self, key: &str, rows: Option<Range<usize>>) -> Result<Option<Tensor>> {
        let Some(info) = self.header.info(key) else { return Ok(None) };
        let Kind::Usual(dtype) = self.dtype(key, info.dtype)? else { return Ok(None) };
        let (mut start, mut end) = info.data_offsets;
        let mut shape = info.shape.clone();
        if let Some(rows) = rows {
            let Some(count) = shape.first_mut().filter(|count| rows.start <= rows.end && rows.end <= **count) else {
                return Err(self.error(key, format_args!("has shape {:?}; rows {rows:?} are expected", info.shape)));
            };
            let row = (end - start) / (*count).max(1);
            *count = rows.len();
            (start, end) = (start + rows.start * row, start + rows.end * row);
        }
        // The header was checked against the file's length; this keeps a mistake there from being a panic here.
        let bytes = self.bytes.shared(key, self.data + start..self.data + end)?;
        let tensor = Tensor::from_raw_buffer(bytes.as_ref(), dtype, &shape, &Device::Cpu);
        tensor.map(Some).map_err(|error| self.error(key, error))
    }

    fn has_bytes(&self, key: &str) -> bool {
        self.header.info(key).is_some_and(|info| matches!(info.dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2))
    }

    fn error(&self, key: &str, message: impl std::fmt::Display) -> Error {
        Error::file(self.bytes.file(), format_args!("{key}: {message}"))
    }
}

/// The weights of one part. Tensors are read when they are asked for, one at a time.
pub(super) struct SafetensorsSource {
    /// The file to name in errors: the only one, or the index.
    name: String,
    shards: Vec<Shard>,
    /// Which shard has a key.
    keys: HashMap<String, usize>,
}

impl SafetensorsSource {
    pub(super) fn single(repository: &Repository, name: String) -> Result<Self> {
        let shard = Shard::new(repository, name.clone())?;
        let keys = shard.header.offset_keys().into_iter().map(|key| (key, 0)).collect();
        Ok(Self { name, shards: vec![shard], keys })
    }

    fn shard(&self, key: &str) -> Option<&Shard> {
        self.keys.get(key).map(|&at| &self.shards[at])
    }

    /// What the values of a tensor in fp8 are multiplied by. ComfyUI's files have it as `scale_weight`, those of most other
    /// tools as `weight_scale`; files that were only cast have none. (Scales of a layer's input, which are there too, are for
    /// products in fp8.)
    fn scale(&self, key: &str) -> Result<QuantizedScale> {
        let scaled = key.strip_suffix("weight").map(|layer| format!("{layer}scale_weight"));
        let names = scaled.into_iter().chain([format!("{key}_scale"), format!("{key}_scale_inv")]);
        let Some(name) = names.into_iter().find(|name| self.keys.contains_key(name)) else {
            return Ok(QuantizedScale::None);
        };
        let (Some(scale), Some(info)) = (self.tensor(&name)?, self.info(key)) else { return Ok(QuantizedScale::None) };
        let values: Vec<f32> = scale.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        match values.as_slice() {
            [scale] => Ok(QuantizedScale::Whole(*scale)),
            _ if info.shape.first() == Some(&values.len()) => Ok(QuantizedScale::Rows(values)),
            _ => Err(Error::file(
                self.name.as_str(),
                format_args!(
                    "{name} has shape {:?}, but {key} has {:?}; one scale, or one for each row, can be read",
                    scale.dims(),
                    info.shape
                ),
            )),
        }
    }

    pub(super) fn sharded(repository: &Repository, part: &str, name: String, index: &Index) -> Result<Self> {
        let mut shards: Vec<Shard> = Vec::new();
        let mut opened: HashMap<&str, usize> = HashMap::new();
        let mut keys = HashMap::new();
        for (key, file) in &index.weight_map {
            let at = match opened.get(file.as_str()) {
                Some(&at) => at,
                None => {
                    shards.push(open_shard(repository, part, &name, key, file)?);
                    opened.insert(file, shards.len() - 1);
                    shards.len() - 1
                }
            };
            if shards[at].header.info(key).is_none() {
                return Err(Error::file(
                    name,
                    format_args!("weight_map says that {file} holds {key}, which it does not"),
                ));
            }
            keys.insert(key.clone(), at);
        }
        Ok(Self { name, shards, keys })
    }
}

/// The part of an index that is of use: which file holds which tensor.
#[derive(Deserialize)]
pub(super) struct Index {
    pub(super) weight_map: BTreeMap<String, String>,
}

/// Opens a file that an index names. The name comes with the model, so it must be that of a file beside the index.
fn open_shard(repository: &Repository, part: &str, index: &str, key: &str, file: &str) -> Result<Shard> {
    if is_pickle(file) {
        return Err(refuse_pickle(&format!("{part}/{file}")));
    }
    if file.contains(['/', '\\']) || !file.ends_with(".safetensors") {
        return Err(Error::file(
            index,
            format_args!(
                "weight_map.{key} is {file:?}; the name of a .safetensors file in the same folder is expected"
            ),
        ));
    }
    let path = format!("{part}/{file}");
    if !repository.list(part)?.contains(file) {
        let reason = repository.incomplete().unwrap_or_else(|| "is missing".to_owned());
        return Err(Error::file(path.as_str(), format_args!("{reason}; {index} says that it holds {key}")));
    }
    Shard::new(repository, path)
}

impl TensorSource for SafetensorsSource {
    fn tensor(&self, key: &str) -> Result<Option<Tensor>> {
        let Some(shard) = self.shard(key) else { return Ok(None) };
        match self.quantized(key)? {
            Some(stored) => Ok(Some(stored.dequantize()?)),
            None => shard.tensor(key, None),
        }
    }

    fn rows(&self, key: &str, rows: Range<usize>) -> Result<Option<Tensor>> {
        let Some(shard) = self.shard(key) else { return Ok(None) };
        match self.quantized(key)? {
            Some(stored) => {
                let rows = stored.narrow_rows(rows.start, rows.len()).map_err(|error| shard.error(key, error))?;
                Ok(Some(rows.dequantize()?))
            }
            None => shard.tensor(key, Some(rows)),
        }
    }

    fn quantized(&self, key: &str) -> Result<Option<Quantized>> {
        match self.shard(key) {
            Some(shard) if shard.has_bytes(key) => shard.bytes(key, self.scale(key)?),
            _ => Ok(None),
        }
    }

    fn blank(&self, key: &str) -> Result<Option<Tensor>> {
        let Some(shard) = self.keys.get(key).map(|&at| &self.shards[at]) else { return Ok(None) };
        let Some(info) = shard.header.info(key) else { return Ok(None) };
        shard.dtype(key, info.dtype)?;
        Ok(Some(Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as(info.shape.as_slice())?))
    }

    fn info(&self, key: &str) -> Option<TensorInfo> {
        let info = self.shards[*self.keys.get(key)?].header.info(key)?;
        let fractional = !matches!(info.dtype, Dtype::I64 | Dtype::I32 | Dtype::U8 | Dtype::BOOL);
        Some(TensorInfo { shape: info.shape.clone(), dtype: info.dtype.to_string(), fractional })
    }

    fn keys(&self) -> Vec<String> {
        self.keys.keys().cloned().collect()
    }

    fn contains(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    fn file(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::weights::MODEL_INDEX;

    /// A folder that passes for a model, with these files in its part `unet`.
    fn folder(files: &[(&str, &[u8])]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(MODEL_INDEX), "{}").unwrap();
        std::fs::create_dir(dir.path().join("unet")).unwrap();
        for (name, bytes) in files {
            std::fs::write(dir.path().join("unet").join(name), bytes).unwrap();
        }
        dir
    }

    fn safetensors(tensors: &[(&str, Tensor)]) -> Vec<u8> {
        safetensors::serialize(tensors.iter().map(|(name, tensor)| (*name, tensor)), None).unwrap()
    }

    fn in_f32(shape: &[usize]) -> u64 {
        4 * shape.iter().product::<usize>() as u64
    }

    fn ones(n: usize) -> Tensor {
        Tensor::ones(n, DType::F16, &Device::Cpu).unwrap()
    }

    fn error(dir: &TempDir) -> String {
        let repository = Repository::folder(dir.path()).unwrap();
        repository.tensors("unet", DType::F32, &Device::Cpu).err().expect("an error is expected").to_string()
    }

    #[test]
    fn half_precision_weights_are_handed_out_in_the_computed_type() {
        let dir = folder(&[("diffusion_pytorch_model.fp16.safetensors", &safetensors(&[("a", ones(3))]))]);
        let tensors = Repository::folder(dir.path()).unwrap().tensors("unet", DType::F32, &Device::Cpu).unwrap();
        assert_eq!(tensors.get("a", &[3]).unwrap().to_vec1::<f32>().unwrap(), [1.0; 3]);
        assert_eq!(
            tensors.get("b", &[3]).unwrap_err().to_string(),
            "unet/diffusion_pytorch_model.fp16.safetensors: b is missing; a tensor of shape [3] is expected under this key"
        );
    }

    #[test]
    fn shards_are_read_through_their_index() {
        let index =
            br#"{"metadata": {"total_size": 10}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;
        let one = safetensors(&[("a", ones(3))]);
        let two = safetensors(&[("b", ones(2))]);
        let name = "diffusion_pytorch_model.safetensors.index.json";
        let dir = folder(&[(name, index), ("one.safetensors", &one), ("two.safetensors", &two)]);
        let repository = Repository::folder(dir.path()).unwrap();
        let tensors = repository.tensors("unet", DType::F32, &Device::Cpu).unwrap();
        assert_eq!((tensors.get("a", &[3]).unwrap().dims1().unwrap(), tensors.contains("b")), (3, true));
        let part = repository.part("unet", in_f32).unwrap();
        assert_eq!((part.parameters, part.bytes, part.stored), (5, 20, vec!["F16".to_owned()]));

        let missing = error(&folder(&[(name, index), ("one.safetensors", &one)]));
        assert_eq!(missing, format!("unet/two.safetensors: is missing; unet/{name} says that it holds b"));
        let wrong = error(&folder(&[(name, index), ("one.safetensors", &two), ("two.safetensors", &one)]));
        assert_eq!(wrong, format!("unet/{name}: weight_map says that one.safetensors holds a, which it does not"));
    }

    #[test]
    fn an_index_cannot_name_a_file_elsewhere() {
        for elsewhere in
            ["../x.safetensors", "/etc/passwd", "/x.safetensors", "..", "a/b.safetensors", r"..\\x.safetensors"]
        {
            let index = format!(r#"{{"weight_map": {{"a": "{elsewhere}"}}}}"#);
            let message = error(&folder(&[("model.safetensors.index.json", index.as_bytes())]));
            assert!(message.starts_with("unet/model.safetensors.index.json: weight_map.a is "), "{message}");
        }
    }

    #[test]
    fn a_pickle_is_refused_with_the_way_to_convert_it() {
        for name in ["diffusion_pytorch_model.bin", "model.ckpt", "weights.PT"] {
            let message = error(&folder(&[(name, b"\x80\x02")]));
            assert!(message.starts_with(&format!("unet/{name}: is a pickle")), "{message}");
            assert!(message.contains("save_pretrained"), "{message}");
        }
        let index = br#"{"weight_map": {"a": "part.bin"}}"#;
        assert!(error(&folder(&[("model.safetensors.index.json", index)])).starts_with("unet/part.bin: is a pickle"));
        assert!(
            error(&folder(&[])).starts_with("unet: has no weights; one of these is expected: diffusion_pytorch_model")
        );
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        let whole = safetensors(&[("a", ones(8)), ("b", ones(8))]);
        let header =
            |json: &str, data: usize| [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &vec![0; data]].concat();
        let hostile = [
            Vec::new(),
            vec![0; 7],
            u64::MAX.to_le_bytes().to_vec(),
            [&(1_u64 << 40).to_le_bytes()[..], b"{}"].concat(),
            whole[..whole.len() - 1].to_vec(),
            whole[..40].to_vec(),
            header("not json", 0),
            header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,99]}}"#, 8),
            header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8),
            header(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8]}}"#, 8),
            header(r#"{"a":{"dtype":"NO","shape":[2],"data_offsets":[0,8]}}"#, 8),
            header(
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
                12,
            ),
        ];
        for bytes in hostile {
            let message = error(&folder(&[("model.safetensors", &bytes)]));
            assert!(message.starts_with("unet/model.safetensors: is no whole safetensors file: "), "{message}");
        }
        let pointer = error(&folder(&[("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n")]));
        assert!(pointer.contains("git lfs pull"), "{pointer}");
    }

    #[test]
    fn a_type_that_cannot_be_computed_with_is_told_by_key() {
        let json = r#"{"a":{"dtype":"F8_E8M0","shape":[2],"data_offsets":[0,2]}}"#;
        let file = [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &[0, 0]].concat();
        let dir = folder(&[("model.safetensors", &file)]);
        let tensors = Repository::folder(dir.path()).unwrap().tensors("unet", DType::F32, &Device::Cpu).unwrap();
        let message = tensors.get("a", &[2]).unwrap_err().to_string();
        assert_eq!(
            message,
            "unet/model.safetensors: a: has the type F8_E8M0, which cannot be read; F32, F16, BF16, F8_E4M3 and F8_E5M2 can"
        );
    }

    #[test]
    fn weights_in_fp8_have_the_scale_that_is_beside_them_and_stay_in_fp8() {
        // 1.0 in E4M3, and scales as each tool names and shapes them.
        let scales = [
            ("a.scale_weight", vec![], vec![0.5]),
            ("a.scale_input", vec![], vec![9.0]),
            ("b.weight_scale", vec![2, 1], vec![2.0, 4.0]),
            ("d.weight_scale", vec![3], vec![1.0; 3]),
        ];
        let mut tensors = Vec::new();
        for layer in ["a", "b", "c", "d"] {
            tensors.push((format!("{layer}.weight"), "F8_E4M3", vec![2, 2], vec![0x38_u8; 4]));
        }
        for (name, shape, values) in scales {
            let bytes = values.iter().flat_map(|value: &f32| value.to_le_bytes()).collect();
            tensors.push((name.to_owned(), "F32", shape, bytes));
        }
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, dtype, shape, bytes) in tensors {
            let start = data.len();
            data.extend(bytes);
            header
                .insert(name, serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}));
        }
        let header = serde_json::Value::Object(header).to_string();
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
        let dir = folder(&[("model.safetensors", &file)]);
        let repository = Repository::folder(dir.path()).unwrap();
        let weights = repository.tensors("unet", DType::F32, &Device::Cpu).unwrap();
        let x = Tensor::new(&[[1_f32, 1.0]], &Device::Cpu).unwrap();
        for (layer, expected) in [("a", [1.0, 1.0]), ("b", [4.0, 8.0]), ("c", [2.0, 2.0])] {
            let layer = crate::weights::linear_no_bias(&weights.pp(layer), 2, 2).unwrap();
            assert_eq!(layer.forward(&x).unwrap().to_vec2::<f32>().unwrap(), [expected]);
        }
        assert!(weights.try_quantized("a.weight", 2, 2).unwrap().is_some());
        let wrong = weights.get("d.weight", &[2, 2]).unwrap_err().to_string();
        assert!(
            wrong.starts_with("unet/model.safetensors: d.weight_scale has shape [3], but d.weight has [2, 2]"),
            "{wrong}"
        );
        // Four matrices of a byte a value, and eight scales that are loaded as any tensor.
        assert_eq!(repository.part("unet", in_f32).unwrap().bytes, 16 + 7 * 4);
    }
}
