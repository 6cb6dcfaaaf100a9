//! The configuration of Z-Image's transformer.

use serde::Deserialize;

use super::axes::{Angles, Axes};
use super::config::{Neutral, check, parse};
use crate::Result;

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
    /// Latent pixels a side that one token of the picture has; diffusers' pipelines ask for no other.
    pub const PATCH: usize = 2;

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
        check("all_patch_size", patches().any(|patch| patch == (&Self::PATCH, &1)), message)?;
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
        Self::PATCH * self.axes_lens[1].min(self.axes_lens[2])
    }

    /// The width inside of the feed-forward layers, in floating point as diffusers computes it.
    pub fn hidden(&self) -> usize {
        (self.dim as f64 / 3.0 * 8.0) as usize
    }

    pub(super) fn axes(&self) -> Axes {
        Axes { dims: self.axes_dims.clone(), theta: self.rope_theta, angles: Angles::Rounded }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "transformer/config.json";

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
