//! `unet/config.json` of the Stable Diffusion families.

use serde::Deserialize;

use super::activation::Activation;
use super::config::{Neutral, PerLevel, SampleSize, check, null_as_default, parse};
use super::resnet::TimeScaleShift;
use crate::Result;

/// The configuration of a `UNet2DConditionModel`: every size comes from here, absent keys have diffusers' defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(clippy::struct_excessive_bools, reason = "the file's keys are what they are")]
pub struct UNetConfig {
    /// The latents' native size.
    pub sample_size: Option<SampleSize>,
    /// Channels of the latents, with those of a mask and masked latents in inpainting models.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Whether the input is moved from 0..1 to -1..1.
    pub center_input_sample: bool,
    /// Whether cosines come before sines in the time embedding.
    pub flip_sin_to_cos: bool,
    /// The shift of the time embedding's frequencies.
    pub freq_shift: f64,
    /// The blocks on the way down, one a level.
    pub down_block_types: Vec<DownBlockType>,
    /// The block in the middle, if any.
    pub mid_block_type: Option<MidBlockType>,
    /// The blocks on the way up, one a level, from the narrowest image to the widest.
    pub up_block_types: Vec<UpBlockType>,
    /// Channels of each level, from the widest image to the narrowest.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level on the way down; there is one more on the way up.
    pub layers_per_block: PerLevel<usize>,
    /// The padding of the halving convolutions; 0 is one row below and one column to the right.
    pub downsample_padding: usize,
    /// What the middle's residual blocks divide their sum by.
    pub mid_block_scale_factor: f64,
    /// The activation of the residual blocks and the time embedding.
    pub act_fn: Activation,
    /// Groups of the group normalisations.
    pub norm_num_groups: usize,
    /// Epsilon of the residual blocks' group normalisations.
    pub norm_eps: f64,
    /// Channels of the text states.
    pub cross_attention_dim: PerLevel<usize>,
    /// Transformer layers after each residual block, by level and possibly by block.
    pub transformer_layers_per_block: PerLevel<PerLevel<usize>>,
    /// The same for the way up, from the narrowest image to the widest, where it is not the mirror image.
    pub reverse_transformer_layers_per_block: Option<PerLevel<PerLevel<usize>>>,
    /// The *number* of attention heads: diffusers named it wrongly at first and kept the name.
    pub attention_head_dim: PerLevel<usize>,
    /// The number of attention heads where a configuration gives it under its right name.
    pub num_attention_heads: Option<PerLevel<usize>>,
    /// Whether the transformers' outer projections are linear layers, and not 1x1 convolutions.
    pub use_linear_projection: bool,
    /// Whether attention is computed in f32. SDXL's file says `null` for no.
    #[serde(deserialize_with = "null_as_default")]
    pub upcast_attention: bool,
    /// What the time embedding does in the residual blocks.
    pub resnet_time_scale_shift: TimeScaleShift,
    /// What is added to the time embedding.
    pub addition_embed_type: Option<AdditionEmbedType>,
    /// Sinusoids of each time id, where `addition_embed_type` is `text_time`.
    pub addition_time_embed_dim: Option<usize>,
    /// Inputs of the added embedding, where `addition_embed_type` is `text_time`.
    pub projection_class_embeddings_input_dim: Option<usize>,
    /// Channels of the time embedding; four times the first level's where absent.
    pub time_embedding_dim: Option<usize>,
    /// Channels of the guidance embedding of distilled models.
    pub time_cond_proj_dim: Option<usize>,
    /// The window of the first convolution.
    pub conv_in_kernel: usize,
    /// The window of the last convolution.
    pub conv_out_kernel: usize,
}

/// A block on the way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum DownBlockType {
    /// Residual blocks, each followed by a transformer.
    CrossAttnDownBlock2D,
    /// Residual blocks.
    DownBlock2D,
}

/// The block in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum MidBlockType {
    /// A transformer between two residual blocks.
    UNetMidBlock2DCrossAttn,
    /// One residual block.
    UNetMidBlock2D,
}

/// A block on the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum UpBlockType {
    /// Residual blocks, each followed by a transformer.
    CrossAttnUpBlock2D,
    /// Residual blocks.
    UpBlock2D,
}

/// What is added to the time embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdditionEmbedType {
    /// SDXL's pooled text state and sizes.
    TextTime,
}

