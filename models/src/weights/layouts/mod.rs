//! Files of other layouts than diffusers': where in them each tensor of a part is.
//!
//! A layout is a table from diffusers' and transformers' names to the stored ones, made from a file's header: the tables
//! here know how names and matrices correspond, and leave reading to [`LaidOut`]. What has no place in the part (weights
//! of the training, other parts) is in no table.

mod clip;
mod flux;
mod flux2;
mod ldm_unet;
mod ldm_vae;
mod sd3;
mod z_image;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use easel_kernels::Quantized;

pub(super) use clip::{Projection, clip, open_clip};
pub(super) use flux::flux;
pub(super) use flux2::flux2;
pub(super) use ldm_unet::ldm_unet;
pub(super) use ldm_vae::ldm_vae;
pub(super) use sd3::sd3;
pub(super) use z_image::z_image;

use super::tensors::{TensorInfo, TensorSource};
use crate::Result;

/// How a stored tensor's sides become those of the wanted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// They are the same.
    Same,
    /// A matrix is stored transposed.
    Transposed,
    /// A matrix is stored as a convolution with a window of 1.
    Window,
}

/// Where a tensor is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// In the tensor of this name: these of its rows, one range after the other, or all of it where there are none.
    Stored { key: String, rows: Vec<Range<usize>>, form: Form },
    /// In no file: it is the identity of this size.
    Identity(usize),
}

/// The tensors of one part by their diffusers names, and where each of them is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Layout(BTreeMap<String, Place>);

impl Layout {
    /// `wanted` is the whole tensor stored as `key`.
    fn whole(&mut self, wanted: impl Into<String>, key: &str) {
        self.put(wanted, key, Vec::new(), Form::Same);
    }

    /// `wanted` is `rows` of the tensor stored as `key`.
    fn rows(&mut self, wanted: impl Into<String>, key: &str, rows: Range<usize>) {
        self.put(wanted, key, vec![rows], Form::Same);
    }

    /// Each of `wanted` is an equal share of the `rows` rows of the tensor stored as `key`.
    fn split<const N: usize>(&mut self, wanted: [String; N], key: &str, rows: usize) {
        let share = rows / N;
        for (at, wanted) in wanted.into_iter().enumerate() {
            self.rows(wanted, key, at * share..(at + 1) * share);
        }
    }

    /// `wanted` is the tensor stored as `key` with the halves of its `rows` rows in the other order: the final layers of
    /// diffusion transformers keep shift and scale, diffusers scale and shift.
    fn swapped(&mut self, wanted: impl Into<String>, key: &str, rows: usize) {
        let half = rows / 2;
        self.put(wanted, key, vec![half..rows, 0..half], Form::Same);
    }

    fn put(&mut self, wanted: impl Into<String>, key: &str, rows: Vec<Range<usize>>, form: Form) {
        self.0.insert(wanted.into(), Place::Stored { key: key.to_owned(), rows, form });
    }

    /// The tensors under `prefix`, whose names are otherwise the wanted ones already.
    pub(super) fn prefixed(source: &dyn TensorSource, prefix: &str) -> Self {
        let mut layout = Self::default();
        for (key, name) in under(source, prefix).iter().filter(|(_, name)| !is_extra(name)) {
            layout.whole(name.as_str(), key);
        }
        layout
    }
}

/// The keys under `prefix`, whole and without it.
fn under(source: &dyn TensorSource, prefix: &str) -> Vec<(String, String)> {
    let strip = |key: String| key.strip_prefix(prefix).map(str::to_owned).map(|name| (key, name));
    source.keys().into_iter().filter_map(strip).collect()
}

/// Whether a tensor belongs to another, such as the scale of a weight in eight bits, which the file's reader knows of.
fn is_extra(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    ["scale_weight", "weight_scale", "scale_input", "input_scale", "scaled_fp8", "comfy_quant"].contains(&last)
}

/// The number of rows of a tensor; 0 when there is none.
fn row_count(source: &dyn TensorSource, key: &str) -> usize {
    source.info(key).and_then(|info| info.shape.first().copied()).unwrap_or(0)
}

/// Replaces the start of a name by the table's word for it: `linear1.weight` becomes `proj.weight`.
fn renamed(name: &str, table: &[(&str, &str)]) -> Option<String> {
    table.iter().find_map(|(from, to)| {
        let rest = name.strip_prefix(from)?;
        (rest.is_empty() || rest.starts_with('.')).then(|| format!("{to}{rest}"))
    })
}

