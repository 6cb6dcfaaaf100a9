//! The transformer of FLUX.1: text and image first side by side, then as one sequence.
//!
//! Black Forest Labs, "FLUX.1", 2024; layout and behaviour are those of `FluxTransformer2DModel` of diffusers.

use candle_core::{D, DType, Tensor};
use easel_kernels::{Parts, Replay, ada_layer_norm, silu};

use super::adapters::{AdapterPoints, Adapters, Projection};
use super::axes::{Angles, Axes, Rotation};
use super::flux_blocks::{DoubleBlock, EPS, SingleBlock, Step};
use super::flux_config::FluxConfig;
use super::flux_residuals::FluxResiduals;
use super::image_prompt::{ImagePrompt, ImagePrompts};
use super::time_embedding::TimeTextEmbedding;
use crate::weights::{Tensors, linear};
use crate::{Error, Result};

/// The longest wavelength of the positions, which no configuration names.
const THETA: f64 = 10_000.0;

/// The first coordinate of the tokens that are drawn, and of those that are only looked at (FLUX.1 Kontext).
const DRAWN: usize = 0;
const REFERENCE: usize = 1;

/// What one picture is conditioned on, as the text encoders and the request give it.
#[derive(Clone, Copy)]
pub struct FluxContext<'a> {
    /// T5's states, (1, l, `joint_attention_dim`).
    pub states: &'a Tensor,
    /// CLIP's pooled state, (1, `pooled_projection_dim`).
    pub pooled: &'a Tensor,
    /// The guidance scale that a distilled model is told; of no effect on a model without `guidance_embeds`.
    pub guidance: f64,
    /// Height and width of the latents, both even.
    pub size: (usize, usize),
    /// Channels that the model sees beside the latents', (1, c, h, w): of FLUX.1 Fill.
    pub channels: Option<&'a Tensor>,
    /// Latents of a picture that the model looks at, (1, c, h, w) with even sides: of FLUX.1 Kontext.
    pub reference: Option<&'a Tensor>,
}

/// A context after everything in the network that does not depend on the step.
///
/// Made by [`Flux::condition`] once a prompt; [`FluxCondition::stack`] puts the rows of a batch together.
#[derive(Debug, Clone)]
pub struct FluxCondition {
    /// The text's tokens, (b, l, width).
    text: Tensor,
    /// Added to the timestep's embedding, (b, width) in f32.
    vector: Tensor,
    /// Channels beside the latents', (b, c, h, w).
    channels: Option<Tensor>,
    /// The reference's tokens, (b, m, width).
    reference: Option<Tensor>,
    /// The positions of text, image and reference, which all rows share.
    rotation: Rotation,
}

impl FluxCondition {
    /// Puts conditions of pictures of one size, and with references of one size, under each other in this order.
    ///
    /// # Errors
    /// When there is none, or they are not alike.
    pub fn stack(conditions: &[&Self]) -> Result<Self> {
        let [first, rest @ ..] = conditions else {
            return Err(Error::Unsupported("a model call needs at least one condition".to_owned()));
        };
        if rest.is_empty() {
            return Ok((*first).clone());
        }
        let cat = |part: fn(&Self) -> &Tensor| {
            Tensor::cat(&conditions.iter().map(|condition| part(condition)).collect::<Vec<_>>(), 0)
        };
        let optional = |part: fn(&Self) -> Option<&Tensor>| -> Result<Option<Tensor>> {
            let parts: Vec<&Tensor> = conditions.iter().filter_map(|condition| part(condition)).collect();
            match parts.len() {
                0 => Ok(None),
                count if count == conditions.len() => Ok(Some(Tensor::cat(&parts, 0)?)),
                _ => {
                    Err(Error::Unsupported("rows with and without a picture to look at cannot share a call".to_owned()))
                }
            }
        };
        Ok(Self {
            text: cat(|condition| &condition.text)?,
            vector: cat(|condition| &condition.vector)?,
            channels: optional(|condition| condition.channels.as_ref())?,
            reference: optional(|condition| condition.reference.as_ref())?,
            rotation: first.rotation.clone(),
        })
    }
}

/// What a model call of FLUX.1 or FLUX.2 may carry beside its inputs; the default carries nothing.
#[derive(Clone, Default)]
pub struct FluxHooks {
    /// A ControlNet's additions.
    pub residuals: FluxResiduals,
    /// What each row looks at beside its text. The places are the blocks with two streams: the picture's queries, normalised
    /// and not yet turned to their positions, look at the prompts, and what they see is added behind the block. That is
    /// `FluxIPAdapterAttnProcessor` of diffusers; for FLUX.2 it knows no adapters, and the places are FLUX.1's.
    pub pictures: ImagePrompts,
    /// Side paths of the projections.
    pub adapters: Adapters,
}

