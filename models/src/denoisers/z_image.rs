//! Z-Image's transformer: text and picture in one stream, after a few layers of their own.
//!
//! Cai et al., "Z-Image: An Efficient Image Generation Foundation Model with Single-Stream Diffusion Transformer", 2025;
//! the reference is `ZImageTransformer2DModel` of diffusers (`models/transformers/transformer_z_image.py`).

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use easel_kernels::{Linear, Replay, RmsNorm, ada_layer_norm, silu, timestep_embedding};

use super::adapters::{AdapterPoints, Adapters};
use super::axes::Rotation;
use super::image_prompt::{ImagePrompt, ImagePrompts};
use super::z_image_block::{Block, Place, Step};
use super::z_image_config::ZImageConfig;
use crate::weights::{Tensors, linear};
use crate::{Error, Result};

/// Latent pixels a side that one token of the picture has.
const PATCH: usize = ZImageConfig::PATCH;

/// The patch's name in the keys of its layers: its side, and its length in time.
const PATCH_KEY: &str = "2-1";

/// Sequences are filled up to a multiple of this many tokens, with a learned token.
const MULTIPLE: usize = 32;

/// The widest embedding of the timestep.
const TIME_WIDTH: usize = 256;

/// Sinusoids of the timestep, the width inside of its embedding, and the longest wavelength; no configuration names them.
const SINUSOIDS: usize = 256;
const TIME_HIDDEN: usize = 1024;
const MAX_PERIOD: f64 = 10_000.0;

/// The epsilon of the last normalisation, which no configuration names.
const FINAL_EPS: f64 = 1e-6;

/// What a model call may carry beside its inputs; the default carries nothing.
#[derive(Clone, Default)]
pub struct ZImageHooks {
    /// A ControlNet's additions behind layers of the common stream, by the layer's number: (b, n + l, dim), for the picture
    /// and the text, both with their filling, as `ZImageControlNetModel` of diffusers makes them.
    pub residuals: BTreeMap<usize, Tensor>,
    /// What each row looks at beside its text. diffusers knows no adapters of Z-Image; the places are made after FLUX.1's:
    /// in each layer of the common stream the picture's queries, normalised and not yet turned to their positions, look at
    /// the prompts, and what they see is added behind the layer.
    pub pictures: ImagePrompts,
    /// Side paths of the projections.
    pub adapters: Adapters,
}

impl ZImageHooks {
    /// Whether nothing is carried.
    fn is_empty(&self) -> bool {
        self.residuals.is_empty() && self.pictures.is_empty() && self.adapters.is_empty()
    }
}

/// What changes from call to call: the latents (b, c, h, w), the embedded time (b, 256) and the text's tokens; and the
/// positions of picture and text.
type Inputs = ((Tensor, Tensor, Tensor), Rotation);

/// Z-Image's transformer.
pub struct ZImage {
    config: ZImageConfig,
    time: TimeEmbedding,
    picture_in: Linear,
    picture_pad: Tensor,
    picture_layers: Vec<Block>,
    text_norm: RmsNorm,
    text_in: Linear,
    text_pad: Tensor,
    text_layers: Vec<Block>,
    layers: Vec<Block>,
    last: LastLayer,
    points: AdapterPoints,
    replay: Replay,
}

/// A prompt after everything that does not depend on the step, for pictures of one size.
#[derive(Debug, Clone)]
pub struct ZImageCondition {
    /// The refined text, (1, l, dim), where l is a multiple of 32.
    text: Tensor,
    /// The positions of the picture and then of the text.
    rotation: Rotation,
}

impl ZImageCondition {
    /// Tokens of the text, filled up; conditions of one model call agree on them.
    ///
    /// # Errors
    /// Never, of a condition that [`ZImage::condition`] made.
    pub fn tokens(&self) -> Result<usize> {
        Ok(self.text.dim(1)?)
    }
}

