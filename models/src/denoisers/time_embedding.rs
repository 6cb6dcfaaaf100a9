//! The network's embedding of the timestep and of other numbers.

use candle_core::{DType, Tensor};
use easel_kernels::{Linear, timestep_embedding};

use super::activation::Activation;
use super::condition::AddedContext;
use crate::weights::{Tensors, linear, linear_no_bias};
use crate::{Error, Result};

/// The longest wavelength of the sinusoids, which no configuration names.
const MAX_PERIOD: f64 = 10_000.0;

/// How numbers become sinusoids.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sinusoids {
    pub(crate) dim: usize,
    pub(crate) flip_sin_to_cos: bool,
    pub(crate) freq_shift: f64,
}

impl Sinusoids {
    /// (n, dim) in f32.
    pub(crate) fn forward(&self, numbers: &[f64], like: &Tensor) -> Result<Tensor> {
        let Self { dim, flip_sin_to_cos, freq_shift } = *self;
        Ok(timestep_embedding(numbers, dim, flip_sin_to_cos, freq_shift, MAX_PERIOD, like.device())?)
    }
}

/// Two linear layers with an activation between them.
///
/// Computed in f32 whatever the network's type: the embedding has a few rows only, and every
/// block of the network depends on it.
pub(crate) struct Mlp {
    linear_1: Linear,
    activation: Activation,
    linear_2: Linear,
}

impl Mlp {
    pub(crate) fn new(weights: &Tensors, inputs: usize, outputs: usize, activation: Activation) -> Result<Self> {
        let weights = weights.to_dtype(DType::F32);
        Ok(Self {
            linear_1: linear(&weights.pp("linear_1"), inputs, outputs)?,
            activation,
            linear_2: linear(&weights.pp("linear_2"), outputs, outputs)?,
        })
    }

    /// (b, inputs) in f32 to (b, outputs).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.linear_2.forward(&self.activation.forward(&self.linear_1.forward(x)?)?)?)
    }
}

/// `time_proj` and `time_embedding` of diffusers' UNet.
pub(crate) struct TimeEmbedding {
    sinusoids: Sinusoids,
    mlp: Mlp,
    guidance: Option<Linear>,
}

impl TimeEmbedding {
    /// `guidance` is the size of the guidance embedding of distilled models (`time_cond_proj_dim`).
    pub(crate) fn new(
        weights: &Tensors,
        sinusoids: Sinusoids,
        outputs: usize,
        activation: Activation,
        guidance: Option<usize>,
    ) -> Result<Self> {
        let proj = |inputs| linear_no_bias(&weights.to_dtype(DType::F32).pp("cond_proj"), inputs, sinusoids.dim);
        Ok(Self {
            sinusoids,
            mlp: Mlp::new(weights, sinusoids.dim, outputs, activation)?,
            guidance: guidance.map(proj).transpose()?,
        })
    }

    /// What a guidance embedding, (b, `time_cond_proj_dim`), adds to the sinusoids.
    pub(crate) fn guidance(&self, embedding: Option<&Tensor>) -> Result<Option<Tensor>> {
        match (&self.guidance, embedding) {
            (Some(proj), Some(embedding)) => Ok(Some(proj.forward(&embedding.to_dtype(DType::F32)?)?)),
            // diffusers runs a distilled model without the embedding, too; it is then as if it were zero.
            (_, None) => Ok(None),
            (None, Some(_)) => {
                Err(Error::Unsupported("the UNet has no guidance embedding (time_cond_proj_dim)".to_owned()))
            }
        }
    }

    /// One timestep a row to (b, outputs) in f32; `guidance` as [`Self::guidance`] made it.
    pub(crate) fn forward(&self, timesteps: &[f64], guidance: Option<&Tensor>, like: &Tensor) -> Result<Tensor> {
        let mut x = self.sinusoids.forward(timesteps, like)?;
        if let Some(guidance) = guidance {
            x = (x + guidance)?;
        }
        self.mlp.forward(&x)
    }
}

