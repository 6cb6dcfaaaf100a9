//! The safetensors files of one part of a model: a single one, or shards with an index.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use easel_kernels::Mapped;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;

use super::repository::{Bytes, Repository};
use super::tensors::{TensorInfo, TensorSource};
use crate::{Error, Result};

/// The names that weights have in a part's folder: those that diffusers writes, then those that transformers writes,
/// and the half-precision variant of each where it is the only one that was downloaded.
const SINGLE: [&str; 4] = [
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
];

/// The indices of weights in several files, in the same order.
const INDEX: [&str; 4] = [
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.fp16.json",
    "model.safetensors.index.fp16.json",
];

/// The part of an index that is of use: which file holds which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

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

/// Opens the weights in the folder `part`.
pub(super) fn open(repository: &Repository, part: &str) -> Result<SafetensorsSource> {
    for (single, index) in SINGLE.iter().zip(INDEX) {
        let single = format!("{part}/{single}");
        if let Some(bytes) = repository.try_bytes(&single)? {
            return SafetensorsSource::single(single, bytes);
        }
        let index = format!("{part}/{index}");
        if let Some(map) = repository.try_json::<Index>(&index)? {
            return SafetensorsSource::sharded(repository, part, index, &map);
        }
    }
    if let Some(pickle) = repository.list(part)?.iter().find(|name| is_pickle(name)) {
        return Err(refuse_pickle(&format!("{part}/{pickle}")));
    }
    Err(Error::file(
        part,
        format_args!("has no weights; one of these is expected: {}", [SINGLE, INDEX].concat().join(", ")),
    ))
}

/// Opens a file of weights anywhere on the disk; `name` is what errors call it.
pub(super) fn open_file(path: &Path, name: String) -> Result<SafetensorsSource> {
    let mapped = Mapped::open(path).map_err(|error| Error::file(path.display().to_string(), error))?;
    SafetensorsSource::single(name, Bytes::Mapped(Arc::new(mapped)))
}

/// One file, its header read and checked.
struct Shard {
    file: String,
    bytes: Bytes,
    header: Metadata,
    /// Where the tensors' bytes begin.
    data: usize,
}

impl Shard {
    fn new(file: String, bytes: Bytes) -> Result<Self> {
        // A clone made without Git LFS has small text files in the weights' place.
        if bytes.starts_with(b"version https://git-lfs") {
            return Err(Error::file(
                file,
                "is a pointer of Git LFS instead of the weights; fetch them with git lfs pull",
            ));
        }
        let (header_bytes, header) = SafeTensors::read_metadata(&bytes)
            .map_err(|error| Error::file(file.as_str(), format_args!("is no whole safetensors file: {error}")))?;
        Ok(Self { file, bytes, header, data: size_of::<u64>() + header_bytes })
    }

    /// The type of a tensor, if it can be computed with.
    fn dtype(&self, key: &str, stored: Dtype) -> Result<DType> {
        DType::try_from(stored).map_err(|_| {
            self.error(key, format_args!("has the type {stored:?}, which cannot be read; F32, F16 and BF16 can"))
        })
    }

    /// A tensor, or some of its rows.
    fn tensor(&self, key: &str, rows: Option<Range<usize>>) -> Result<Option<Tensor>> {
        let Some(info) = self.header.info(key) else { return Ok(None) };
        let dtype = self.dtype(key, info.dtype)?;
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
        let bytes = self.bytes.get(self.data + start..self.data + end);
        let bytes = bytes.ok_or_else(|| self.error(key, "lies outside of the file"))?;
        let tensor = Tensor::from_raw_buffer(bytes, dtype, &shape, &Device::Cpu);
        tensor.map(Some).map_err(|error| self.error(key, error))
    }

    fn error(&self, key: &str, message: impl std::fmt::Display) -> Error {
        Error::file(self.file.as_str(), format_args!("{key}: {message}"))
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
    fn single(name: String, bytes: Bytes) -> Result<Self> {
        let shard = Shard::new(name.clone(), bytes)?;
        let keys = shard.header.offset_keys().into_iter().map(|key| (key, 0)).collect();
        Ok(Self { name, shards: vec![shard], keys })
    }

    fn sharded(repository: &Repository, part: &str, name: String, index: &Index) -> Result<Self> {
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
    let bytes = repository
        .try_bytes(&path)?
        .ok_or_else(|| Error::file(path.as_str(), format_args!("is missing; {index} says that it holds {key}")))?;
    Shard::new(path, bytes)
}

impl TensorSource for SafetensorsSource {
    fn tensor(&self, key: &str) -> Result<Option<Tensor>> {
        self.keys.get(key).map_or(Ok(None), |&at| self.shards[at].tensor(key, None))
    }

    fn rows(&self, key: &str, rows: Range<usize>) -> Result<Option<Tensor>> {
        self.keys.get(key).map_or(Ok(None), |&at| self.shards[at].tensor(key, Some(rows)))
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
        let part = repository.part("unet", 4).unwrap();
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
        let json = r#"{"a":{"dtype":"F8_E5M2","shape":[2],"data_offsets":[0,2]}}"#;
        let file = [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &[0, 0]].concat();
        let dir = folder(&[("model.safetensors", &file)]);
        let tensors = Repository::folder(dir.path()).unwrap().tensors("unet", DType::F32, &Device::Cpu).unwrap();
        let message = tensors.get("a", &[2]).unwrap_err().to_string();
        assert_eq!(
            message,
            "unet/model.safetensors: a: has the type F8_E5M2, which cannot be read; F32, F16 and BF16 can"
        );
    }
}