impl ZImage {
    /// Builds the network; the weights have diffusers' names.
    ///
    /// # Errors
    /// Names the file and the key when a weight is missing or of another shape than the configuration asks for.
    pub fn new(config: &ZImageConfig, weights: &Tensors) -> Result<Self> {
        let ZImageConfig { dim, cap_feat_dim, in_channels, .. } = *config;
        let mut points = AdapterPoints::default();
        let mut blocks = |name: &str, count: usize, modulated: bool| -> Result<Vec<Block>> {
            let weights = weights.pp(name);
            (0..count).map(|at| Block::new(&weights.pp(at), config, modulated, &mut points)).collect()
        };
        let caption = weights.pp("cap_embedder");
        Ok(Self {
            time: TimeEmbedding::new(&weights.pp("t_embedder.mlp"), config)?,
            picture_in: linear(&weights.pp("all_x_embedder").pp(PATCH_KEY), PATCH * PATCH * in_channels, dim)?,
            picture_pad: weights.get("x_pad_token", &[1, dim])?,
            picture_layers: blocks("noise_refiner", config.n_refiner_layers, true)?,
            text_norm: RmsNorm::new(caption.get("0.weight", &[cap_feat_dim])?, config.norm_eps)?,
            text_in: linear(&caption.pp(1), cap_feat_dim, dim)?,
            text_pad: weights.get("cap_pad_token", &[1, dim])?,
            text_layers: blocks("context_refiner", config.n_refiner_layers, false)?,
            layers: blocks("layers", config.n_layers, true)?,
            last: LastLayer::new(&weights.pp("all_final_layer").pp(PATCH_KEY), config)?,
            config: config.clone(),
            points,
            replay: Replay::default(),
        })
    }

    /// The projections that adapters can hang on.
    pub fn adapter_points(&self) -> &AdapterPoints {
        &self.points
    }

    /// Refines the text for pictures whose latents are `height` by `width` pixels; once a prompt.
    ///
    /// `states` is (1, n, `cap_feat_dim`), padding left out.
    ///
    /// # Errors
    /// When the text or the picture is longer than the axes of the configuration, or a tensor operation fails.
    pub fn condition(
        &self,
        states: &Tensor,
        (height, width): (usize, usize),
        adapters: &Adapters,
    ) -> Result<ZImageCondition> {
        let count = states.dim(1)?;
        let length = count.next_multiple_of(MULTIPLE);
        let (rows, columns) = (height / PATCH, width / PATCH);
        let places = self.config.axes_lens[0];
        if length + 1 >= places {
            let message = format!("{count} tokens are too many; axes_lens of the transformer has {places} places");
            return Err(Error::Request { param: "prompt", message });
        }
        if height.max(width) > self.config.longest_side() {
            let message = format!("{rows}x{columns} tokens are more than axes_lens of the transformer has places for");
            return Err(Error::Request { param: "size", message });
        }
        // The text's tokens stand at 1, 2, …, its filling too; the picture behind them, its filling at the origin.
        let mut tokens: Vec<[usize; 3]> =
            (0..rows).flat_map(|row| (0..columns).map(move |column| [length + 1, row, column])).collect();
        tokens.resize(tokens.len().next_multiple_of(MULTIPLE), [0; 3]);
        let picture = tokens.len();
        tokens.extend((1..=length).map(|place| [place, 0, 0]));
        let rotation = self.config.axes().rotation(&tokens, states.device())?;

        let text = self.text_in.forward(&self.text_norm.forward(states)?)?; // (1, n, dim)
        let mut text = fill(&text, &self.text_pad, length)?; // (1, l, dim)
        let own = rotation.narrow(picture, length)?;
        for layer in &self.text_layers {
            text = layer.forward(&text, &Step { rotation: &own, time: None, place: None, adapters })?;
        }
        Ok(ZImageCondition { text, rotation })
    }

    /// Predicts the flow from noise to picture of each row, which is the negative of what samplers take.
    ///
    /// `latents` is (b, c, h, w) with even sides, `times` has one time a row from 0 (noise) to 1 (picture); the conditions
    /// are one a row, made for this size, of equally many tokens. Gives (b, c, h, w).
    ///
    /// # Errors
    /// When the conditions do not fit, or a tensor operation fails.
    pub fn forward(
        &self,
        latents: &Tensor,
        times: &[f64],
        conditions: &[&ZImageCondition],
        hooks: &ZImageHooks,
    ) -> Result<Tensor> {
        let b = latents.dim(0)?;
        hooks.pictures.check(b, self.layers.len(), ImagePrompt::places)?;
        if let Some((at, _)) = hooks.residuals.range(self.layers.len()..).next() {
            let message = format!("a residual is for layer {at}, but the network has {}", self.layers.len());
            return Err(Error::Unsupported(message));
        }
        let [first, ..] = conditions else { return Err(unfit(b, 0)) };
        if conditions.len() != b || times.len() != b {
            return Err(unfit(b, conditions.len()));
        }
        let time = self.time.forward(times, latents)?.to_dtype(first.text.dtype())?; // (b, 256)
        let texts = conditions.iter().map(|condition| &condition.text).collect::<Vec<_>>();
        let inputs = ((latents.clone(), time, Tensor::cat(&texts, 0)?), first.rotation.clone());
        match hooks.is_empty() {
            true => self.replay.call(&inputs, |inputs| self.predict(inputs, &ZImageHooks::default())),
            false => self.predict(&inputs, hooks),
        }
    }

