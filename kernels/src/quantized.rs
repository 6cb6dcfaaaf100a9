//! Matrices in few bits, as files store them: ggml's block formats and fp8 with scales.

mod iq4;

use std::{borrow::Cow, ops::Range, sync::Arc};

use candle_core::{CpuStorage, Device, Result, Tensor, bail, quantized::GgmlDType};

pub use iq4::Iq4;

/// How the values of a matrix are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuantizedFormat {
    /// Blocks along a row with a scale each, as GGUF files have them.
    Ggml(GgmlDType),
    /// The blocks among them that candle does not read.
    Iq4(Iq4),
    /// One byte a value.
    F8(Float8),
}

impl QuantizedFormat {
    /// The values of a block, and its bytes.
    #[must_use]
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::Ggml(dtype) => (dtype.block_size(), dtype.type_size()),
            Self::Iq4(layout) => layout.block(),
            Self::F8(_) => (1, 1),
        }
    }

    /// The bytes of a row of `columns` values; `None` if whole blocks do not fill it.
    #[must_use]
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        let (values, bytes) = self.block();
        columns.is_multiple_of(values).then_some(columns / values)?.checked_mul(bytes)
    }
}

/// The floating point types of one byte (Micikevicius et al., "FP8 Formats for Deep Learning", 2022).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Float8 {
    /// A sign, 4 bits of exponent, 3 of mantissa; no infinities, and one NaN a sign.
    E4M3,
    /// A sign, 5 bits of exponent, 2 of mantissa: the upper byte of f16.
    E5M2,
}

impl Float8 {
    /// The value of each byte.
    pub(crate) fn table(self) -> [f32; 256] {
        std::array::from_fn(|byte| match self {
            Self::E4M3 => e4m3(byte as u8),
            Self::E5M2 => half::f16::from_bits((byte as u16) << 8).to_f32(),
        })
    }
}

/// The value of a byte in E4M3.
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (0, _) => mantissa / 8.0 * 2_f32.powi(-6),
        (15, 7) => f32::NAN,
        _ => (1.0 + mantissa / 8.0) * 2_f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// What the stored values are multiplied by.
#[derive(Debug, Clone, PartialEq)]
pub enum QuantizedScale {
    /// Nothing: the format has its scales inside, or needs none.
    None,
    /// One number for the whole matrix.
    Whole(f32),
    /// One number for each row.
    Rows(Vec<f32>),
}

impl QuantizedScale {
    /// The scales of some rows.
    fn narrow(&self, rows: Range<usize>) -> Self {
        match self {
            Self::Rows(scales) => Self::Rows(scales[rows].to_vec()),
            other => other.clone(),
        }
    }

    /// The scale of one row.
    fn of(&self, row: usize) -> f32 {
        match self {
            Self::None => 1.0,
            Self::Whole(scale) => *scale,
            Self::Rows(scales) => scales[row],
        }
    }
}

/// Bytes that others may use too: a part of a mapped file, or of memory.
#[derive(Clone)]
pub struct SharedBytes {
    keeper: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl SharedBytes {
    /// The bytes at `range` of what `keeper` keeps; `None` if they are not all there.
    #[must_use]
    pub fn new(keeper: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Option<Self> {
        (*keeper).as_ref().get(range.clone())?;
        Some(Self { keeper, range })
    }

    /// All of these bytes.
    #[must_use]
    pub fn owned(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { keeper: Arc::new(bytes), range }
    }

    /// A part of them, which must lie within.
    fn narrow(&self, range: Range<usize>) -> Self {
        Self { keeper: Arc::clone(&self.keeper), range: self.range.start + range.start..self.range.start + range.end }
    }
}

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        &(*self.keeper).as_ref()[self.range.clone()]
    }
}

/// A tensor in few bits. Its rows, one for each index of the first dimension, lie one after another, so that some of
/// them can be taken without touching a value.
#[derive(Clone)]
pub struct Quantized {
    format: QuantizedFormat,
    bytes: SharedBytes,
    scale: QuantizedScale,
    shape: Vec<usize>,
    row_bytes: usize,
}

impl std::fmt::Debug for Quantized {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Quantized[{:?}; {:?}]", self.shape, self.format)
    }
}

impl Quantized {
    /// A tensor of `shape` in `bytes`.
    ///
    /// # Errors
    /// If the rows are not made of whole blocks, or the bytes or scales are not as many as the shape asks for.
    pub fn new(
        format: QuantizedFormat,
        bytes: SharedBytes,
        scale: QuantizedScale,
        shape: impl Into<Vec<usize>>,
    ) -> Result<Self> {
        let shape = shape.into();
        let Some((&rows, rest)) = shape.split_first() else { bail!("a quantised tensor has one dimension at least") };
        let columns = rest.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
        let Some(row_bytes) = columns.and_then(|columns| format.row_bytes(columns)) else {
            bail!("a row of {shape:?} is not made of whole blocks of {format:?}");
        };
        let (expected, found) = (rows.checked_mul(row_bytes), bytes.as_ref().len());
        if expected != Some(found) {
            bail!("{shape:?} in {format:?} takes {} bytes, not {found}", expected.unwrap_or(usize::MAX));
        }
        match &scale {
            QuantizedScale::Rows(scales) if scales.len() != rows => {
                bail!("{} scales do not fit the {rows} rows of {shape:?}", scales.len())
            }
            _ => {}
        }
        Ok(Self { format, bytes, scale, shape, row_bytes })
    }

