//! The transformer of Stable Diffusion 3: text and picture in two streams that attend to each other.
//!
//! Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024, figure 2, with 3.5's
//! normalised queries and keys and second attention; layout and behaviour are those of `SD3Transformer2DModel` of
//! diffusers.

use candle_core::{DType, Tensor};
use easel_kernels::{Conv2d, Conv2dConfig, Linear, Padding, Replay, silu};

use super::activation::Activation;
use super::adapters::{AdapterPoints, Adapters};
use super::image_prompt::ImagePrompts;
use super::sd3_blocks::{Block, LastNorm, Step};
use super::sd3_config::Sd3Config;
use super::sd3_image_prompt::{Sd3ImagePrompt, Sd3Picture};
use super::time_embedding::{Mlp, Sinusoids};
use crate::weights::{Tensors, conv2d, linear};
use crate::{Error, Result};

/// Channels of the sinusoids that a timestep becomes; no configuration names them.
const SINUSOIDS: Sinusoids = Sinusoids { dim: 256, flip_sin_to_cos: true, freq_shift: 0.0 };

/// What a prompt is to the denoiser, computed once a picture.
#[derive(Debug, Clone)]
pub struct Sd3Condition {
    /// The text's tokens, (b, l, width).
    context: Tensor,
    /// The pooled text's share of the conditioning, (b, width) in f32.
    pooled: Tensor,
}

impl Sd3Condition {
    /// The conditions of several rows as that of one call; all must have one length.
    ///
    /// # Errors
    /// When the lengths differ.
    pub fn stack(rows: &[&Self]) -> Result<Self> {
        let join = |part: fn(&Self) -> &Tensor| Tensor::cat(&rows.iter().copied().map(part).collect::<Vec<_>>(), 0);
        Ok(Self { context: join(|row| &row.context)?, pooled: join(|row| &row.pooled)? })
    }
}

/// What a model call may carry beside its inputs; the default carries nothing.
#[derive(Clone, Default)]
pub struct Sd3Hooks {
    /// A ControlNet's additions to the picture's tokens, (b, n, width) each; every one serves as many blocks as the
    /// others, in their order.
    pub residuals: Vec<Tensor>,
    /// What each row looks at beside its text. The places are the attentions of the picture's tokens: each block's, and
    /// right behind it the block's second one where it has two.
    pub pictures: ImagePrompts<Sd3ImagePrompt>,
    /// Side paths of the projections.
    pub adapters: Adapters,
}

impl Sd3Hooks {
    /// Whether nothing is carried.
    fn is_empty(&self) -> bool {
        self.residuals.is_empty() && self.pictures.is_empty() && self.adapters.is_empty()
    }
}

/// What changes from call to call: the latents (b, c, h, w), the activated embedding of timestep and pooled text (b, width),
/// and the text's tokens.
type Inputs = (Tensor, Tensor, Tensor);

/// A denoiser of latents in tokens.
pub struct Sd3 {
    config: Sd3Config,
    patches: Conv2d,
    /// A vector for each place of the square that pictures' places are cut out of, (1, side · side, width).
    positions: Tensor,
    time: Mlp,
    pooled: Mlp,
    context: Linear,
    blocks: Vec<Block>,
    norm_out: LastNorm,
    proj_out: Linear,
    points: AdapterPoints,
    dtype: DType,
    replay: Replay,
}

impl Sd3 {
    /// Builds the network; the weights have diffusers' names.
    ///
    /// # Errors
    /// Names the file and the key when a weight is missing or of another shape than the configuration asks for.
    pub fn new(config: &Sd3Config, weights: &Tensors) -> Result<Self> {
        let (width, patch, side) = (config.width(), config.patch_size, config.pos_embed_max_size);
        let mut points = AdapterPoints::default();
        let embed = weights.pp("time_text_embed");
        let places = weights.pp("pos_embed");
        let cut = Conv2dConfig { stride: patch, padding: Padding::same(0) };
        let blocks = weights.pp("transformer_blocks");
        Ok(Self {
            patches: conv2d(&places.pp("proj"), config.in_channels, width, patch, cut)?,
            positions: places.get("pos_embed", &[1, side * side, width])?,
            time: Mlp::new(&embed.pp("timestep_embedder"), SINUSOIDS.dim, width, Activation::Silu)?,
            pooled: Mlp::new(&embed.pp("text_embedder"), config.pooled_projection_dim, width, Activation::Silu)?,
            context: linear(&weights.pp("context_embedder"), config.joint_attention_dim, width)?,
            blocks: (0..config.num_layers)
                .map(|at| Block::new(config, at, &blocks.pp(at), &mut points))
                .collect::<Result<_>>()?,
            norm_out: LastNorm::new(&weights.pp("norm_out"), width)?,
            proj_out: linear(&weights.pp("proj_out"), width, patch * patch * config.out_channels())?,
            points,
            dtype: weights.dtype(),
            replay: Replay::default(),
            config: config.clone(),
        })
    }

    /// The configuration that the network was built from.
    pub fn config(&self) -> &Sd3Config {
        &self.config
    }

