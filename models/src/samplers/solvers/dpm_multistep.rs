//! DPM-Solver++ multistep, of order 1 to 3, as an ODE or as an SDE.
//!
//! Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022: 2M is algorithm 2,
//! the stochastic forms are section 4.3 and appendix A's SDE-DPM-Solver++; diffusers' `DPMSolverMultistepScheduler` for the third order
//! and for the lower orders at both ends.

use candle_core::Tensor;

use crate::Result;
use crate::samplers::machine::{Reader, Walk, mix};
use crate::samplers::settings::Settings;
use crate::samplers::{Progress, Query, Sampler};

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
    stochastic: bool,
    variant: Variant,
    /// Lowers the order of the last steps of a short schedule.
    ease_out: bool,
    /// Takes the last step with the first order.
    euler_at_final: bool,
    /// The estimates of the clean latents so far, newest first; as many as the order needs.
    history: Vec<Tensor>,
}

impl DpmMultistep {
    pub(in crate::samplers) fn new(walk: Walk, reader: Reader, settings: &Settings, n: usize) -> Self {
        Self {
            walk,
            reader,
            order: settings.order,
            stochastic: settings.algorithm.starts_with("sde-"),
            variant: if settings.solver == "heun" { Variant::Heun } else { Variant::Midpoint },
            ease_out: settings.lower_order_final && n < 15,
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
        self.history.insert(0, clean.clone());
        self.history.truncate(self.order);

        let space = self.reader.space;
        let lambda = |i: usize| space.lambda(self.walk.sigmas[i]);
        let h = lambda(at + 1) - lambda(at);
        let (alpha, sigma) = space.shares(to);
        let (_, sigma_from) = space.shares(from);
        // The SDE's exponentials run twice as fast; its noise makes up for what they leave out.
        let rate = if self.stochastic { 2.0 } else { 1.0 };
        let decay = (-rate * h).exp();
        let keep = sigma / sigma_from * if self.stochastic { (-h).exp() } else { 1.0 };
        let phi1 = 1.0 - decay;
        // φ2 and φ3 tend to 1 and 1/2 - 1 as h grows without bound; the last step never uses them.
        let phi2 = 1.0 - phi1 / (rate * h);
        // The weights of the newest, second and third newest estimates.
        let mut w = [alpha * phi1, 0.0, 0.0];
        match self.order_now() {
            1 => {}
            2 => {
                // D1 = (m0 - m1) / r0 with r0 the last step's length over this one's.
                let inverse = h / (lambda(at) - lambda(at - 1));
                let d1 = alpha
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
                let phi3 = (phi1 - rate * h) / (rate * h).powi(2);
                // For the SDE the half should be added too; diffusers subtracts it, and so do its pictures.
                let phi3 = if self.stochastic { phi3 - 0.5 } else { phi3 + 0.5 };
                // D1 = a + r0/(r0 + r1)·(a - b) and D2 = (a - b)/(r0 + r1), where a = (m0 - m1)/r0 and b = (m1 - m2)/r1.
                let spread = (alpha * phi2 * r0 + alpha * phi3) / (r0 + r1);
                let (a, b) = ((alpha * phi2 + spread) / r0, -spread / r1);
                w = [w[0] + a, b - a, -b];
            }
        }
        let mut terms: Vec<(f64, &Tensor)> = vec![(keep, &self.walk.latents)];
        terms.extend(w.into_iter().zip(&self.history));
        let mut latents = mix(&terms)?;
        if self.stochastic && sigma > 0.0 {
            let noise = self.walk.noise.between(from, to, latents.dims(), latents.device())?;
            latents = mix(&[(1.0, &latents), (sigma * phi1.max(0.0).sqrt(), &noise)])?;
        }
        self.walk.denoised = Some(clean);
        self.walk.arrive(latents);
        Ok(())
    }

    fn progress(&self) -> Progress {
        self.walk.progress()
    }

    fn latents(&self) -> &Tensor {
        &self.walk.latents
    }

    fn denoised(&self) -> Option<&Tensor> {
        self.walk.denoised.as_ref()
    }
}
