//! The UNet of Stable Diffusion 1, 2 and XL.
//!
//! Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022, with XL's added conditioning
//! (Podell et al., 2023); layout and behaviour are those of `UNet2DConditionModel` of diffusers.

use candle_core::{DType, Tensor};
use easel_kernels::{Conv2d, Conv2dConfig, GroupNorm, Padding, Replay};

use super::adapters::{AdapterPoints, Adapters};
use super::condition::{Condition, Context, KeyValue, Step};
use super::config::PerLevel;
use super::image_prompt::{ImagePrompt, ImagePrompts};
use super::resnet::ResnetConfig;
use super::time_embedding::{AddedEmbedding, Sinusoids, TimeEmbedding};
use super::transformer::{Numbering, TransformerConfig};
use super::unet_blocks::{DownBlock, DownConfig, MidBlock, Transformers, UpBlock, UpConfig};
use super::unet_config::{DownBlockType, MidBlockType, UNetConfig, UpBlockType};
use crate::weights::{Tensors, conv2d, group_norm};
use crate::{Error, Result};

/// What a ControlNet adds to the features of a UNet, channels-last.
#[derive(Debug, Clone)]
pub struct Residuals {
    /// Added to the skips, in the order in which the way down makes them: (b, h, w, c) each.
    pub down: Vec<Tensor>,
    /// Added to what the middle gives, (b, h, w, c).
    pub mid: Tensor,
}

/// What a model call may carry beside its inputs; the default carries nothing.
#[derive(Clone, Default)]
pub struct Hooks {
    /// A ControlNet's additions.
    pub residuals: Option<Residuals>,
    /// What each row looks at beside its text. The places are the cross-attention layers on the way through the network,
    /// down, middle and up (files of adapters count the middle's last): what a layer's queries see of the prompts is added
    /// to what they see of the text, as in `IPAdapterAttnProcessor2_0` of diffusers.
    pub pictures: ImagePrompts,
    /// Side paths of the projections.
    pub adapters: Adapters,
}

impl Hooks {
    /// Whether nothing is carried.
    fn is_empty(&self) -> bool {
        self.residuals.is_none() && self.pictures.is_empty() && self.adapters.is_empty()
    }
}

/// What changes from call to call: the latents (b, c, h, w), the activated time embedding (b, time), and what the layers
/// attend to.
type Inputs = (Tensor, Tensor, Vec<KeyValue>);

/// A denoiser with skips from its way down to its way up.
pub struct UNet {
    config: UNetConfig,
    time: TimeEmbedding,
    added: Option<AddedEmbedding>,
    conv_in: Conv2d,
    down: Vec<DownBlock>,
    mid: Option<MidBlock>,
    up: Vec<UpBlock>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    points: AdapterPoints,
    dtype: DType,
    replay: Replay,
}

