//! PNDM: a linear multistep method on DDIM's transfer, started with Runge-Kutta steps or without them (PLMS).
//!
//! Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022: the transfer is equation 9, the
//! Runge-Kutta start equation 13 and the multistep rule equation 12. Without that start (`skip_prk_steps`, as Stable Diffusion has it)
//! the second timestep is asked for twice, as a first-order step and its correction.

use candle_core::Tensor;

use super::answers_from_walk;
use crate::Result;
use crate::samplers::machine::{Reader, Walk, mix};
use crate::samplers::settings::{Prediction, Settings};
use crate::samplers::training::Training;
use crate::samplers::{Query, Sampler, SamplerError};

/// The timesteps of each model call, from those of each step, noisiest first.
pub(in crate::samplers) fn calls(settings: &Settings, steps: &[f64]) -> Result<Vec<f64>, SamplerError> {
    let n = steps.len();
    if settings.skip_prk {
        let mut calls = steps.to_vec();
        if n > 1 {
            calls.insert(1, steps[1]);
        }
        return Ok(calls);
    }
    if n < 4 {
        return Err(SamplerError::new(
            "steps",
            format!("steps {n}: this model's pndm starts with Runge-Kutta steps and needs 4 or more"),
        ));
    }
    // Three Runge-Kutta steps of four calls: the start, the middle twice, and the end, which starts the next step.
    let half = (settings.train_steps / n / 2) as f64;
    let mut calls = Vec::with_capacity(n + 9);
    for i in 0..3 {
        let middle = steps[i + 1] + half;
        calls.extend([steps[i], middle, middle, steps[i + 1]]);
    }
    calls.extend(&steps[3..]);
    Ok(calls)
}

pub(in crate::samplers) struct Pndm {
    walk: Walk,
    reader: Reader,
    training: Training,
    /// ᾱ beyond the last timestep.
    end: f64,
    /// Timesteps between two steps.
    stride: f64,
    /// Model calls made.
    calls: usize,
    /// Model calls of the Runge-Kutta start; 0 without it.
    start_calls: usize,
    /// Earlier model outputs, newest first.
    history: Vec<Tensor>,
    /// The weighted sum of a Runge-Kutta step's outputs so far.
    sum: Option<Tensor>,
    /// The latents at the start of the step that is being made of several calls.
    origin: Option<Tensor>,
}

impl Pndm {
    pub(in crate::samplers) fn new(walk: Walk, reader: Reader, settings: &Settings, training: Training) -> Self {
        let n = walk.len() - walk.extra;
        let end = if settings.alpha_to_one { 1.0 } else { training.alpha(0) };
        let start_calls = if settings.skip_prk { 0 } else { 12 };
        let stride = (settings.train_steps / n) as f64;
        Self {
            walk,
            reader,
            training,
            end,
            stride,
            calls: 0,
            start_calls,
            history: Vec::new(),
            sum: None,
            origin: None,
        }
    }

    fn alpha(&self, timestep: f64) -> f64 {
        if timestep < 0.0 { self.end } else { self.training.alpha(timestep as usize) }
    }

    /// The pseudo-numerical transfer of `latents` from one timestep to another along `output`.
    fn transfer(&self, latents: &Tensor, from: f64, to: f64, output: &Tensor) -> Result<Tensor> {
        let (a, b) = (self.alpha(from), self.alpha(to));
        let denominator = a * (1.0 - b).sqrt() + (a * (1.0 - a) * b).sqrt();
        let (mut x, mut e) = ((b / a).sqrt(), -(b - a) / denominator);
        if self.reader.prediction == Prediction::Velocity {
            // noise = √ᾱ·v + √(1 - ᾱ)·x.
            x += e * (1.0 - a).sqrt();
            e *= a.sqrt();
        }
        mix(&[(x, latents), (e, output)])
    }

    fn runge_kutta(&mut self, output: &Tensor) -> Result<Tensor> {
        let timestep = self.walk.timesteps[self.walk.at];
        let group = self.calls / 4 * 4;
        // A group's timesteps are looked up from the first call on, wherever the walk began.
        let from = self.walk.timesteps[group];
        let to = if self.calls % 2 == 1 { timestep } else { timestep - (self.stride / 2.0).floor() };
        let weight = if self.calls.is_multiple_of(4) || self.calls % 4 == 3 { 1.0 / 6.0 } else { 1.0 / 3.0 };
        if self.calls.is_multiple_of(4) {
            self.history.insert(0, output.clone());
            self.origin = Some(self.walk.latents.clone());
        }
        let sum = match self.sum.take() {
            None => mix(&[(weight, output)])?,
            Some(sum) => mix(&[(1.0, &sum), (weight, output)])?,
        };
        let origin = self.origin.as_ref().unwrap_or(&self.walk.latents);
        if self.calls % 4 == 3 {
            return self.transfer(origin, from, to, &sum);
        }
        let next = self.transfer(origin, from, to, output)?;
        self.sum = Some(sum);
        Ok(next)
    }

    fn multistep(&mut self, output: &Tensor) -> Result<Tensor> {
        let timestep = self.walk.timesteps[self.walk.at];
        if self.start_calls == 0 && self.calls == 1 {
            // The correction of the first step: the mean of both ends' outputs, from the step's start again.
            let mean = match self.history.first() {
                Some(first) => mix(&[(0.5, output), (0.5, first)])?,
                None => output.clone(),
            };
            let origin = self.origin.take().unwrap_or_else(|| self.walk.latents.clone());
            return self.transfer(&origin, timestep + self.stride, timestep, &mean);
        }
        self.history.insert(0, output.clone());
        self.history.truncate(4);
        if self.calls == 0 {
            self.origin = Some(self.walk.latents.clone());
        }
        let weights: &[f64] = match self.history.len() {
            1 => &[1.0],
            2 => &[1.5, -0.5],
            3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
            _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        };
        let terms: Vec<(f64, &Tensor)> = weights.iter().copied().zip(&self.history).collect();
        let blend = mix(&terms)?;
        self.transfer(&self.walk.latents, timestep, timestep - self.stride, &blend)
    }
}

impl Sampler for Pndm {
    fn query(&self) -> Result<Option<Query>> {
        self.walk.query(&self.reader)
    }

    fn advance(&mut self, output: &Tensor) -> Result<()> {
        let alpha = self.alpha(self.walk.timesteps[self.walk.at]);
        let (clean, _) = self.reader.parts(&self.walk.latents, output, alpha)?;
        let latents = if self.calls < self.start_calls { self.runge_kutta(output)? } else { self.multistep(output)? };
        self.walk.denoised = Some(clean);
        self.calls += 1;
        self.walk.arrive(latents)
    }

    answers_from_walk!();
}
