use std::collections::HashMap;

use candle_core::{DType, Tensor};
use easel_kernels::Linear;

use super::*;
use crate::denoisers::testing::{distance, each_row_sees_its_own, noise, numbers, view, weights_for};
use crate::denoisers::{AddedContext, ImageProjection, ImagePrompt, LowRank};

const SD: &str = r#"{
    "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
    "cross_attention_dim": 6, "attention_head_dim": [2, 4],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]
}"#;

const SDXL: &str = r#"{
    "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "use_linear_projection": true,
    "cross_attention_dim": 6, "attention_head_dim": [2, 4], "transformer_layers_per_block": [1, 2],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 29
}"#;

fn config(json: &str) -> UNetConfig {
    UNetConfig::from_json("unet/config.json", json).unwrap()
}

fn build(json: &str) -> (UNet, HashMap<String, Tensor>) {
    let config = config(json);
    let weights = weights_for(|weights| UNet::new(&config, weights));
    (UNet::new(&config, &view(weights.clone())).unwrap(), weights)
}

fn context(states: &Tensor) -> Context<'_> {
    Context { states, added: None, guidance: None }
}

fn plain(unet: &UNet, latents: &Tensor, states: &Tensor, hooks: &Hooks) -> Tensor {
    let condition = unet.condition(&context(states), &hooks.adapters).unwrap();
    let timesteps = vec![321.5; latents.dim(0).unwrap()];
    unet.forward(latents, &timesteps, &condition, hooks).unwrap()
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let (unet, _) = build(SDXL);
    let rows = 3;
    let (latents, states) = (noise(&[rows, 4, 6, 10], 1), noise(&[rows, 5, 6], 2));
    let (pooled, ids) = (noise(&[rows, 5], 3), [vec![512.0; 6], vec![0.0; 6], vec![64.5; 6]]);
    let timesteps = [981.0, 0.0, 37.25];
    let condition = |row: usize, count: usize| {
        let (states, pooled) = (states.narrow(0, row, count).unwrap(), pooled.narrow(0, row, count).unwrap());
        let added = AddedContext { pooled: &pooled, time_ids: &ids[row..row + count] };
        let context = Context { states: &states, added: Some(added), guidance: None };
        unet.condition(&context, &Adapters::default()).unwrap()
    };
    let together = unet.forward(&latents, &timesteps, &condition(0, rows), &Hooks::default()).unwrap();
    let alone: Vec<Condition> = (0..rows).map(|row| condition(row, 1)).collect();
    let stacked = Condition::stack(&alone.iter().collect::<Vec<_>>()).unwrap();
    let restacked = unet.forward(&latents, &timesteps, &stacked, &Hooks::default()).unwrap();
    assert_eq!(numbers(&together), numbers(&restacked));
    for row in 0..rows {
        let latents = latents.narrow(0, row, 1).unwrap();
        let single = unet.forward(&latents, &[timesteps[row]], &alone[row], &Hooks::default()).unwrap();
        assert_eq!(numbers(&together.narrow(0, row, 1).unwrap()), numbers(&single), "row {row}");
    }
}

#[test]
fn half_precision_is_close_to_single() {
    let (unet, weights) = build(SDXL);
    let (latents, states, pooled) = (noise(&[2, 4, 6, 10], 1), noise(&[2, 5, 6], 2), noise(&[2, 5], 3));
    let ids = vec![vec![512.0; 6]; 2];
    let run = |unet: &UNet| {
        let added = Some(AddedContext { pooled: &pooled, time_ids: &ids });
        let context = Context { states: &states, added, guidance: None };
        let condition = unet.condition(&context, &Adapters::default()).unwrap();
        unet.forward(&latents, &[700.5, 20.0], &condition, &Hooks::default()).unwrap()
    };
    let full = run(&unet);
    for (dtype, bound) in [(DType::F16, 5e-3), (DType::BF16, 5e-2)] {
        let half = run(&UNet::new(unet.config(), &view(weights.clone()).to_dtype(dtype)).unwrap());
        assert_eq!(half.dtype(), DType::F32, "the type of the latents");
        // A value has 11 or 8 bits of mantissa, and some twenty layers round one after the other.
        let error = distance(&half, &full);
        assert!(error > 1e-5 && error < bound, "{dtype:?}: {error}");
    }
}