impl UNet {
    /// Builds the network; the weights have diffusers' names.
    ///
    /// # Errors
    /// Names the file and the key when a weight is missing or of another shape than the configuration asks for.
    pub fn new(config: &UNetConfig, weights: &Tensors) -> Result<Self> {
        let mut numbering = Numbering::default();
        let (levels, time) = (config.levels(), config.time_channels());
        let channels = |level: usize| config.block_out_channels[level.min(levels - 1)];
        let layers = |level: usize| missing(config.layers_per_block.at(level), "layers_per_block");
        let resnet = ResnetConfig {
            groups: config.norm_num_groups,
            eps: config.norm_eps,
            activation: config.act_fn,
            time: Some(time),
            time_shift: config.resnet_time_scale_shift,
            output_scale: 1.0,
        };

        let mut down = Vec::with_capacity(levels);
        for (level, kind) in config.down_block_types.iter().enumerate() {
            let depth = config.transformer_layers_per_block.at(level);
            let attention = *kind == DownBlockType::CrossAttnDownBlock2D;
            let block = DownConfig {
                inputs: channels(level.saturating_sub(1)),
                outputs: channels(level),
                layers: layers(level)?,
                resnet,
                transformers: attention.then(|| transformers(config, level, depth)).transpose()?,
                downsample: (level + 1 < levels).then_some(config.downsample_padding),
            };
            down.push(DownBlock::new(&weights.pp("down_blocks").pp(level), &block, &mut numbering)?);
        }

        let mid = match config.mid_block_type {
            None => None,
            Some(kind) => {
                let depth = config.transformer_layers_per_block.at(levels - 1);
                let attention = kind == MidBlockType::UNetMidBlock2DCrossAttn;
                let transformers = attention.then(|| transformers(config, levels - 1, depth)).transpose()?;
                let resnet = ResnetConfig { output_scale: config.mid_block_scale_factor, ..resnet };
                let weights = weights.pp("mid_block");
                Some(MidBlock::new(&weights, channels(levels), &resnet, transformers.as_ref(), &mut numbering)?)
            }
        };

        let mut up = Vec::with_capacity(levels);
        for (index, kind) in config.up_block_types.iter().enumerate() {
            let level = levels - 1 - index;
            let depth = match &config.reverse_transformer_layers_per_block {
                Some(reverse) => reverse.at(index),
                None => config.transformer_layers_per_block.at(level),
            };
            let attention = *kind == UpBlockType::CrossAttnUpBlock2D;
            let block = UpConfig {
                inputs: channels(level + 1),
                outputs: channels(level),
                last_skip: channels(level.saturating_sub(1)),
                layers: layers(level)? + 1,
                resnet,
                transformers: attention.then(|| transformers(config, level, depth)).transpose()?,
                upsample: level > 0,
            };
            up.push(UpBlock::new(&weights.pp("up_blocks").pp(index), &block, &mut numbering)?);
        }

        let sinusoids =
            Sinusoids { dim: channels(0), flip_sin_to_cos: config.flip_sin_to_cos, freq_shift: config.freq_shift };
        let added = match (config.addition_time_embed_dim, config.projection_class_embeddings_input_dim) {
            (Some(dim), Some(inputs)) if config.addition_embed_type.is_some() => {
                Some(AddedEmbedding::new(&weights.pp("add_embedding"), Sinusoids { dim, ..sinusoids }, inputs, time)?)
            }
            _ => None,
        };
        let keep = |kernel: usize| Conv2dConfig { stride: 1, padding: Padding::same((kernel - 1) / 2) };
        let (kernel_in, kernel_out) = (config.conv_in_kernel, config.conv_out_kernel);
        let (first, last) = (weights.pp("conv_in"), weights.pp("conv_out"));
        Ok(Self {
            config: config.clone(),
            time: TimeEmbedding::new(
                &weights.pp("time_embedding"),
                sinusoids,
                time,
                config.act_fn,
                config.time_cond_proj_dim,
            )?,
            added,
            conv_in: conv2d(&first, config.in_channels, channels(0), kernel_in, keep(kernel_in))?,
            down,
            mid,
            up,
            norm_out: group_norm(&weights.pp("conv_norm_out"), channels(0), config.norm_num_groups, config.norm_eps)?,
            conv_out: conv2d(&last, channels(0), config.out_channels, kernel_out, keep(kernel_out))?,
            points: numbering.points,
            dtype: weights.dtype(),
            replay: Replay::default(),
        })
    }

    /// The configuration that the network was built from.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The projections that adapters can hang side paths on.
    pub fn adapter_points(&self) -> &AdapterPoints {
        &self.points
    }

    /// Computes everything that depends on the context only: keys and values of the text for each
    /// cross-attention layer, and what is added to the time embedding.
    ///
    /// # Errors
    /// When the context is not what the configuration asks for, or a tensor operation fails.
    pub fn condition(&self, context: &Context, adapters: &Adapters) -> Result<Condition> {
        let (rows, _, channels) = context.states.dims3()?;
        if self.config.context_channels().is_some_and(|expected| channels != expected) {
            let shape = context.states.dims();
            return Err(unfit("cross_attention_dim", format_args!("does not fit text states of shape {shape:?}")));
        }
        let added = match (&self.added, &context.added) {
            (Some(embedding), Some(added)) => Some(embedding.forward(added)?),
            (None, None) => None,
            (Some(_), None) => {
                return Err(unfit("addition_embed_type", "asks for a pooled text state and time ids"));
            }
            (None, Some(_)) => {
                return Err(unfit("addition_embed_type", "has no use for a pooled text state and time ids"));
            }
        };
        let guidance = self.time.guidance(context.guidance)?;
        if [&added, &guidance].into_iter().flatten().any(|tensor| tensor.dims()[0] != rows) {
            return Err(Error::Unsupported(format!("every part of the context must have {rows} rows")));
        }
        let states = context.states.to_dtype(self.dtype)?;
        let layers = (self.down.iter().flat_map(DownBlock::cross_attentions))
            .chain(self.mid.iter().flat_map(MidBlock::cross_attentions))
            .chain(self.up.iter().flat_map(UpBlock::cross_attentions));
        let context = layers.map(|layer| layer.project(&states, adapters)).collect::<Result<_>>()?;
        Ok(Condition { context, added, guidance, rows })
    }

