//! The header of a GGUF file: what tensors there are, and where.
//!
//! The format is ggml's (`docs/gguf.md` of its repository): key and value pairs, then a line for each tensor, then their
//! bytes. It is read from bytes that are there, never by what it says of itself: no length in it is believed before as many
//! bytes have been seen, and nothing is allocated by one.

use std::collections::HashMap;

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use easel_kernels::{Iq4, QuantizedFormat};

/// The file's first four bytes.
const MAGIC: &[u8; 4] = b"GGUF";
/// Where tensors begin, unless the file says otherwise.
const ALIGNMENT: u64 = 32;
/// ggml's own bound on the dimensions of a tensor.
const DIMENSIONS: u32 = 4;
/// Arrays of arrays are not written by anyone; a chain of them would only use up the stack.
const DEPTH: usize = 4;
/// The last number in ggml's list of types that can be read.
const LAST_KIND: u32 = 30;
/// Under this key, ComfyUI's converter keeps the shape of a tensor that it had to flatten.
const ORIGINAL_SHAPE: &str = "comfy.gguf.orig_shape.";

/// Why a header could not be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It goes on behind the bytes that are there.
    Short,
    /// It is wrong, in this way.
    Wrong(String),
}

type Read<T> = Result<T, Fault>;

fn wrong<T>(message: impl Into<String>) -> Read<T> {
    Err(Fault::Wrong(message.into()))
}

/// How the values of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// Floats.
    Floats(DType),
    /// Blocks of few bits.
    Blocks(QuantizedFormat),
    /// Whole numbers of this many bytes, which no network asks for.
    Integers(u64),
}

/// One tensor: its type, its shape with the rows first, and where its bytes are in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) stored: Stored,
    pub(super) shape: Vec<usize>,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// The header of a file.
#[derive(Debug, Default)]
pub(super) struct Header {
    pub(super) tensors: HashMap<String, Entry>,
}

impl Header {
    /// Reads the header in `bytes`, the beginning of a file of `size` bytes.
    pub(super) fn read(bytes: &[u8], size: u64) -> Read<Self> {
        let mut reader = Reader { bytes, at: 0, wide: true };
        if reader.take(4)? != MAGIC {
            return wrong("does not begin as a GGUF file does");
        }
        reader.wide = match reader.u32()? {
            1 => false,
            2 | 3 => true,
            version if (1..=3).contains(&version.swap_bytes()) => {
                return wrong("is for machines with the other byte order");
            }
            version => return wrong(format!("has version {version}; versions 1 to 3 are known")),
        };
        let (tensors, values) = (reader.length()?, reader.length()?);
        let mut header = Self::default();
        let (mut alignment, mut shapes) = (ALIGNMENT, HashMap::new());
        for _ in 0..values {
            let key = reader.text()?.to_owned();
            match reader.value(0)? {
                Value::Number(number) if key == "general.alignment" => {
                    if !number.is_power_of_two() || number > 1 << 20 {
                        return wrong(format!("general.alignment is {number}; a power of two is expected"));
                    }
                    alignment = number;
                }
                Value::Numbers(numbers) => {
                    if let Some(name) = key.strip_prefix(ORIGINAL_SHAPE) {
                        shapes.insert(name.to_owned(), numbers);
                    }
                }
                Value::Number(_) | Value::Other => {}
            }
        }
        for _ in 0..tensors {
            let name = reader.text()?.to_owned();
            let entry = reader.entry(&name)?;
            if header.tensors.insert(name.clone(), entry).is_some() {
                return wrong(format!("has the tensor {name} twice"));
            }
        }
        let data = (reader.at as u64).next_multiple_of(alignment);
        for (name, entry) in &mut header.tensors {
            entry.place(name, data, alignment, size)?;
            if let Some(shape) = shapes.get(name) {
                entry.restore(name, shape)?;
            }
        }
        Ok(header)
    }
}

