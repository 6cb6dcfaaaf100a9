//! `transformer/config.json` of the FLUX.1 family.

use serde::Deserialize;

use super::config::{Neutral, check, parse};
use crate::Result;

/// The configuration of a `FluxTransformer2DModel`: every size comes from here, absent keys have diffusers' defaults.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct FluxConfig {
    /// Channels of a token: of 2x2 latent pixels, and of what FLUX.1 Fill is given beside them.
    pub in_channels: usize,
    /// Channels of a predicted token, where they are others.
    pub out_channels: Option<usize>,
    /// Blocks in which text and image have weights of their own.
    pub num_layers: usize,
    /// Blocks in which they are one sequence.
    pub num_single_layers: usize,
    /// The width of an attention head.
    pub attention_head_dim: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// The width of the text's states.
    pub joint_attention_dim: usize,
    /// The width of the pooled text.
    pub pooled_projection_dim: usize,
    /// Whether the model was distilled to be told its guidance (FLUX.1 dev), instead of having none (schnell).
    pub guidance_embeds: bool,
    /// Channels of a head that each of a position's three coordinates turns.
    pub axes_dims_rope: Vec<usize>,
}

impl Default for FluxConfig {
    fn default() -> Self {
        Self {
            in_channels: 64,
            out_channels: None,
            num_layers: 19,
            num_single_layers: 38,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 4096,
            pooled_projection_dim: 768,
            guidance_embeds: false,
            axes_dims_rope: vec![16, 56, 56],
        }
    }
}

const NEUTRAL: &[Neutral] = &[("_class_name", &["\"FluxTransformer2DModel\""]), ("patch_size", &["1"])];

impl FluxConfig {
    /// Reads the configuration of a transformer; `file` is its name in errors.
    ///
    /// # Errors
    /// Names the file and the key when a value is of a wrong type, unsupported or contradicts another.
    pub fn from_json(file: &str, json: &str) -> Result<Self> {
        let config: Self = parse(file, json, NEUTRAL)?;
        config.check(file)?;
        Ok(config)
    }

    /// The width of the tokens inside of the network.
    pub fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Channels of a predicted token.
    pub fn outputs(&self) -> usize {
        // diffusers writes `out_channels or in_channels`, so 0 means the same as nothing.
        self.out_channels.filter(|&channels| channels > 0).unwrap_or(self.in_channels)
    }

    fn check(&self, file: &str) -> Result<()> {
        let sizes = [
            ("in_channels", self.in_channels),
            ("attention_head_dim", self.attention_head_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("joint_attention_dim", self.joint_attention_dim),
            ("pooled_projection_dim", self.pooled_projection_dim),
        ];
        for (key, size) in sizes {
            check(file, key, size > 0, "0 is no size; at least 1 is needed")?;
        }
        for (key, channels) in [("in_channels", self.in_channels), ("out_channels", self.outputs())] {
            let message = format!("{channels} channels are no 2x2 latent pixels; a multiple of 4 is expected");
            check(file, key, channels % 4 == 0, message)?;
        }
        let (axes, head) = (&self.axes_dims_rope, self.attention_head_dim);
        let message = format!("{axes:?} are not three even numbers");
        check(file, "axes_dims_rope", axes.len() == 3 && axes.iter().all(|axis| axis % 2 == 0), message)?;
        let sum = axes.iter().sum::<usize>();
        let message = format!("{axes:?} add up to {sum}, but attention_head_dim is {head}");
        check(file, "axes_dims_rope", sum == head, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_configuration_is_told_with_file_and_key() {
        let cases = [
            (
                r#"{"attention_head_dim": 64}"#,
                "axes_dims_rope: [16, 56, 56] add up to 128, but attention_head_dim is 64",
            ),
            (r#"{"axes_dims_rope": [64, 64]}"#, "axes_dims_rope: [64, 64] are not three even numbers"),
            (r#"{"in_channels": 63}"#, "in_channels: 63 channels are no 2x2 latent pixels"),
            (r#"{"patch_size": 2}"#, "patch_size is 2; easel runs models where it is 1"),
            (r#"{"num_attention_heads": 0}"#, "num_attention_heads: 0 is no size"),
            (r#"{"_class_name": "SD3Transformer2DModel"}"#, "_class_name is \"SD3Transformer2DModel\""),
        ];
        for (json, message) in cases {
            let error = FluxConfig::from_json("transformer/config.json", json).unwrap_err().to_string();
            assert!(error.starts_with("transformer/config.json: ") && error.contains(message), "{error}");
        }
    }
}