    /// Predicts noise, velocity or the clean latents, as the model was trained.
    ///
    /// `latents` (b, `in_channels`, h, w) of any height and width; a timestep and a row of `condition` for
    /// each. Gives (b, `out_channels`, h, w) in the type of `latents`. No row sees another.
    ///
    /// # Errors
    /// When the numbers of rows differ, or a tensor operation fails.
    pub fn forward(&self, latents: &Tensor, timesteps: &[f64], condition: &Condition, hooks: &Hooks) -> Result<Tensor> {
        let rows = latents.dim(0)?;
        if timesteps.len() != rows || condition.rows != rows {
            return Err(Error::Unsupported(format!(
                "{rows} latents need as many timesteps and conditions, not {} and {}",
                timesteps.len(),
                condition.rows
            )));
        }
        hooks.pictures.check(rows, condition.context.len(), ImagePrompt::places)?;
        let emb = self.embed(timesteps, condition, latents)?; // (b, time)
        let inputs = (latents.clone(), emb, condition.context.clone());
        match hooks.is_empty() {
            true => self.replay.call(&inputs, |inputs| self.predict(inputs, &Hooks::default())),
            false => self.predict(&inputs, hooks),
        }
    }

    /// The network behind its time embedding.
    fn predict(&self, inputs: &Inputs, hooks: &Hooks) -> Result<Tensor> {
        let (latents, emb, context) = inputs;
        let Hooks { residuals, pictures, adapters } = hooks;
        let step = Step { emb, context, pictures, adapters };
        let mut x = latents.to_dtype(self.dtype)?.permute((0, 2, 3, 1))?.contiguous()?; // (b, h, w, c)
        if self.config.center_input_sample {
            x = x.affine(2.0, -1.0)?;
        }
        x = self.conv_in.forward(&x)?;
        let mut skips = vec![x.clone()];
        for block in &self.down {
            x = block.forward(x, &mut skips, &step)?;
        }
        if let Some(mid) = &self.mid {
            x = mid.forward(&x, &step)?;
        }
        if let Some(residuals) = residuals {
            x = add_residuals(x, &mut skips, residuals)?;
        }
        for block in &self.up {
            x = block.forward(x, &mut skips, &step)?;
        }
        x = self.conv_out.forward(&self.config.act_fn.after(&self.norm_out, &x)?)?; // (b, h, w, out)
        Ok(x.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(latents.dtype())?)
    }

    /// The activated time embedding, (b, time), which every residual block projects for itself.
    fn embed(&self, timesteps: &[f64], condition: &Condition, latents: &Tensor) -> Result<Tensor> {
        let mut emb = self.time.forward(timesteps, condition.guidance.as_ref(), latents)?;
        if let Some(added) = &condition.added {
            emb = (emb + added)?;
        }
        Ok(self.config.act_fn.forward(&emb)?.to_dtype(self.dtype)?)
    }
}

/// The transformers of one level, where it has some.
fn transformers(config: &UNetConfig, level: usize, depth: Option<PerLevel<usize>>) -> Result<Transformers> {
    let config = TransformerConfig {
        channels: config.block_out_channels[level],
        heads: missing(config.heads(level), "attention_head_dim")?,
        layers: 0,
        context: missing(config.cross_attention_dim.at(level), "cross_attention_dim")?,
        groups: config.norm_num_groups,
        linear_projection: config.use_linear_projection,
        upcast_attention: config.upcast_attention,
    };
    Ok(Transformers { config, depth: missing(depth, "transformer_layers_per_block")? })
}

/// An error about a context that the configuration's `key` does not allow.
fn unfit(key: &str, message: impl std::fmt::Display) -> Error {
    Error::Unsupported(format!("the UNet's {key} {message}"))
}

fn missing<T>(value: Option<T>, key: &str) -> Result<T> {
    value.ok_or_else(|| Error::Unsupported(format!("the UNet's {key} has too few values")))
}

/// Adds a ControlNet's residuals to the skips and to the middle's features.
fn add_residuals(x: Tensor, skips: &mut [Tensor], residuals: &Residuals) -> Result<Tensor> {
    if residuals.down.len() != skips.len() {
        let (given, wanted) = (residuals.down.len(), skips.len());
        return Err(Error::Unsupported(format!("{given} residuals were given for the UNet's {wanted} skips")));
    }
    for (skip, residual) in skips.iter_mut().zip(&residuals.down) {
        *skip = (&*skip + residual.to_dtype(skip.dtype())?)?;
    }
    let mid = residuals.mid.to_dtype(x.dtype())?;
    Ok((x + mid)?)
}

#[cfg(test)]
mod tests;