    /// The network behind its time embedding.
    fn predict(&self, inputs: &Inputs, hooks: &ZImageHooks) -> Result<Tensor> {
        let ((latents, time, text), all_rotation) = inputs;
        let ZImageHooks { residuals, pictures, adapters } = hooks;
        let (b, c, h, w) = latents.dims4()?;
        let (rows, columns) = (h / PATCH, w / PATCH);
        let count = rows * columns;
        let dtype = text.dtype();

        let patches = latents
            .to_dtype(dtype)?
            .reshape(vec![b, c, rows, PATCH, columns, PATCH])?
            .permute(vec![0, 2, 4, 3, 5, 1])? // (b, rows, columns, 2, 2, c)
            .reshape((b, count, PATCH * PATCH * c))?;
        let length = count.next_multiple_of(MULTIPLE);
        let mut picture = fill(&self.picture_in.forward(&patches)?, &self.picture_pad, length)?; // (b, n, dim)
        let rotation = all_rotation.narrow(0, length)?;
        let step = Step { rotation: &rotation, time: Some(time), place: None, adapters };
        for layer in &self.picture_layers {
            picture = layer.forward(&picture, &step)?;
        }

        let mut all = Tensor::cat(&[&picture, text], 1)?; // (b, n + l, dim)
        for (at, layer) in self.layers.iter().enumerate() {
            let place = Some(Place { pictures, at, tokens: count });
            all = layer.forward(&all, &Step { rotation: all_rotation, time: Some(time), place, adapters })?;
            if let Some(residual) = residuals.get(&at) {
                all = (all + residual.to_dtype(dtype)?)?;
            }
        }
        let patches = self.last.forward(&all.narrow(1, 0, count)?.contiguous()?, time)?; // (b, rows*columns, 4c)
        let output = patches
            .reshape(vec![b, rows, columns, PATCH, PATCH, c])?
            .permute(vec![0, 5, 1, 3, 2, 4])? // (b, c, rows, 2, columns, 2)
            .reshape((b, c, h, w))?;
        Ok(output.to_dtype(latents.dtype())?)
    }
}

/// Fills a sequence (b, n, d) up to `length` with a learned token (1, d).
fn fill(x: &Tensor, token: &Tensor, length: usize) -> Result<Tensor> {
    let (b, n, d) = x.dims3()?;
    if n == length {
        return Ok(x.clone());
    }
    let filling = token.unsqueeze(0)?.broadcast_as((b, length - n, d))?;
    Ok(Tensor::cat(&[x, &filling.contiguous()?], 1)?)
}

fn unfit(rows: usize, conditions: usize) -> Error {
    Error::Unsupported(format!("{rows} rows of latents need as many times and conditions; {conditions} are there"))
}

/// Sinusoids and two linear layers, in f32 whatever the network's type: few values that every layer depends on.
struct TimeEmbedding {
    first: Linear,
    second: Linear,
    scale: f64,
}

impl TimeEmbedding {
    fn new(weights: &Tensors, config: &ZImageConfig) -> Result<Self> {
        let weights = weights.to_dtype(DType::F32);
        Ok(Self {
            first: linear(&weights.pp(0), SINUSOIDS, TIME_HIDDEN)?,
            second: linear(&weights.pp(2), TIME_HIDDEN, config.dim.min(TIME_WIDTH))?,
            scale: config.t_scale,
        })
    }

    /// (b, min(dim, 256)) in f32.
    fn forward(&self, times: &[f64], like: &Tensor) -> Result<Tensor> {
        // diffusers multiplies in f32.
        let scaled: Vec<f64> = times.iter().map(|&time| f64::from(time as f32 * self.scale as f32)).collect();
        let sinusoids = timestep_embedding(&scaled, SINUSOIDS, true, 0.0, MAX_PERIOD, like.device())?;
        Ok(self.second.forward(&silu(&self.first.forward(&sinusoids)?)?)?)
    }
}

/// From the stream to patches of latents.
struct LastLayer {
    linear: Linear,
    modulation: Linear,
}

impl LastLayer {
    fn new(weights: &Tensors, config: &ZImageConfig) -> Result<Self> {
        let ZImageConfig { dim, in_channels, .. } = *config;
        Ok(Self {
            linear: linear(&weights.pp("linear"), dim, PATCH * PATCH * in_channels)?,
            modulation: linear(&weights.pp("adaLN_modulation.1"), dim.min(TIME_WIDTH), dim)?,
        })
    }

