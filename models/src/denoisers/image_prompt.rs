//! Pictures that a network looks at beside its text: the places of image prompt adapters, and what hangs there.
//!
//! Ye et al., "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models", 2023. An adapter makes
//! a picture's embedding into tokens, and has keys and values of its own for them at certain attentions of the network: the
//! network's places, numbered in its order. Like a side path (`adapters.rs`) an image prompt is an argument of a call, and
//! every row has its own.

use std::sync::Arc;

use candle_core::Tensor;
use easel_kernels::{LayerNorm, Linear, attention};

use crate::weights::{Tensors, layer_norm, linear};
use crate::{Error, Result};

/// The epsilon of the tokens' normalisation, which no configuration names.
const EPS: f64 = 1e-5;

/// The image prompts of one model call: each row's own, of which there may be none or several, which add up.
///
/// `P` is what one of them is to the network: an [`ImagePrompt`], or Stable Diffusion 3's `Sd3ImagePrompt`.
#[derive(Debug, Clone)]
pub struct ImagePrompts<P = ImagePrompt> {
    /// What each row has; empty where no row has any.
    rows: Vec<Vec<P>>,
}

impl<P> Default for ImagePrompts<P> {
    fn default() -> Self {
        Self { rows: Vec::new() }
    }
}

impl<P> ImagePrompts<P> {
    /// The prompts of a call whose row i looks at `rows[i]`, so that requests with different pictures, and with none, share
    /// a model call.
    pub fn by_row(rows: Vec<Vec<P>>) -> Self {
        if rows.iter().all(Vec::is_empty) { Self::default() } else { Self { rows } }
    }

    /// Whether no row has any.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Refuses prompts for another number of rows than the call has, or for networks with other places: `places` counts a
    /// prompt's.
    pub(crate) fn check(&self, rows: usize, wanted: usize, places: impl Fn(&P) -> usize) -> Result<()> {
        if !self.rows.is_empty() && self.rows.len() != rows {
            let message = format!("there are image prompts for {} rows, but {rows} rows in the call", self.rows.len());
            return Err(Error::Unsupported(message));
        }
        match self.rows.iter().flatten().map(places).find(|&found| found != wanted) {
            None => Ok(()),
            Some(found) => Err(Error::Unsupported(format!(
                "an image prompt has {found} layers; the network has places for {wanted}"
            ))),
        }
    }

    /// What each of the prompts becomes, told its row; `None` leaves it out.
    pub(crate) fn each<Q>(&self, to: impl Fn(usize, &P) -> Result<Option<Q>>) -> Result<ImagePrompts<Q>> {
        let row =
            |(at, prompts): (usize, &Vec<P>)| prompts.iter().filter_map(|prompt| to(at, prompt).transpose()).collect();
        Ok(ImagePrompts::by_row(self.rows.iter().enumerate().map(row).collect::<Result<_>>()?))
    }

    /// `x` (b, ..) with what `seen` gives for each row and each of its prompts, (1, ..); a row without stays as it is, to
    /// the last bit.
    pub(crate) fn add(&self, x: Tensor, seen: impl Fn(usize, &P) -> Result<Option<Tensor>>) -> Result<Tensor> {
        if self.rows.is_empty() {
            return Ok(x);
        }
        let part = |(row, prompts): (usize, &Vec<P>)| {
            let mut part = x.narrow(0, row, 1)?;
            for prompt in prompts {
                if let Some(seen) = seen(row, prompt)? {
                    part = (part + seen)?;
                }
            }
            Ok(part)
        };
        Ok(Tensor::cat(&self.rows.iter().enumerate().map(part).collect::<Result<Vec<_>>>()?, 0)?)
    }
}

impl ImagePrompts {
    /// `x` (b, n, width) with what its `queries`, (b, n, width), see of each row's pictures at place `at`.
    pub(crate) fn look(&self, at: usize, x: Tensor, queries: &Tensor, heads: usize) -> Result<Tensor> {
        self.look_by(at, x, queries, |queries, keys, values| Ok(attention(queries, keys, values, heads, None)?))
    }

    /// [`Self::look`] with the network's own attention of queries to keys and values.
    pub(crate) fn look_by(
        &self,
        at: usize,
        x: Tensor,
        queries: &Tensor,
        attend: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.add(x, |row, prompt| {
            let Some((keys, values)) = prompt.place(at) else { return Ok(None) };
            let queries = queries.narrow(0, row, 1)?.contiguous()?;
            Ok(Some(attend(&queries, &keys.to_dtype(queries.dtype())?, &values.to_dtype(queries.dtype())?)?))
        })
    }
}

/// What an adapter hangs on one place: its own keys and values of a picture's tokens.
#[derive(Debug, Clone)]
pub struct ImageProjection {
    /// Tokens to keys.
    pub to_k: Linear,
    /// Tokens to values.
    pub to_v: Linear,
}

/// A picture as a network sees it at each of its places: keys and values, which do not change from step to step.
#[derive(Debug, Clone)]
pub struct ImagePrompt {
    /// (1, t, width) each; `None` where the picture does not count.
    places: Arc<[Option<(Tensor, Tensor)>]>,
}