/// `add_time_proj` and `add_embedding` of SDXL's UNet.
pub(crate) struct AddedEmbedding {
    sinusoids: Sinusoids,
    mlp: Mlp,
    inputs: usize,
}

impl AddedEmbedding {
    /// `inputs` is `projection_class_embeddings_input_dim`: the pooled state and all sinusoids of a row.
    pub(crate) fn new(weights: &Tensors, sinusoids: Sinusoids, inputs: usize, outputs: usize) -> Result<Self> {
        Ok(Self { sinusoids, mlp: Mlp::new(weights, inputs, outputs, Activation::Silu)?, inputs })
    }

    /// (b, outputs) in f32.
    pub(crate) fn forward(&self, added: &AddedContext) -> Result<Tensor> {
        let (rows, pooled) = added.pooled.dims2()?;
        let ids: Vec<f64> = added.time_ids.concat();
        let each = ids.len() / added.time_ids.len().max(1);
        if added.time_ids.len() != rows || added.time_ids.iter().any(|row| row.len() != each) {
            return Err(Error::Unsupported(format!("{rows} pooled states need as many equally long rows of time ids")));
        }
        if pooled + each * self.sinusoids.dim != self.inputs {
            return Err(Error::Unsupported(format!(
                "a pooled state of {pooled} and {each} time ids of {} do not make the {} inputs of add_embedding \
                 (projection_class_embeddings_input_dim)",
                self.sinusoids.dim, self.inputs
            )));
        }
        let sinusoids = self.sinusoids.forward(&ids, added.pooled)?.reshape((rows, each * self.sinusoids.dim))?;
        self.mlp.forward(&Tensor::cat(&[added.pooled.to_dtype(DType::F32)?, sinusoids], 1)?)
    }
}

/// `time_text_embed` of diffusers' transformers: the timestep, the pooled text, and of distilled models the guidance.
///
/// diffusers' `CombinedTimestepTextProjEmbeddings`, and with guidance `CombinedTimestepGuidanceTextProjEmbeddings`.
pub(crate) struct TimeTextEmbedding {
    timestep: Mlp,
    guidance: Option<Mlp>,
    text: Mlp,
}

impl TimeTextEmbedding {
    /// Sinusoids of a number; no configuration names them.
    const SINUSOIDS: Sinusoids = Sinusoids { dim: 256, flip_sin_to_cos: true, freq_shift: 0.0 };

    /// For pooled texts of width `pooled`; `guidance` says whether the model is told its guidance.
    pub(crate) fn new(weights: &Tensors, pooled: usize, guidance: bool, outputs: usize) -> Result<Self> {
        let mlp = |name: &str, inputs| Mlp::new(&weights.pp(name), inputs, outputs, Activation::Silu);
        let sinusoids = Self::SINUSOIDS.dim;
        Ok(Self {
            timestep: mlp("timestep_embedder", sinusoids)?,
            guidance: guidance.then(|| mlp("guidance_embedder", sinusoids)).transpose()?,
            text: mlp("text_embedder", pooled)?,
        })
    }

    /// What does not change from step to step, (1, outputs) in f32, of a pooled text (1, pooled).
    pub(crate) fn constant(&self, pooled: &Tensor, guidance: f64) -> Result<Tensor> {
        let text = self.text.forward(&pooled.to_dtype(DType::F32)?)?;
        let Some(mlp) = &self.guidance else { return Ok(text) };
        let guidance = f64::from(guidance as f32 * 1000.0);
        Ok((mlp.forward(&Self::SINUSOIDS.forward(&[guidance], pooled)?)? + text)?)
    }

    /// One timestep a row, in 0..=1000, and what [`Self::constant`] made of each row, to (b, outputs) in f32.
    pub(crate) fn forward(&self, timesteps: &[f64], constant: &Tensor) -> Result<Tensor> {
        // diffusers' pipelines divide by 1000 and its models multiply again, which rounds in f32.
        let rounded: Vec<f64> = timesteps.iter().map(|&t| f64::from(t as f32 / 1000.0 * 1000.0)).collect();
        Ok((self.timestep.forward(&Self::SINUSOIDS.forward(&rounded, constant)?)? + constant)?)
    }
}