#[test]
fn each_row_has_its_own_timestep() {
    let (unet, _) = build(SD);
    let (latents, states) = (noise(&[1, 4, 4, 4], 1), noise(&[1, 5, 6], 2));
    let both = |tensor: &Tensor| Tensor::cat(&[tensor, tensor], 0).unwrap();
    let condition = unet.condition(&context(&both(&states)), &Adapters::default()).unwrap();
    let output = unet.forward(&both(&latents), &[10.0, 900.0], &condition, &Hooks::default()).unwrap();
    let rows = output.chunk(2, 0).unwrap();
    assert!(distance(&rows[0], &rows[1]) > 1e-3);
}

#[test]
fn latents_of_any_size_keep_their_size() {
    let (unet, _) = build(SD);
    let states = noise(&[1, 5, 6], 2);
    for (h, w) in [(8, 8), (9, 11), (1, 3), (7, 2)] {
        let output = plain(&unet, &noise(&[1, 4, h, w], 1), &states, &Hooks::default());
        assert_eq!(output.dims(), [1, 4, h, w]);
        assert!(numbers(&output).iter().all(|value| value.is_finite()));
    }
}

#[test]
fn residuals_are_added_to_every_skip_and_to_the_middle() {
    let (unet, _) = build(SD);
    let (latents, states) = (noise(&[1, 4, 4, 4], 1), noise(&[1, 5, 6], 2));
    // conv_in, one layer and the halving on level 0; one layer on level 1.
    let shapes = [[1, 4, 4, 8], [1, 4, 4, 8], [1, 2, 2, 8], [1, 2, 2, 16]];
    let zeros = |shape: &[usize; 4]| (noise(shape, 1) * 0.0).unwrap();
    let hooks = |changed: Option<usize>| {
        let residual = |(i, shape): (usize, &[usize; 4])| {
            if changed == Some(i) { noise(shape.as_slice(), 5) } else { zeros(shape) }
        };
        let mid = residual((4, &shapes[3]));
        let down = shapes.iter().enumerate().map(residual).collect();
        Hooks { residuals: Some(Residuals { down, mid }), ..Hooks::default() }
    };
    let without = plain(&unet, &latents, &states, &Hooks::default());
    assert_eq!(numbers(&plain(&unet, &latents, &states, &hooks(None))), numbers(&without));
    for changed in 0..5 {
        let with = plain(&unet, &latents, &states, &hooks(Some(changed)));
        assert!(distance(&with, &without) > 1e-3, "residual {changed}");
    }
    let few = Hooks { residuals: Some(Residuals { down: Vec::new(), mid: zeros(&shapes[3]) }), ..Hooks::default() };
    let condition = unet.condition(&context(&states), &Adapters::default()).unwrap();
    let error = unet.forward(&latents, &[1.0], &condition, &few).unwrap_err().to_string();
    assert_eq!(error, "0 residuals were given for the UNet's 4 skips");
}

#[test]
fn a_low_rank_side_path_equals_its_merged_weight() {
    let (unet, mut weights) = build(SD);
    let (latents, states) = (noise(&[2, 4, 4, 4], 1), noise(&[2, 5, 6], 2));
    let mut paths = Vec::new();
    let names: Vec<String> = unet.adapter_points().names().map(str::to_owned).collect();
    // Three transformers (down, mid and twice up make four) of two projections, eight in the attentions and two between.
    assert_eq!(names.len(), 4 * 12);
    for (i, name) in names.iter().enumerate() {
        let weight = &weights[&format!("{name}.weight")];
        let (outputs, inputs) = (weight.dim(0).unwrap(), weight.dim(1).unwrap());
        let (down, up) = (noise(&[2, inputs], 100 + i as u32), noise(&[outputs, 2], 200 + i as u32));
        let merged = (up.matmul(&down).unwrap() * 0.05).unwrap().reshape(weight.dims()).unwrap();
        weights.insert(format!("{name}.weight"), (weight + merged).unwrap());
        let [down, up] = [down, up].map(|weight| Linear::new(weight, None).unwrap());
        paths.push((name.clone(), LowRank { down, up, scale: 0.05 }));
    }
    let hooks = Hooks { adapters: unet.adapter_points().adapters(paths).unwrap(), ..Hooks::default() };
    let beside = plain(&unet, &latents, &states, &hooks);
    let merged = UNet::new(unet.config(), &view(weights)).unwrap();
    assert!(distance(&beside, &plain(&merged, &latents, &states, &Hooks::default())) < 1e-5);
    assert!(distance(&beside, &plain(&unet, &latents, &states, &Hooks::default())) > 1e-2);
}