impl FluxHooks {
    /// Whether nothing is carried.
    pub(super) fn is_empty(&self) -> bool {
        self.residuals.is_empty() && self.pictures.is_empty() && self.adapters.is_empty()
    }
}

/// What changes from call to call, besides what hooks carry.
struct Inputs {
    /// With the channels that are looked at beside them, (b, c, h, w).
    latents: Tensor,
    /// The activated embedding of timestep, pooled text and guidance, (b, width).
    vector: Tensor,
    text: Tensor,
    reference: Option<Tensor>,
    rotation: Rotation,
}

impl Parts for Inputs {
    fn rebuild<E>(
        &self,
        each: &mut impl FnMut(&Tensor) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Self, E> {
        Ok(Self {
            latents: each(&self.latents)?,
            vector: each(&self.vector)?,
            text: each(&self.text)?,
            reference: self.reference.rebuild(each)?,
            rotation: self.rotation.rebuild(each)?,
        })
    }
}

/// The denoiser of FLUX.1.
pub struct Flux {
    config: FluxConfig,
    embedding: TimeTextEmbedding,
    image_in: Projection,
    text_in: Projection,
    double: Vec<DoubleBlock>,
    single: Vec<SingleBlock>,
    modulation_out: Projection,
    out: Projection,
    points: AdapterPoints,
    dtype: DType,
    replay: Replay,
}

impl Flux {
    /// Builds the network; the weights have diffusers' names.
    ///
    /// # Errors
    /// Names the file and the key when a weight is missing or of another shape than the configuration asks for.
    pub fn new(config: &FluxConfig, weights: &Tensors) -> Result<Self> {
        let width = config.width();
        let mut points = AdapterPoints::default();
        let mut project = |name: &str, inputs: usize, outputs: usize| -> Result<Projection> {
            let weights = weights.pp(name);
            Ok(Projection::new(linear(&weights, inputs, outputs)?, &weights, &mut points))
        };
        let image_in = project("x_embedder", config.in_channels, width)?;
        let text_in = project("context_embedder", config.joint_attention_dim, width)?;
        let modulation_out = project("norm_out.linear", width, 2 * width)?;
        let out = project("proj_out", width, config.outputs())?;
        let block = |at: usize| weights.pp("transformer_blocks").pp(at);
        let double = (0..config.num_layers).map(|at| DoubleBlock::new(config, &block(at), &mut points));
        let double = double.collect::<Result<_>>()?;
        let block = |at: usize| weights.pp("single_transformer_blocks").pp(at);
        let single = (0..config.num_single_layers).map(|at| SingleBlock::new(config, &block(at), &mut points));
        let single = single.collect::<Result<_>>()?;
        let (pooled, guidance) = (config.pooled_projection_dim, config.guidance_embeds);
        Ok(Self {
            config: config.clone(),
            embedding: TimeTextEmbedding::new(&weights.pp("time_text_embed"), pooled, guidance, width)?,
            image_in,
            text_in,
            double,
            single,
            modulation_out,
            out,
            points,
            dtype: weights.dtype(),
            replay: Replay::default(),
        })
    }

    /// Projects what does not change from step to step.
    ///
    /// # Errors
    /// When a shape is not the configuration's.
    pub fn condition(&self, context: &FluxContext, adapters: &Adapters) -> Result<FluxCondition> {
        let FluxContext { states, pooled, guidance, size, channels, reference } = *context;
        let (_, length, _) = states.dims3()?;
        let reference_size = reference.map(Tensor::dims4).transpose()?.map(|(_, _, height, width)| (height, width));
        let reference = match reference {
            None => None,
            Some(latents) => Some(self.image_in.forward(&pack(&latents.to_dtype(self.dtype)?)?, adapters)?),
        };
        let axes = Axes { dims: self.config.axes_dims_rope.clone(), theta: THETA, angles: Angles::Exact };
        let mut positions = vec![[0; 3]; length];
        positions.extend(grid(DRAWN, size));
        positions.extend(reference_size.into_iter().flat_map(|size| grid(REFERENCE, size)));
        Ok(FluxCondition {
            text: self.text_in.forward(&states.to_dtype(self.dtype)?, adapters)?,
            vector: self.embedding.constant(pooled, guidance)?,
            channels: channels.cloned(),
            reference,
            rotation: axes.rotation(&positions, states.device())?,
        })
    }

