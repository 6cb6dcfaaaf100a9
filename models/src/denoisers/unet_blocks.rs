//! The levels of a UNet: on the way down, in the middle, on the way up.
//!
//! After `models/unets/unet_2d_blocks.py` of diffusers.

use candle_core::Tensor;

use super::condition::Step;
use super::config::PerLevel;
use super::resample::{Downsample, Upsample};
use super::resnet::{ResnetBlock, ResnetConfig};
use super::transformer::{CrossAttention, Numbering, SpatialTransformer, TransformerConfig};
use crate::weights::Tensors;
use crate::{Error, Result};

/// The transformers of a level.
pub(crate) struct Transformers {
    /// Sizes; the number of layers comes from `depth`.
    pub(crate) config: TransformerConfig,
    /// Layers of the transformer after each residual block.
    pub(crate) depth: PerLevel<usize>,
}

impl Transformers {
    fn build(&self, weights: &Tensors, index: usize, numbering: &mut Numbering) -> Result<SpatialTransformer> {
        let layers = self.depth.at(index).ok_or_else(|| {
            Error::Unsupported(format!(
                "transformer_layers_per_block has no value for {}",
                weights.key(&format!("attentions.{index}"))
            ))
        })?;
        let config = TransformerConfig { layers, ..self.config };
        SpatialTransformer::new(&weights.pp("attentions").pp(index), &config, numbering)
    }
}

/// A residual block and what follows it on the same level.
struct Layer {
    resnet: ResnetBlock,
    transformer: Option<SpatialTransformer>,
}

impl Layer {
    fn new(
        weights: &Tensors,
        index: usize,
        (inputs, outputs): (usize, usize),
        resnet: &ResnetConfig,
        transformers: Option<&Transformers>,
        numbering: &mut Numbering,
    ) -> Result<Self> {
        Ok(Self {
            resnet: ResnetBlock::new(&weights.pp("resnets").pp(index), inputs, outputs, resnet)?,
            transformer: transformers.map(|it| it.build(weights, index, numbering)).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor, step: &Step) -> Result<Tensor> {
        let x = self.resnet.forward(x, Some(step.emb))?;
        self.transformer.as_ref().map_or(Ok(x.clone()), |transformer| transformer.forward(&x, step))
    }
}

/// `DownBlock2D` and `CrossAttnDownBlock2D`.
pub(crate) struct DownBlock {
    layers: Vec<Layer>,
    downsample: Option<Downsample>,
}

/// What a down block is made of.
pub(crate) struct DownConfig {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) layers: usize,
    pub(crate) resnet: ResnetConfig,
    pub(crate) transformers: Option<Transformers>,
    /// The padding of the halving convolution; `None` on the last level.
    pub(crate) downsample: Option<usize>,
}

impl DownBlock {
    pub(crate) fn new(weights: &Tensors, config: &DownConfig, numbering: &mut Numbering) -> Result<Self> {
        let layers = (0..config.layers)
            .map(|i| {
                let inputs = if i == 0 { config.inputs } else { config.outputs };
                let sizes = (inputs, config.outputs);
                Layer::new(weights, i, sizes, &config.resnet, config.transformers.as_ref(), numbering)
            })
            .collect::<Result<_>>()?;
        let downsample = |padding| Downsample::new(&weights.pp("downsamplers.0"), config.outputs, padding);
        Ok(Self { layers, downsample: config.downsample.map(downsample).transpose()? })
    }

    /// (b, h, w, inputs) to (b, h/2, w/2, outputs); what every layer gives is left in `skips`.
    pub(crate) fn forward(&self, mut x: Tensor, skips: &mut Vec<Tensor>, step: &Step) -> Result<Tensor> {
        for layer in &self.layers {
            x = layer.forward(&x, step)?;
            skips.push(x.clone());
        }
        if let Some(downsample) = &self.downsample {
            x = downsample.forward(&x)?; // (b, h/2, w/2, c)
            skips.push(x.clone());
        }
        Ok(x)
    }

