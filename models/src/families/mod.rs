//! Model families: each puts text encoder, denoiser, autoencoder and samplers together.

mod card_file;
mod clip;
mod dit_memory;
mod few_steps;
mod flux;
mod flux2;
mod guidance;
mod latent_space;
mod opening;
mod parts;
mod pixels;
mod rows;
mod schedulers;
mod sd;
mod sd3;
mod sdxl;
mod unet_files;
mod unet_memory;
mod unet_model;
mod unused;
mod z_image;

use std::sync::Arc;

use candle_core::{DType, Device};
use easel_kernels::weight_bytes;
use serde::Deserialize;

use crate::weights::{MODEL_INDEX, Repository};
use crate::{Error, Pipeline, Result};

/// Where a model computes, and in what type.
#[derive(Debug, Clone)]
pub struct Placement {
    /// The device that holds the weights and computes.
    pub device: Device,
    /// The type of weights and activations: F32, BF16 or F16. Latents and samplers are always F32.
    pub dtype: DType,
    /// Bytes that the weights may take; a model whose parts do not fit together has them loaded in turn. `None` is no
    /// bound.
    pub memory: Option<u64>,
}

impl Placement {
    /// The CPU in f32, without a bound on the memory.
    pub const CPU: Self = Self { device: Device::Cpu, dtype: DType::F32, memory: None };

    /// Bytes that weights of this shape take once they are loaded.
    fn weight_bytes(&self, shape: &[usize]) -> u64 {
        weight_bytes(shape, self.dtype, &self.device) as u64
    }
}

/// One family: the classes of `model_index.json` that it runs, and how to open a model of it.
struct Family {
    classes: &'static [&'static str],
    open: fn(&Repository, &Placement, &str) -> Result<Arc<dyn Pipeline>>,
}

/// All families. Adding one is a file here, its denoiser, and its line in this list.
const FAMILIES: &[Family] = &[sd::FAMILY, sdxl::FAMILY, sd3::FAMILY, flux::FAMILY, flux2::FAMILY, z_image::FAMILY];

/// The key of `model_index.json` that says what the model is.
#[derive(Deserialize)]
struct ModelIndex {
    _class_name: String,
}

/// Opens the model in `repository`, to be served as `name`. Its weights are not read before they are needed.
///
/// # Errors
/// When easel does not run models of this class (the error lists those it runs), or when a part is missing, damaged or
/// contradicts another (the error names the file and the key).
pub fn open(repository: &Repository, placement: &Placement, name: &str) -> Result<Arc<dyn Pipeline>> {
    let ModelIndex { _class_name: class } = repository.json(MODEL_INDEX)?;
    let Some(family) = FAMILIES.iter().find(|family| family.classes.contains(&class.as_str())) else {
        let known = FAMILIES.iter().flat_map(|family| family.classes).copied().collect::<Vec<_>>().join(", ");
        let message = format!("{MODEL_INDEX}: _class_name is {class:?}, which easel does not run; it runs {known}");
        return Err(Error::Unsupported(message));
    };
    (family.open)(repository, placement, name)
}

/// Checks every part of the model in `repository` against its configuration, key by key, by the headers of its files: no
/// weight is read, and no memory is taken for any.
///
/// # Errors
/// As [`open`], and when a tensor is missing, or of a shape or type that cannot be used; names the file, the key and the
/// shapes.
pub fn check(repository: &Repository) -> Result<()> {
    // Networks without values are built alike everywhere. The plain forms keep them as they are.
    let model = open(&repository.blank(), &Placement::CPU, "check")?;
    easel_kernels::with_plain_forms(|| model.load(&|_| {}))
}
