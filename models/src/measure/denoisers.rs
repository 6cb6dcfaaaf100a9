//! A model's step and its decoding, at the shapes of a published model, with random weights.

use std::sync::Arc;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use easel_kernels::{Linear, counted, replayed, with_replays};

use super::median_time;
use super::weights::{RandomWeights, shapes};
use crate::autoencoders::{AutoencoderKl, AutoencoderKlConfig};
use crate::denoisers::{
    Adapters, AddedContext, Condition, Context, Flux, FluxCondition, FluxConfig, FluxContext, FluxHooks, Hooks, UNet,
    UNetConfig,
};
use crate::weights::Tensors;
use crate::{Error, Result};

/// A published model whose shapes can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// Stable Diffusion 1.5 at 512x512.
    Sd15,
    /// SDXL at 1024x1024.
    Sdxl,
    /// FLUX.1 dev at 1024x1024.
    FluxDev,
}

/// The configuration and the list of tensors of a network of a published model.
macro_rules! network {
    ($model:literal, $network:literal) => {
        (
            include_str!(concat!("../../tests/data/true_configs/", $model, "/", $network, ".json")),
            include_str!(concat!("../../tests/data/true_configs/", $model, "/", $network, ".keys")),
        )
    };
}

impl Subject {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sd15, Self::Sdxl, Self::FluxDev];

    /// The name that it is asked for by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sd15 => "sd15",
            Self::Sdxl => "sdxl",
            Self::FluxDev => "flux-dev",
        }
    }

    /// The steps of a usual picture.
    #[must_use]
    pub fn steps(self) -> usize {
        match self {
            Self::Sd15 | Self::Sdxl => 30,
            Self::FluxDev => 28,
        }
    }

    /// The rows of the denoiser's batch that a picture takes: two where the text is weighed against none.
    #[must_use]
    pub fn rows_a_picture(self) -> usize {
        match self {
            Self::Sd15 | Self::Sdxl => 2,
            Self::FluxDev => 1,
        }
    }

    /// The side of the latents of its native size.
    fn side(self) -> usize {
        match self {
            Self::Sd15 => 64,
            Self::Sdxl | Self::FluxDev => 128,
        }
    }

    fn network(self) -> (&'static str, &'static str) {
        match self {
            Self::Sd15 => network!("sd15", "unet"),
            Self::Sdxl => network!("sdxl", "unet"),
            Self::FluxDev => network!("flux-dev", "transformer"),
        }
    }

    fn autoencoder(self) -> (&'static str, &'static str) {
        match self {
            Self::Sd15 => network!("sd15", "vae"),
            Self::Sdxl => network!("sdxl", "vae"),
            Self::FluxDev => network!("flux-schnell", "vae"),
        }
    }
}

/// How large the pictures are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    /// What the sides are divided by; 1 for the native size.
    pub shrink: usize,
}

/// What a call costs.
#[derive(Debug, Clone, Copy)]
pub struct StepCost {
    /// The median time.
    pub time: Duration,
    /// The floating-point operations of its products, two for a product and a sum.
    pub operations: u64,
}

impl StepCost {
    /// Operations a second, in units of 10¹².
    #[must_use]
    pub fn teraflops(&self) -> f64 {
        self.operations as f64 / self.time.as_secs_f64() * 1e-12
    }
}

/// What a call costs that is replayed from a CUDA graph.
#[derive(Debug, Clone, Copy)]
pub struct ReplayCost {
    /// The median time.
    pub time: Duration,
    /// Whether each replay gave the bits of the plain call.
    pub same_bits: bool,
}

/// A model with random weights on a device.
pub struct Denoiser {
    subject: Subject,
    network: Network,
    side: usize,
    dtype: DType,
    device: Device,
    parameters: u64,
}

enum Network {
    UNet(Box<UNet>),
    Flux(Box<Flux>),
}

/// What a network is called with.
enum Call {
    UNet(Condition),
    Flux(FluxCondition),
}

