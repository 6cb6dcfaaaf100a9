use std::sync::Arc;

use candle_core::Device;

use super::super::sd3_config::QkNorm;
use super::super::sd3_image_prompt::{Sd3ImageAdapter, Sd3ImageAdapterConfig};
use super::*;
use crate::denoisers::testing::{distance, each_row_sees_its_own, noise, numbers, view, weights_for};

/// Three blocks, the second of which has two attentions; pictures' places are cut out of 6x6.
fn config(qk_norm: Option<QkNorm>) -> Sd3Config {
    Sd3Config {
        sample_size: 8,
        in_channels: 3,
        num_layers: 3,
        attention_head_dim: 4,
        num_attention_heads: 2,
        joint_attention_dim: 10,
        caption_projection_dim: 8,
        pooled_projection_dim: 6,
        out_channels: None,
        pos_embed_max_size: 6,
        dual_attention_layers: vec![1],
        qk_norm,
        ..Sd3Config::default()
    }
}

fn network(qk_norm: Option<QkNorm>) -> Sd3 {
    let config = config(qk_norm);
    let weights = weights_for(|weights| Sd3::new(&config, weights));
    Sd3::new(&config, &view(weights)).unwrap()
}

fn condition(network: &Sd3, seed: u32) -> Sd3Condition {
    network.condition(&noise(&[1, 5, 10], seed), &noise(&[1, 6], seed + 1)).unwrap()
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    for qk_norm in [None, Some(QkNorm::RmsNorm), Some(QkNorm::LayerNorm)] {
        let network = network(qk_norm);
        let (latents, steps) = (noise(&[3, 3, 6, 8], 1), [1000.0, 31.5, 500.25]);
        let conditions: Vec<_> = (0..3).map(|row| condition(&network, 10 + row)).collect();
        let hooks = Sd3Hooks::default();
        let together = Sd3Condition::stack(&conditions.iter().collect::<Vec<_>>()).unwrap();
        let together = network.forward(&latents, &steps, &together, &hooks).unwrap();
        assert_eq!(together.dims(), [3, 3, 6, 8]);
        for row in 0..3 {
            let input = latents.narrow(0, row, 1).unwrap();
            let alone = network.forward(&input, &steps[row..=row], &conditions[row], &hooks).unwrap();
            assert_eq!(numbers(&alone), numbers(&together.narrow(0, row, 1).unwrap()), "{qk_norm:?}, row {row}");
        }
    }
}

#[test]
fn the_prompt_the_time_and_the_place_matter() {
    let network = network(Some(QkNorm::RmsNorm));
    let hooks = Sd3Hooks::default();
    let run = |latents: &Tensor, step: f64, seed: u32| {
        network.forward(latents, &[step], &condition(&network, seed), &hooks).unwrap()
    };
    let latents = noise(&[1, 3, 4, 4], 1);
    let usual = run(&latents, 700.0, 10);
    assert!(distance(&run(&latents, 700.0, 20), &usual) > 1e-3);
    assert!(distance(&run(&latents, 300.0, 10), &usual) > 1e-3);
    // Without positions, turning the picture over would turn the answer over.
    let flat = Tensor::ones((1, 3, 4, 4), DType::F32, &Device::Cpu).unwrap();
    let answer = numbers(&run(&flat, 700.0, 10));
    assert!((answer[0] - answer[15]).abs() > 1e-4);
}

#[test]
fn residuals_are_shared_out_to_the_blocks_before_the_last() {
    let network = network(None);
    let latents = noise(&[1, 3, 4, 6], 1);
    let condition = condition(&network, 10);
    let run = |residuals: Vec<Tensor>| {
        let hooks = Sd3Hooks { residuals, ..Sd3Hooks::default() };
        network.forward(&latents, &[500.0], &condition, &hooks).unwrap()
    };
    let (zero, residual) = (noise(&[1, 6, 8], 5).zeros_like().unwrap(), noise(&[1, 6, 8], 5));
    let without = numbers(&run(Vec::new()));
    assert_eq!(numbers(&run(vec![zero.clone()])), without);
    // One of three belongs to one block, and the last block takes none.
    assert_eq!(numbers(&run(vec![zero.clone(), zero.clone(), residual.clone()])), without);
    let first = run(vec![residual.clone(), zero.clone(), zero.clone()]);
    let second = run(vec![zero.clone(), residual.clone(), zero]);
    assert!(distance(&first, &second) > 1e-3);
    assert_ne!(numbers(&run(vec![residual])), without);
}

