//! What must hold of every sampler, whatever diffusers does: orders of convergence, resumption, bounds of the numbers.

use candle_core::{DType, Device, Tensor};

use super::tests::fake;
use super::{
    ModelKind, Noise, NoiseSource, Plan, PlanContext, Sampler, SamplerInfo, SamplingSpec, Schedule, SchedulerConfig,
    StrengthRule, TorchCpu, catalogue,
};

const SHAPE: [usize; 3] = [4, 2, 2];

fn config(flow: bool) -> SchedulerConfig {
    let text = if flow {
        r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}"#
    } else {
        r#"{"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
            "skip_prk_steps": true, "steps_offset": 1, "set_alpha_to_one": false, "clip_sample": false}"#
    };
    SchedulerConfig::from_json(text).unwrap()
}

fn is_flow(info: &SamplerInfo) -> bool {
    info.kind == ModelKind::Flow
}

fn prediction(info: &SamplerInfo) -> &'static str {
    if is_flow(info) { "flow_prediction" } else { "epsilon" }
}

fn plan(info: &SamplerInfo, schedule: &str, steps: usize) -> Plan {
    let spec = SamplingSpec::steps(steps).with_sampler(info.name).with_schedule(schedule);
    Plan::new(&spec, &config(is_flow(info)), PlanContext::default()).unwrap()
}

fn start(plan: Plan, seed: u64) -> Box<dyn Sampler> {
    let mut noise = plan.noise().open(seed);
    let latents = (noise.normal(&SHAPE, &Device::Cpu).unwrap() * plan.init_noise_sigma()).unwrap();
    plan.start(latents, noise).unwrap()
}