/// Splits `blocks.3.rest` at the number of a block.
fn block<'a>(name: &'a str, blocks: &str) -> Option<(usize, &'a str)> {
    let (number, rest) = name.strip_prefix(blocks)?.strip_prefix('.')?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// The tensors of a denoiser or text encoder under diffusers' names, whichever names its file has.
///
/// GGUF files are made from the files of the models' authors, also those that are put beside a `config.json` of diffusers.
pub(super) fn diffusers(source: Arc<dyn TensorSource>) -> Arc<dyn TensorSource> {
    for prefix in ["", "model.diffusion_model."] {
        let has = |key: &str| source.contains(&format!("{prefix}{key}"));
        let layout = if has("single_stream_modulation.lin.weight") {
            flux2(&*source, prefix)
        } else if has("layers.0.attention.qkv.weight") {
            z_image(&*source, prefix)
        } else if has("double_blocks.0.img_attn.norm.key_norm.scale") {
            flux(&*source, prefix)
        } else if has("joint_blocks.0.context_block.adaLN_modulation.1.weight") {
            sd3(&*source, prefix)
        } else if has("input_blocks.0.0.weight") {
            ldm_unet(&*source, prefix)
        } else {
            continue;
        };
        return Arc::new(LaidOut::new(source, layout));
    }
    source
}

/// A part whose tensors are in a file of another layout.
pub(super) struct LaidOut {
    source: Arc<dyn TensorSource>,
    layout: Layout,
}

impl LaidOut {
    /// The part that `layout` finds in `source`.
    pub(super) fn new(source: Arc<dyn TensorSource>, layout: Layout) -> Self {
        Self { source, layout }
    }
}

/// The shape that a stored one becomes.
fn formed_shape(mut shape: Vec<usize>, rows: &[Range<usize>], form: Form) -> Vec<usize> {
    if let (Some(first), false) = (shape.first_mut(), rows.is_empty()) {
        *first = rows.iter().map(Range::len).sum();
    }
    match form {
        Form::Transposed => shape.reverse(),
        // A wider window stays what it is, to be refused by whoever asked.
        Form::Window if shape.iter().skip(2).all(|&side| side == 1) => shape.truncate(2),
        Form::Same | Form::Window => {}
    }
    shape
}

impl TensorSource for LaidOut {
    fn tensor(&self, key: &str) -> Result<Option<Tensor>> {
        let (stored, rows, form) = match self.layout.0.get(key) {
            None => return Ok(None),
            Some(Place::Identity(size)) => return Ok(Some(Tensor::eye(*size, DType::F32, &Device::Cpu)?)),
            Some(Place::Stored { key, rows, form }) => (key, rows, *form),
        };
        let tensor = match rows.as_slice() {
            [] => self.source.tensor(stored)?,
            [rows] => self.source.rows(stored, rows.clone())?,
            ranges => {
                let parts = ranges.iter().map(|rows| self.source.rows(stored, rows.clone()));
                let parts: Option<Vec<Tensor>> = parts.collect::<Result<_>>()?;
                parts.map(|parts| Tensor::cat(&parts, 0)).transpose()?
            }
        };
        let formed = |tensor: Tensor| match form {
            Form::Same => Ok(tensor),
            Form::Transposed => tensor.t()?.contiguous(),
            Form::Window => tensor.reshape(formed_shape(tensor.dims().to_vec(), &[], form)),
        };
        Ok(tensor.map(formed).transpose()?)
    }

    fn quantized(&self, key: &str) -> Result<Option<Quantized>> {
        let Some(Place::Stored { key, rows, form: Form::Same | Form::Window }) = self.layout.0.get(key) else {
            return Ok(None);
        };
        let Some(stored) = self.source.quantized(key)? else { return Ok(None) };
        let mut parts =
            rows.iter().map(|rows| stored.narrow_rows(rows.start, rows.len())).collect::<Result<Vec<_>, _>>()?;
        Ok(Some(match parts.len() {
            0 => stored,
            1 => parts.remove(0),
            _ => Quantized::cat_rows(&parts)?,
        }))
    }

    fn blank(&self, key: &str) -> Result<Option<Tensor>> {
        if let Some(Place::Stored { key, .. }) = self.layout.0.get(key) {
            self.source.blank(key)?;
        }
        let Some(info) = self.info(key) else { return Ok(None) };
        Ok(Some(Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as(info.shape)?))
    }

    fn info(&self, key: &str) -> Option<TensorInfo> {
        match self.layout.0.get(key)? {
            Place::Identity(size) => {
                Some(TensorInfo { shape: vec![*size, *size], dtype: "F32".to_owned(), fractional: true })
            }
            Place::Stored { key, rows, form } => {
                let info = self.source.info(key)?;
                Some(TensorInfo { shape: formed_shape(info.shape, rows, *form), ..info })
            }
        }
    }

    fn keys(&self) -> Vec<String> {
        self.layout.0.keys().cloned().collect()
    }

    fn file(&self) -> &str {
        self.source.file()
    }
}
