use super::*;
use crate::denoisers::testing::{distance, each_row_sees_its_own, image_prompt, noise, numbers, view, weights_for};

fn config() -> FluxConfig {
    FluxConfig {
        in_channels: 16,
        out_channels: None,
        num_layers: 2,
        num_single_layers: 3,
        attention_head_dim: 8,
        num_attention_heads: 3,
        joint_attention_dim: 10,
        pooled_projection_dim: 6,
        guidance_embeds: true,
        axes_dims_rope: vec![2, 4, 2],
    }
}

fn model(config: &FluxConfig) -> Flux {
    Flux::new(config, &view(weights_for(|weights| Flux::new(config, weights)))).unwrap()
}

/// A row's condition; every seed is another prompt.
fn condition(flux: &Flux, seed: u32, guidance: f64, size: (usize, usize), reference: Option<&Tensor>) -> FluxCondition {
    let (states, pooled) = (noise(&[1, 5, 10], seed), noise(&[1, 6], seed + 1));
    let context = FluxContext { states: &states, pooled: &pooled, guidance, size, channels: None, reference };
    flux.condition(&context, &Adapters::default()).unwrap()
}

#[test]
fn packing_and_unpacking_are_inverse() {
    let latents = noise(&[2, 3, 4, 6], 1);
    let tokens = pack(&latents).unwrap();
    assert_eq!(tokens.dims(), [2, 6, 12]);
    // The first token of the first row holds the corner's four pixels of each channel.
    let corner = numbers(&latents.narrow(2, 0, 2).unwrap().narrow(3, 0, 2).unwrap().get(0).unwrap());
    assert_eq!(numbers(&tokens.get(0).unwrap().get(0).unwrap()), corner);
    assert_eq!(numbers(&unpack(&tokens, (4, 6)).unwrap()), numbers(&latents));
    assert!(pack(&noise(&[1, 3, 3, 6], 1)).is_err());
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let flux = model(&config());
    let latents = noise(&[3, 4, 4, 6], 2);
    let rows = [(10, 1.0), (20, 3.5), (30, 30.0)].map(|(seed, scale)| condition(&flux, seed, scale, (4, 6), None));
    let timesteps = [1000.0, 512.25, 3.0];
    let hooks = FluxHooks::default();
    let all = FluxCondition::stack(&rows.iter().collect::<Vec<_>>()).unwrap();
    let together = flux.forward(&latents, &timesteps, &all, &hooks).unwrap();
    assert_eq!(together.dims(), [3, 4, 4, 6]);
    for (at, condition) in rows.iter().enumerate() {
        let alone = flux.forward(&latents.narrow(0, at, 1).unwrap(), &timesteps[at..=at], condition, &hooks).unwrap();
        assert_eq!(numbers(&alone), numbers(&together.narrow(0, at, 1).unwrap()), "row {at}");
    }
}

#[test]
fn a_picture_that_is_looked_at_changes_what_is_drawn_and_is_not_drawn_itself() {
    let flux = model(&config());
    let (latents, reference) = (noise(&[1, 4, 4, 6], 2), noise(&[1, 4, 2, 8], 3));
    let hooks = FluxHooks::default();
    let [without, with] = [None, Some(&reference)].map(|reference| {
        let condition = condition(&flux, 10, 3.5, (4, 6), reference);
        flux.forward(&latents, &[700.0], &condition, &hooks).unwrap()
    });
    assert_eq!(with.dims(), latents.dims());
    assert!(distance(&with, &without) > 1e-3);
}

#[test]
fn rows_with_and_without_a_reference_cannot_share_a_call() {
    let flux = model(&config());
    let reference = noise(&[1, 4, 2, 2], 3);
    let with = condition(&flux, 10, 3.5, (4, 6), Some(&reference));
    let without = condition(&flux, 10, 3.5, (4, 6), None);
    assert!(FluxCondition::stack(&[&with, &without]).is_err());
    assert!(FluxCondition::stack(&[]).is_err());
}

