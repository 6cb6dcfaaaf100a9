//! The transformer of Stable Diffusion 3: text and picture in two streams that attend to each other.
//!
//! Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024, figure 2, with 3.5's
//! normalised queries and keys and second attention; layout and behaviour are those of `SD3Transformer2DModel` of
//! diffusers.

use candle_core::{D, DType, Tensor};
use easel_kernels::{
    Conv2d, Conv2dConfig, LayerNorm, Linear, Padding, RmsNorm, ada_layer_norm, attention, gated_add, gelu_tanh, silu,
};

use super::activation::Activation;
use super::adapters::{AdapterPoints, Adapters, Projection};
use super::sd3_config::{QkNorm, Sd3Config};
use super::time_embedding::{Mlp, Sinusoids};
use crate::weights::{Tensors, conv2d, layer_norm, linear};
use crate::{Error, Result};

/// Added to the variance in every normalisation; no configuration names it.
const EPS: f64 = 1e-6;

/// Channels of the sinusoids that a timestep becomes; no configuration names them.
const SINUSOIDS: Sinusoids = Sinusoids { dim: 256, flip_sin_to_cos: true, freq_shift: 0.0 };

/// The inner width of the feed-forward layers, in widths of the tokens.
const FEED_FORWARD: usize = 4;

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
    /// Side paths of the projections.
    pub adapters: Adapters,
}

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
        let x = latents.to_dtype(self.dtype)?.permute((0, 2, 3, 1))?.contiguous()?; // (b, h, w, c)
        let x = self.patches.forward(&x)?; // (b, h/p, w/p, width)
        let (_, high, wide, width) = x.dims4()?;
        let x = x.broadcast_add(&self.places(high, wide)?)?;
        let mut x = x.reshape((rows, high * wide, width))?; // (b, n, width)
        let mut context = condition.context.clone();

        // Every block activates the conditioning before it projects it.
        let time = self.time.forward(&SINUSOIDS.forward(timesteps, latents)?)?;
        let embedding = silu(&(time + &condition.pooled)?)?.to_dtype(self.dtype)?; // (b, width)

        for (at, block) in self.blocks.iter().enumerate() {
            (x, context) = block.forward(&x, &context, &embedding, &hooks.adapters)?;
            // As many blocks to each residual, shared out in floating point as diffusers does it.
            let each = self.blocks.len() as f64 / hooks.residuals.len() as f64;
            if let Some(residual) = hooks.residuals.get((at as f64 / each) as usize)
                && at + 1 < self.blocks.len()
            {
                x = (x + residual.to_dtype(self.dtype)?)?;
            }
        }
        let x = self.proj_out.forward(&self.norm_out.forward(&x, &embedding)?)?; // (b, n, p·p·out)
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

/// What the conditioning does to one half of a block: before it, to the normalised input, and after it.
struct Shift {
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
}

impl Shift {
    /// The half's input of `x`, (b, n, width).
    fn norm(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ada_layer_norm(x, &self.scale, &self.shift, EPS)?)
    }

    /// `x` with the half's result `y`.
    fn add(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        Ok(gated_add(x, &self.gate, y)?)
    }
}

/// A linear layer from the activated conditioning to a shift, a scale and a gate for each half of a block.
struct Modulation {
    linear: Linear,
    width: usize,
}

impl Modulation {
    fn new(weights: &Tensors, width: usize, halves: usize) -> Result<Self> {
        Ok(Self { linear: linear(&weights.pp("linear"), width, 3 * halves * width)?, width })
    }

    /// (b, width) to one [`Shift`] a half.
    fn forward(&self, embedding: &Tensor) -> Result<Vec<Shift>> {
        let all = self.linear.forward(embedding)?; // (b, 3 · halves · width)
        let part = |at: usize| all.narrow(D::Minus1, at * self.width, self.width)?.contiguous();
        let halves = self.linear.out_features() / (3 * self.width);
        let half = |at: usize| Ok(Shift { shift: part(3 * at)?, scale: part(3 * at + 1)?, gate: part(3 * at + 2)? });
        (0..halves).map(half).collect()
    }
}

/// A normalisation whose scale and shift the conditioning gives, in this order.
struct LastNorm {
    linear: Linear,
    width: usize,
}

impl LastNorm {
    fn new(weights: &Tensors, width: usize) -> Result<Self> {
        Ok(Self { linear: linear(&weights.pp("linear"), width, 2 * width)?, width })
    }

