//! Whole trajectories on a fake model, against diffusers' (scripts/goldens_samplers.py).

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use super::{Noise, NoiseSource, Plan, PlanContext, Repaint, Sampler, SamplingSpec, SchedulerConfig, StrengthRule};

/// One trajectory of diffusers.
#[derive(Debug, Deserialize)]
struct Golden {
    /// The name of one of the scheduler files.
    config: String,
    sampler: Option<String>,
    schedule: Option<String>,
    steps: usize,
    #[serde(default)]
    eta: Option<f64>,
    #[serde(default)]
    order: Option<usize>,
    #[serde(default)]
    solver: Option<String>,
    #[serde(default)]
    shift: Option<f64>,
    #[serde(default)]
    timesteps: Option<Vec<f64>>,
    #[serde(default)]
    sigmas: Option<Vec<f64>>,
    #[serde(default)]
    noise: Option<NoiseSource>,
    #[serde(default)]
    strength: Option<f64>,
    #[serde(default)]
    mu: Option<f64>,
    #[serde(default)]
    image_tokens: Option<usize>,
    #[serde(default)]
    unit_sigmas: bool,
    /// Half of the picture is kept.
    #[serde(default)]
    repaint: bool,
    /// The latents are f64 on both sides.
    #[serde(default)]
    double: bool,
    /// What the fake model predicts.
    prediction: String,
    seed: u64,
    /// The final latents.
    end: Vec<f32>,
}

#[derive(Deserialize)]
struct Goldens {
    configs: std::collections::BTreeMap<String, serde_json::Value>,
    cases: Vec<Golden>,
}

const SHAPE: [usize; 3] = [4, 2, 2];

/// The fake model of scripts/goldens_samplers.py: smooth, not linear, and bounded enough to keep roundings small.
pub(super) fn fake(prediction: &str, input: &Tensor, timestep: f64) -> Tensor {
    let tau = timestep / 1000.0;
    let tanh = input.tanh().unwrap();
    let mix = |a: f64, b: f64| ((input * a).unwrap() + (&tanh * b).unwrap()).unwrap();
    match prediction {
        "epsilon" => mix(0.8 * tau.max(0.0).sqrt(), 0.15),
        "v_prediction" => mix(-0.2 * (1.0 - tau), 0.5),
        "sample" => mix(0.1, 0.6),
        "flow_prediction" => mix(0.6 * tau, 0.3),
        other => panic!("{other}"),
    }
}