fn step(sampler: &mut dyn Sampler, prediction: &str) -> bool {
    let Some(query) = sampler.query().unwrap() else { return false };
    let output = fake(prediction, &query.input, query.timestep);
    sampler.advance(&output).unwrap();
    true
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Every sampler with every schedule that it allows.
fn combinations() -> impl Iterator<Item = (&'static SamplerInfo, Schedule)> {
    catalogue().iter().flat_map(|info| info.schedules.iter().map(move |schedule| (info, *schedule)))
}

#[test]
fn every_allowed_combination_runs_and_counts_its_steps() {
    for (info, schedule) in combinations() {
        for steps in [4, 11] {
            let plan = plan(info, schedule.name(), steps);
            let name = format!("{} {} {steps}", info.name, schedule.name());
            assert_eq!(plan.sampler().name, info.name);
            assert_eq!(plan.steps(), steps, "{name}");
            assert!(plan.timesteps().iter().all(|t| (0.0..=1000.0).contains(t)), "{name}: {:?}", plan.timesteps());
            let mut sampler = start(plan, 1);
            assert!(sampler.denoised().is_none());
            let (mut calls, mut last) = (0, 0);
            while step(sampler.as_mut(), prediction(info)) {
                calls += 1;
                let progress = sampler.progress();
                assert!(progress.steps == steps && progress.step >= last, "{name}");
                last = progress.step;
                assert!(values(sampler.denoised().unwrap()).iter().all(|v| v.is_finite()), "{name}");
            }
            assert_eq!(last, steps, "{name}");
            // A second-order step that ends at 0 is of first order; PNDM's first step takes two calls.
            let expected = match info.name {
                "pndm" => steps + 1,
                _ => steps * info.calls_per_step - (info.calls_per_step - 1),
            };
            assert_eq!(calls, expected, "{name}");
            let end = values(sampler.latents());
            assert!(end.iter().all(|v| v.is_finite() && v.abs() < 20.0), "{name}: {end:?}");
        }
    }
}

#[test]
fn rows_driven_in_turns_end_like_rows_driven_alone() {
    // Every sampler beside every other, one model call each in turn, as in a shared batch.
    let begin = || -> Vec<_> {
        catalogue()
            .iter()
            .enumerate()
            .map(|(i, info)| (info, start(plan(info, "default", 5 + i % 4), i as u64)))
            .collect()
    };
    let mut together = begin();
    while together.iter_mut().fold(false, |any, (info, sampler)| step(sampler.as_mut(), prediction(info)) || any) {}
    for ((info, mut alone), (_, shared)) in begin().into_iter().zip(together) {
        while step(alone.as_mut(), prediction(info)) {}
        assert_eq!(values(alone.latents()), values(shared.latents()), "{}", info.name);
    }
}

#[test]
fn a_run_that_is_broken_off_is_made_again_to_the_same_bits() {
    for info in catalogue() {
        let finish = |mut sampler: Box<dyn Sampler>| {
            while step(sampler.as_mut(), prediction(info)) {}
            values(sampler.latents())
        };
        let whole = finish(start(plan(info, "default", 6), 9));
        let mut broken = start(plan(info, "default", 6), 9);
        step(broken.as_mut(), prediction(info));
        // Asking twice without an answer changes nothing, so a failed model call can be repeated.
        let (first, second) = (broken.query().unwrap().unwrap(), broken.query().unwrap().unwrap());
        assert_eq!((first.timestep, values(&first.input)), (second.timestep, values(&second.input)), "{}", info.name);
        assert_eq!(finish(broken), whole, "{}", info.name);
        assert_eq!(finish(start(plan(info, "default", 6), 9)), whole, "{}", info.name);
    }
}

#[test]
fn image_to_image_takes_the_last_steps() {
    for info in catalogue() {
        let mut plan = plan(info, "default", 10);
        let whole = plan.timesteps().to_vec();
        plan.skip_to_strength(0.35, StrengthRule::Truncate).unwrap();
        assert_eq!(plan.steps(), 3, "{}", info.name);
        assert_eq!(plan.timesteps(), &whole[7..], "{}", info.name);
        let mut noise = TorchCpu::new(4);
        let clean = Tensor::zeros(&SHAPE, DType::F32, &Device::Cpu).unwrap();
        let fresh = noise.normal(&SHAPE, &Device::Cpu).unwrap();
        let mut sampler = plan.clone().start(plan.add_noise(&clean, &fresh).unwrap(), Box::new(noise)).unwrap();
        while step(sampler.as_mut(), prediction(info)) {}
        assert_eq!(sampler.progress().step, 3, "{}", info.name);
        assert!(values(sampler.latents()).iter().all(|v| v.is_finite()), "{}", info.name);
        let error = plan.skip_to_strength(0.05, StrengthRule::Truncate).unwrap_err();
        assert!(error.param == "strength" && error.message.contains("0.1"), "{error}");
        assert_eq!(plan.skip_to_strength(1.5, StrengthRule::Truncate).unwrap_err().param, "strength");
    }
    // SD3's and FLUX's rule keeps the part of a step that SD's drops.
    let mut fraction = plan(super::find("flow_euler").unwrap(), "default", 10);
    fraction.skip_to_strength(0.35, StrengthRule::Fraction).unwrap();
    assert_eq!(fraction.steps(), 4);
}

#[test]
fn what_a_sampler_has_no_use_for_is_refused_by_name() {
    let spec = |name: &str| SamplingSpec::steps(10).with_sampler(name);
    let refused = |spec: &SamplingSpec, flow: bool| Plan::new(spec, &config(flow), PlanContext::default()).unwrap_err();
    for (param, asked) in [
        ("eta", SamplingSpec { eta: Some(0.5), ..spec("euler") }),
        ("eta", SamplingSpec { eta: Some(1.5), ..spec("ddim") }),
        ("order", SamplingSpec { order: Some(2), ..spec("euler") }),
        ("order", SamplingSpec { order: Some(7), ..spec("deis") }),
        ("solver", SamplingSpec { solver: Some("bh1".into()), ..spec("dpmpp_2m") }),
        ("solver", SamplingSpec { solver: Some("bh1".into()), ..spec("ddim") }),
        ("shift", SamplingSpec { shift: Some(3.0), ..spec("euler") }),
        ("timesteps", SamplingSpec { timesteps: Some(vec![900.0; 10]), ..spec("ddim") }),
        ("timesteps", SamplingSpec { timesteps: Some(vec![900.0, 100.0]), ..spec("euler") }),
        ("timesteps", SamplingSpec { timesteps: Some((0..10).map(f64::from).collect()), ..spec("euler") }),
        ("sigmas", SamplingSpec { sigmas: Some(vec![1.0, f64::NAN]), ..SamplingSpec::steps(1).with_sampler("euler") }),
        ("steps", SamplingSpec::steps(0)),
        ("steps", SamplingSpec::steps(1001)),
        ("steps", SamplingSpec::steps(1000).with_sampler("ddim")),
        ("steps", SamplingSpec::steps(51).with_sampler("lcm")),
        ("sampler", spec("flow_euler")),
        ("schedule", spec("lcm").with_schedule("karras")),
    ] {
        assert_eq!(refused(&asked, false).param, param, "{asked:?}");
    }
    assert_eq!(refused(&spec("ddim"), true).param, "sampler");
    assert_eq!(refused(&SamplingSpec { shift: Some(0.0), ..SamplingSpec::steps(4) }, true).param, "shift");
    // On a flow model, a sampler's name means its flow form.
    let found = Plan::new(&spec("DPM++ 2M"), &config(true), PlanContext::default()).unwrap();
    assert_eq!(found.sampler().name, "flow_dpmpp_2m");
}

/// Normal data of deviation `DATA` has a solution in closed form: at level σ the latents are
/// √(DATA² + σ²) times what they were at level 1 of that scale, and the best guess of the clean ones is a fixed share.
const DATA: f64 = 0.6;

/// How far the sampler ends from the exact solution of a Gaussian's probability-flow ODE, over a range of sigmas that
/// ends above 0, in f64.
fn gaussian_error(name: &str, steps: usize) -> f64 {
    const TOP: f64 = 8.0;
    const BOTTOM: f64 = 0.4;
    let ratio = (BOTTOM / TOP).powf(1.0 / steps as f64);
    let sigmas: Vec<f64> = (0..=steps).map(|i| TOP * ratio.powi(i as i32)).collect();
    let spec = SamplingSpec {
        eta: super::find(name).unwrap().takes_eta.then_some(0.0),
        sigmas: Some(sigmas),
        ..SamplingSpec::steps(steps).with_sampler(name)
    };
    let plan = Plan::new(&spec, &config(false), PlanContext::default()).unwrap();
    let preserving = plan.init_noise_sigma() == 1.0;
    let scale = |sigma: f64| if preserving { (sigma * sigma + 1.0).sqrt() } else { 1.0 };
    let deviation = |sigma: f64| (DATA * DATA + sigma * sigma).sqrt();
    let (top, bottom) = (plan.sigmas()[0], plan.sigmas()[steps]);
    let begin = deviation(top) / scale(top);
    let latents = Tensor::new(&[begin, -0.5 * begin], &Device::Cpu).unwrap();
    let mut sampler = plan.start(latents, NoiseSource::TorchCpu.open(0)).unwrap();
    while let Some(query) = sampler.query().unwrap() {
        // The noise that the best guess leaves, from the unit-variance input: x = input·√(σ² + 1) at the query's own level.
        let sigma = query.sigma;
        let share = DATA * DATA / (DATA * DATA + sigma * sigma);
        let noise = (&query.input * ((sigma * sigma + 1.0).sqrt() * (1.0 - share) / sigma)).unwrap();
        sampler.advance(&noise).unwrap();
    }
    let end: Vec<f64> = sampler.latents().to_vec1().unwrap();
    let exact = deviation(bottom) / scale(bottom);
    (end[0] - exact).abs().max((end[1] + 0.5 * exact).abs())
}

#[test]
fn errors_shrink_with_the_order_of_the_method() {
    // Halving the steps divides the error by 2^order. The sigmas are f32, so the error is measured where it is far above 1e-7.
    for (name, order) in [
        ("euler", 1.0),
        ("euler_a", 1.0),
        ("heun", 2.0),
        ("dpm2", 2.0),
        ("dpm2_a", 2.0),
        ("dpmpp_2s_a", 2.0),
        ("dpmpp_2m", 2.0),
        ("res_multistep", 2.0),
        ("deis", 2.0),
        ("dpmpp_3m", 3.0),
        // UniPC is of third order inside, but takes its last step with the first; LMS starts with Euler's step.
        ("unipc", 2.0),
        ("lms", 2.0),
    ] {
        // Heun's last step is Euler's, whose error happens to cancel the others' at some numbers of steps.
        let steps = if name == "heun" { 128 } else { 32 };
        let (coarse, fine) = (gaussian_error(name, steps), gaussian_error(name, 2 * steps));
        let measured = (coarse / fine).log2();
        // The start and the last steps are of lower order; on one problem a method may
        // be better than its order, hardly worse.
        assert!(measured > order - 0.35, "{name}: order {measured:.2}, errors {coarse:.2e} {fine:.2e}");
    }
}

#[test]
fn flow_methods_converge_with_their_orders() {
    // Along a flow from noise to normal data, x_t has deviation √((1 - t)²·DATA² + t²), and the velocity is linear in x.
    let error = |name: &str, steps: usize| {
        let sigmas: Vec<f64> = (0..steps).map(|i| 1.0 - 0.999 * i as f64 / steps as f64).collect();
        let spec =
            SamplingSpec { sigmas: Some(sigmas), shift: Some(1.0), ..SamplingSpec::steps(steps).with_sampler(name) };
        let plan = Plan::new(&spec, &config(true), PlanContext::default()).unwrap();
        let mut sampler =
            plan.start(Tensor::new(&[1.0_f64], &Device::Cpu).unwrap(), NoiseSource::TorchCpu.open(0)).unwrap();
        while let Some(query) = sampler.query().unwrap() {
            let t = query.sigma;
            let variance = (1.0 - t).powi(2) * DATA * DATA + t * t;
            let velocity = (&query.input * ((t - (1.0 - t) * DATA * DATA) / variance)).unwrap();
            sampler.advance(&velocity).unwrap();
        }
        (sampler.latents().to_vec1::<f64>().unwrap()[0] - DATA).abs()
    };
    for (name, order) in [("flow_euler", 1.0), ("flow_heun", 2.0)] {
        let measured = (error(name, 40) / error(name, 80)).log2();
        assert!((order - 0.3..order + 1.0).contains(&measured), "{name}: {measured}");
    }
}

#[test]
fn a_brownian_path_serves_any_stochastic_sampler() {
    let info = super::find("dpmpp_2m_sde").unwrap();
    let end = |noise: Option<NoiseSource>| {
        let spec = SamplingSpec { noise, ..SamplingSpec::steps(8).with_sampler(info.name) };
        let mut sampler = start(Plan::new(&spec, &config(false), PlanContext::default()).unwrap(), 5);
        while step(sampler.as_mut(), "epsilon") {}
        values(sampler.latents())
    };
    let ends = NoiseSource::ALL.map(|source| end(Some(source)));
    assert!(ends.iter().flatten().all(|v| v.is_finite()));
    assert_ne!(ends[0], ends[1]);
    assert_ne!(ends[0], ends[2]);
    assert_eq!(end(None), ends[0]);
    for source in NoiseSource::ALL {
        assert_eq!(NoiseSource::find(source.name()), Some(source));
    }
}

#[test]
fn a_models_file_names_its_own_sampler() {
    for (text, name) in [
        (r#"{"_class_name": "DDIMScheduler"}"#, "ddim"),
        (r#"{"_class_name": "PNDMScheduler"}"#, "pndm"),
        (r#"{"_class_name": "DPMSolverMultistepScheduler"}"#, "dpmpp_2m"),
        (r#"{"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}"#, "dpmpp_3m"),
        (r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}"#, "dpmpp_2m_sde"),
        (
            r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}"#,
            "dpm_2m",
        ),
        (r#"{"_class_name": "EulerAncestralDiscreteScheduler"}"#, "euler_a"),
        (r#"{"_class_name": "KDPM2AncestralDiscreteScheduler"}"#, "dpm2_a"),
        (r#"{"_class_name": "DPMSolverSDEScheduler"}"#, "dpmpp_sde"),
        (r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}"#, "flow_euler"),
        (
            r#"{"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": true, "prediction_type": "flow_prediction"}"#,
            "flow_dpmpp_2m",
        ),
    ] {
        let config = SchedulerConfig::from_json(text).unwrap();
        assert_eq!(SamplerInfo::of_model(&config).unwrap().name, name);
        assert_eq!(Plan::new(&SamplingSpec::steps(6), &config, PlanContext::default()).unwrap().sampler().name, name);
    }
}