    /// The projections that adapters can hang side paths on.
    pub fn adapter_points(&self) -> &AdapterPoints {
        &self.points
    }

    /// Computes everything that depends on the prompt only.
    ///
    /// `states` (b, l, `joint_attention_dim`) and `pooled` (b, `pooled_projection_dim`).
    ///
    /// # Errors
    /// When the widths are not the configuration's, or a tensor operation fails.
    pub fn condition(&self, states: &Tensor, pooled: &Tensor) -> Result<Sd3Condition> {
        let context = self.context.forward(&states.to_dtype(self.dtype)?)?;
        Ok(Sd3Condition { context, pooled: self.pooled.forward(&pooled.to_dtype(DType::F32)?)? })
    }

    /// Predicts the velocity of each row.
    ///
    /// `latents` (b, `in_channels`, h, w), whose sides are multiples of `patch_size`; a timestep in 0..=1000 and a row
    /// of `condition` for each. Gives (b, `out_channels`, h, w) in the type of `latents`. No row sees another.
    ///
    /// # Errors
    /// When the numbers of rows differ, the latents have more places than the model knows, or a tensor operation fails.
    pub fn forward(
        &self,
        latents: &Tensor,
        timesteps: &[f64],
        condition: &Sd3Condition,
        hooks: &Sd3Hooks,
    ) -> Result<Tensor> {
        let rows = latents.dim(0)?;
        if timesteps.len() != rows || condition.context.dim(0)? != rows {
            let (timesteps, conditions) = (timesteps.len(), condition.context.dim(0)?);
            let message =
                format!("{rows} latents need as many timesteps and conditions, not {timesteps}, {conditions}");
            return Err(Error::Unsupported(message));
        }
        let places = self.config.attentions_before(self.blocks.len());
        hooks.pictures.check(rows, places, Sd3ImagePrompt::places)?;
        // Every block activates the conditioning before it projects it.
        let time = self.time.forward(&SINUSOIDS.forward(timesteps, latents)?)?;
        let embedding = silu(&(time + &condition.pooled)?)?.to_dtype(self.dtype)?; // (b, width)
        let inputs = (latents.clone(), embedding, condition.context.clone());
        if hooks.is_empty() {
            let (hooks, pictures) = (Sd3Hooks::default(), ImagePrompts::default());
            return self.replay.call(&inputs, |inputs| self.predict(inputs, &hooks, &pictures));
        }
        let pictures = hooks.pictures.each(|row, prompt| prompt.at(timesteps[row]))?;
        self.predict(&inputs, hooks, &pictures)
    }

    /// The network behind its embedding of numbers; `pictures` are what the hooks' pictures are at this step.
    fn predict(&self, inputs: &Inputs, hooks: &Sd3Hooks, pictures: &ImagePrompts<Sd3Picture>) -> Result<Tensor> {
        let (latents, embedding, context) = inputs;
        let rows = latents.dim(0)?;
        let x = latents.to_dtype(self.dtype)?.permute((0, 2, 3, 1))?.contiguous()?; // (b, h, w, c)
        let x = self.patches.forward(&x)?; // (b, h/p, w/p, width)
        let (_, high, wide, width) = x.dims4()?;
        let x = x.broadcast_add(&self.places(high, wide)?)?;
        let mut x = x.reshape((rows, high * wide, width))?; // (b, n, width)
        let mut context = context.clone();
        let step = Step { embedding, pictures, adapters: &hooks.adapters };

        for (at, block) in self.blocks.iter().enumerate() {
            (x, context) = block.forward(&x, &context, &step)?;
            // As many blocks to each residual, shared out in floating point as diffusers does it.
            let each = self.blocks.len() as f64 / hooks.residuals.len() as f64;
            if let Some(residual) = hooks.residuals.get((at as f64 / each) as usize)
                && at + 1 < self.blocks.len()
            {
                x = (x + residual.to_dtype(self.dtype)?)?;
            }
        }
        let x = self.proj_out.forward(&self.norm_out.forward(&x, embedding)?)?; // (b, n, p·p·out)
        let (patch, out) = (self.config.patch_size, self.config.out_channels());
        let x = x.reshape(&[rows, high, wide, patch, patch, out][..])?.permute([0, 5, 1, 3, 2, 4].as_slice())?;
        Ok(x.reshape((rows, out, high * patch, wide * patch))?.to_dtype(latents.dtype())?)
    }

    /// The positions of a picture of so many tokens, which lie in the middle of the square: (high, wide, width).
    fn places(&self, high: usize, wide: usize) -> Result<Tensor> {
        let side = self.config.pos_embed_max_size;
        if high > side || wide > side {
            let message = format!("{wide}x{high} tokens are more than the {side}x{side} places of pos_embed_max_size");
            return Err(Error::Unsupported(message));
        }
        let square = self.positions.reshape((side, side, ()))?;
        Ok(square.narrow(0, (side - high) / 2, high)?.narrow(1, (side - wide) / 2, wide)?)
    }
}

#[cfg(test)]
mod tests;