impl Default for UNetConfig {
    fn default() -> Self {
        Self {
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            center_input_sample: false,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            down_block_types: vec![
                DownBlockType::CrossAttnDownBlock2D,
                DownBlockType::CrossAttnDownBlock2D,
                DownBlockType::CrossAttnDownBlock2D,
                DownBlockType::DownBlock2D,
            ],
            mid_block_type: Some(MidBlockType::UNetMidBlock2DCrossAttn),
            up_block_types: vec![
                UpBlockType::UpBlock2D,
                UpBlockType::CrossAttnUpBlock2D,
                UpBlockType::CrossAttnUpBlock2D,
                UpBlockType::CrossAttnUpBlock2D,
            ],
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: PerLevel::Same(2),
            downsample_padding: 1,
            mid_block_scale_factor: 1.0,
            act_fn: Activation::Silu,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            cross_attention_dim: PerLevel::Same(1280),
            transformer_layers_per_block: PerLevel::Same(PerLevel::Same(1)),
            reverse_transformer_layers_per_block: None,
            attention_head_dim: PerLevel::Same(8),
            num_attention_heads: None,
            use_linear_projection: false,
            upcast_attention: false,
            resnet_time_scale_shift: TimeScaleShift::Default,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
            time_embedding_dim: None,
            time_cond_proj_dim: None,
            conv_in_kernel: 3,
            conv_out_kernel: 3,
        }
    }
}

/// Keys of other networks of this class (DeepFloyd IF, Kandinsky, GLIGEN, ...) with the values that change nothing.
///
/// Keys that have no effect on the block types above (`resnet_skip_time_act`, `resnet_out_scale_factor`,
/// `cross_attention_norm`, `mid_block_only_cross_attention`, `dropout`) have none in diffusers, either.
const NEUTRAL: &[Neutral] = &[
    ("_class_name", &["\"UNet2DConditionModel\""]),
    ("dual_cross_attention", &["false"]),
    ("only_cross_attention", &["false"]),
    ("encoder_hid_dim", &["null"]),
    ("encoder_hid_dim_type", &["null"]),
    ("class_embed_type", &["null"]),
    ("class_embeddings_concat", &["false"]),
    ("num_class_embeds", &["null"]),
    ("time_embedding_type", &["\"positional\""]),
    ("time_embedding_act_fn", &["null"]),
    ("timestep_post_act", &["null"]),
    ("attention_type", &["\"default\""]),
];

impl UNetConfig {
    /// Reads the configuration of a UNet; `file` is its name in errors.
    ///
    /// # Errors
    /// Names the file and the key when a value is of a wrong type, unsupported or contradicts another.
    pub fn from_json(file: &str, json: &str) -> Result<Self> {
        let config: Self = parse(file, json, NEUTRAL)?;
        config.check(file)?;
        Ok(config)
    }

    /// The number of levels: sizes that the image has inside the network.
    pub fn levels(&self) -> usize {
        self.block_out_channels.len()
    }

