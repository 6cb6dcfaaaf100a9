//! DPM-Solver++ multistep, of order 1 to 3, as an ODE or as an SDE.
//!
//! Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022: 2M is algorithm 2,
//! the stochastic forms are section 4.3 and appendix A's SDE-DPM-Solver++; diffusers' `DPMSolverMultistepScheduler` for the third order
//! and for the lower orders at both ends.

use candle_core::Tensor;

use super::answers_from_walk;
use crate::Result;
use crate::samplers::machine::{Reader, Walk, mix};
use crate::samplers::settings::Settings;
use crate::samplers::{Query, Sampler};

/// diffusers' `algorithm_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// DPM-Solver++, from estimates of the clean latents.
    Clean,
    /// The same as an SDE.
    Sde,
    /// DPM-Solver, from estimates of the noise.
    Noise,
}

/// How the second order weighs its difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Midpoint,
    Heun,
}

pub(in crate::samplers) struct DpmMultistep {
    walk: Walk,
    reader: Reader,
    order: usize,
    form: Form,
    variant: Variant,
    /// Lowers the order of the last steps of a short schedule.
    ease_out: bool,
    /// Takes the last step with the first order.
    euler_at_final: bool,
    /// The estimates of the clean latents so far, newest first; as many as the order needs.
    history: Vec<Tensor>,
}

impl DpmMultistep {
    pub(in crate::samplers) fn new(walk: Walk, reader: Reader, settings: &Settings) -> Self {
        let ease_out = settings.lower_order_final && walk.len() < 15;
        Self {
            walk,
            reader,
            order: settings.order,
            form: match settings.algorithm.as_str() {
                "sde-dpmsolver++" => Form::Sde,
                "dpmsolver" => Form::Noise,
                _ => Form::Clean,
            },
            variant: if settings.solver == "heun" { Variant::Heun } else { Variant::Midpoint },
            ease_out,
            euler_at_final: settings.euler_at_final,
            history: Vec::new(),
        }
    }

    fn order_now(&self) -> usize {
        let left = self.walk.len() - self.walk.at;
        let last = self.walk.sigmas[self.walk.len()] == 0.0 || self.ease_out || self.euler_at_final;
        let cap = match left {
            1 if last => 1,
            2 if self.ease_out => 2,
            _ => 3,
        };
        self.order.min(self.history.len()).min(cap)
    }
}

impl Sampler for DpmMultistep {
    fn query(&self) -> Result<Option<Query>> {
        self.walk.query(&self.reader)
    }

    fn advance(&mut self, output: &Tensor) -> Result<()> {
        let at = self.walk.at;
        let (from, to) = self.walk.levels();
        let clean = self.reader.clean(&self.walk.latents, output, from)?;
        let estimate = match self.form {
            Form::Clean | Form::Sde => clean.clone(),
            Form::Noise => self.reader.noise(&self.walk.latents, &clean, from)?,
        };
        self.history.insert(0, estimate);
        self.history.truncate(self.order);

        let space = self.reader.space;
        let lambda = |i: usize| space.lambda(self.walk.sigmas[i]);
        let h = lambda(at + 1) - lambda(at);
        let ((alpha, sigma), (alpha_from, sigma_from)) = (space.shares(to), space.shares(from));
        // The exponential's growth over the step, and the shares of the latents and of the estimates. The SDE's runs
        // twice as fast, and its noise makes up for what that leaves out; for noise estimates it runs backwards.
        let (growth, keep, outer) = match self.form {
            Form::Clean => (h, sigma / sigma_from, alpha),
            Form::Sde => (2.0 * h, sigma / sigma_from * (-h).exp(), alpha),
            Form::Noise => (-h, alpha / alpha_from, sigma),
        };
        let phi1 = -(-growth).exp_m1();
        let phi2 = 1.0 - phi1 / growth;
        // The weights of the newest, second and third newest estimates.
        let mut w = [outer * phi1, 0.0, 0.0];
        match self.order_now() {
            1 => {}
            2 => {
                // D1 = (m0 - m1) / r0 with r0 the last step's length over this one's.
                let inverse = h / (lambda(at) - lambda(at - 1));
                let d1 = outer
                    * inverse
                    * match self.variant {
                        Variant::Midpoint => 0.5 * phi1,
                        Variant::Heun => phi2,
                    };
                w = [w[0] + d1, -d1, 0.0];
            }
            _ => {
                let r0 = (lambda(at) - lambda(at - 1)) / h;
                let r1 = (lambda(at - 1) - lambda(at - 2)) / h;
                // For the SDE the half should be added too; diffusers subtracts it, and its pictures are the reference.
                let half = if self.form == Form::Sde { -0.5 } else { 0.5 };
                let phi3 = (phi1 - growth) / (growth * growth) + half;
                // D1 = a + r0/(r0 + r1)·(a - b) and D2 = (a - b)/(r0 + r1), where a = (m0 - m1)/r0 and b = (m1 - m2)/r1.
                let spread = outer * (phi2 * r0 + phi3) / (r0 + r1);
                let (a, b) = ((outer * phi2 + spread) / r0, -spread / r1);
                w = [w[0] + a, b - a, -b];
            }
        }
        let mut terms: Vec<(f64, &Tensor)> = vec![(keep, &self.walk.latents)];
        terms.extend(w.into_iter().zip(&self.history));
        let mut latents = mix(&terms)?;
        if self.form == Form::Sde && sigma > 0.0 {
            let noise = self.walk.noise.between(from, to, latents.dims(), latents.device())?;
            latents = mix(&[(1.0, &latents), (sigma * phi1.max(0.0).sqrt(), &noise)])?;
        }
        self.walk.denoised = Some(clean);
        self.walk.arrive(latents)
    }

    answers_from_walk!();
}
