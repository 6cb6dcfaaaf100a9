//! DEIS: an exponential integrator with a polynomial through the last noise predictions, in log ρ.
//!
//! Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", 2022, section 3 (tAB-DEIS) with the
//! ρ of section 4 and the polynomial in its logarithm, as diffusers' `DEISMultistepScheduler` has it.

use candle_core::Tensor;

use super::answers_from_walk;
use crate::Result;
use crate::samplers::machine::{Reader, Walk, mix};
use crate::samplers::settings::Settings;
use crate::samplers::{Query, Sampler};

pub(in crate::samplers) struct Deis {
    walk: Walk,
    reader: Reader,
    order: usize,
    /// Lowers the order of the last steps of a short schedule.
    ease_out: bool,
    /// The predicted noises so far, newest first.
    history: Vec<Tensor>,
}

impl Deis {
    pub(in crate::samplers) fn new(walk: Walk, reader: Reader, settings: &Settings) -> Self {
        let ease_out = settings.lower_order_final && walk.len() < 15;
        Self { walk, reader, order: settings.order, ease_out, history: Vec::new() }
    }

    /// The ratio of noise to clean latents at level `i` of the schedule.
    fn rho(&self, i: usize) -> f64 {
        let (alpha, sigma) = self.reader.space.shares(self.walk.sigmas[i]);
        sigma / alpha
    }
}

/// The antiderivative at `t` of the line in ln ρ that is 1 at `b` and 0 at `c`.
fn line(t: f64, b: f64, c: f64) -> f64 {
    t * (-c.ln() + t.ln() - 1.0) / (b.ln() - c.ln())
}

/// The antiderivative at `t` of the parabola in ln ρ that is 1 at `b` and 0 at `c` and `d`.
fn parabola(t: f64, b: f64, c: f64, d: f64) -> f64 {
    let (lt, lb, lc, ld) = (t.ln(), b.ln(), c.ln(), d.ln());
    t * (lc * (ld - lt + 1.0) - ld * lt + ld + lt * lt - 2.0 * lt + 2.0) / ((lb - lc) * (lb - ld))
}

impl Sampler for Deis {
    fn query(&self) -> Result<Option<Query>> {
        self.walk.query(&self.reader)
    }

    fn advance(&mut self, output: &Tensor) -> Result<()> {
        let at = self.walk.at;
        let (from, to) = self.walk.levels();
        let clean = self.reader.clean(&self.walk.latents, output, from)?;
        let (alpha, sigma) = self.reader.space.shares(from);
        let noise = mix(&[(1.0 / sigma, &self.walk.latents), (-alpha / sigma, &clean)])?;
        self.history.insert(0, noise);
        self.history.truncate(self.order);

        let left = self.walk.len() - at;
        let cap = if self.ease_out { left } else { 3 };
        let (r, r0) = (self.rho(at + 1), self.rho(at));
        let (to_alpha, _) = self.reader.space.shares(to);
        let weights = match self.history.len().min(self.order).min(cap) {
            1 => vec![r - r0],
            2 => {
                let r1 = self.rho(at - 1);
                let over = |b: f64, c: f64| line(r, b, c) - line(r0, b, c);
                vec![over(r0, r1), over(r1, r0)]
            }
            _ => {
                let (r1, r2) = (self.rho(at - 1), self.rho(at - 2));
                let over = |b: f64, c: f64, d: f64| parabola(r, b, c, d) - parabola(r0, b, c, d);
                vec![over(r0, r1, r2), over(r1, r2, r0), over(r2, r0, r1)]
            }
        };
        let mut terms = vec![(to_alpha / alpha, &self.walk.latents)];
        terms.extend(weights.into_iter().map(|w| to_alpha * w).zip(&self.history));
        let latents = mix(&terms)?;
        self.walk.denoised = Some(clean);
        self.walk.arrive(latents)
    }

    answers_from_walk!();
}
