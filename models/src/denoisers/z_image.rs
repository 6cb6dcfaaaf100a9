//! Z-Image's transformer: text and picture in one stream, after a few layers of their own.
//!
//! Cai et al., "Z-Image: An Efficient Image Generation Foundation Model with Single-Stream Diffusion Transformer", 2025;
//! the reference is `ZImageTransformer2DModel` of diffusers (`models/transformers/transformer_z_image.py`).

use candle_core::{DType, Tensor};
use easel_kernels::{Linear, RmsNorm, ada_layer_norm, silu, timestep_embedding};
use serde::Deserialize;

use super::adapters::{AdapterPoints, Adapters};
use super::axes::{Angles, Axes, Rotation};
use super::config::{Neutral, check, parse};
use super::z_image_block::{Block, Step};
use crate::weights::{Tensors, linear};
use crate::{Error, Result};

/// Latent pixels a side that one token of the picture has; diffusers' pipelines ask for no other.
const PATCH: usize = 2;

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

/// `transformer/config.json` of a Z-Image repository: every size comes from here, absent keys have diffusers' defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct ZImageConfig {
    /// Sides of the patches that there are layers for.
    pub all_patch_size: Vec<usize>,
    /// Lengths in time of those patches.
    pub all_f_patch_size: Vec<usize>,
    /// Channels of the latents.
    pub in_channels: usize,
    /// The width of the stream.
    pub dim: usize,
    /// Layers of the common stream.
    pub n_layers: usize,
    /// Layers of each stream before they meet.
    pub n_refiner_layers: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Added to the mean square in normalisations.
    pub norm_eps: f64,
    /// Whether queries and keys are normalised.
    pub qk_norm: bool,
    /// The width of the text states.
    pub cap_feat_dim: usize,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// What the time from 0 to 1 is multiplied by.
    pub t_scale: f64,
    /// Channels of a head that turn with the place in the text, the row and the column.
    pub axes_dims: Vec<usize>,
    /// How many places each axis has.
    pub axes_lens: Vec<usize>,
}

impl Default for ZImageConfig {
    fn default() -> Self {
        Self {
            all_patch_size: vec![2],
            all_f_patch_size: vec![1],
            in_channels: 16,
            dim: 3840,
            n_layers: 30,
            n_refiner_layers: 2,
            n_heads: 30,
            norm_eps: 1e-5,
            qk_norm: true,
            cap_feat_dim: 2560,
            rope_theta: 256.0,
            t_scale: 1000.0,
            axes_dims: vec![32, 48, 48],
            axes_lens: vec![1024, 512, 512],
        }
    }
}

// The layers for pictures that are looked at (Z-Image-Omni) are refused; diffusers itself has no use for `n_kv_heads`.
const NEUTRAL: &[Neutral] = &[("_class_name", &["\"ZImageTransformer2DModel\""]), ("siglip_feat_dim", &["null"])];

impl ZImageConfig {
    /// Latent pixels a side that one token of the picture has.
    pub const PATCH: usize = PATCH;

    /// Reads the configuration of a transformer; `file` is its name in errors.
    ///
    /// # Errors
    /// Names the file and the key when a value is of a wrong type, unsupported or contradicts another.
    pub fn from_json(file: &str, json: &str) -> Result<Self> {
        let config: Self = parse(file, json, NEUTRAL)?;
        config.check(file)?;
        Ok(config)
    }

    fn check(&self, file: &str) -> Result<()> {
        let check = |key: &str, right: bool, message: String| check(file, key, right, message);
        let patches = || self.all_patch_size.iter().zip(&self.all_f_patch_size);
        let message = format!("{:?} has no patch of 2x2 pixels and one frame (all_f_patch_size)", self.all_patch_size);
        check("all_patch_size", patches().any(|patch| patch == (&PATCH, &1)), message)?;
        let (dim, heads) = (self.dim, self.n_heads);
        check("n_heads", heads > 0 && dim % heads == 0, format!("{heads} heads cannot share dim {dim}"))?;
        let (axes, channels) = (&self.axes_dims, dim / heads);
        let fits = axes.len() == 3 && axes.iter().sum::<usize>() == channels && axes.iter().all(|dim| dim % 2 == 0);
        let message = format!("{axes:?} are not three even numbers that add up to the {channels} channels of a head");
        check("axes_dims", fits, message)?;
        let message = format!("{:?} are not three lengths", self.axes_lens);
        check("axes_lens", self.axes_lens.len() == 3, message)
    }

    /// The longest side of latents in pixels that there are positions for.
    pub fn longest_side(&self) -> usize {
        PATCH * self.axes_lens[1].min(self.axes_lens[2])
    }