    /// Attention heads of a level; `None` when the list is too short.
    pub(crate) fn heads(&self, level: usize) -> Option<usize> {
        self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim).at(level)
    }

    /// Channels of the time embedding.
    pub(crate) fn time_channels(&self) -> usize {
        self.time_embedding_dim.unwrap_or_else(|| self.block_out_channels.first().map_or(0, |channels| channels * 4))
    }

    /// Channels of the text states that the network takes.
    ///
    /// `None` in a network without cross-attention.
    pub fn context_channels(&self) -> Option<usize> {
        let level = (0..self.levels()).find(|&level| self.has_attention(level))?;
        self.cross_attention_dim.at(level)
    }

    /// Whether a level has cross-attention: on the way down, in the middle, or on the way up.
    fn has_attention(&self, level: usize) -> bool {
        let levels = self.levels();
        self.down_block_types.get(level) == Some(&DownBlockType::CrossAttnDownBlock2D)
            || self.up_block_types.get(levels - 1 - level) == Some(&UpBlockType::CrossAttnUpBlock2D)
            || (level + 1 == levels && self.mid_block_type == Some(MidBlockType::UNetMidBlock2DCrossAttn))
    }

    /// Fails where values contradict each other.
    fn check(&self, file: &str) -> Result<()> {
        let levels = self.levels();
        let check = |key: &str, right: bool, message: String| check(file, key, right, message);
        let fits = |key: &str, fits: bool| {
            check(key, fits, format!("must have one value for each of the {levels} levels of block_out_channels"))
        };
        fits("block_out_channels", levels > 0)?;
        fits("down_block_types", self.down_block_types.len() == levels)?;
        fits("up_block_types", self.up_block_types.len() == levels)?;
        fits("layers_per_block", self.layers_per_block.fits(levels))?;
        fits("attention_head_dim", self.attention_head_dim.fits(levels))?;
        fits("num_attention_heads", self.num_attention_heads.as_ref().is_none_or(|heads| heads.fits(levels)))?;
        fits("cross_attention_dim", self.cross_attention_dim.fits(levels))?;
        fits("transformer_layers_per_block", self.transformer_layers_per_block.fits(levels))?;
        let reverse = self.reverse_transformer_layers_per_block.as_ref();
        fits("reverse_transformer_layers_per_block", reverse.is_none_or(|layers| layers.fits(levels)))?;

        let groups = self.norm_num_groups;
        let mut context = None;
        for (level, &channels) in self.block_out_channels.iter().enumerate() {
            let message = format!("{channels} channels cannot be split into {groups} groups (norm_num_groups)");
            check("block_out_channels", channels > 0 && groups > 0 && channels % groups == 0, message)?;
            if self.has_attention(level) {
                let heads = self.heads(level).unwrap_or(0);
                let message = format!("{channels} channels cannot be split between {heads} heads");
                check("attention_head_dim", (1..=channels).contains(&heads), message)?;
                let dim = self.cross_attention_dim.at(level);
                let message = "differs between levels with attention, which see the same text states".to_owned();
                check("cross_attention_dim", context.is_none_or(|other| other == dim), message)?;
                context = Some(dim);
            }
        }
        for (key, kernel) in [("conv_in_kernel", self.conv_in_kernel), ("conv_out_kernel", self.conv_out_kernel)] {
            check(key, kernel % 2 == 1, format!("is {kernel}; an odd window is needed to keep the image's size"))?;
        }
        if self.addition_embed_type == Some(AdditionEmbedType::TextTime) {
            let needed = |key, value: Option<usize>| {
                check(
                    key,
                    value.is_some_and(|value| value > 0),
                    "is needed with addition_embed_type text_time".to_owned(),
                )
            };
            needed("addition_time_embed_dim", self.addition_time_embed_dim)?;
            needed("projection_class_embeddings_input_dim", self.projection_class_embeddings_input_dim)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str) -> String {
        UNetConfig::from_json("unet/config.json", json).unwrap_err().to_string()
    }

    #[test]
    fn absent_keys_have_the_defaults_of_diffusers_and_unknown_ones_are_ignored() {
        let config = UNetConfig::from_json("unet/config.json", r#"{"some_new_key": 1}"#).unwrap();
        assert_eq!(config.block_out_channels, [320, 640, 1280, 1280]);
        assert_eq!((config.heads(0), config.context_channels()), (Some(8), Some(1280)));
        assert_eq!(config.time_channels(), 1280);
    }

    #[test]
    fn heads_come_from_the_right_name_where_it_is_there() {
        let json = r#"{"num_attention_heads": [5, 10, 20, 20], "attention_head_dim": 64}"#;
        assert_eq!(UNetConfig::from_json("unet/config.json", json).unwrap().heads(2), Some(20));
    }

    #[test]
    fn transformer_depths_may_be_nested() {
        let json = r#"{"transformer_layers_per_block": [1, [2, 3], 1, 4]}"#;
        let layers = UNetConfig::from_json("unet/config.json", json).unwrap().transformer_layers_per_block;
        assert_eq!(layers.at(1), Some(PerLevel::Each(vec![2, 3])));
        assert_eq!(layers.at(3), Some(PerLevel::Same(4)));
    }

    #[test]
    fn an_unsupported_value_is_told_with_file_key_and_what_is_possible() {
        assert_eq!(
            error(r#"{"class_embed_type": "timestep"}"#),
            "unet/config.json: class_embed_type is \"timestep\"; easel runs models where it is null"
        );
        assert!(error(r#"{"only_cross_attention": [false, true]}"#).contains("only_cross_attention"));
        let block = error(r#"{"down_block_types": ["AttnDownBlock2D"]}"#);
        assert!(block.contains("down_block_types[0]") && block.contains("CrossAttnDownBlock2D"), "{block}");
        let activation = error(r#"{"act_fn": "mish"}"#);
        assert!(activation.contains("act_fn") && activation.contains("silu"), "{activation}");
    }

    #[test]
    fn contradictions_are_told_with_file_and_key() {
        let cases = [
            (r#"{"block_out_channels": [320, 640]}"#, "down_block_types: must have one value for each of the 2 levels"),
            (r#"{"layers_per_block": [1, 2]}"#, "layers_per_block: must have one value"),
            (r#"{"norm_num_groups": 7}"#, "320 channels cannot be split into 7 groups"),
            (r#"{"attention_head_dim": 0}"#, "attention_head_dim: 320 channels cannot be split between 0 heads"),
            (r#"{"cross_attention_dim": [1, 2, 1, 1]}"#, "cross_attention_dim: differs between levels"),
            (r#"{"addition_embed_type": "text_time"}"#, "addition_time_embed_dim: is needed"),
            (r#"{"in_channels": "four"}"#, "in_channels: invalid type"),
            ("{", "EOF"),
        ];
        for (json, message) in cases {
            let error = error(json);
            assert!(error.starts_with("unet/config.json: ") && error.contains(message), "{error}");
        }
    }
}