pub(super) fn drive(sampler: &mut dyn Sampler, prediction: &str) -> Vec<f32> {
    while let Some(query) = sampler.query().unwrap() {
        let output = fake(prediction, &query.input, query.timestep);
        sampler.advance(&output).unwrap();
    }
    sampler.latents().to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Noise drawn in f32 and handed out as f64.
struct Widened(Box<dyn Noise>);

impl Noise for Widened {
    fn seed(&self) -> u64 {
        self.0.seed()
    }

    fn normal(&mut self, shape: &[usize], device: &Device) -> crate::Result<Tensor> {
        Ok(self.0.normal(shape, device)?.to_dtype(DType::F64)?)
    }
}

impl Golden {
    fn spec(&self) -> SamplingSpec {
        SamplingSpec {
            sampler: self.sampler.clone(),
            schedule: self.schedule.clone(),
            eta: self.eta,
            order: self.order,
            solver: self.solver.clone(),
            shift: self.shift,
            timesteps: self.timesteps.clone(),
            sigmas: self.sigmas.clone(),
            noise: self.noise,
            ..SamplingSpec::steps(self.steps)
        }
    }

    /// The machine, and the size of its first latents.
    fn start(&self, config: &SchedulerConfig) -> (Box<dyn Sampler>, f64) {
        let context = PlanContext { image_tokens: self.image_tokens, mu: self.mu, unit_sigmas: self.unit_sigmas };
        let mut plan = Plan::new(&self.spec(), config, context).unwrap_or_else(|e| panic!("{self:?}: {e}"));
        let mut noise = NoiseSource::TorchCpu.open(self.seed);
        let first = noise.normal(&SHAPE, &Device::Cpu).unwrap();
        let clean = Tensor::arange(0.0_f32, 16.0, &Device::Cpu).unwrap();
        let clean = clean.affine(0.1, -0.8).unwrap().reshape(&SHAPE).unwrap();
        let latents = match self.strength {
            None => (&first * plan.init_noise_sigma()).unwrap(),
            Some(strength) => {
                plan.skip_to_strength(strength, StrengthRule::Truncate).unwrap();
                plan.add_noise(&clean, &first).unwrap()
            }
        };
        let size = plan.init_noise_sigma();
        let (latents, noise): (_, Box<dyn Noise>) = if self.double {
            (latents.to_dtype(DType::F64).unwrap(), Box::new(Widened(noise)))
        } else {
            (latents, noise)
        };
        if !self.repaint {
            return (plan.start(latents, noise).unwrap(), size);
        }
        let mask = Tensor::new(&[[[1.0_f32, 0.0], [0.0, 1.0]]], &Device::Cpu).unwrap();
        let [clean, first, mask] = [clean, first, mask].map(|tensor| tensor.to_dtype(latents.dtype()).unwrap());
        (plan.start_repainting(latents, noise, Repaint { clean, noise: first, mask }).unwrap(), size)
    }
}

fn sampler_name(case: &Golden) -> &str {
    case.sampler.as_deref().unwrap_or_default()
}

fn relative(a: &[f32], b: &[f32]) -> f64 {
    let square = |v: f64| v * v;
    let distance: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(a - b))).sum();
    (distance / b.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt()
}

fn compare(text: &str) {
    let goldens: Goldens = serde_json::from_str(text).unwrap();
    let mut worst: Vec<(f64, String)> = Vec::new();
    for case in &goldens.cases {
        let config = SchedulerConfig::from_json(&goldens.configs[&case.config].to_string()).unwrap();
        let (mut sampler, size) = case.start(&config);
        // Both round latents of the first noise level's size to f32; at zero terminal SNR that level is 4096. And
        // diffusers' f32 variances with eta lose digits to 1 - ᾱ / ᾱ' where the two are close.
        // The Brownian path rounds its times to 1e-6, which is a level's last bit in f32, and torch's logarithm differs there
        // from the C library's: now and then another leaf of the tree is taken.
        let limit = match sampler_name(case) {
            "dpmpp_sde" => 1e-3,
            // diffusers takes √(σ'² - up²) in f32, where the two are close if σ' is much smaller than σ.
            "dpm2_a" => 4e-4,
            _ if case.double => 1e-5,
            _ => f64::max(if case.eta.is_some() { 2e-5 } else { 1e-5 }, 4e-8 * size),
        };
        let end = drive(sampler.as_mut(), &case.prediction);
        let distance = relative(&end, &case.end);
        assert!(sampler.denoised().is_some());
        worst.push((
            if distance.is_nan() { f64::INFINITY } else { distance / limit },
            format!("{:?} {:?} {} {} {:?}", case.sampler, case.schedule, case.config, case.steps, case.spec()),
        ));
    }
    worst.sort_by(|a, b| b.0.total_cmp(&a.0));
    let failed: Vec<_> = worst.iter().filter(|(distance, _)| *distance > 1.0).collect();
    assert!(failed.is_empty(), "{} of {}: {:#?}", failed.len(), worst.len(), &failed[..failed.len().min(40)]);
}

#[test]
fn diffusion_samplers_end_where_diffusers_ends() {
    compare(include_str!("../../tests/data/samplers_diffusion.json"));
}

#[test]
fn flow_samplers_end_where_diffusers_ends() {
    compare(include_str!("../../tests/data/samplers_flow.json"));
}
