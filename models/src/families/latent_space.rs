//! A model's latents: how large they are, and how they come from and become pictures.

use candle_core::{DType, Device, Tensor};
use easel_kernels::{device_beside, elsewhere};

use super::opening::Opening;
use super::parts::{Lazy, Turns};
use super::{Placement, pixels};
use crate::autoencoders::{AutoencoderKl, AutoencoderKlConfig, Tiling};
use crate::samplers::Noise;
use crate::{Error, ModelCard, Part, Result, RgbImage, Size};

/// The autoencoder's configuration.
pub(super) const CONFIG: &str = "vae/config.json";

/// Pictures of more pixels than this are encoded and decoded in tiles: a megapixel, and what the sizes that models are
/// trained at have beyond it.
const WHOLE_PIXELS: usize = (1 << 20) + (1 << 16);

/// The least side of a tile in pixels, for models that were trained on small pictures.
const LEAST_TILE: usize = 512;

/// Images as large as the picture that are alive at once where the decoder needs most: its last level's input, the
/// normalised input, a convolution's result and the residual, in the channels of the first level, twice while upsampling.
const DECODER_LIVE: usize = 6;

/// The autoencoder of a model with KL latents, and what follows from its configuration.
pub(super) struct LatentSpace {
    config: AutoencoderKlConfig,
    vae: Lazy<AutoencoderKl>,
    /// Where latents and pixels are that go in and out.
    device: Device,
    /// Where the autoencoder is.
    inside: Device,
    dtype: DType,
}

/// What [`crate::Pipeline`] says of latents that are decoded, by where the model keeps its [`LatentSpace`]: alike in every
/// family.
macro_rules! latents_become_pictures {
    ($($latents:ident).+) => {
        fn decode(&self, latents: &[candle_core::Tensor]) -> $crate::Result<Vec<$crate::RgbImage>> {
            self.$($latents).+.decode(latents)
        }

        fn preview(&self, latents: &candle_core::Tensor) -> $crate::Result<$crate::RgbImage> {
            self.$($latents).+.preview(latents)
        }

        fn decode_bytes(&self, width: u32, height: u32) -> u64 {
            self.$($latents).+.decode_bytes(width, height)
        }
    };
}
pub(super) use latents_become_pictures;

/// The type that an autoencoder computes in: those that say so overflow in f16.
pub(super) fn vae_dtype(config: &AutoencoderKlConfig, placement: &Placement) -> DType {
    if config.force_upcast && placement.dtype == DType::F16 { DType::F32 } else { placement.dtype }
}

impl LatentSpace {
    /// The latents of a model; `part` is its autoencoder.
    pub(super) fn new(
        opening: Opening,
        config: AutoencoderKlConfig,
        part: Part,
        turns: &std::sync::Arc<Turns>,
    ) -> Self {
        let (device, inside) = (opening.placement.device.clone(), device_beside(&opening.placement.device));
        let dtype = vae_dtype(&config, opening.placement);
        let placement = Placement { device: inside.clone(), dtype, ..opening.placement.clone() };
        let built = config.clone();
        let opening = Opening { placement: &placement, ..opening };
        let vae = opening.lazy(part, turns, move |weights| AutoencoderKl::new(&built, weights));
        Self { config, vae, device, inside, dtype }
    }

    /// The autoencoder's configuration.
    pub(super) fn config(&self) -> &AutoencoderKlConfig {
        &self.config
    }

    /// Where the tensors are that go in and out.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// The autoencoder itself, for [`super::parts::load`] and its like.
    pub(super) fn part(&self) -> &Lazy<AutoencoderKl> {
        &self.vae
    }

    /// Pixels a side of one latent pixel of the denoiser's.
    pub(super) fn factor(&self) -> usize {
        self.config.factor() * self.config.patch()
    }

    /// The latents' shape, (c, h, w), of a picture.
    ///
    /// # Errors
    /// When the card does not have the size.
    pub(super) fn shape(&self, card: &ModelCard, width: u32, height: u32) -> Result<[usize; 3]> {
        let size = Size { width, height };
        if !card.sizes.contains(size) {
            let message = format!("{size} cannot be made; the nearest size is {}", card.sizes.nearest(size));
            return Err(Error::Request { param: "size", message });
        }
        let (factor, patch) = (self.factor(), self.config.patch());
        Ok([self.config.latent_channels * patch * patch, height as usize / factor, width as usize / factor])
    }

