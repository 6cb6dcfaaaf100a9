//! The step machines, one file a solver family.

mod ddim;
mod dpm_multistep;
mod euler;

pub(super) use ddim::Ddim;
pub(super) use dpm_multistep::DpmMultistep;
pub(super) use euler::Euler;