    /// `x` (b, n, dim) and `time` (b, 256) to (b, n, 4c).
    fn forward(&self, x: &Tensor, time: &Tensor) -> Result<Tensor> {
        let scale = self.modulation.forward(&silu(time)?)?; // (b, dim)
        Ok(self.linear.forward(&ada_layer_norm(x, &scale, &scale.zeros_like()?, FINAL_EPS)?)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::denoisers::testing::{each_row_sees_its_own, image_prompt, noise, numbers, view, weights_for};

    const FILE: &str = "transformer/config.json";

    fn tiny() -> ZImage {
        let json = r#"{"dim": 12, "n_heads": 1, "axes_dims": [4, 4, 4], "axes_lens": [66, 8, 8], "n_layers": 1,
            "n_refiner_layers": 1, "in_channels": 3, "cap_feat_dim": 5}"#;
        let config = ZImageConfig::from_json(FILE, json).unwrap();
        let weights = weights_for(|weights| ZImage::new(&config, weights));
        ZImage::new(&config, &view(weights)).unwrap()
    }

    /// The condition of a prompt of so many tokens for latents of 4 by 6; every seed is another one.
    fn condition(network: &ZImage, tokens: usize, seed: u32) -> ZImageCondition {
        network.condition(&noise(&[1, tokens, 5], seed), (4, 6), &Adapters::default()).unwrap()
    }

    #[test]
    fn rows_of_one_length_share_a_call_and_nothing_else() {
        let (network, none) = (tiny(), ZImageHooks::default());
        let condition = |tokens: usize| condition(&network, tokens, tokens as u32);
        let (a, b) = (condition(3), condition(32));
        assert_eq!((a.tokens().unwrap(), b.tokens().unwrap()), (32, 32));
        let latents = noise(&[2, 3, 4, 6], 7);
        let both = network.forward(&latents, &[0.1, 0.7], &[&a, &b], &none).unwrap();
        let alone = network.forward(&latents.narrow(0, 1, 1).unwrap(), &[0.7], &[&b], &none).unwrap();
        assert_eq!(both.dims(), latents.dims());
        assert_eq!(numbers(&both.narrow(0, 1, 1).unwrap()), numbers(&alone));
    }

    #[test]
    fn each_row_looks_at_its_own_pictures() {
        let network = tiny();
        let conditions: Vec<_> = (0..3).map(|seed| condition(&network, 5, seed)).collect();
        each_row_sees_its_own(
            |seed, scale| image_prompt(1, 12, seed, scale),
            |first, count, pictures| {
                let latents = noise(&[3, 3, 4, 6], 7).narrow(0, first, count).unwrap();
                let conditions: Vec<_> = conditions[first..first + count].iter().collect();
                let hooks = ZImageHooks { pictures, ..ZImageHooks::default() };
                network.forward(&latents, &vec![0.3; count], &conditions, &hooks)
            },
        );
    }

    #[test]
    fn a_residual_is_added_behind_its_layer_and_there_must_be_one() {
        let (network, latents) = (tiny(), noise(&[1, 3, 4, 6], 7));
        let condition = condition(&network, 5, 1);
        let draw = |layer: usize, residual: Tensor| {
            let hooks = ZImageHooks { residuals: BTreeMap::from([(layer, residual)]), ..ZImageHooks::default() };
            network.forward(&latents, &[0.3], &[&condition], &hooks)
        };
        let without = network.forward(&latents, &[0.3], &[&condition], &ZImageHooks::default()).unwrap();
        // Behind the last layer only the picture's six tokens are looked at, so that the text's count for nothing.
        let residual = noise(&[1, 64, 12], 3);
        let zeros = residual.zeros_like().unwrap();
        assert_eq!(numbers(&draw(0, zeros.clone()).unwrap()), numbers(&without));
        assert_ne!(numbers(&draw(0, residual.clone()).unwrap()), numbers(&without));
        let late = Tensor::cat(&[zeros.narrow(1, 0, 6).unwrap(), residual.narrow(1, 6, 58).unwrap()], 1).unwrap();
        assert_eq!(numbers(&draw(0, late).unwrap()), numbers(&without));
        let error = draw(1, residual).unwrap_err().to_string();
        assert_eq!(error, "a residual is for layer 1, but the network has 1");
    }

    #[test]
    fn what_there_are_no_places_for_is_refused() {
        let (network, none) = (tiny(), Adapters::default());
        let told = |tokens: usize, size| {
            let states = Tensor::zeros((1, tokens, 5), DType::F32, &Device::Cpu).unwrap();
            network.condition(&states, size, &none).map(|_| ()).unwrap_err().to_string()
        };
        network.condition(&noise(&[1, 64, 5], 1), (16, 16), &none).unwrap();
        assert!(told(65, (4, 4)).starts_with("prompt: 65 tokens are too many"));
        assert!(told(1, (18, 4)).starts_with("size: 9x2 tokens are more than"));
    }
}
