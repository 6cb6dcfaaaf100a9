//! DPM-Solver++ single-step: groups of steps, each of which starts over from the group's first latents with one more estimate.
//!
//! Lu et al., "DPM-Solver++", 2022, algorithm 1 (2S), and DPM-Solver (Lu et al., 2022), section 3.3, for the third order
//! and the order of the groups; diffusers' `DPMSolverSinglestepScheduler`. A group of order k takes k steps and k model calls.

use candle_core::Tensor;

use super::answers_from_walk;
use crate::Result;
use crate::samplers::machine::{Reader, Walk, mix};
use crate::samplers::settings::Settings;
use crate::samplers::{Query, Sampler};

/// The order that each of `n` steps ends its group with.
///
/// `ease_out` lets the last group be of a lower order; without it n must be a multiple of the order.
fn orders(order: usize, n: usize, ease_out: bool, to_zero: bool) -> Vec<usize> {
    let group = |up_to: usize| (1..=up_to).collect::<Vec<_>>();
    let mut orders: Vec<usize> = if !ease_out {
        group(order).repeat(n / order)
    } else {
        match (order, n % order) {
            (3, 0) if n > 0 => [group(3).repeat(n / 3 - 1), vec![1, 2, 1]].concat(),
            (3, 1) => [group(3).repeat(n / 3), vec![1]].concat(),
            (3, _) => [group(3).repeat(n / 3), vec![1, 2]].concat(),
            (2, 0) if n > 0 => [group(2).repeat(n / 2 - 1), vec![1, 1]].concat(),
            (2, _) => [group(2).repeat(n / 2), vec![1]].concat(),
            _ => vec![1; n],
        }
    };
    if let Some(last) = orders.last_mut()
        && to_zero
    {
        *last = 1;
    }
    orders
}

pub(in crate::samplers) struct DpmSinglestep {
    walk: Walk,
    reader: Reader,
    orders: Vec<usize>,
    heun: bool,
    /// The latents at the group's start.
    start: Tensor,
    /// The estimates of the clean latents, newest first.
    history: Vec<Tensor>,
}

impl DpmSinglestep {
    pub(in crate::samplers) fn new(walk: Walk, reader: Reader, settings: &Settings) -> Self {
        let n = walk.len();
        let ease_out = settings.lower_order_final || !n.is_multiple_of(settings.order) || !settings.ends_at_sigma_min;
        let orders = orders(settings.order, n, ease_out, !settings.ends_at_sigma_min);
        let start = walk.latents.clone();
        Self { walk, reader, orders, heun: settings.solver == "heun", start, history: Vec::new() }
    }
}

impl Sampler for DpmSinglestep {
    fn query(&self) -> Result<Option<Query>> {
        self.walk.query(&self.reader)
    }

    fn advance(&mut self, output: &Tensor) -> Result<()> {
        let at = self.walk.at;
        let clean = self.reader.clean(&self.walk.latents, output, self.walk.sigmas[at])?;
        self.history.insert(0, clean.clone());
        self.history.truncate(3);
        // Image-to-image may begin inside a group: it then goes on with what it has.
        let order = self.orders[at].min(self.history.len());
        if order == 1 {
            self.start = self.walk.latents.clone();
        }
        let space = self.reader.space;
        let lambda = |i: usize| space.lambda(self.walk.sigmas[i]);
        let first = at + 1 - order;
        let h = lambda(at + 1) - lambda(first);
        let (alpha, sigma) = space.shares(self.walk.sigmas[at + 1]);
        let (_, sigma_first) = space.shares(self.walk.sigmas[first]);
        let phi1 = -(-h).exp_m1();
        let phi2 = 1.0 - phi1 / h;
        let mut terms: Vec<(f64, &Tensor)> = vec![(sigma / sigma_first, &self.start)];
        let m = &self.history;
        match order {
            1 => terms.push((alpha * phi1, &m[0])),
            2 => {
                let inverse = h / (lambda(at) - lambda(first));
                let d1 = alpha * inverse * if self.heun { phi2 } else { 0.5 * phi1 };
                terms.extend([(d1, &m[0]), (alpha * phi1 - d1, &m[1])]);
            }
            _ => {
                let (r0, r1) = ((lambda(at) - lambda(first)) / h, (lambda(at - 1) - lambda(first)) / h);
                // D1 and D2 from a = (m1 - m2)/r1 and b = (m0 - m2)/r0; the midpoint form leaves out a.
                let (a, b) = if self.heun {
                    let phi3 = (phi1 - h) / (h * h) + 0.5;
                    let (d1, d2) = (alpha * phi2 / (r0 - r1), 2.0 * alpha * phi3 / (r0 - r1));
                    (d1 * r0 - d2, d2 - d1 * r1)
                } else {
                    (0.0, alpha * phi2)
                };
                terms.extend([(b / r0, &m[0]), (a / r1, &m[1]), (alpha * phi1 - a / r1 - b / r0, &m[2])]);
            }
        }
        let latents = mix(&terms)?;
        self.walk.denoised = Some(clean);
        self.walk.arrive(latents)
    }

    answers_from_walk!();
}

#[cfg(test)]
mod tests {
    use super::orders;

    #[test]
    fn groups_fill_the_schedule_and_end_with_the_first_order() {
        for order in 1..=3 {
            for n in 1..40 {
                let found = orders(order, n, true, true);
                assert_eq!((found.len(), found[n - 1]), (n, 1), "{order} {n}");
            }
        }
        assert_eq!(orders(2, 6, false, false), [1, 2, 1, 2, 1, 2]);
        assert_eq!(orders(3, 7, true, true), [1, 2, 3, 1, 2, 3, 1]);
    }
}
