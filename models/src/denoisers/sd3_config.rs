//! `transformer/config.json` of the Stable Diffusion 3 family.

use serde::Deserialize;

use super::config::{Neutral, check, parse};
use crate::Result;

/// The configuration of an `SD3Transformer2DModel`: every size comes from here, absent keys have diffusers' defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Sd3Config {
    /// The native side of the latents.
    pub sample_size: usize,
    /// Latent pixels a side of one token.
    pub patch_size: usize,
    /// Channels of the latents that go in; more than come out where the model is told what to keep.
    pub in_channels: usize,
    /// Joint blocks.
    pub num_layers: usize,
    /// The width of one attention head.
    pub attention_head_dim: usize,
    /// Attention heads, which together are as wide as the tokens.
    pub num_attention_heads: usize,
    /// The width of the text states that come in.
    pub joint_attention_dim: usize,
    /// The width that they are brought to, which must be that of the tokens.
    pub caption_projection_dim: usize,
    /// The width of the pooled text.
    pub pooled_projection_dim: usize,
    /// Channels of what is predicted; those that go in, where it is null.
    pub out_channels: Option<usize>,
    /// The side, in tokens, of the square of positions that pictures' own are cut out of.
    pub pos_embed_max_size: usize,
    /// The blocks in which the picture attends to itself a second time (Stable Diffusion 3.5 medium).
    pub dual_attention_layers: Vec<usize>,
    /// How queries and keys are normalised (3.5), if they are.
    pub qk_norm: Option<QkNorm>,
}

/// How the queries and keys of each head are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// By their root mean square.
    RmsNorm,
    /// By their mean and variance.
    LayerNorm,
}

impl Default for Sd3Config {
    fn default() -> Self {
        Self {
            sample_size: 128,
            patch_size: 2,
            in_channels: 16,
            num_layers: 18,
            attention_head_dim: 64,
            num_attention_heads: 18,
            joint_attention_dim: 4096,
            caption_projection_dim: 1152,
            pooled_projection_dim: 2048,
            out_channels: Some(16),
            pos_embed_max_size: 96,
            dual_attention_layers: Vec::new(),
            qk_norm: None,
        }
    }
}

const NEUTRAL: &[Neutral] = &[("_class_name", &["\"SD3Transformer2DModel\""])];

impl Sd3Config {
    /// Reads the configuration of a denoiser; `file` is its name in errors.
    ///
    /// # Errors
    /// Names the file and the key when a value is of a wrong type, unsupported or contradicts another.
    pub fn from_json(file: &str, json: &str) -> Result<Self> {
        let config: Self = parse(file, json, NEUTRAL)?;
        let sizes = [
            ("sample_size", config.sample_size),
            ("patch_size", config.patch_size),
            ("in_channels", config.in_channels),
            ("num_layers", config.num_layers),
            ("attention_head_dim", config.attention_head_dim),
            ("num_attention_heads", config.num_attention_heads),
            ("joint_attention_dim", config.joint_attention_dim),
            ("pooled_projection_dim", config.pooled_projection_dim),
            ("out_channels", config.out_channels()),
            ("pos_embed_max_size", config.pos_embed_max_size),
        ];
        for (key, size) in sizes {
            check(file, key, size > 0, "0 is too few")?;
        }
        let (caption, width) = (config.caption_projection_dim, config.width());
        let message = format!("{caption} is not attention_head_dim times num_attention_heads, {width}");
        check(file, "caption_projection_dim", caption == width, message)?;
        Ok(config)
    }

    /// The width of the tokens.
    pub fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Channels of what is predicted.
    pub fn out_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// How many attentions of the picture's tokens stand before this block: places for image prompts.
    pub(super) fn attentions_before(&self, block: usize) -> usize {
        block + (0..block).filter(|block| self.dual_attention_layers.contains(block)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_configuration_is_told_with_file_and_key() {
        let cases = [
            (r#"{"caption_projection_dim": 1000}"#, "caption_projection_dim: 1000 is not attention_head_dim times"),
            (r#"{"patch_size": 0}"#, "patch_size: 0 is too few"),
            (r#"{"qk_norm": "l2"}"#, "qk_norm: unknown variant `l2`"),
            (r#"{"pos_embed_max_size": null}"#, "pos_embed_max_size: invalid type: null"),
            (r#"{"_class_name": "FluxTransformer2DModel"}"#, "_class_name is \"FluxTransformer2DModel\""),
        ];
        for (json, message) in cases {
            let error = Sd3Config::from_json("transformer/config.json", json).unwrap_err().to_string();
            assert!(error.starts_with("transformer/config.json: ") && error.contains(message), "{error}");
        }
        let null = Sd3Config::from_json("file", r#"{"out_channels": null, "in_channels": 33}"#).unwrap();
        assert_eq!((null.out_channels(), null.width()), (33, 1152));
    }
}