impl Entry {
    /// Turns the offset in `start` into a place in the file.
    fn place(&mut self, name: &str, data: u64, alignment: u64, size: u64) -> Read<()> {
        if !self.start.is_multiple_of(alignment) {
            return wrong(format!("{name} begins at {}, which is no multiple of {alignment}", self.start));
        }
        let (row, count) = match self.stored {
            Stored::Floats(dtype) => (1, dtype.size_in_bytes() as u64),
            Stored::Blocks(format) => {
                let (values, bytes) = format.block();
                (values as u64, bytes as u64)
            }
            Stored::Integers(bytes) => (1, bytes),
        };
        let columns = self.shape.last().copied().unwrap_or(1) as u64;
        if !columns.is_multiple_of(row) {
            return wrong(format!("{name} has rows of {columns} values, which blocks of {row} do not fill"));
        }
        let values = self.shape.iter().try_fold(1_u64, |product, side| product.checked_mul(*side as u64));
        let bytes = values.and_then(|values| (values / row).checked_mul(count));
        let start = data.checked_add(self.start);
        let end = start.zip(bytes).and_then(|(start, bytes)| start.checked_add(bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= size => {
                (self.start, self.end) = (start, end);
                Ok(())
            }
            _ => wrong(format!("{name} of shape {:?} lies outside of the file, which has {size} bytes", self.shape)),
        }
    }

    /// Gives back the shape that a tensor had before it was flattened.
    fn restore(&mut self, name: &str, shape: &[u64]) -> Read<()> {
        let values = self.shape.iter().map(|side| *side as u64).product();
        if shape.is_empty() || shape.iter().try_fold(1_u64, |product, side| product.checked_mul(*side)) != Some(values)
        {
            return wrong(format!("{ORIGINAL_SHAPE}{name} is {shape:?}, but {name} has shape {:?}", self.shape));
        }
        self.shape = shape.iter().map(|side| *side as usize).collect();
        Ok(())
    }
}

/// A value of the header, as far as anything is made of it.
enum Value {
    Number(u64),
    Numbers(Vec<u64>),
    Other,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Lengths have 8 bytes since version 2, 4 before.
    wide: bool,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: u64) -> Read<&'a [u8]> {
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count)).ok_or(Fault::Short)?;
        let taken = self.bytes.get(self.at..end).ok_or(Fault::Short)?;
        self.at = end;
        Ok(taken)
    }

    /// A little-endian number of this many bytes.
    fn number(&mut self, bytes: u64) -> Read<u64> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn u32(&mut self) -> Read<u32> {
        Ok(self.number(4)? as u32)
    }

    fn length(&mut self) -> Read<u64> {
        self.number(if self.wide { 8 } else { 4 })
    }

    fn text(&mut self) -> Read<&'a str> {
        let length = self.length()?;
        let bytes = self.take(length)?;
        let Ok(text) = std::str::from_utf8(bytes) else { return wrong("has a text that is not UTF-8") };
        // Some writers count the zero at the end.
        Ok(text.trim_end_matches('\0'))
    }

    fn value(&mut self, depth: usize) -> Read<Value> {
        let kind = self.u32()?;
        self.value_of(kind, depth)
    }

    fn value_of(&mut self, kind: u32, depth: usize) -> Read<Value> {
        Ok(match kind {
            0 | 1 | 7 => Value::Number(self.number(1)?),
            2 | 3 => Value::Number(self.number(2)?),
            4 | 5 => Value::Number(self.number(4)?),
            10 | 11 => Value::Number(self.number(8)?),
            6 => {
                self.take(4)?;
                Value::Other
            }
            12 => {
                self.take(8)?;
                Value::Other
            }
            8 => {
                self.text()?;
                Value::Other
            }
            9 if depth < DEPTH => {
                let (kind, count) = (self.u32()?, self.length()?);
                // A few numbers may be a shape; a vocabulary is only gone over.
                let (mut numbers, keep) = (Vec::new(), count <= 8);
                for _ in 0..count {
                    if let Value::Number(number) = self.value_of(kind, depth + 1)?
                        && keep
                    {
                        numbers.push(number);
                    }
                }
                Value::Numbers(numbers)
            }
            _ => return wrong(format!("has a value of the unknown type {kind}")),
        })
    }

    /// The line of a tensor; its place is still relative to the data.
    fn entry(&mut self, name: &str) -> Read<Entry> {
        let dimensions = self.u32()?;
        if dimensions > DIMENSIONS {
            return wrong(format!("{name} has {dimensions} dimensions; {DIMENSIONS} are possible"));
        }
        let mut shape = (0..dimensions).map(|_| self.length()).collect::<Read<Vec<u64>>>()?;
        // ggml counts the dimensions from the innermost on; none is one value.
        shape.reverse();
        if shape.is_empty() {
            shape.push(1);
        }
        let kind = self.u32()?;
        let Some(stored) = stored(kind) else {
            return wrong(format!(
                "{name} has the type {}, which cannot be read; F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2_K, Q3_K, \
                 Q4_K, Q5_K, Q6_K, Q8_K, IQ4_NL and IQ4_XS can",
                type_name(kind)
            ));
        };
        let start = self.number(8)?;
        let shape = shape.into_iter().map(|side| side as usize).collect();
        Ok(Entry { stored, shape, start, end: start })
    }
}

/// The type with this number in ggml's list.
fn stored(kind: u32) -> Option<Stored> {
    let format = match kind {
        0 => return Some(Stored::Floats(DType::F32)),
        1 => return Some(Stored::Floats(DType::F16)),
        30 => return Some(Stored::Floats(DType::BF16)),
        24 => return Some(Stored::Integers(1)),
        25 => return Some(Stored::Integers(2)),
        26 => return Some(Stored::Integers(4)),
        27 => return Some(Stored::Integers(8)),
        20 => return Some(Stored::Blocks(QuantizedFormat::Iq4(Iq4::Nl))),
        23 => return Some(Stored::Blocks(QuantizedFormat::Iq4(Iq4::Xs))),
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        9 => GgmlDType::Q8_1,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        15 => GgmlDType::Q8K,
        _ => return None,
    };
    Some(Stored::Blocks(QuantizedFormat::Ggml(format)))
}

/// The name of a type that cannot be read.
fn type_name(kind: u32) -> String {
    let name = match kind {
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {kind} of ggml's list"),
    };
    name.to_owned()
}

impl Stored {
    /// The type's name as ggml writes it.
    pub(super) fn name(self) -> String {
        match self {
            Self::Floats(dtype) => dtype.as_str().to_uppercase(),
            Self::Integers(bytes) => format!("I{}", 8 * bytes),
            Self::Blocks(QuantizedFormat::Iq4(layout)) => format!("IQ4_{layout:?}").to_uppercase(),
            Self::Blocks(QuantizedFormat::F8(format)) => format!("F8_{format:?}"),
            Self::Blocks(QuantizedFormat::Ggml(dtype)) => {
                // candle leaves the underscore out of the names of the blocks of 256.
                let name = format!("{dtype:?}");
                name.strip_suffix('K').map(|bits| format!("{bits}_K")).unwrap_or(name)
            }
        }
    }
}

/// The blocks of this name.
pub(in crate::weights) fn blocks(wanted: &str) -> Option<QuantizedFormat> {
    (0..=LAST_KIND).filter_map(stored).find_map(|stored| match stored {
        Stored::Blocks(format) if stored.name() == wanted => Some(format),
        _ => None,
    })
}