impl ImagePrompt {
    /// Binds a picture's tokens, (1, t, d) in the layers' type, to an adapter's `layers`, one for each place of the network
    /// in their order. `scales` tells how much the picture counts at each; at 0 it is not looked at.
    ///
    /// # Errors
    /// When there are not as many scales as layers, or the tokens do not fit the layers.
    pub fn new(tokens: &Tensor, layers: &[ImageProjection], scales: &[f64]) -> Result<Self> {
        let (rows, found, wanted) = (tokens.dim(0)?, scales.len(), layers.len());
        if (rows, found) != (1, wanted) {
            return Err(Error::Unsupported(format!(
                "an image prompt of {wanted} layers needs as many scales and one row of tokens; {found} scales and {rows} \
                 rows are there"
            )));
        }
        let place = |(layer, &scale): (&ImageProjection, &f64)| {
            if scale == 0.0 {
                return Ok(None);
            }
            // What attention gives is linear in the values, so the scale may be theirs.
            Ok(Some((layer.to_k.forward(tokens)?, (layer.to_v.forward(tokens)? * scale)?)))
        };
        Ok(Self { places: layers.iter().zip(scales).map(place).collect::<Result<_>>()? })
    }

    /// How many places the picture was bound to.
    pub(crate) fn places(&self) -> usize {
        self.places.len()
    }

    /// Keys and values at a place, (1, t, width) each.
    pub(crate) fn place(&self, at: usize) -> Option<(&Tensor, &Tensor)> {
        self.places.get(at)?.as_ref().map(|(keys, values)| (keys, values))
    }
}

/// Makes pictures' embeddings into tokens, as `ImageProjection` of diffusers (`models/embeddings.py`) does.
pub struct ImageTokens {
    linear: Linear,
    norm: LayerNorm,
    count: usize,
}

impl ImageTokens {
    /// Builds the layers from `image_embeds` and `norm`: an embedding of `embed` numbers becomes `count` tokens of `width`.
    ///
    /// # Errors
    /// Names the file and the key when a weight is missing or of another shape.
    pub fn new(weights: &Tensors, embed: usize, width: usize, count: usize) -> Result<Self> {
        let linear = linear(&weights.pp("image_embeds"), embed, count * width)?;
        Ok(Self { linear, norm: layer_norm(&weights.pp("norm"), width, EPS)?, count })
    }

    /// The embeddings of the pictures of one prompt, (k, embed), to their tokens, (1, k·count, width).
    ///
    /// # Errors
    /// When the embeddings are of another size or type than the weights.
    pub fn forward(&self, embeddings: &Tensor) -> Result<Tensor> {
        let pictures = embeddings.dim(0)?;
        let width = self.linear.out_features() / self.count;
        Ok(self.norm.forward(&self.linear.forward(embeddings)?.reshape((1, pictures * self.count, width))?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denoisers::testing::{image_prompt, noise, numbers, view, weights_for};

    #[test]
    fn a_picture_counts_by_its_scale_at_each_place() {
        let (x, queries) = (noise(&[1, 4, 6], 1), noise(&[1, 4, 6], 2));
        let look = |prompt: &ImagePrompt, at: usize| {
            let prompts = ImagePrompts::by_row(vec![vec![prompt.clone()]]);
            let seen = prompts.look(at, x.clone(), &queries, 2).unwrap();
            (seen - &x).unwrap()
        };
        let [whole, half] = [1.0, 0.5].map(|scale| image_prompt(2, 6, 3, scale));
        for at in 0..2 {
            let twice = (look(&half, at) * 2.0).unwrap();
            let error = numbers(&(twice - look(&whole, at)).unwrap()).into_iter().map(f32::abs).fold(0.0, f32::max);
            assert!(error < 1e-5, "place {at}: {error}");
        }
        assert_ne!(numbers(&look(&whole, 0)), numbers(&look(&whole, 1)));
        let layers = [5, 6].map(|seed| {
            let linear = |seed| Linear::new(noise(&[6, 3], seed), None).unwrap();
            ImageProjection { to_k: linear(seed), to_v: linear(seed + 10) }
        });
        let tokens = noise(&[1, 3, 3], 3);
        let second = ImagePrompt::new(&tokens, &layers, &[0.0, 1.0]).unwrap();
        assert!(second.place(0).is_none() && second.place(1).is_some());
        assert!(ImagePrompt::new(&tokens, &layers, &[1.0]).is_err());
        assert!(ImagePrompt::new(&noise(&[2, 3, 3], 3), &layers, &[1.0, 1.0]).is_err());
    }

    #[test]
    fn the_pictures_of_one_prompt_give_their_tokens_one_after_the_other() {
        let build = |weights: &Tensors| ImageTokens::new(weights, 7, 6, 4);
        let tokens = build(&view(weights_for(build))).unwrap();
        let embeddings = noise(&[2, 7], 1);
        let both = tokens.forward(&embeddings).unwrap();
        assert_eq!(both.dims(), [1, 8, 6]);
        for picture in 0..2 {
            let alone = tokens.forward(&embeddings.narrow(0, picture, 1).unwrap()).unwrap();
            assert_eq!(numbers(&both.narrow(1, 4 * picture, 4).unwrap()), numbers(&alone));
        }
    }
}