    /// How the values are stored.
    #[must_use]
    pub fn format(&self) -> QuantizedFormat {
        self.format
    }

    /// The sizes of its dimensions.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes that it takes, its scales not counted.
    #[must_use]
    pub fn byte_count(&self) -> usize {
        self.bytes.range.len()
    }

    /// The values that it holds.
    #[must_use]
    pub fn elem_count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Some of its rows, of the same bytes.
    ///
    /// # Errors
    /// If there are not as many rows.
    pub fn narrow_rows(&self, start: usize, count: usize) -> Result<Self> {
        let end = start.checked_add(count).filter(|end| *end <= self.shape[0]);
        let Some(end) = end else { bail!("{:?} has no rows {start} to {start} + {count}", self.shape) };
        let mut shape = self.shape.clone();
        shape[0] = count;
        let bytes = self.bytes.narrow(start * self.row_bytes..end * self.row_bytes);
        Ok(Self { bytes, scale: self.scale.narrow(start..end), shape, ..self.clone() })
    }

    /// The rows of several of one format and width, one after another, copied.
    ///
    /// # Errors
    /// If there are none, or they do not fit each other.
    pub fn cat_rows(parts: &[Self]) -> Result<Self> {
        let Some(first) = parts.first() else { bail!("nothing to put together") };
        let fits = |part: &Self| part.format == first.format && part.shape[1..] == first.shape[1..];
        if let Some(other) = parts.iter().find(|part| !fits(part)) {
            bail!("{first:?} and {other:?} cannot be put together");
        }
        let bytes = parts.iter().flat_map(|part| part.bytes.as_ref()).copied().collect();
        let scale =
            if parts.iter().all(|part| part.scale == first.scale && !matches!(part.scale, QuantizedScale::Rows(_))) {
                first.scale.clone()
            } else {
                QuantizedScale::Rows(
                    parts.iter().flat_map(|part| (0..part.shape[0]).map(|row| part.scale.of(row))).collect(),
                )
            };
        let mut shape = first.shape.clone();
        shape[0] = parts.iter().map(|part| part.shape[0]).sum();
        Self::new(first.format, SharedBytes::owned(bytes), scale, shape)
    }

    /// The same values under another shape with as many rows, or as many values where the blocks still fill the rows.
    ///
    /// # Errors
    /// If the shape holds another number of values, or cuts through blocks.
    pub fn reshape(&self, shape: impl Into<Vec<usize>>) -> Result<Self> {
        let shape = shape.into();
        if matches!(self.scale, QuantizedScale::Rows(_)) && shape.first() != self.shape.first() {
            bail!("{self:?} has a scale for each row, so it cannot become {shape:?}");
        }
        Self::new(self.format, self.bytes.clone(), self.scale.clone(), shape)
    }

    /// The same matrix in memory of its own, so that the file it comes from need not stay.
    #[must_use]
    pub fn to_owned_bytes(&self) -> Self {
        Self { bytes: SharedBytes::owned(self.bytes.as_ref().to_vec()), ..self.clone() }
    }

    /// The values of some rows.
    ///
    /// # Errors
    /// If candle cannot read the format.
    pub(crate) fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let bytes = &self.bytes.as_ref()[rows.start * self.row_bytes..rows.end * self.row_bytes];
        let columns = self.elem_count() / self.shape[0].max(1);
        let mut values = match self.format {
            QuantizedFormat::Ggml(dtype) => ggml_values(dtype, bytes, rows.len() * columns)?,
            QuantizedFormat::Iq4(layout) => layout.values(bytes),
            QuantizedFormat::F8(format) => {
                let table = format.table();
                bytes.iter().map(|byte| table[usize::from(*byte)]).collect()
            }
        };
        if self.scale != QuantizedScale::None && columns > 0 {
            for (row, line) in rows.zip(values.chunks_exact_mut(columns)) {
                let scale = self.scale.of(row);
                line.iter_mut().for_each(|value| *value *= scale);
            }
        }
        Ok(values)
    }

    /// All values, in f32 on the CPU.
    ///
    /// # Errors
    /// If candle cannot read the format.
    pub fn dequantize(&self) -> Result<Tensor> {
        Tensor::from_vec(self.rows(0..self.shape[0])?, self.shape.clone(), &Device::Cpu)
    }

    /// Its stored bytes, and the scale of each row where there is one, for a device's own arithmetic.
    pub(crate) fn parts(&self) -> (&[u8], &QuantizedScale) {
        (self.bytes.as_ref(), &self.scale)
    }
}

