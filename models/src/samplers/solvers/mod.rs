//! The step machines, one file a solver family.

mod ddim;
mod ddpm;
mod deis;
mod distilled;
mod dpm2;
mod dpm_multistep;
mod dpm_singlestep;
mod dpmpp_2s_a;
mod dpmpp_sde;
mod euler;
mod flow_euler;
mod heun;
mod lms;
mod pndm;
mod res_multistep;
mod unipc;

pub(super) use ddim::Ddim;
pub(super) use ddpm::Ddpm;
pub(super) use deis::Deis;
pub(super) use distilled::{Lcm, Tcd};
pub(super) use dpm_multistep::DpmMultistep;
pub(super) use dpm_singlestep::DpmSinglestep;
pub(super) use dpm2::Dpm2;
pub(super) use dpmpp_2s_a::Dpmpp2sAncestral;
pub(super) use dpmpp_sde::DpmppSde;
pub(super) use euler::Euler;
pub(super) use flow_euler::FlowEuler;
pub(super) use heun::Heun;
pub(super) use lms::Lms;
pub(super) use pndm::{Pndm, calls as pndm_calls};
pub(super) use res_multistep::ResMultistep;
pub(super) use unipc::UniPc;

/// The answers that every machine gives from its walk, and from what it holds between the two calls of a step.
macro_rules! answers_from_walk {
    () => {
        answers_from_walk!(|_machine| None);
    };
    (|$machine:ident| $between:expr) => {
        fn progress(&self) -> $crate::samplers::Progress {
            self.walk.progress()
        }

        fn latents(&self) -> &candle_core::Tensor {
            let $machine = self;
            let between: Option<&candle_core::Tensor> = $between;
            between.unwrap_or(&self.walk.latents)
        }

        fn denoised(&self) -> Option<&candle_core::Tensor> {
            self.walk.denoised.as_ref()
        }
    };
}
use answers_from_walk;