#[test]
fn an_adapter_for_a_layer_that_is_not_there_is_refused() {
    let (unet, _) = build(SD);
    let path = |inputs| {
        let (down, up) = (noise(&[2, inputs], 1), noise(&[16, 2], 2));
        LowRank { down: Linear::new(down, None).unwrap(), up: Linear::new(up, None).unwrap(), scale: 1.0 }
    };
    let bind = |name: &str, inputs| {
        unet.adapter_points().adapters([(name.to_owned(), path(inputs))]).map(|_| ()).unwrap_err().to_string()
    };
    assert!(bind("mid_block.nowhere", 16).contains("mid_block.nowhere, which the network does not have"));
    let name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
    assert!(bind(name, 9).contains("maps 9 to 16 features"));
}

#[test]
fn a_context_that_does_not_fit_the_network_is_refused() {
    let (unet, _) = build(SD);
    let condition = |states: &Tensor| unet.condition(&context(states), &Adapters::default());
    let error = condition(&noise(&[1, 5, 7], 1)).unwrap_err().to_string();
    assert!(error.contains("cross_attention_dim") && error.contains("[1, 5, 7]"), "{error}");
    let two = condition(&noise(&[2, 5, 6], 1)).unwrap();
    let error = unet.forward(&noise(&[1, 4, 4, 4], 1), &[1.0], &two, &Hooks::default()).unwrap_err().to_string();
    assert!(error.contains("1 latents need as many timesteps and conditions"), "{error}");
    let (unet, _) = build(SDXL);
    let error = unet.condition(&context(&noise(&[1, 5, 6], 1)), &Adapters::default()).unwrap_err().to_string();
    assert!(error.contains("addition_embed_type"), "{error}");
}

/// The cross-attention layers of [`SD`], in the order of their numbers.
const CROSS: [&str; 4] =
    ["down_blocks.0.attentions.0", "mid_block.attentions.0", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1"];

#[test]
fn a_picture_is_looked_at_beside_the_text_and_each_row_at_its_own() {
    let (unet, weights) = build(SD);
    let (latents, states) = (noise(&[3, 4, 6, 10], 1), noise(&[3, 5, 6], 2));
    let draw = |condition: &Condition, first: usize, pictures: ImagePrompts| {
        let latents = latents.narrow(0, first, condition.rows()).unwrap();
        let hooks = Hooks { pictures, ..Hooks::default() };
        unet.forward(&latents, &vec![321.5; condition.rows()], condition, &hooks)
    };
    let condition = |first: usize, count: usize| {
        unet.condition(&context(&states.narrow(0, first, count).unwrap()), &Adapters::default()).unwrap()
    };
    // Tokens that are the text's states, with the text's own projections, add their share of what the text gives.
    let mut scaled = condition(0, 3);
    for layer in &mut scaled.context {
        layer.values = (&layer.values * 1.5).unwrap();
    }
    let layers = CROSS.map(|name| {
        let of = |layer: &str| weights[&format!("{name}.transformer_blocks.0.attn2.{layer}.weight")].clone();
        let [to_k, to_v] = ["to_k", "to_v"].map(|layer| Linear::new(of(layer), None).unwrap());
        ImageProjection { to_k, to_v }
    });
    let own = |row: usize| vec![ImagePrompt::new(&states.narrow(0, row, 1).unwrap(), &layers, &[0.5; 4]).unwrap()];
    let pictured = draw(&condition(0, 3), 0, ImagePrompts::by_row((0..3).map(own).collect())).unwrap();
    assert!(distance(&pictured, &draw(&scaled, 0, ImagePrompts::default()).unwrap()) < 1e-5);

    each_row_sees_its_own(
        |seed, scale| ImagePrompt::new(&noise(&[1, seed as usize, 6], seed), &layers, &[scale; 4]).unwrap(),
        |first, count, pictures| draw(&condition(first, count), first, pictures),
    );
    let few = ImagePrompt::new(&states.narrow(0, 0, 1).unwrap(), &layers[1..], &[1.0; 3]).unwrap();
    let error = draw(&condition(0, 1), 0, ImagePrompts::by_row(vec![vec![few]])).unwrap_err().to_string();
    assert_eq!(error, "an image prompt has 3 layers; the network has places for 4");
}
