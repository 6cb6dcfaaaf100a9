//! A model's `scheduler_config.json`.

use serde::Deserialize;

/// What a scheduler file says. Every key may be absent: an absent key takes the default of the class that is
/// used, which is not always the class that wrote the file. Keys that no class here knows are ignored.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the fields are diffusers' keys, documented on its scheduler classes")]
pub struct SchedulerConfig {
    #[serde(rename = "_class_name")]
    pub class_name: Option<String>,
    pub num_train_timesteps: Option<usize>,
    pub beta_start: Option<f64>,
    pub beta_end: Option<f64>,
    pub beta_schedule: Option<String>,
    pub trained_betas: Option<Vec<f64>>,
    pub rescale_betas_zero_snr: Option<bool>,
    pub prediction_type: Option<String>,
    pub timestep_spacing: Option<String>,
    pub timestep_type: Option<String>,
    pub steps_offset: Option<i64>,
    pub interpolation_type: Option<String>,
    pub use_karras_sigmas: Option<bool>,
    pub use_exponential_sigmas: Option<bool>,
    pub use_beta_sigmas: Option<bool>,
    pub use_lu_lambdas: Option<bool>,
    pub use_flow_sigmas: Option<bool>,
    pub sigma_min: Option<f64>,
    pub sigma_max: Option<f64>,
    pub final_sigmas_type: Option<String>,
    pub lambda_min_clipped: Option<f64>,
    pub variance_type: Option<String>,
    pub clip_sample: Option<bool>,
    pub clip_sample_range: Option<f64>,
    pub thresholding: Option<bool>,
    pub dynamic_thresholding_ratio: Option<f64>,
    pub sample_max_value: Option<f64>,
    pub set_alpha_to_one: Option<bool>,
    pub skip_prk_steps: Option<bool>,
    pub solver_order: Option<usize>,
    pub solver_type: Option<String>,
    pub algorithm_type: Option<String>,
    pub lower_order_final: Option<bool>,
    pub euler_at_final: Option<bool>,
    pub predict_x0: Option<bool>,
    pub disable_corrector: Option<Vec<usize>>,
    pub original_inference_steps: Option<usize>,
    pub timestep_scaling: Option<f64>,
    pub shift: Option<f64>,
    pub flow_shift: Option<f64>,
    pub use_dynamic_shifting: Option<bool>,
    pub base_shift: Option<f64>,
    pub max_shift: Option<f64>,
    pub base_image_seq_len: Option<usize>,
    pub max_image_seq_len: Option<usize>,
    pub shift_terminal: Option<f64>,
    pub time_shift_type: Option<String>,
    pub invert_sigmas: Option<bool>,
    pub stochastic_sampling: Option<bool>,
}

impl SchedulerConfig {
    /// Reads the text of a scheduler file.
    ///
    /// # Errors
    /// When the text is not JSON or a known key has another type than in diffusers.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(&without_infinities(text))
    }

    /// Whether the model predicts a flow's velocity rather than a diffusion's noise.
    pub fn is_flow(&self) -> bool {
        let class = self.class_name.as_deref().unwrap_or_default();
        class.starts_with("FlowMatch")
            || self.prediction_type.as_deref() == Some("flow_prediction")
            || self.use_flow_sigmas == Some(true)
    }
}

/// Python's `json` writes `-Infinity` (for `lambda_min_clipped`) and `NaN`, which JSON does not know. They stand for
/// "no bound" wherever diffusers writes them, so `null` says the same.
fn without_infinities(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut in_string, mut escaped) = (false, false);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let bare = ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| !in_string && rest.starts_with(word));
        if let Some(word) = bare {
            out.push_str("null");
            rest = &rest[word.len()..];
            continue;
        }
        if c == '"' && !escaped {
            in_string = !in_string;
        }
        escaped = c == '\\' && !escaped;
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_infinities_are_read_as_absent() {
        let text = r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity,
            "note": "-Infinity \" NaN", "solver_order": 3, "_diffusers_version": "0.42.1"}"#;
        let config = SchedulerConfig::from_json(text).unwrap();
        assert_eq!((config.lambda_min_clipped, config.solver_order), (None, Some(3)));
        assert_eq!(config.class_name.as_deref(), Some("DPMSolverMultistepScheduler"));
    }

    #[test]
    fn a_key_of_the_wrong_type_is_an_error() {
        assert!(SchedulerConfig::from_json(r#"{"steps_offset": "one"}"#).is_err());
    }
}
