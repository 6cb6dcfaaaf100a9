//! A named set of tensors, as a network sees it while it is built.

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use easel_kernels::{Float8, Quantized, QuantizedFormat, upload};

use super::gguf;
use crate::{Error, Result};

/// What a file says of one of its tensors before the values are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its sides.
    pub shape: Vec<usize>,
    /// The stored type by its file format's name, such as `F16` or `Q4_K`.
    pub dtype: String,
    /// Whether it holds weights, rather than whole numbers such as positions.
    pub fractional: bool,
}

impl TensorInfo {
    /// The bytes that it takes in a layer's memory, if it is a matrix in few bits, which stays as it is stored.
    pub(super) fn kept_bytes(&self) -> Option<u64> {
        let format = match self.dtype.as_str() {
            "F8_E4M3" => QuantizedFormat::F8(Float8::E4M3),
            "F8_E5M2" => QuantizedFormat::F8(Float8::E5M2),
            blocks => gguf::blocks(blocks)?,
        };
        match *self.shape.as_slice() {
            [rows, columns] | [rows, columns, 1, 1] => Some((rows * format.row_bytes(columns)?) as u64),
            _ => None,
        }
    }
}

/// Where tensors come from: a file, several shards, or memory.
///
/// Keys are the full names that the networks ask for, which are diffusers' and transformers' own;
/// a source of another layout translates them.
pub trait TensorSource: Send + Sync {
    /// The tensor under `key`, in its stored type (one in few bits is spread out to f32); `None` when there is none.
    ///
    /// # Errors
    /// When the tensor is there and cannot be read.
    fn tensor(&self, key: &str) -> Result<Option<Tensor>>;

    /// The tensor under `key` as it is stored, if it is stored in few bits; `None` when it is not, or there is none.
    ///
    /// A source that takes rows out of another's tensors, or puts them together, does so with
    /// [`Quantized::narrow_rows`] and [`Quantized::cat_rows`] here.
    ///
    /// # Errors
    /// When the tensor is there and cannot be read.
    fn quantized(&self, key: &str) -> Result<Option<Quantized>> {
        let _ = key;
        Ok(None)
    }

    /// Rows of the tensor under `key`, which are indices of its first dimension; `None` when there is no tensor.
    ///
    /// # Errors
    /// When it does not have these rows, or cannot be read.
    fn rows(&self, key: &str, rows: Range<usize>) -> Result<Option<Tensor>> {
        Ok(self.tensor(key)?.map(|tensor| tensor.narrow(0, rows.start, rows.len())).transpose()?)
    }

    /// A tensor of the shape of that under `key`, without its values and without memory for them: all of them are one
    /// zero in f32. `None` when there is none.
    ///
    /// # Errors
    /// When its type cannot be read.
    fn blank(&self, key: &str) -> Result<Option<Tensor>> {
        let Some(info) = self.info(key) else { return Ok(None) };
        Ok(Some(Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as(info.shape)?))
    }

    /// What is known of the tensor under `key`; `None` when there is none.
    fn info(&self, key: &str) -> Option<TensorInfo>;

    /// All keys, in no order.
    fn keys(&self) -> Vec<String>;

    /// Whether there is a tensor under `key`.
    fn contains(&self, key: &str) -> bool {
        self.info(key).is_some()
    }

    /// The file's name for error messages, relative to the model's root.
    fn file(&self) -> &str;
}

/// Tensors in memory, for tests and for weights made at run time.
#[derive(Debug, Clone, Default)]
pub struct MemorySource {
    name: String,
    tensors: HashMap<String, Tensor>,
}

impl MemorySource {
    /// Wraps tensors by their full keys; `name` stands for the file in error messages.
    pub fn new(name: impl Into<String>, tensors: HashMap<String, Tensor>) -> Self {
        Self { name: name.into(), tensors }
    }
}

impl TensorSource for MemorySource {
    fn tensor(&self, key: &str) -> Result<Option<Tensor>> {
        Ok(self.tensors.get(key).cloned())
    }

    fn info(&self, key: &str) -> Option<TensorInfo> {
        let tensor = self.tensors.get(key)?;
        let dtype = tensor.dtype();
        Some(TensorInfo {
            shape: tensor.dims().to_vec(),
            dtype: dtype.as_str().to_ascii_uppercase(),
            fractional: dtype.is_float(),
        })
    }

    fn keys(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn file(&self) -> &str {
        &self.name
    }
}

/// Another source's tensors without their values, so that a network can be built and its keys and shapes checked.
pub(super) struct Blanks(pub(super) Arc<dyn TensorSource>);

impl TensorSource for Blanks {
    fn tensor(&self, key: &str) -> Result<Option<Tensor>> {
        self.0.blank(key)
    }

    fn info(&self, key: &str) -> Option<TensorInfo> {
        self.0.info(key)
    }

    fn keys(&self) -> Vec<String> {
        self.0.keys()
    }

    fn contains(&self, key: &str) -> bool {
        self.0.contains(key)
    }