impl Denoiser {
    /// Makes the network of `subject`, its weights in `dtype` on `device`.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(subject: Subject, scale: Scale, dtype: DType, device: &Device) -> Result<Self> {
        let (json, list) = subject.network();
        let shapes = shapes(list)?;
        let parameters = shapes.values().map(|shape| shape.iter().product::<usize>() as u64).sum();
        let source = Arc::new(RandomWeights::new(shapes, dtype, device));
        let weights = Tensors::new(source, dtype, device);
        let network = match subject {
            Subject::Sd15 | Subject::Sdxl => {
                Network::UNet(Box::new(UNet::new(&UNetConfig::from_json("unet.json", json)?, &weights)?))
            }
            Subject::FluxDev => {
                let config = FluxConfig::from_json("transformer.json", json)?;
                Network::Flux(Box::new(Flux::new(&config, &weights)?))
            }
        };
        // A UNet halves its sides three times.
        let side = (subject.side() / scale.shrink.max(1)).next_multiple_of(8);
        Ok(Self { subject, network, side, dtype, device: device.clone(), parameters })
    }

    /// The side of its pictures in pixels.
    #[must_use]
    pub fn pixels(&self) -> usize {
        8 * self.side
    }

    /// The number of its weights.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// Measures a call with `rows` rows, `calls` times.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn step(&self, rows: usize, calls: usize) -> Result<StepCost> {
        let (call, latents) = (self.call(rows)?, self.latents(rows)?);
        let step = || with_replays(false, || self.predict(&call, &latents, 500.0));
        let (first, operations) = counted(step);
        finite(&first?)?;
        let time = median_time(&self.device, calls, || step().map(drop))?;
        Ok(StepCost { time, operations })
    }

    /// Measures calls with `rows` rows that are replayed from a CUDA graph; `None` where nothing is, because the device is
    /// none of CUDA's or the graph was refused.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn replay(&self, rows: usize, calls: usize) -> Result<Option<ReplayCost>> {
        if !self.device.is_cuda() {
            return Ok(None);
        }
        let call = self.call(rows)?;
        let steps = [900.0, 500.0, 20.0].map(|timestep| Ok((self.latents(rows)?, timestep)));
        let steps = steps.into_iter().collect::<Result<Vec<_>>>()?;
        let step = |at: usize, on: bool| {
            let (latents, timestep) = &steps[at % steps.len()];
            with_replays(on, || self.predict(&call, latents, *timestep))
        };
        // Seen, recorded and proven.
        (0..3).try_for_each(|at| step(at, true).map(drop))?;
        let mut same_bits = true;
        let (result, answered) = replayed(|| -> Result<()> {
            for at in 0..steps.len() {
                same_bits &= bits(&step(at, true)?)? == bits(&step(at, false)?)?;
            }
            Ok(())
        });
        result?;
        if answered == 0 {
            return Ok(None);
        }
        let mut at = 0;
        let time = median_time(&self.device, calls, || {
            at += 1;
            step(at, true).map(drop)
        })?;
        Ok(Some(ReplayCost { time, same_bits }))
    }

    /// The network's prediction, with the first row at this timestep and each other one a step further.
    fn predict(&self, call: &Call, latents: &Tensor, timestep: f64) -> Result<Tensor> {
        let timesteps: Vec<f64> = (0..latents.dim(0)?).map(|row| timestep + row as f64).collect();
        match (&self.network, call) {
            (Network::UNet(unet), Call::UNet(condition)) => {
                unet.forward(latents, &timesteps, condition, &Hooks::default())
            }
            (Network::Flux(flux), Call::Flux(condition)) => {
                flux.forward(latents, &timesteps, condition, &FluxHooks::default())
            }
            _ => Err(Error::Unsupported("a network is called with another's condition".into())),
        }
    }

    fn latents(&self, rows: usize) -> Result<Tensor> {
        let channels = match self.subject {
            Subject::Sd15 | Subject::Sdxl => 4,
            Subject::FluxDev => 16,
        };
        self.noise(&[rows, channels, self.side, self.side])
    }

    /// Measures the decoding of one picture, with an autoencoder made for it.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn decode(&self, calls: usize) -> Result<StepCost> {
        let (json, list) = self.subject.autoencoder();
        let source = Arc::new(RandomWeights::new(shapes(list)?, self.dtype, &self.device));
        let weights = Tensors::new(source, self.dtype, &self.device);
        let config = AutoencoderKlConfig::from_json("vae.json", json)?;
        let autoencoder = AutoencoderKl::new(&config, &weights)?;
        let latents = self.noise(&[1, config.latent_channels, self.side, self.side])?;
        let (first, operations) = counted(|| autoencoder.decode(&latents, None));
        finite(&first?)?;
        let time = median_time(&self.device, calls, || autoencoder.decode(&latents, None).map(drop))?;
        Ok(StepCost { time, operations })
    }

    fn noise(&self, shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::randn(0_f32, 1.0, shape, &self.device)?)
    }

    fn call(&self, rows: usize) -> Result<Call> {
        let adapters = Adapters::default();
        match &self.network {
            Network::UNet(unet) => {
                let width = unet.config().context_channels().unwrap_or(0);
                let states = self.noise(&[rows, 77, width])?;
                let pooled = self.noise(&[rows, 1280])?;
                let side = self.pixels() as f64;
                let time_ids = vec![vec![side, side, 0.0, 0.0, side, side]; rows];
                let added = AddedContext { pooled: &pooled, time_ids: &time_ids };
                let added = (self.subject == Subject::Sdxl).then_some(added);
                let context = Context { states: &states, added, guidance: None };
                Ok(Call::UNet(unet.condition(&context, &adapters)?))
            }
            Network::Flux(flux) => {
                let (states, pooled) = (self.noise(&[1, 512, 4096])?, self.noise(&[1, 768])?);
                let size = (self.side, self.side);
                let context = FluxContext {
                    states: &states,
                    pooled: &pooled,
                    guidance: 3.5,
                    size,
                    channels: None,
                    reference: None,
                };
                let condition = flux.condition(&context, &adapters)?;
                Ok(Call::Flux(FluxCondition::stack(&vec![&condition; rows])?))
            }
        }
    }
}