    /// `x` (b, n, width), `embedding` (b, width).
    fn forward(&self, x: &Tensor, embedding: &Tensor) -> Result<Tensor> {
        let both = self.linear.forward(embedding)?; // (b, 2 · width)
        let (scale, shift) = (both.narrow(D::Minus1, 0, self.width)?, both.narrow(D::Minus1, self.width, self.width)?);
        Ok(ada_layer_norm(x, &scale.contiguous()?, &shift.contiguous()?, EPS)?)
    }
}

/// One joint block.
struct Block {
    norm: Modulation,
    image: Stream,
    /// The picture's second attention, to itself alone.
    dual: Option<Stream>,
    feed_forward: FeedForward,
    text: Stream,
    text_side: TextSide,
    heads: usize,
}

/// What becomes of the text's tokens.
enum TextSide {
    /// They go on as the picture's do.
    Kept { norm: Modulation, feed_forward: Box<FeedForward> },
    /// Nobody looks at them after the last block.
    Last { norm: LastNorm },
}

impl Block {
    fn new(config: &Sd3Config, at: usize, weights: &Tensors, points: &mut AdapterPoints) -> Result<Self> {
        let (width, joint) = (config.width(), weights.pp("attn"));
        let (dual, last) = (config.dual_attention_layers.contains(&at), at + 1 == config.num_layers);
        let text_norm = weights.pp("norm1_context");
        Ok(Self {
            norm: Modulation::new(&weights.pp("norm1"), width, if dual { 3 } else { 2 })?,
            image: Stream::new(config, &joint, &IMAGE, true, points)?,
            dual: dual.then(|| Stream::new(config, &weights.pp("attn2"), &IMAGE, true, points)).transpose()?,
            feed_forward: FeedForward::new(&weights.pp("ff"), width, points)?,
            text: Stream::new(config, &joint, &TEXT, !last, points)?,
            text_side: if last {
                TextSide::Last { norm: LastNorm::new(&text_norm, width)? }
            } else {
                TextSide::Kept {
                    norm: Modulation::new(&text_norm, width, 2)?,
                    feed_forward: Box::new(FeedForward::new(&weights.pp("ff_context"), width, points)?),
                }
            },
            heads: config.num_attention_heads,
        })
    }

    /// The picture's tokens (b, n, width) and the text's (b, l, width) to the same.
    fn forward(
        &self,
        image: &Tensor,
        text: &Tensor,
        embedding: &Tensor,
        adapters: &Adapters,
    ) -> Result<(Tensor, Tensor)> {
        let halves = self.norm.forward(embedding)?;
        let (first, second) = (&halves[0], &halves[1]);
        let normed = first.norm(image)?;
        let text_halves = match &self.text_side {
            TextSide::Kept { norm, .. } => norm.forward(embedding)?,
            TextSide::Last { .. } => Vec::new(),
        };
        let normed_text = match &self.text_side {
            TextSide::Kept { .. } => text_halves[0].norm(text)?,
            TextSide::Last { norm } => norm.forward(text, embedding)?,
        };

        let (seen, seen_text) = self.attend(&normed, &normed_text, adapters)?;
        let mut x = first.add(image, &seen)?;
        if let Some(dual) = &self.dual {
            let [q, k, v] = dual.project(&halves[2].norm(image)?, adapters)?;
            x = halves[2].add(&x, &dual.finish(&attention(&q, &k, &v, self.heads, None)?, adapters)?)?;
        }
        let x = second.add(&x, &self.feed_forward.forward(&second.norm(&x)?, adapters)?)?;

        let TextSide::Kept { feed_forward, .. } = &self.text_side else { return Ok((x, text.clone())) };
        let (first, second) = (&text_halves[0], &text_halves[1]);
        let text = first.add(text, &seen_text)?;
        let text = second.add(&text, &feed_forward.forward(&second.norm(&text)?, adapters)?)?;
        Ok((x, text))
    }

    /// Both streams attend to both: what the picture's tokens, (b, n, width), and the text's, (b, l, width), see.
    fn attend(&self, image: &Tensor, text: &Tensor, adapters: &Adapters) -> Result<(Tensor, Tensor)> {
        let (length, text_length) = (image.dim(1)?, text.dim(1)?);
        let [q, k, v] = self.image.project(image, adapters)?;
        let [text_q, text_k, text_v] = self.text.project(text, adapters)?;
        let both = |image: Tensor, text: Tensor| Tensor::cat(&[image, text], 1); // (b, n + l, width)
        let seen = attention(&both(q, text_q)?, &both(k, text_k)?, &both(v, text_v)?, self.heads, None)?;
        let image = self.image.finish(&seen.narrow(1, 0, length)?.contiguous()?, adapters)?;
        Ok((image, self.text.finish(&seen.narrow(1, length, text_length)?.contiguous()?, adapters)?))
    }
}

