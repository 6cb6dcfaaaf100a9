//! `vae/config.json` of the Stable Diffusion and FLUX families.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::denoisers::config::{Neutral, check, parse};
use crate::denoisers::{Activation, SampleSize};
use crate::{Error, Result};

/// The configuration of an `AutoencoderKL` or `AutoencoderKLFlux2`: every size comes from here, absent keys have diffusers' defaults.
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
    /// Those of the decoder, where it is of another width (FLUX.2's small decoder).
    pub decoder_block_out_channels: Option<Vec<usize>>,
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
    /// The square of the encoder's latent pixels that is one of the denoiser's (FLUX.2).
    pub patch_size: Option<[usize; 2]>,
    /// Added to the variance that those squares are normalised by; `None` of models without such statistics.
    pub batch_norm_eps: Option<f64>,
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
            decoder_block_out_channels: None,
            layers_per_block: 1,
            act_fn: Activation::Silu,
            latent_channels: 4,
            norm_num_groups: 32,
            sample_size: SampleSize::Square(32),
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            patch_size: None,
            batch_norm_eps: None,
            force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

/// The class of FLUX.2's autoencoder, which has defaults of its own.
const FLUX2: &str = "AutoencoderKLFlux2";

const NEUTRAL: &[Neutral] = &[("_class_name", &["\"AutoencoderKL\"", "\"AutoencoderKLFlux2\""])];

/// What diffusers' `AutoencoderKLFlux2` takes absent keys for. Its latents are not scaled but normalised.
fn flux2_defaults() -> Value {
    json!({
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 32,
        "sample_size": 1024,
        "force_upcast": false,
        "batch_norm_eps": 1e-4,
        "patch_size": [2, 2],
    })
}

impl AutoencoderKlConfig {
    /// Reads the configuration of an autoencoder; `file` is its name in errors.
    ///
    /// # Errors
    /// Names the file and the key when a value is of a wrong type, unsupported or contradicts another.
    pub fn from_json(file: &str, json: &str) -> Result<Self> {
        let mut value: Value = serde_json::from_str(json).map_err(|error| Error::file(file, error))?;
        if value["_class_name"] == FLUX2
            && let (Value::Object(defaults), Some(found)) = (flux2_defaults(), value.as_object_mut())
        {
            for (key, default) in defaults {
                found.entry(key).or_insert(default);
            }
        }
        let config: Self = parse(file, &value.to_string(), NEUTRAL)?;
        config.check(file)?;
        Ok(config)
    }

    /// Channels of each level of the decoder, from the picture to the latents.
    pub fn decoder_channels(&self) -> &[usize] {
        self.decoder_block_out_channels.as_ref().unwrap_or(&self.block_out_channels)
    }

    /// The side in latent pixels of the encoder's of one of the denoiser's.
    pub fn patch(&self) -> usize {
        self.batch_norm_eps.and(self.patch_size).map_or(1, |[side, _]| side)
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
        let decoder = self.decoder_channels().len();
        let message = format!("has {decoder} values for the {levels} levels of block_out_channels");
        check("decoder_block_out_channels", decoder == levels, message)?;
        for channels in self.block_out_channels.iter().chain(self.decoder_channels()) {
            let message = format!("{channels} channels cannot be split into {groups} groups (norm_num_groups)");
            check("block_out_channels", *channels > 0 && groups > 0 && channels % groups == 0, message)?;
        }
        let scale = self.scaling_factor;
        check("scaling_factor", scale.is_finite() && scale != 0.0, format!("{scale} cannot scale latents"))?;
        for (key, values) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            let (count, channels) = (values.as_ref().map_or(self.latent_channels, Vec::len), self.latent_channels);
            check(key, count == channels, format!("has {count} values for {channels} latent_channels"))?;
        }
        let message = format!("is {:?}; easel runs models where it is [2, 2]", self.patch_size.unwrap_or_default());
        check("patch_size", self.patch_size.is_none_or(|patch| patch == [2, 2]), message)?;
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
            (r#"{"_class_name": "AutoencoderKLFlux2", "patch_size": [1, 1]}"#, "patch_size: is [1, 1]"),
            (
                r#"{"_class_name": "AutoencoderKLFlux2", "decoder_block_out_channels": [32]}"#,
                "decoder_block_out_channels: has 1 values for the 4 levels",
            ),
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