/// A tensor's values to the last bit.
fn bits(output: &Tensor) -> Result<Vec<u32>> {
    let values = output.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

/// Fails if a network's output holds anything but numbers: what is measured then is not the model.
fn finite(output: &Tensor) -> Result<()> {
    let sum = output.to_dtype(DType::F32)?.abs()?.sum_all()?.to_scalar::<f32>()?;
    if sum.is_finite() { Ok(()) } else { Err(Error::Unsupported("the network gives no finite numbers".into())) }
}

/// What the device can do at most, measured: operations a second of a product of square matrices of `side` in `dtype`, and
/// bytes a second of reading and writing memory.
///
/// # Errors
/// When the device has no room.
pub fn ceilings(side: usize, dtype: DType, device: &Device) -> Result<(f64, f64)> {
    const CALLS: usize = 10;
    let random = || -> Result<Tensor> { Ok(Tensor::randn(0_f32, 1.0, (side, side), device)?.to_dtype(dtype)?) };
    let (x, layer) = (random()?, Linear::new(random()?, None)?);
    let product = median_time(device, CALLS, || Ok(layer.forward(&x).map(drop)?))?;
    let operations = 2.0 * (side as f64).powi(3) / product.as_secs_f64();
    // Sixteen times the product's operand, which no cache holds.
    let large = Tensor::randn(0_f32, 1.0, (16, side, side), device)?;
    let copy = median_time(device, CALLS, || Ok(large.copy().map(drop)?))?;
    let bytes = 2.0 * (large.elem_count() * 4) as f64 / copy.as_secs_f64();
    Ok((operations, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_has_its_configuration_and_its_tensors() {
        let parameters = |subject: Subject| -> usize {
            let (json, list) = subject.network();
            match subject {
                Subject::FluxDev => drop(FluxConfig::from_json("transformer.json", json).unwrap()),
                _ => drop(UNetConfig::from_json("unet.json", json).unwrap()),
            }
            AutoencoderKlConfig::from_json("vae.json", subject.autoencoder().0).unwrap();
            assert!(shapes(subject.autoencoder().1).unwrap().len() > 100);
            shapes(list).unwrap().values().map(|shape| shape.iter().product::<usize>()).sum()
        };
        // As published: 0.86, 2.57 and 11.9 billion.
        assert_eq!(Subject::ALL.map(|subject| parameters(subject) / 10_000_000), [85, 256, 1190]);
    }

    #[test]
    fn the_ceilings_of_this_machine_are_numbers() {
        let (operations, bytes) = ceilings(64, DType::F32, &Device::Cpu).unwrap();
        assert!(operations > 1e6 && operations.is_finite() && bytes > 1e6 && bytes.is_finite());
    }
}