    /// Latents of a picture, (1, c, h, w) in f32, drawn from the posterior with `noise`: image to image.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub(super) fn sample(&self, image: &RgbImage, noise: &mut dyn Noise) -> Result<Tensor> {
        self.sample_tensor(&pixels::to_tensor(image, &self.device)?, noise)
    }

    /// [`Self::sample`] of pixels (1, 3, H, W) in -1..=1.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub(super) fn sample_tensor(&self, pixels: &Tensor, noise: &mut dyn Noise) -> Result<Tensor> {
        self.vae.with(|vae| {
            let posterior = vae.encode(&elsewhere(pixels, &self.inside)?, self.tiling_of(pixels)?.as_ref())?;
            let latents = posterior.sample(&noise.normal(posterior.mode().dims(), &self.inside)?)?;
            Ok(elsewhere(&vae.scale(&latents)?, &self.device)?)
        })
    }

    /// The most likely latents of pixels (1, 3, H, W) in -1..=1, as (1, c, h, w) in f32: reference pictures.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub(super) fn mode(&self, pixels: &Tensor) -> Result<Tensor> {
        self.vae.with(|vae| {
            let posterior = vae.encode(&elsewhere(pixels, &self.inside)?, self.tiling_of(pixels)?.as_ref())?;
            Ok(elsewhere(&vae.scale(posterior.mode())?, &self.device)?)
        })
    }

    /// The pictures of finished latents, each (c, h, w).
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub(super) fn decode(&self, latents: &[Tensor]) -> Result<Vec<RgbImage>> {
        // One after the other: decoding needs several times the memory of a denoiser's row, and gains nothing in a batch.
        self.vae.with(|vae| {
            let decode = |latents: &Tensor| {
                let latents = vae.unscale(&elsewhere(latents, &self.inside)?.unsqueeze(0)?)?;
                let (_, _, height, width) = latents.dims4()?;
                pixels::to_image(&vae.decode(&latents, self.tiling(height, width).as_ref())?)
            };
            latents.iter().map(decode).collect()
        })
    }

    /// One pixel a latent pixel, of unfinished latents (c, h, w).
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub(super) fn preview(&self, latents: &Tensor) -> Result<RgbImage> {
        self.vae.with(|vae| vae.preview()?.rgb(&elsewhere(latents, &self.inside)?))
    }

    /// Bytes that decoding a picture of this many pixels needs, estimated from the shapes.
    pub(super) fn decode_bytes(&self, width: u32, height: u32) -> u64 {
        let factor = self.config.factor();
        let (mut height, mut width) = (height as usize, width as usize);
        if let Some(tiling) = self.tiling(height / factor, width / factor) {
            (height, width) = (height.min(tiling.size() * factor), width.min(tiling.size() * factor));
        }
        // The last level has the most pixels; the one before it a quarter of them in more channels.
        let widest = self.config.decoder_channels().iter().take(2).max().copied().unwrap_or(1);
        (DECODER_LIVE * widest * height * width * self.dtype.size_in_bytes()) as u64
    }

    fn tiling_of(&self, pixels: &Tensor) -> Result<Option<Tiling>> {
        let (_, _, height, width) = pixels.dims4()?;
        let factor = self.config.factor();
        Ok(self.tiling(height / factor, width / factor))
    }

    /// Tiles, where a whole picture with encoder's latents of this height and width would need too much memory.
    ///
    /// diffusers decodes whole pictures unless told otherwise, and a tile knows nothing of the colours of those far from
    /// it; so pictures are decoded whole up to the size where memory is several GiB.
    fn tiling(&self, height: usize, width: usize) -> Option<Tiling> {
        let factor = self.config.factor();
        let native = self.config.sample_size.sides();
        let tile = native.0.min(native.1).max(LEAST_TILE).div_ceil(factor);
        (height * width * factor * factor > WHOLE_PIXELS).then(|| Tiling::new(tile))
    }
}
