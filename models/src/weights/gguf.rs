//! GGUF files: the tensors of a denoiser or a text encoder, most of them in few bits.

mod header;
mod t5;

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{Device, Tensor};
use easel_kernels::{Quantized, QuantizedFormat, QuantizedScale, SharedBytes};

pub(super) use self::header::blocks;
use self::header::{Entry, Fault, Header, Stored};
use super::deferred::Deferred;
use super::repository::Repository;
use super::tensors::{TensorInfo, TensorSource};
use crate::{Error, Result};

/// The first bytes that are asked for; the header of a large model has about 100 KiB.
const FIRST: u64 = 1 << 20;
/// The longest header that is read of a file that is not there as a whole.
const LONGEST: u64 = 256 << 20;

/// A GGUF file. Its tensors are read when they are asked for.
pub(super) struct GgufSource {
    file: Deferred,
    header: Header,
    /// The names of the tensors in the file, by the keys that they are asked for under.
    keys: HashMap<String, String>,
}

impl GgufSource {
    /// Opens the file called `file` of a model, by its header.
    ///
    /// # Errors
    /// Names what is wrong with the file.
    pub(super) fn open(repository: &Repository, file: &str) -> Result<Self> {
        let mut length = FIRST;
        loop {
            let beginning = repository.beginning(file, length)?;
            match Header::read(&beginning.bytes, beginning.size) {
                Err(Fault::Short) if !beginning.is_whole() && length < LONGEST => length *= 4,
                header => return Self::new(header, Deferred::new(repository, file.to_owned(), beginning)),
            }
        }
    }

    fn new(header: Result<Header, Fault>, file: Deferred) -> Result<Self> {
        let wrong = |message: &str| Error::file(file.file(), format_args!("is no whole GGUF file: {message}"));
        let header = header.map_err(|fault| match fault {
            Fault::Short => wrong("its header breaks off"),
            Fault::Wrong(message) => wrong(&message),
        })?;
        let keys = header.tensors.keys().map(|name| (t5::key(name), name.clone())).collect();
        Ok(Self { file, header, keys })
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        self.header.tensors.get(self.keys.get(key)?)
    }

    /// Whether a tensor stays in few bits: a matrix whose rows are whole blocks.
    fn kept(entry: &Entry) -> bool {
        let Stored::Blocks(format) = entry.stored else { return false };
        entry.shape.len() >= 2 && format.row_bytes(entry.shape[1..].iter().product()).is_some()
    }

    fn error(&self, key: &str, message: impl std::fmt::Display) -> Error {
        Error::file(self.file.file(), format_args!("{key}: {message}"))
    }

    /// A tensor, or some of its rows, as it is stored.
    fn stored(&self, key: &str, entry: &Entry, rows: Option<Range<usize>>) -> Result<Either> {
        let range = entry.start as usize..entry.end as usize;
        let bytes = self.file.shared(key, range)?;
        let dtype = match entry.stored {
            Stored::Floats(dtype) => dtype,
            Stored::Blocks(format) => {
                let whole = self.flat(key, entry, format, bytes)?;
                return match rows {
                    Some(rows) => Ok(Either::Blocks(whole.narrow_rows(rows.start, rows.len())?)),
                    None => Ok(Either::Blocks(whole)),
                };
            }
            Stored::Integers(_) => return Err(self.error(key, "holds whole numbers; weights are expected")),
        };
        let tensor = Tensor::from_raw_buffer(bytes.as_ref(), dtype, &entry.shape, &Device::Cpu)?;
        match rows {
            Some(rows) => Ok(Either::Floats(tensor.narrow(0, rows.start, rows.len())?)),
            None => Ok(Either::Floats(tensor)),
        }
    }

    /// A tensor in blocks. Where a converter flattened it, blocks may go over the ends of its rows: then it is one row.
    fn flat(&self, key: &str, entry: &Entry, format: QuantizedFormat, bytes: SharedBytes) -> Result<Quantized> {
        let columns = entry.shape[1..].iter().product();
        if format.row_bytes(columns).is_some() {
            return Ok(Quantized::new(format, bytes, QuantizedScale::None, entry.shape.clone())?);
        }
        let values = entry.shape.iter().product::<usize>();
        let row = Quantized::new(format, bytes, QuantizedScale::None, [1, values]);
        row.map_err(|error| self.error(key, error))
    }
}

/// A tensor as a file has it.
enum Either {
    Floats(Tensor),
    Blocks(Quantized),
}

impl TensorSource for GgufSource {
    fn tensor(&self, key: &str) -> Result<Option<Tensor>> {
        let Some(entry) = self.entry(key) else { return Ok(None) };
        Ok(Some(match self.stored(key, entry, None)? {
            Either::Floats(tensor) => tensor,
            Either::Blocks(blocks) => blocks.dequantize()?.reshape(entry.shape.as_slice())?,
        }))
    }

    fn rows(&self, key: &str, rows: Range<usize>) -> Result<Option<Tensor>> {
        let Some(entry) = self.entry(key) else { return Ok(None) };
        if rows.start > rows.end || entry.shape.first().is_none_or(|count| rows.end > *count) {
            return Err(self.error(key, format_args!("has shape {:?}; rows {rows:?} are expected", entry.shape)));
        }
        if let Stored::Blocks(format) = entry.stored
            && format.row_bytes(entry.shape[1..].iter().product()).is_none()
        {
            return Ok(self.tensor(key)?.map(|tensor| tensor.narrow(0, rows.start, rows.len())).transpose()?);
        }
        Ok(Some(match self.stored(key, entry, Some(rows))? {
            Either::Floats(tensor) => tensor,
            Either::Blocks(blocks) => blocks.dequantize()?,
        }))
    }

    fn quantized(&self, key: &str) -> Result<Option<Quantized>> {
        let Some(entry) = self.entry(key).filter(|entry| Self::kept(entry)) else { return Ok(None) };
        match self.stored(key, entry, None)? {
            Either::Floats(_) => Ok(None),
            Either::Blocks(blocks) => Ok(Some(blocks)),
        }
    }

    fn info(&self, key: &str) -> Option<TensorInfo> {
        let entry = self.entry(key)?;
        let fractional = !matches!(entry.stored, Stored::Integers(_));
        Some(TensorInfo { shape: entry.shape.clone(), dtype: entry.stored.name(), fractional })
    }

    fn keys(&self) -> Vec<String> {
        self.keys.keys().cloned().collect()
    }

    fn file(&self) -> &str {
        self.file.file()
    }
}

#[cfg(test)]
mod tests;
