//! CLIP's states.

use candle_core::{DType, Device, Tensor};
use easel_models::text::{ClipText, ClipTextConfig};

use crate::common::{Faults, MANIFEST, MODULE_ERROR, config, relative_error, repository, tensors};

#[test]
fn clip_gives_the_references_states_for_each_skip_length_and_mask() {
    let mut faults = Faults::default();
    for model in MANIFEST.models.iter().map(|model| &model.name) {
        let golden = tensors(format_args!("modules/{model}.safetensors"));
        let weights = repository(model).tensors("text_encoder", DType::F32, &Device::Cpu).unwrap();
        let config: ClipTextConfig = config(model, "text_encoder");
        let clip = ClipText::new(&config, &weights).unwrap();
        let integers = |key: &str, dtype| golden[key].to_dtype(dtype).unwrap();
        let mut compare = |key: &str, found: &Tensor| {
            faults.error(format_args!("{model} {key}"), relative_error(found, &golden[key]), MODULE_ERROR);
        };

        let ids = integers("text.ids", DType::U32);
        for skip in 0..=config.num_hidden_layers.min(2) {
            let output = clip.forward(&ids, None, skip).unwrap();
            compare(&format!("text.skip{skip}"), &output.states);
            compare("text.pooled", &output.pooled);
        }
        let short = integers("text.short.ids", DType::U32);
        compare("text.short.states", &clip.forward(&short, None, 0).unwrap().states);
        let mask = integers("text.masked.mask", DType::U8);
        compare("text.masked.states", &clip.forward(&short, Some(&mask), 0).unwrap().states);
    }
    faults.finish();
}
