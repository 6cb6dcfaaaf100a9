//! What the step machines share: where they are, and how they read the model.

use candle_core::{DType, Tensor};

use super::settings::{Bound, Prediction};
use super::{Noise, Progress, Query, Repaint};
use crate::Result;

/// How the latents x are put together from the clean ones and noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Space {
    /// x = clean + σ·noise; the model sees x / √(σ² + 1) (Karras et al., 2022).
    Exploding,
    /// x = (clean + σ·noise) / √(σ² + 1), which is what the model sees.
    Preserving,
    /// x = (1 - σ)·clean + σ·noise, which is what the model sees.
    Flow,
}

impl Space {
    /// The shares of clean latents and noise at `sigma`.
    pub(super) fn shares(self, sigma: f64) -> (f64, f64) {
        match self {
            Self::Exploding => (1.0, sigma),
            Self::Preserving => {
                let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
                (alpha, sigma * alpha)
            }
            Self::Flow => (1.0 - sigma, sigma),
        }
    }

    /// λ = ln(α / σ), half the log-SNR; infinite at the ends.
    pub(super) fn lambda(self, sigma: f64) -> f64 {
        let (alpha, sigma) = self.shares(sigma);
        alpha.ln() - sigma.ln()
    }
}

/// How the model's output is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader {
    pub(super) space: Space,
    pub(super) prediction: Prediction,
    pub(super) bound: Bound,
}

impl Reader {
    /// The model's input for latents at `sigma`.
    pub(super) fn input(&self, latents: &Tensor, sigma: f64) -> Result<Tensor> {
        match self.space {
            Space::Exploding => scale(latents, 1.0 / (sigma * sigma + 1.0).sqrt()),
            Space::Preserving | Space::Flow => Ok(latents.clone()),
        }
    }

    /// The clean latents that the model's output stands for, bounded as configured.
    pub(super) fn clean(&self, latents: &Tensor, output: &Tensor, sigma: f64) -> Result<Tensor> {
        let variance = sigma * sigma + 1.0;
        let clean = match (self.space, self.prediction) {
            (_, Prediction::Sample) => output.clone(),
            (_, Prediction::Flow) => mix(&[(1.0, latents), (-sigma, output)])?,
            (Space::Exploding, Prediction::Velocity) => {
                mix(&[(1.0 / variance, latents), (-sigma / variance.sqrt(), output)])?
            }
            (space, Prediction::Epsilon) => {
                let (alpha, sigma) = space.shares(sigma);
                mix(&[(1.0 / alpha, latents), (-sigma / alpha, output)])?
            }
            (space, Prediction::Velocity) => {
                let (alpha, sigma) = space.shares(sigma);
                mix(&[(alpha, latents), (-sigma, output)])?
            }
        };
        self.bounded(clean)
    }

    /// The clean latents and the noise that the output stands for where ᾱ is `alpha`, for the samplers that work in
    /// ᾱ. The noise is the model's own even where the clean latents are bounded, as in diffusers.
    pub(super) fn parts(&self, latents: &Tensor, output: &Tensor, alpha: f64) -> Result<(Tensor, Tensor)> {
        let (a, s) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let (clean, noise) = match self.prediction {
            Prediction::Epsilon | Prediction::Flow => (mix(&[(1.0 / a, latents), (-s / a, output)])?, output.clone()),
            Prediction::Sample => (output.clone(), mix(&[(1.0 / s, latents), (-a / s, output)])?),
            Prediction::Velocity => (mix(&[(a, latents), (-s, output)])?, mix(&[(s, latents), (a, output)])?),
        };
        Ok((self.bounded(clean)?, noise))
    }

    /// The noise in latents at `sigma` that are made of these clean ones.
    pub(super) fn noise(&self, latents: &Tensor, clean: &Tensor, sigma: f64) -> Result<Tensor> {
        let (alpha, sigma) = self.space.shares(sigma);
        mix(&[(1.0 / sigma, latents), (-alpha / sigma, clean)])
    }

    fn bounded(&self, clean: Tensor) -> Result<Tensor> {
        match self.bound {
            Bound::None => Ok(clean),
            Bound::Clip(range) => Ok(clean.clamp(-range as f32, range as f32)?),
            Bound::Dynamic { ratio, max } => {
                let mut sizes: Vec<f32> = clean.abs()?.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
                sizes.sort_by(f32::total_cmp);
                let place = ratio * (sizes.len() - 1) as f64;
                let (low, high) = (sizes[place.floor() as usize], sizes[place.ceil() as usize]);
                let bound = f64::from(low) + place.fract() * f64::from(high - low);
                // torch's clamp lets the upper bound win where the two cross.
                let bound = bound.max(1.0).min(max);
                scale(&clean.clamp(-bound as f32, bound as f32)?, 1.0 / bound)
            }
        }
    }
}

