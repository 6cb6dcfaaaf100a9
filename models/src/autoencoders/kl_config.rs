//! `vae/config.json` of the Stable Diffusion and FLUX.1 families.

use serde::Deserialize;

use crate::Result;
use crate::denoisers::config::{Neutral, check, parse};
use crate::denoisers::{Activation, SampleSize};

/// The configuration of an `AutoencoderKL`: every size comes from here, absent keys have diffusers' defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(clippy::struct_excessive_bools, reason = "the file's keys are what they are")]
pub struct AutoencoderKlConfig {
    /// Channels of the pictures that are encoded.
    pub in_channels: usize,
    /// Channels of the pictures that are decoded.
    pub out_channels: usize,
    /// The blocks of the encoder, one a level.
    pub down_block_types: Vec<DownBlockType>,
    /// The blocks of the decoder, one a level.
    pub up_block_types: Vec<UpBlockType>,
    /// Channels of each level, from the picture to the latents.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// The activation inside the residual blocks; the one before the last convolution is always SiLU.
    pub act_fn: Activation,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Groups of the group normalisations.
    pub norm_num_groups: usize,
    /// The pictures' native size, which is also that of a tile.
    pub sample_size: SampleSize,
    /// What latents are multiplied by to have a deviation of about 1.
    pub scaling_factor: f64,
    /// What is subtracted from latents before they are scaled.
    pub shift_factor: Option<f64>,
    /// The latents' mean by channel, for models that normalise by it.
    pub latents_mean: Option<Vec<f64>>,
    /// The latents' deviation by channel, for models that normalise by it.
    pub latents_std: Option<Vec<f64>>,
    /// Whether half precision is too little for this autoencoder.
    pub force_upcast: bool,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the middle blocks have attention.
    pub mid_block_add_attention: bool,
}

/// A block of the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum DownBlockType {
    /// Residual blocks.
    DownEncoderBlock2D,
}

/// A block of the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum UpBlockType {
    /// Residual blocks.
    UpDecoderBlock2D,
}

impl Default for AutoencoderKlConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec![DownBlockType::DownEncoderBlock2D],
            up_block_types: vec![UpBlockType::UpDecoderBlock2D],
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: Activation::Silu,
            latent_channels: 4,
            norm_num_groups: 32,
            sample_size: SampleSize::Square(32),
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

const NEUTRAL: &[Neutral] = &[("_class_name", &["\"AutoencoderKL\""])];

impl AutoencoderKlConfig {
    /// Reads the configuration of an autoencoder; `file` is its name in errors.
    ///
    /// # Errors
    /// Names the file and the key when a value is of a wrong type, unsupported or contradicts another.
    pub fn from_json(file: &str, json: &str) -> Result<Self> {
        let config: Self = parse(file, json, NEUTRAL)?;
        config.check(file)?;
        Ok(config)
    }

    /// Pixels a side of one latent pixel.
    pub fn factor(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1)
    }

    fn check(&self, file: &str) -> Result<()> {
        let levels = self.block_out_channels.len();
        let check = |key: &str, right: bool, message: String| check(file, key, right, message);
        let fits = |key: &str, count: usize| {
            let message = format!("has {count} values for the {levels} levels of block_out_channels");
            check(key, count == levels && count > 0, message)
        };
        fits("block_out_channels", levels)?;
        fits("down_block_types", self.down_block_types.len())?;
        fits("up_block_types", self.up_block_types.len())?;
        let groups = self.norm_num_groups;
        for channels in &self.block_out_channels {
            let message = format!("{channels} channels cannot be split into {groups} groups (norm_num_groups)");
            check("block_out_channels", *channels > 0 && groups > 0 && channels % groups == 0, message)?;
        }
        let scale = self.scaling_factor;
        check("scaling_factor", scale.is_finite() && scale != 0.0, format!("{scale} cannot scale latents"))?;
        for (key, values) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            let (count, channels) = (values.as_ref().map_or(self.latent_channels, Vec::len), self.latent_channels);
            check(key, count == channels, format!("has {count} values for {channels} latent_channels"))?;
        }
        let both = self.latents_mean.is_some() == self.latents_std.is_some();
        check("latents_std", both, "is of use only together with latents_mean".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_configuration_is_told_with_file_and_key() {
        let cases = [
            (r#"{"block_out_channels": [64, 64]}"#, "down_block_types: has 1 values for the 2 levels"),
            (r#"{"norm_num_groups": 48}"#, "block_out_channels: 64 channels cannot be split into 48 groups"),
            (r#"{"latents_mean": [0.0]}"#, "latents_mean: has 1 values for 4 latent_channels"),
            (r#"{"latents_std": [1, 1, 1, 1]}"#, "latents_std: is of use only together with latents_mean"),
            (r#"{"scaling_factor": 0}"#, "scaling_factor: 0 cannot scale"),
            (r#"{"up_block_types": ["AttnUpDecoderBlock2D"]}"#, "up_block_types[0]: unknown variant"),
            (r#"{"_class_name": "AutoencoderTiny"}"#, "_class_name is \"AutoencoderTiny\""),
        ];
        for (json, message) in cases {
            let error = AutoencoderKlConfig::from_json("vae/config.json", json).unwrap_err().to_string();
            assert!(error.starts_with("vae/config.json: ") && error.contains(message), "{error}");
        }
    }

    #[test]
    fn each_level_but_one_halves_the_sides() {
        let types = r#""down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]"#;
        let json = format!(r#"{{"block_out_channels": [32, 32, 64], "sample_size": [64, 32], {types}}}"#);
        let config = AutoencoderKlConfig::from_json("vae/config.json", &json).unwrap();
        assert_eq!((config.factor(), config.sample_size.sides()), (4, (64, 32)));
    }
}