/// Reads ggml's blocks.
fn ggml_values(dtype: GgmlDType, bytes: &[u8], count: usize) -> Result<Vec<f32>> {
    // candle reads blocks in place and insists on their alignment, which a file's offsets need not have.
    let bytes = match bytes.as_ptr().align_offset(align_of::<f32>()) {
        0 => Cow::Borrowed(bytes),
        _ => Cow::Owned(bytes.to_vec()),
    };
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    match dtype.from_data(bytes).dequantize(count)? {
        CpuStorage::F32(values) => Ok(values),
        _ => bail!("{dtype:?} is not read as f32"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::QTensor;

    use super::*;

    /// A matrix of values that are not all alike, in blocks.
    fn blocks(dtype: GgmlDType, rows: usize, columns: usize) -> (Quantized, Vec<f32>) {
        let values = (0..rows * columns).map(|i| ((i * 37 % 101) as f32 - 50.0) / 30.0).collect::<Vec<_>>();
        let tensor = Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap();
        let stored = QTensor::quantize(&tensor, dtype).unwrap();
        let expected = stored.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let bytes = SharedBytes::owned(stored.data().unwrap().into_owned());
        let format = QuantizedFormat::Ggml(dtype);
        (Quantized::new(format, bytes, QuantizedScale::None, [rows, columns]).unwrap(), expected)
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn rows_are_taken_and_put_together_without_touching_a_value() {
        for dtype in [GgmlDType::Q4_0, GgmlDType::Q5_1, GgmlDType::Q8_0, GgmlDType::Q4K, GgmlDType::Q6K] {
            let (matrix, expected) = blocks(dtype, 6, 512);
            assert_eq!(values(&matrix.dequantize().unwrap()), expected, "{dtype:?}");
            let [tail, head] = [matrix.narrow_rows(2, 4).unwrap(), matrix.narrow_rows(0, 2).unwrap()];
            assert_eq!(values(&tail.dequantize().unwrap()), expected[2 * 512..]);
            let swapped = Quantized::cat_rows(&[tail, head]).unwrap();
            assert_eq!(values(&swapped.dequantize().unwrap())[4 * 512..], expected[..2 * 512]);
        }
    }

    #[test]
    fn a_shape_that_does_not_fit_the_bytes_is_refused() {
        let new = |columns, bytes| {
            let bytes = SharedBytes::owned(vec![0; bytes]);
            Quantized::new(QuantizedFormat::Ggml(GgmlDType::Q8_0), bytes, QuantizedScale::None, [2, columns])
        };
        assert!(new(64, 136).is_ok());
        assert!(new(64, 135).unwrap_err().to_string().contains("takes 136 bytes, not 135"));
        assert!(new(60, 136).unwrap_err().to_string().contains("whole blocks"));
        assert!(new(usize::MAX - 31, 136).is_err());
        assert!(new(64, 136).unwrap().narrow_rows(1, 2).is_err());
    }

    #[test]
    fn fp8_bytes_have_the_values_of_the_paper() {
        let e4m3 = Float8::E4M3.table();
        for (byte, value) in [(0x00, 0.0), (0x01, 2_f32.powi(-9)), (0x08, 2_f32.powi(-6)), (0x38, 1.0), (0x7e, 448.0)] {
            assert_eq!((e4m3[byte], e4m3[byte | 0x80]), (value, -value), "{byte:#x}");
        }
        assert!(e4m3[0x7f].is_nan() && e4m3[0xff].is_nan());
        let e5m2 = Float8::E5M2.table();
        for (byte, value) in [(0x00, 0.0), (0x01, 2_f32.powi(-16)), (0x3c, 1.0), (0x3d, 1.25), (0x7b, 57344.0)] {
            assert_eq!((e5m2[byte], e5m2[byte | 0x80]), (value, -value), "{byte:#x}");
        }
        assert!(e5m2[0x7c].is_infinite() && e5m2[0x7f].is_nan());
    }

    #[test]
    fn scales_go_with_their_rows() {
        let bytes = SharedBytes::owned(vec![0x38; 6]);
        let scale = QuantizedScale::Rows(vec![1.0, 2.0, 3.0]);
        let matrix = Quantized::new(QuantizedFormat::F8(Float8::E4M3), bytes.clone(), scale, [3, 2]).unwrap();
        assert_eq!(values(&matrix.narrow_rows(1, 2).unwrap().dequantize().unwrap()), [2.0, 2.0, 3.0, 3.0]);
        let whole =
            Quantized::new(QuantizedFormat::F8(Float8::E4M3), bytes, QuantizedScale::Whole(0.5), [3, 2]).unwrap();
        let both = Quantized::cat_rows(&[matrix, whole]).unwrap();
        assert_eq!(values(&both.dequantize().unwrap())[4..8], [3.0, 3.0, 0.5, 0.5]);
    }
}