/// One picture's place in its schedule, with its latents and its noise.
pub(super) struct Walk {
    /// The model's time input at each step's start.
    pub(super) timesteps: Vec<f64>,
    /// The noise level at each step's start, and the last one's end.
    pub(super) sigmas: Vec<f64>,
    /// The step taken first; later than 0 for image-to-image.
    pub(super) first: usize,
    /// Entries of the schedule that are model calls beyond one a step (PNDM's start).
    pub(super) extra: usize,
    /// The step being taken, counted in the whole schedule.
    pub(super) at: usize,
    pub(super) latents: Tensor,
    pub(super) denoised: Option<Tensor>,
    pub(super) noise: Box<dyn Noise>,
    pub(super) repainting: Option<Repainting>,
}

/// What is put back after each model call, where only a part of the picture is painted.
pub(super) struct Repainting {
    pub(super) repaint: Repaint,
    /// The shares of clean latents and noise at each step's start, and all clean ones at the end.
    pub(super) shares: Vec<(f64, f64)>,
}

impl Walk {
    /// Entries of the whole schedule.
    pub(super) fn len(&self) -> usize {
        self.timesteps.len()
    }

    pub(super) fn done(&self) -> bool {
        self.at >= self.len()
    }

    pub(super) fn progress(&self) -> Progress {
        let left = self.len() - self.first;
        // A walk that begins late may have fewer calls before it than are more than one a step; its last is a step.
        let extra = self.extra.min(left.saturating_sub(1));
        Progress { step: (self.at - self.first).saturating_sub(extra), steps: left - extra }
    }

    /// The noise levels that the current step leads from and to.
    pub(super) fn levels(&self) -> (f64, f64) {
        (self.sigmas[self.at], self.sigmas[self.at + 1])
    }

    /// The question at the current step's start.
    pub(super) fn query(&self, reader: &Reader) -> Result<Option<Query>> {
        if self.done() {
            return Ok(None);
        }
        let sigma = self.sigmas[self.at];
        let input = reader.input(&self.latents, sigma)?;
        Ok(Some(Query { timestep: self.timesteps[self.at], sigma, input }))
    }

    /// Standard normal noise of the latents' shape.
    pub(super) fn draw(&mut self) -> Result<Tensor> {
        self.noise.normal(self.latents.dims(), self.latents.device())
    }

    /// The latents between a step's two model calls.
    ///
    /// What is put back is at the level of the step's end, even where the second call is made half way there: diffusers
    /// does so, and the second call's slope is the painted part's all the same.
    pub(super) fn between(&self, latents: Tensor) -> Result<Tensor> {
        self.put_back(latents, self.at + 1)
    }

    /// Ends the current step with these latents.
    pub(super) fn arrive(&mut self, latents: Tensor) -> Result<()> {
        self.latents = self.put_back(latents, self.at + 1)?;
        // The estimate is for previews; what is kept shows in them, too.
        let estimate = self.denoised.take().map(|denoised| self.put_back(denoised, self.len()));
        self.denoised = estimate.transpose()?;
        self.at += 1;
        Ok(())
    }

    fn put_back(&self, latents: Tensor, at: usize) -> Result<Tensor> {
        match &self.repainting {
            None => Ok(latents),
            Some(Repainting { repaint, shares }) => repaint.blend(&latents, shares[at]),
        }
    }
}

/// `factor`·x.
pub(super) fn scale(x: &Tensor, factor: f64) -> Result<Tensor> {
    Ok(x.affine(factor, 0.0)?)
}

/// The weighted sum of tensors of one shape; terms of weight 0 are left out.
pub(super) fn mix(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (weight, tensor) in terms {
        if *weight == 0.0 {
            continue;
        }
        let term = if *weight == 1.0 { (*tensor).clone() } else { tensor.affine(*weight, 0.0)? };
        sum = Some(match sum {
            None => term,
            Some(sum) => (sum + term)?,
        });
    }
    match (sum, terms.first()) {
        (Some(sum), _) => Ok(sum),
        (None, Some((_, like))) => Ok(like.zeros_like()?),
        (None, None) => Err(candle_core::Error::Msg("an empty sum of tensors has no shape".into()).into()),
    }
}