#[test]
fn a_residual_is_added_to_the_image_only() {
    let flux = model(&config());
    let latents = noise(&[1, 4, 4, 6], 2);
    let condition = condition(&flux, 10, 3.5, (4, 6), None);
    let run = |residuals: FluxResiduals| {
        let hooks = FluxHooks { residuals, ..FluxHooks::default() };
        flux.forward(&latents, &[700.0], &condition, &hooks).unwrap()
    };
    let plain = run(FluxResiduals::default());
    let zeros = vec![noise(&[1, 6, 24], 5).zeros_like().unwrap()];
    let nothing = run(FluxResiduals { double: zeros.clone(), single: zeros, repeat: false });
    assert_eq!(numbers(&plain), numbers(&nothing));
    for double in [true, false] {
        let residual = vec![noise(&[1, 6, 24], 5)];
        let (double, single) = if double { (residual, Vec::new()) } else { (Vec::new(), residual) };
        assert!(distance(&run(FluxResiduals { double, single, repeat: false }), &plain) > 1e-3);
    }
}

#[test]
fn each_row_looks_at_its_own_pictures() {
    let flux = model(&config());
    let rows: Vec<_> = (0..3).map(|row| condition(&flux, 10 + row, 3.5, (4, 6), None)).collect();
    each_row_sees_its_own(
        |seed, scale| image_prompt(2, 24, seed, scale),
        |first, count, pictures| {
            let latents = noise(&[3, 4, 4, 6], 2).narrow(0, first, count).unwrap();
            let condition = FluxCondition::stack(&rows[first..first + count].iter().collect::<Vec<_>>()).unwrap();
            flux.forward(&latents, &vec![700.0; count], &condition, &FluxHooks { pictures, ..FluxHooks::default() })
        },
    );
    // An adapter for other blocks than the network has.
    let pictures = ImagePrompts::by_row(vec![vec![image_prompt(3, 24, 1, 1.0)]]);
    let hooks = FluxHooks { pictures, ..FluxHooks::default() };
    let error = flux.forward(&noise(&[1, 4, 4, 6], 2), &[700.0], &rows[0], &hooks).unwrap_err().to_string();
    assert_eq!(error, "an image prompt has 3 layers; the network has places for 2");
}

#[test]
fn guidance_changes_a_model_that_is_told_it_and_no_other() {
    for told in [true, false] {
        let flux = model(&FluxConfig { guidance_embeds: told, ..config() });
        let latents = noise(&[1, 4, 4, 4], 2);
        let [weak, strong] = [1.0, 4.0].map(|guidance| {
            let condition = condition(&flux, 10, guidance, (4, 4), None);
            flux.forward(&latents, &[700.0], &condition, &FluxHooks::default()).unwrap()
        });
        assert_eq!(distance(&weak, &strong) > 1e-6, told);
    }
}

#[test]
fn half_precision_is_near_to_f32() {
    let config = config();
    let weights = view(weights_for(|weights| Flux::new(&config, weights)));
    let latents = noise(&[1, 4, 4, 6], 2);
    let run = |dtype| {
        let flux = Flux::new(&config, &weights.to_dtype(dtype)).unwrap();
        let condition = condition(&flux, 10, 3.5, (4, 6), None);
        let pictures = ImagePrompts::by_row(vec![vec![image_prompt(2, 24, 3, 0.8)]]);
        let residuals = FluxResiduals { double: vec![noise(&[1, 6, 24], 5)], ..FluxResiduals::default() };
        let hooks = FluxHooks { residuals, pictures, ..FluxHooks::default() };
        let velocity = flux.forward(&latents, &[700.0], &condition, &hooks).unwrap();
        assert_eq!(velocity.dtype(), DType::F32);
        velocity
    };
    let exact = run(DType::F32);
    assert!(distance(&run(DType::BF16), &exact) < 3e-2);
    assert!(distance(&run(DType::F16), &exact) < 4e-3);
}