/// A picture of as many features as its seed's number.
fn image_prompt(config: &Sd3Config, dtype: DType, seed: u32, scale: f64) -> Sd3ImagePrompt {
    let sizes = Sd3ImageAdapterConfig { features: 5, width: 8, layers: 2, heads: 1, tokens: 3, sinusoids: 6 };
    let weights = weights_for(|weights| Sd3ImageAdapter::new(&sizes, config, weights));
    let adapter = Sd3ImageAdapter::new(&sizes, config, &view(weights).to_dtype(dtype)).unwrap();
    Sd3ImagePrompt::new(Arc::new(adapter), &noise(&[1, seed as usize, 5], seed), scale).unwrap()
}

#[test]
fn each_row_looks_at_its_own_pictures() {
    for qk_norm in [None, Some(QkNorm::RmsNorm)] {
        let network = network(qk_norm);
        let rows: Vec<_> = (0..3).map(|row| condition(&network, 10 + row)).collect();
        let draw = |first: usize, count: usize, steps: f64, pictures| {
            let latents = noise(&[3, 3, 4, 6], 1).narrow(0, first, count).unwrap();
            let condition = Sd3Condition::stack(&rows[first..first + count].iter().collect::<Vec<_>>()).unwrap();
            let hooks = Sd3Hooks { pictures, ..Sd3Hooks::default() };
            let steps: Vec<f64> = (first..first + count).map(|row| steps + row as f64).collect();
            network.forward(&latents, &steps, &condition, &hooks)
        };
        each_row_sees_its_own(
            |seed, scale| image_prompt(network.config(), DType::F32, seed, scale),
            |first, count, pictures| draw(first, count, 500.0, pictures),
        );
        let other = Sd3Config { dual_attention_layers: Vec::new(), ..config(None) };
        let pictures = ImagePrompts::by_row(vec![vec![image_prompt(&other, DType::F32, 1, 1.0)]]);
        let error = draw(0, 1, 500.0, pictures).unwrap_err().to_string();
        assert_eq!(error, "an image prompt has 3 layers; the network has places for 4");
    }
}

#[test]
fn half_precision_is_near_to_f32_with_a_picture() {
    let config = config(Some(QkNorm::RmsNorm));
    let weights = view(weights_for(|weights| Sd3::new(&config, weights)));
    let run = |dtype| {
        let network = Sd3::new(&config, &weights.to_dtype(dtype)).unwrap();
        let pictures = ImagePrompts::by_row(vec![vec![image_prompt(&config, dtype, 3, 0.8)]]);
        let hooks = Sd3Hooks { pictures, ..Sd3Hooks::default() };
        network.forward(&noise(&[1, 3, 4, 6], 1), &[700.0], &condition(&network, 10), &hooks).unwrap()
    };
    let exact = run(DType::F32);
    assert!(distance(&run(DType::BF16), &exact) < 3e-2);
    assert!(distance(&run(DType::F16), &exact) < 4e-3);
}

#[test]
fn what_does_not_fit_is_refused() {
    let network = network(None);
    let condition = condition(&network, 10);
    let told = |latents: &Tensor, steps: &[f64]| {
        network.forward(latents, steps, &condition, &Sd3Hooks::default()).unwrap_err().to_string()
    };
    assert!(told(&noise(&[1, 3, 4, 14], 1), &[5.0]).contains("7x2 tokens are more than the 6x6 places"));
    assert!(told(&noise(&[2, 3, 4, 4], 1), &[5.0, 5.0]).contains("2 latents need as many"));
}

#[test]
fn every_projection_can_carry_a_side_path() {
    let network = network(None);
    let names: Vec<&str> = network.adapter_points().names().collect();
    for name in [
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.1.attn2.to_out.0",
        "transformer_blocks.0.attn.to_add_out",
        "transformer_blocks.2.attn.add_k_proj",
        "transformer_blocks.2.ff.net.0.proj",
        "transformer_blocks.1.ff_context.net.2",
    ] {
        assert!(names.contains(&name), "{name}");
    }
}