/// What the layers of a stream are called.
struct Names {
    projections: [&'static str; 3],
    norms: [&'static str; 2],
    out: &'static str,
}

/// The picture's stream.
const IMAGE: Names = Names { projections: ["to_q", "to_k", "to_v"], norms: ["norm_q", "norm_k"], out: "to_out.0" };

/// The text's stream.
const TEXT: Names = Names {
    projections: ["add_q_proj", "add_k_proj", "add_v_proj"],
    norms: ["norm_added_q", "norm_added_k"],
    out: "to_add_out",
};

/// The layers of an attention that one kind of tokens goes through.
struct Stream {
    projections: [Projection; 3],
    /// The normalisations of queries and keys.
    norms: Option<[HeadNorm; 2]>,
    /// Absent where nobody looks at the result.
    out: Option<Projection>,
}

impl Stream {
    fn new(
        config: &Sd3Config,
        weights: &Tensors,
        names: &Names,
        out: bool,
        points: &mut AdapterPoints,
    ) -> Result<Self> {
        let width = config.width();
        let mut project = |name: &str| -> Result<Projection> {
            let weights = weights.pp(name);
            Ok(Projection::new(linear(&weights, width, width)?, &weights, points))
        };
        let [q, k, v] = names.projections;
        let norm = |kind, name: &str| HeadNorm::new(kind, &weights.pp(name), config.attention_head_dim);
        let [norm_q, norm_k] = names.norms;
        Ok(Self {
            projections: [project(q)?, project(k)?, project(v)?],
            out: out.then(|| project(names.out)).transpose()?,
            norms: config.qk_norm.map(|kind| Ok::<_, Error>([norm(kind, norm_q)?, norm(kind, norm_k)?])).transpose()?,
        })
    }

    /// Queries, keys and values, (b, n, width) each.
    fn project(&self, x: &Tensor, adapters: &Adapters) -> Result<[Tensor; 3]> {
        let [q, k, v] = &self.projections;
        let [q, k, v] = [q.forward(x, adapters)?, k.forward(x, adapters)?, v.forward(x, adapters)?];
        match &self.norms {
            None => Ok([q, k, v]),
            Some([norm_q, norm_k]) => Ok([norm_q.forward(&q)?, norm_k.forward(&k)?, v]),
        }
    }

    /// The stream's share of what the attention gave.
    fn finish(&self, x: &Tensor, adapters: &Adapters) -> Result<Tensor> {
        self.out.as_ref().map_or(Ok(x.clone()), |out| out.forward(x, adapters))
    }
}

/// The normalisation of each head's queries or keys.
enum HeadNorm {
    Rms(RmsNorm, usize),
    Layer(LayerNorm, usize),
}

impl HeadNorm {
    fn new(kind: QkNorm, weights: &Tensors, head: usize) -> Result<Self> {
        Ok(match kind {
            QkNorm::RmsNorm => Self::Rms(RmsNorm::new(weights.get("weight", &[head])?, EPS)?, head),
            QkNorm::LayerNorm => Self::Layer(layer_norm(weights, head, EPS)?, head),
        })
    }

    /// (b, n, width) to the same, head by head.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, length, width) = x.dims3()?;
        let heads = |head: &usize| x.reshape((rows, length, width / head, *head));
        let normed = match self {
            Self::Rms(norm, head) => norm.forward(&heads(head)?)?,
            Self::Layer(norm, head) => norm.forward(&heads(head)?)?,
        };
        Ok(normed.reshape((rows, length, width))?)
    }
}

/// Two linear layers with a GELU between them.
struct FeedForward {
    first: Projection,
    second: Projection,
}

impl FeedForward {
    fn new(weights: &Tensors, width: usize, points: &mut AdapterPoints) -> Result<Self> {
        let (first, second) = (weights.pp("net.0.proj"), weights.pp("net.2"));
        let inner = FEED_FORWARD * width;
        Ok(Self {
            first: Projection::new(linear(&first, width, inner)?, &first, points),
            second: Projection::new(linear(&second, inner, width)?, &second, points),
        })
    }

    /// (b, n, width) to the same.
    fn forward(&self, x: &Tensor, adapters: &Adapters) -> Result<Tensor> {
        self.second.forward(&gelu_tanh(&self.first.forward(x, adapters)?)?, adapters)
    }
}

#[cfg(test)]
mod tests;
