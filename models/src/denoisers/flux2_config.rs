//! `transformer/config.json` of the FLUX.2 family.

use serde::Deserialize;

use super::axes::{Angles, Axes};
use super::config::{Neutral, check, parse};
use crate::Result;

/// The configuration of a `Flux2Transformer2DModel`: every size comes from here, absent keys have diffusers' defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Flux2Config {
    /// Channels of a token that goes in.
    pub in_channels: usize,
    /// Channels of a token that comes out; `None` is as many.
    pub out_channels: Option<usize>,
    /// Blocks with separate weights for text and picture.
    pub num_layers: usize,
    /// Blocks with common weights.
    pub num_single_layers: usize,
    /// Channels of a head.
    pub attention_head_dim: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// The width of the text states.
    pub joint_attention_dim: usize,
    /// Sinusoids of the timestep.
    pub timestep_guidance_channels: usize,
    /// How many times as wide the feed-forward layers are inside.
    pub mlp_ratio: f64,
    /// Channels of a head that turn with the picture's number, the row, the column and the place in the text.
    pub axes_dims_rope: Vec<usize>,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// Added to the variance in normalisations.
    pub eps: f64,
}

impl Default for Flux2Config {
    fn default() -> Self {
        Self {
            in_channels: 128,
            out_channels: None,
            num_layers: 8,
            num_single_layers: 48,
            attention_head_dim: 128,
            num_attention_heads: 48,
            joint_attention_dim: 15_360,
            timestep_guidance_channels: 256,
            mlp_ratio: 3.0,
            axes_dims_rope: vec![32; 4],
            rope_theta: 2000.0,
            eps: 1e-6,
        }
    }
}

// klein's pipeline tells its transformer no guidance, so `guidance_embeds` has no effect.
const NEUTRAL: &[Neutral] = &[("_class_name", &["\"Flux2Transformer2DModel\""]), ("patch_size", &["1", "null"])];

impl Flux2Config {
    /// Reads the configuration of a transformer; `file` is its name in errors.
    ///
    /// # Errors
    /// Names the file and the key when a value is of a wrong type, unsupported or contradicts another.
    pub fn from_json(file: &str, json: &str) -> Result<Self> {
        let config: Self = parse(file, json, NEUTRAL)?;
        config.check(file)?;
        Ok(config)
    }

    /// The width of both streams.
    pub fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// The width inside of the feed-forward layers.
    pub fn hidden(&self) -> usize {
        (self.width() as f64 * self.mlp_ratio) as usize
    }

    /// Channels of a token that comes out.
    pub fn outputs(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    pub(super) fn axes(&self) -> Axes {
        Axes { dims: self.axes_dims_rope.clone(), theta: self.rope_theta, angles: Angles::Exact }
    }

    fn check(&self, file: &str) -> Result<()> {
        let check = |key: &str, right: bool, message: String| check(file, key, right, message);
        let (axes, head) = (&self.axes_dims_rope, self.attention_head_dim);
        let fits = axes.len() == 4 && axes.iter().sum::<usize>() == head && axes.iter().all(|dim| dim % 2 == 0);
        let message = format!("{axes:?} are not four even numbers that add up to attention_head_dim {head}");
        check("axes_dims_rope", fits, message)?;
        check("num_attention_heads", self.width() > 0, "is 0; at least 1 is expected".to_owned())?;
        let ratio = self.mlp_ratio;
        check("mlp_ratio", ratio.is_finite() && ratio > 0.0, format!("{ratio} is not above 0"))?;
        let sinusoids = self.timestep_guidance_channels;
        check("timestep_guidance_channels", sinusoids > 1, format!("is {sinusoids}; at least 2 is expected"))
    }
}
