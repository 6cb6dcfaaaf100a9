//! The blocks of Stable Diffusion 3's transformer.

use candle_core::{D, Tensor};
use easel_kernels::{LayerNorm, Linear, RmsNorm, ada_layer_norm, attention, gated_add, gelu_tanh};

use super::adapters::{AdapterPoints, Adapters, Projection};
use super::image_prompt::ImagePrompts;
use super::sd3_config::{QkNorm, Sd3Config};
use super::sd3_image_prompt::Sd3Picture;
use crate::weights::{Tensors, layer_norm, linear};
use crate::{Error, Result};

/// Added to the variance in every normalisation; no configuration names it.
pub(super) const EPS: f64 = 1e-6;

/// The inner width of the feed-forward layers, in widths of the tokens.
const FEED_FORWARD: usize = 4;

/// What every block of one model call sees beside the tokens.
pub(super) struct Step<'a> {
    /// The activated embedding of timestep and pooled text, (b, width).
    pub(super) embedding: &'a Tensor,
    pub(super) pictures: &'a ImagePrompts<Sd3Picture>,
    pub(super) adapters: &'a Adapters,
}

impl Step<'_> {
    /// `seen` (b, n, width) with what place `at` adds to it for each row's pictures; `raw` are the queries, keys and values
    /// of the picture's tokens, (b, n, width) each, not yet normalised.
    fn look(&self, at: usize, seen: Tensor, raw: &[Tensor; 3], heads: usize) -> Result<Tensor> {
        self.pictures.add(seen, |row, picture| {
            let [q, k, v] = raw;
            let of = |x: &Tensor| -> Result<Tensor> { Ok(x.narrow(0, row, 1)?.contiguous()?) };
            Ok(Some(picture.look(at, [of(q)?, of(k)?, of(v)?], heads)?))
        })
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
pub(super) struct LastNorm {
    linear: Linear,
    width: usize,
}

impl LastNorm {
    pub(super) fn new(weights: &Tensors, width: usize) -> Result<Self> {
        Ok(Self { linear: linear(&weights.pp("linear"), width, 2 * width)?, width })
    }

    /// `x` (b, n, width), `embedding` (b, width).
    pub(super) fn forward(&self, x: &Tensor, embedding: &Tensor) -> Result<Tensor> {
        let both = self.linear.forward(embedding)?; // (b, 2 · width)
        let (scale, shift) = (both.narrow(D::Minus1, 0, self.width)?, both.narrow(D::Minus1, self.width, self.width)?);
        Ok(ada_layer_norm(x, &scale.contiguous()?, &shift.contiguous()?, EPS)?)
    }
}

/// One joint block.
pub(super) struct Block {
    norm: Modulation,
    image: Stream,
    /// The picture's second attention, to itself alone.
    dual: Option<Stream>,
    feed_forward: FeedForward,
    text: Stream,
    text_side: TextSide,
    heads: usize,
    /// The number of the block's first place for image prompts.
    place: usize,
}

/// What becomes of the text's tokens.
enum TextSide {
    /// They go on as the picture's do.
    Kept { norm: Modulation, feed_forward: Box<FeedForward> },
    /// Nobody looks at them after the last block.
    Last { norm: LastNorm },
}

impl Block {
    pub(super) fn new(config: &Sd3Config, at: usize, weights: &Tensors, points: &mut AdapterPoints) -> Result<Self> {
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
            place: config.attentions_before(at),
        })
    }

    /// The picture's tokens (b, n, width) and the text's (b, l, width) to the same.
    pub(super) fn forward(&self, image: &Tensor, text: &Tensor, step: &Step) -> Result<(Tensor, Tensor)> {
        let Step { embedding, adapters, .. } = *step;
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

        let (seen, seen_text) = self.attend(&normed, &normed_text, step)?;
        let mut x = first.add(image, &seen)?;
        if let Some(dual) = &self.dual {
            let raw = dual.project(&halves[2].norm(image)?, adapters)?;
            let [q, k, v] = dual.norm(&raw)?;
            let seen = attention(&q, &k, &v, self.heads, None)?;
            let seen = step.look(self.place + 1, seen, &raw, self.heads)?;
            x = halves[2].add(&x, &dual.finish(&seen, adapters)?)?;
        }
        let x = second.add(&x, &self.feed_forward.forward(&second.norm(&x)?, adapters)?)?;

        let TextSide::Kept { feed_forward, .. } = &self.text_side else { return Ok((x, text.clone())) };
        let (first, second) = (&text_halves[0], &text_halves[1]);
        let text = first.add(text, &seen_text)?;
        let text = second.add(&text, &feed_forward.forward(&second.norm(&text)?, adapters)?)?;
        Ok((x, text))
    }

    /// Both streams attend to both: what the picture's tokens, (b, n, width), and the text's, (b, l, width), see.
    fn attend(&self, image: &Tensor, text: &Tensor, step: &Step) -> Result<(Tensor, Tensor)> {
        let (length, text_length, adapters) = (image.dim(1)?, text.dim(1)?, step.adapters);
        let raw = self.image.project(image, adapters)?;
        let [q, k, v] = self.image.norm(&raw)?;
        let [text_q, text_k, text_v] = self.text.norm(&self.text.project(text, adapters)?)?;
        let both = |image: Tensor, text: Tensor| Tensor::cat(&[image, text], 1); // (b, n + l, width)
        let seen = attention(&both(q, text_q)?, &both(k, text_k)?, &both(v, text_v)?, self.heads, None)?;
        let image = step.look(self.place, seen.narrow(1, 0, length)?.contiguous()?, &raw, self.heads)?;
        let image = self.image.finish(&image, adapters)?;
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

    /// Queries, keys and values, (b, n, width) each, not yet normalised.
    fn project(&self, x: &Tensor, adapters: &Adapters) -> Result<[Tensor; 3]> {
        let [q, k, v] = &self.projections;
        Ok([q.forward(x, adapters)?, k.forward(x, adapters)?, v.forward(x, adapters)?])
    }

    /// The same, normalised.
    fn norm(&self, [q, k, v]: &[Tensor; 3]) -> Result<[Tensor; 3]> {
        match &self.norms {
            None => Ok([q.clone(), k.clone(), v.clone()]),
            Some([norm_q, norm_k]) => Ok([norm_q.forward(q)?, norm_k.forward(k)?, v.clone()]),
        }
    }

    /// The stream's share of what the attention gave.
    fn finish(&self, x: &Tensor, adapters: &Adapters) -> Result<Tensor> {
        self.out.as_ref().map_or(Ok(x.clone()), |out| out.forward(x, adapters))
    }
}

/// The normalisation of each head's queries or keys.
pub(super) enum HeadNorm {
    Rms(RmsNorm, usize),
    Layer(LayerNorm, usize),
}

impl HeadNorm {
    pub(super) fn new(kind: QkNorm, weights: &Tensors, head: usize) -> Result<Self> {
        Ok(match kind {
            QkNorm::RmsNorm => Self::Rms(RmsNorm::new(weights.get("weight", &[head])?, EPS)?, head),
            QkNorm::LayerNorm => Self::Layer(layer_norm(weights, head, EPS)?, head),
        })
    }

    /// (b, n, width) to the same, head by head.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
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
