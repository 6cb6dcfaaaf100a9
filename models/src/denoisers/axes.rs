//! Rotary positions with several axes: each axis turns channels of its own.
//!
//! Su et al., "RoFormer", 2021, in the form that image transformers have it: a token has a coordinate for each axis (time,
//! row, column, place in the text), and every axis its share of a head's channels.

use candle_core::{Device, Tensor};
use easel_kernels::Parts;

use crate::Result;

/// Cosines and sines of a sequence, (n, d/2) in f32, as [`easel_kernels::rotary`] takes them.
#[derive(Debug, Clone)]
pub(crate) struct Rotation {
    pub(crate) cosines: Tensor,
    pub(crate) sines: Tensor,
}

impl Parts for Rotation {
    fn rebuild<E>(
        &self,
        each: &mut impl FnMut(&Tensor) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Self, E> {
        Ok(Self { cosines: each(&self.cosines)?, sines: each(&self.sines)? })
    }
}

impl Rotation {
    /// That of part of the sequence.
    pub(crate) fn narrow(&self, start: usize, len: usize) -> Result<Self> {
        Ok(Self { cosines: self.cosines.narrow(0, start, len)?, sines: self.sines.narrow(0, start, len)? })
    }
}

/// How an angle of f64 becomes a cosine and a sine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Angles {
    /// Rounded to f32 first, as diffusers' Z-Image does.
    Rounded,
    /// In full, as diffusers' FLUX does.
    Exact,
}

/// The channels of a head that each axis has, and the base of the frequencies.
#[derive(Debug, Clone)]
pub(crate) struct Axes {
    pub(crate) dims: Vec<usize>,
    pub(crate) theta: f64,
    pub(crate) angles: Angles,
}

impl Axes {
    /// The rotation of tokens at these coordinates, one for each axis.
    pub(crate) fn rotation<const N: usize>(&self, tokens: &[[usize; N]], device: &Device) -> Result<Rotation> {
        let pairs = self.dims.iter().sum::<usize>() / 2;
        let frequencies = |dim: usize| (0..dim).step_by(2).map(move |at| self.theta.powf(-(at as f64) / dim as f64));
        let table: Vec<(usize, f64)> =
            self.dims.iter().enumerate().flat_map(|(axis, &dim)| frequencies(dim).map(move |by| (axis, by))).collect();
        let mut cosines = Vec::with_capacity(tokens.len() * pairs);
        let mut sines = Vec::with_capacity(tokens.len() * pairs);
        for token in tokens {
            for &(axis, frequency) in &table {
                let angle = token[axis] as f64 * frequency;
                let angle = if self.angles == Angles::Rounded { f64::from(angle as f32) } else { angle };
                cosines.push(angle.cos() as f32);
                sines.push(angle.sin() as f32);
            }
        }
        let tensor = |values| Tensor::from_vec(values, (tokens.len(), pairs), device);
        Ok(Rotation { cosines: tensor(cosines)?, sines: tensor(sines)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_axis_turns_its_own_channels() {
        let axes = Axes { dims: vec![2, 4], theta: 100.0, angles: Angles::Exact };
        let rotation = axes.rotation(&[[0, 0], [3, 5]], &Device::Cpu).unwrap();
        let expected = [3.0_f64, 5.0, 0.5];
        let cosines = rotation.cosines.to_vec2::<f32>().unwrap();
        let sines = rotation.sines.to_vec2::<f32>().unwrap();
        assert_eq!((cosines[0].as_slice(), sines[0].as_slice()), (&[1.0; 3][..], &[0.0; 3][..]));
        for (at, angle) in expected.into_iter().enumerate() {
            assert!((f64::from(cosines[1][at]) - angle.cos()).abs() < 1e-7);
            assert!((f64::from(sines[1][at]) - angle.sin()).abs() < 1e-7);
        }
    }
}