    fn file(&self) -> &str {
        self.0.file()
    }
}

/// A view of a source's tensors under a prefix, which hands them out in the network's type and on its device.
///
/// Cheap to clone; a network passes `weights.pp("conv_in")` to the layer of that name.
#[derive(Clone)]
pub struct Tensors {
    source: Arc<dyn TensorSource>,
    prefix: String,
    dtype: DType,
    device: Device,
}

impl Tensors {
    /// A view of the whole source, converting to `dtype` on `device`.
    pub fn new(source: Arc<dyn TensorSource>, dtype: DType, device: &Device) -> Self {
        Self { source, prefix: String::new(), dtype, device: device.clone() }
    }

    /// The view one name deeper: keys below are `prefix.name.…`.
    #[must_use]
    pub fn pp(&self, name: impl Display) -> Self {
        Self { prefix: self.key(&name.to_string()), ..self.clone() }
    }

    /// The same view with its tensors handed out in another type.
    #[must_use]
    pub fn to_dtype(&self, dtype: DType) -> Self {
        Self { dtype, ..self.clone() }
    }

    /// The tensor called `name`, which must be there and have this shape.
    ///
    /// # Errors
    /// Names the file, the key and both shapes when it is missing or of another shape.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.try_get(name, shape)?.ok_or_else(|| {
            self.error(name, format_args!("is missing; a tensor of shape {shape:?} is expected under this key"))
        })
    }

    /// The tensor called `name` if there is one; it must then have this shape.
    ///
    /// # Errors
    /// Names the file, the key and both shapes when it is of another shape.
    pub fn try_get(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        let Some(tensor) = self.try_get_any(name)? else { return Ok(None) };
        if tensor.dims() != shape {
            let found = tensor.dims();
            return Err(self.error(name, format_args!("has shape {found:?}; {shape:?} is expected")));
        }
        Ok(Some(tensor))
    }

    /// The tensor called `name` whatever its shape, if there is one.
    ///
    /// # Errors
    /// When it cannot be read or converted.
    pub fn try_get_any(&self, name: &str) -> Result<Option<Tensor>> {
        let Some(tensor) = self.source.tensor(&self.key(name))? else { return Ok(None) };
        Ok(Some(upload(&tensor, &self.device)?.to_dtype(self.dtype)?))
    }

    /// The matrix called `name`, (outputs, inputs), as it is stored, if it is stored in few bits; a 1x1 convolution's weight
    /// is one too.
    ///
    /// # Errors
    /// Names the file, the key and both shapes when it is of another shape.
    pub fn try_quantized(&self, name: &str, outputs: usize, inputs: usize) -> Result<Option<Quantized>> {
        let Some(stored) = self.source.quantized(&self.key(name))? else { return Ok(None) };
        let found = stored.dims();
        if found != [outputs, inputs] && found != [outputs, inputs, 1, 1] {
            return Err(self.error(name, format_args!("has shape {found:?}; {:?} is expected", [outputs, inputs])));
        }
        Ok(Some(stored.reshape([outputs, inputs])?))
    }

    /// Whether there is a tensor called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.source.contains(&self.key(name))
    }

    /// The full key of `name` in the source; of the prefix itself when `name` is empty.
    pub fn key(&self, name: &str) -> String {
        match (self.prefix.as_str(), name) {
            ("", name) => name.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, name) => format!("{prefix}.{name}"),
        }
    }

    /// An error about the tensor called `name`, naming the file and the full key.
    pub fn error(&self, name: &str, message: impl Display) -> Error {
        Error::file(self.file(), format_args!("{} {message}", self.key(name)))
    }

    /// The file that the tensors come from.
    pub fn file(&self) -> &str {
        self.source.file()
    }

    /// The type that tensors are handed out in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device that tensors are handed out on.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors() -> Tensors {
        let weight = Tensor::ones((2, 3), DType::F16, &Device::Cpu).unwrap();
        let source = MemorySource::new("unet/model.safetensors", HashMap::from([("a.b.weight".to_owned(), weight)]));
        Tensors::new(Arc::new(source), DType::F32, &Device::Cpu)
    }

    #[test]
    fn a_tensor_is_found_under_its_prefix_and_converted() {
        let found = tensors().pp("a").pp("b").get("weight", &[2, 3]).unwrap();
        assert_eq!(found.dtype(), DType::F32);
        assert!(tensors().pp("a.b").contains("weight"));
        assert!(tensors().pp("a").try_get("weight", &[2, 3]).unwrap().is_none());
    }

    #[test]
    fn a_missing_tensor_or_a_wrong_shape_is_told_with_file_key_and_shapes() {
        let missing = tensors().pp("a").get("bias", &[7]).unwrap_err().to_string();
        assert_eq!(
            missing,
            "unet/model.safetensors: a.bias is missing; a tensor of shape [7] is expected under this key"
        );
        let shape = tensors().pp("a.b").get("weight", &[3, 2]).unwrap_err().to_string();
        assert_eq!(shape, "unet/model.safetensors: a.b.weight has shape [2, 3]; [3, 2] is expected");
    }
}