    /// The width inside of the feed-forward layers, in floating point as diffusers computes it.
    pub fn hidden(&self) -> usize {
        (self.dim as f64 / 3.0 * 8.0) as usize
    }

    fn axes(&self) -> Axes {
        Axes { dims: self.axes_dims.clone(), theta: self.rope_theta, angles: Angles::Rounded }
    }
}

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
            text = layer.forward(&text, &Step { rotation: &own, time: None, adapters })?;
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
        adapters: &Adapters,
    ) -> Result<Tensor> {
        let (b, c, h, w) = latents.dims4()?;
        let [first, ..] = conditions else { return Err(unfit(b, 0)) };
        if conditions.len() != b || times.len() != b {
            return Err(unfit(b, conditions.len()));
        }
        let (rows, columns) = (h / PATCH, w / PATCH);
        let count = rows * columns;
        let dtype = first.text.dtype();
        let time = self.time.forward(times, latents)?.to_dtype(dtype)?; // (b, 256)

        let patches = latents
            .to_dtype(dtype)?
            .reshape(vec![b, c, rows, PATCH, columns, PATCH])?
            .permute(vec![0, 2, 4, 3, 5, 1])? // (b, rows, columns, 2, 2, c)
            .reshape((b, count, PATCH * PATCH * c))?;
        let length = count.next_multiple_of(MULTIPLE);
        let mut picture = fill(&self.picture_in.forward(&patches)?, &self.picture_pad, length)?; // (b, n, dim)
        let rotation = first.rotation.narrow(0, length)?;
        let step = Step { rotation: &rotation, time: Some(&time), adapters };
        for layer in &self.picture_layers {
            picture = layer.forward(&picture, &step)?;
        }

        let texts = conditions.iter().map(|condition| &condition.text).collect::<Vec<_>>();
        let mut all = Tensor::cat(&[picture, Tensor::cat(&texts, 0)?], 1)?; // (b, n + l, dim)
        let step = Step { rotation: &first.rotation, time: Some(&time), adapters };
        for layer in &self.layers {
            all = layer.forward(&all, &step)?;
        }
        let patches = self.last.forward(&all.narrow(1, 0, count)?.contiguous()?, &time)?; // (b, rows*columns, 4c)
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
    use crate::denoisers::testing::{noise, numbers, view, weights_for};

    const FILE: &str = "transformer/config.json";

    fn tiny() -> ZImage {
        let json = r#"{"dim": 12, "n_heads": 1, "axes_dims": [4, 4, 4], "axes_lens": [66, 8, 8], "n_layers": 1,
            "n_refiner_layers": 1, "in_channels": 3, "cap_feat_dim": 5}"#;
        let config = ZImageConfig::from_json(FILE, json).unwrap();
        let weights = weights_for(|weights| ZImage::new(&config, weights));
        ZImage::new(&config, &view(weights)).unwrap()
    }

    #[test]
    fn rows_of_one_length_share_a_call_and_nothing_else() {
        let (network, none) = (tiny(), Adapters::default());
        let condition =
            |tokens: usize| network.condition(&noise(&[1, tokens, 5], tokens as u32), (4, 6), &none).unwrap();
        let (a, b) = (condition(3), condition(32));
        assert_eq!((a.tokens().unwrap(), b.tokens().unwrap()), (32, 32));
        let latents = noise(&[2, 3, 4, 6], 7);
        let both = network.forward(&latents, &[0.1, 0.7], &[&a, &b], &none).unwrap();
        let alone = network.forward(&latents.narrow(0, 1, 1).unwrap(), &[0.7], &[&b], &none).unwrap();
        assert_eq!(both.dims(), latents.dims());
        assert_eq!(numbers(&both.narrow(0, 1, 1).unwrap()), numbers(&alone));
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

    #[test]
    fn what_is_not_supported_is_told_with_file_and_key() {
        let cases = [
            (r#"{"_class_name": "Lumina2Transformer2DModel"}"#, "_class_name is"),
            (r#"{"siglip_feat_dim": 1152}"#, "siglip_feat_dim is 1152"),
            (r#"{"all_patch_size": [4]}"#, "all_patch_size: [4] has no patch of 2x2"),
            (r#"{"n_heads": 7}"#, "n_heads: 7 heads cannot share dim 3840"),
            (r#"{"axes_dims": [32, 48, 46]}"#, "axes_dims: [32, 48, 46] are not three even numbers"),
            (r#"{"axes_lens": [1024]}"#, "axes_lens: [1024] are not three lengths"),
        ];
        for (json, message) in cases {
            let error = ZImageConfig::from_json(FILE, json).unwrap_err().to_string();
            assert!(error.starts_with(FILE) && error.contains(message), "{error}");
        }
    }
}