    /// Predicts the velocity of each row, (b, c, h, w) in f32.
    ///
    /// `latents` (b, c, h, w) in f32 with even sides; one timestep a row, in 0..=1000.
    ///
    /// # Errors
    /// When a shape is not the configuration's, or a tensor operation fails.
    pub fn forward(
        &self,
        latents: &Tensor,
        timesteps: &[f64],
        condition: &FluxCondition,
        hooks: &FluxHooks,
    ) -> Result<Tensor> {
        hooks.pictures.check(latents.dim(0)?, self.double.len(), ImagePrompt::places)?;
        let latents = match &condition.channels {
            Some(channels) => Tensor::cat(&[latents, channels], 1)?,
            None => latents.clone(),
        };
        let inputs = Inputs {
            latents,
            vector: silu(&self.embedding.forward(timesteps, &condition.vector)?)?.to_dtype(self.dtype)?,
            text: condition.text.clone(),
            reference: condition.reference.clone(),
            rotation: condition.rotation.clone(),
        };
        match hooks.is_empty() {
            true => self.replay.call(&inputs, |inputs| self.predict(inputs, &FluxHooks::default())),
            false => self.predict(&inputs, hooks),
        }
    }

    /// The network behind its embedding of numbers.
    fn predict(&self, inputs: &Inputs, hooks: &FluxHooks) -> Result<Tensor> {
        let Inputs { latents, vector, text, reference, rotation } = inputs;
        let (_, _, height, width) = latents.dims4()?;
        let FluxHooks { residuals, pictures, adapters } = hooks;
        let mut image = self.image_in.forward(&pack(&latents.to_dtype(self.dtype)?)?, adapters)?; // (b, n, width)
        let drawn = image.dim(1)?;
        if let Some(reference) = reference {
            image = Tensor::cat(&[&image, reference], 1)?;
        }
        let mut text = text.clone();
        let length = text.dim(1)?;
        let step = Step { vector, rotation, pictures, adapters };

        for (at, block) in self.double.iter().enumerate() {
            (text, image) = block.forward(&text, &image, at, &step)?;
            image = residuals.after_double(image, at, self.double.len())?;
        }
        let mut both = Tensor::cat(&[&text, &image], 1)?; // (b, l + n, width)
        for (at, block) in self.single.iter().enumerate() {
            both = residuals.after_single(block.forward(&both, &step)?, length, at, self.single.len())?;
        }

        let image = both.narrow(1, length, drawn)?;
        let modulation = self.modulation_out.forward(vector, adapters)?.chunk(2, D::Minus1)?;
        let image = ada_layer_norm(&image, &modulation[0], &modulation[1], EPS)?;
        let tokens = self.out.forward(&image, adapters)?;
        Ok(unpack(&tokens, (height, width))?.to_dtype(DType::F32)?)
    }

    /// The projections that adapters can name.
    pub fn adapter_points(&self) -> &AdapterPoints {
        &self.points
    }
}

/// The positions of 2x2 latent pixels, line by line.
fn grid(first: usize, (height, width): (usize, usize)) -> impl Iterator<Item = [usize; 3]> {
    (0..height / 2).flat_map(move |y| (0..width / 2).map(move |x| [first, y, x]))
}

/// Latents (b, c, h, w) to tokens of 2x2 pixels, (b, h/2·w/2, 4c): for each channel its two lines of two.
fn pack(latents: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = latents.dims4()?;
    if h % 2 != 0 || w % 2 != 0 {
        return Err(Error::Unsupported(format!("latents of {w}x{h} cannot be cut into squares of 2x2")));
    }
    let split = latents.reshape(&[b, c, h / 2, 2, w / 2, 2])?;
    Ok(split.permute(vec![0, 2, 4, 1, 3, 5])?.reshape((b, h / 2 * (w / 2), 4 * c))?)
}

/// The inverse of [`pack`].
fn unpack(tokens: &Tensor, (h, w): (usize, usize)) -> Result<Tensor> {
    let (b, _, channels) = tokens.dims3()?;
    let split = tokens.reshape(&[b, h / 2, w / 2, channels / 4, 2, 2])?;
    Ok(split.permute(vec![0, 3, 1, 4, 2, 5])?.reshape((b, channels / 4, h, w))?)
}

#[cfg(test)]
mod tests;