    pub(crate) fn cross_attentions(&self) -> impl Iterator<Item = &CrossAttention> {
        cross_attentions(&self.layers)
    }
}

/// `UNetMidBlock2D` and `UNetMidBlock2DCrossAttn`.
pub(crate) struct MidBlock {
    first: Layer,
    last: Option<ResnetBlock>,
}

impl MidBlock {
    pub(crate) fn new(
        weights: &Tensors,
        channels: usize,
        resnet: &ResnetConfig,
        transformers: Option<&Transformers>,
        numbering: &mut Numbering,
    ) -> Result<Self> {
        let first = Layer::new(weights, 0, (channels, channels), resnet, transformers, numbering)?;
        let last = transformers.map(|_| ResnetBlock::new(&weights.pp("resnets.1"), channels, channels, resnet));
        Ok(Self { first, last: last.transpose()? })
    }

    /// (b, h, w, c) to the same.
    pub(crate) fn forward(&self, x: &Tensor, step: &Step) -> Result<Tensor> {
        let x = self.first.forward(x, step)?;
        self.last.as_ref().map_or(Ok(x.clone()), |last| last.forward(&x, Some(step.emb)))
    }

    pub(crate) fn cross_attentions(&self) -> impl Iterator<Item = &CrossAttention> {
        cross_attentions(std::slice::from_ref(&self.first))
    }
}

/// `UpBlock2D` and `CrossAttnUpBlock2D`.
pub(crate) struct UpBlock {
    layers: Vec<Layer>,
    upsample: Option<Upsample>,
}

/// What an up block is made of.
pub(crate) struct UpConfig {
    /// Channels of what comes from the level below.
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// Channels of the skip that the last layer takes, which the next wider level made; the others have `outputs`.
    pub(crate) last_skip: usize,
    pub(crate) layers: usize,
    pub(crate) resnet: ResnetConfig,
    pub(crate) transformers: Option<Transformers>,
    pub(crate) upsample: bool,
}

impl UpBlock {
    pub(crate) fn new(weights: &Tensors, config: &UpConfig, numbering: &mut Numbering) -> Result<Self> {
        let layers = (0..config.layers)
            .map(|i| {
                let inputs = if i == 0 { config.inputs } else { config.outputs };
                let skip = if i + 1 == config.layers { config.last_skip } else { config.outputs };
                let sizes = (inputs + skip, config.outputs);
                Layer::new(weights, i, sizes, &config.resnet, config.transformers.as_ref(), numbering)
            })
            .collect::<Result<_>>()?;
        let upsample = config.upsample.then(|| Upsample::new(&weights.pp("upsamplers.0"), config.outputs));
        Ok(Self { layers, upsample: upsample.transpose()? })
    }

    /// (b, h, w, inputs) to (b, h', w', outputs), of the size of the skip that is next in line.
    ///
    /// That is twice the size, or one less where the way down rounded up, which is why diffusers
    /// forwards the skip's size for latents that are no multiple of the network's factor.
    pub(crate) fn forward(&self, mut x: Tensor, skips: &mut Vec<Tensor>, step: &Step) -> Result<Tensor> {
        for layer in &self.layers {
            let skip = skips.pop().ok_or_else(missing_skip)?;
            x = layer.forward(&Tensor::cat(&[x, skip], 3)?, step)?;
        }
        let Some(upsample) = &self.upsample else { return Ok(x) };
        let (_, h, w, _) = skips.last().ok_or_else(missing_skip)?.dims4()?;
        upsample.forward(&x, (h, w))
    }

    pub(crate) fn cross_attentions(&self) -> impl Iterator<Item = &CrossAttention> {
        cross_attentions(&self.layers)
    }
}

fn cross_attentions(layers: &[Layer]) -> impl Iterator<Item = &CrossAttention> {
    layers.iter().filter_map(|layer| layer.transformer.as_ref()).flat_map(SpatialTransformer::cross_attentions)
}

fn missing_skip() -> Error {
    Error::Unsupported("the UNet's way up has more layers than its way down left skips".to_owned())
}
