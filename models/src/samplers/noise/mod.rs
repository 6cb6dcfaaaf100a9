//! Where randomness comes from.

mod brownian;
mod normal;
mod philox;
mod torch_cpu;

pub use brownian::BrownianTree;
pub use philox::TorchCuda;
pub use torch_cpu::TorchCpu;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::Result;

/// One picture's own stream of standard normal noise.
pub trait Noise: Send {
    /// The seed that the stream was opened with.
    fn seed(&self) -> u64;

    /// The next tensor of the stream, f32 of this shape on `device`.
    ///
    /// # Errors
    /// When the tensor cannot be made.
    fn normal(&mut self, shape: &[usize], device: &Device) -> Result<Tensor>;

    /// Noise for the step from noise level `from` to `to`, standard normal whatever the levels are.
    ///
    /// A stream without memory draws the next tensor; a Brownian path answers with its increment
    /// between the levels, so that finer steps follow the same path.
    ///
    /// # Errors
    /// When the tensor cannot be made.
    fn between(&mut self, _from: f64, _to: f64, shape: &[usize], device: &Device) -> Result<Tensor> {
        self.normal(shape, device)
    }
}

/// The noise sources that a request can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseSource {
    /// `torch.Generator("cpu")`: mt19937 and torch's normal transform, bit for bit.
    #[default]
    TorchCpu,
    /// `torch.Generator("cuda")`: Philox, for pictures made elsewhere on a GPU.
    TorchCuda,
    /// One Brownian path by seed, as torchsde makes it, for the steps of the SDE samplers; what else is drawn is
    /// torch's CPU noise.
    Brownian,
}

impl NoiseSource {
    /// Every source, for messages that name what is possible.
    pub const ALL: [Self; 3] = [Self::TorchCpu, Self::TorchCuda, Self::Brownian];

    /// The name in requests.
    pub fn name(self) -> &'static str {
        match self {
            Self::TorchCpu => "torch_cpu",
            Self::TorchCuda => "torch_cuda",
            Self::Brownian => "brownian",
        }
    }

    /// The source of this name.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.name() == name)
    }

    /// Opens a stream of this source. The Brownian path itself begins in [`Plan::start`](super::Plan::start), which knows
    /// the levels that it spans.
    pub fn open(self, seed: u64) -> Box<dyn Noise> {
        match self {
            Self::TorchCpu | Self::Brownian => Box::new(TorchCpu::new(seed)),
            Self::TorchCuda => Box::new(TorchCuda::new(seed)),
        }
    }
}
