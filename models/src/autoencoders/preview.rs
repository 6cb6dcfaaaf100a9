//! A linear map from latents to colours: one pixel a latent pixel, cheap enough for every step.
//!
//! A latent diffusion model's latents are close to a small picture whose channels are mixed, so a linear map
//! shows what comes about. It is fitted to the autoencoder at hand: pictures of coloured squares are encoded, and
//! the colours regressed on their latents.

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result, RgbImage};

/// Levels of each primary colour in the probe pictures.
const LEVELS: usize = 3;

/// Squares along a side of a probe picture; all pictures together hold each colour once.
const SQUARES: usize = 3;

/// Latent pixels along a side of a square, so that some lie near an edge and some do not.
const SQUARE: usize = 2;

/// Neighbouring squares are this many colours apart, which makes every edge one in all three primaries.
const STRIDE: usize = 10;

/// The ridge, in units of the latents' variance of 1: directions that the probes do not show count for nothing.
const RIDGE: f64 = 1e-3;

/// Colours from latents.
#[derive(Debug, Clone)]
pub struct Preview {
    /// Red, green and blue in -1..1 for each latent channel, and at last for a constant.
    factors: Vec<[f64; 3]>,
}

impl Preview {
    /// Fits the map to an encoder, which takes pictures (b, 3, H, W) in -1..1 to scaled latents (b, c, h, w),
    /// `factor` pixels a side to one.
    pub(crate) fn fit(factor: usize, device: &Device, encode: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let side = SQUARES * SQUARE; // of a probe in latent pixels
        let pictures = LEVELS.pow(3) / (SQUARES * SQUARES);
        let colour = |picture: usize, y: usize, x: usize| -> [f32; 3] {
            let square = (picture * SQUARES + y / SQUARE) * SQUARES + x / SQUARE;
            let index = square * STRIDE % LEVELS.pow(3);
            let level = |place: u32| (index / LEVELS.pow(place) % LEVELS) as f32 / (LEVELS - 1) as f32 * 2.0 - 1.0;
            [level(2), level(1), level(0)]
        };
        let mut pixels = Vec::with_capacity(pictures * 3 * (side * factor).pow(2));
        for picture in 0..pictures {
            for primary in 0..3 {
                for y in 0..side * factor {
                    pixels.extend((0..side * factor).map(|x| colour(picture, y / factor, x / factor)[primary]));
                }
            }
        }
        let probes = Tensor::from_vec(pixels, (pictures, 3, side * factor, side * factor), device)?;
        let latents = encode(&probes)?; // (b, c, h, w)
        let channels = latents.dim(1)?;
        let rows = latents.to_dtype(DType::F64)?.permute((0, 2, 3, 1))?.reshape(((), channels))?.to_vec2::<f64>()?;

        let mut fit = LeastSquares::new(channels + 1);
        for (index, mut row) in rows.into_iter().enumerate() {
            let (picture, y, x) = (index / (side * side), index / side % side, index % side);
            row.push(1.0);
            fit.add(&row, colour(picture, y, x).map(f64::from));
        }
        Ok(Self { factors: fit.solve(RIDGE)? })
    }

    /// A picture of scaled latents (c, h, w), one pixel a latent pixel.
    ///
    /// # Errors
    /// When the latents have another number of channels, or are not on a device that can be read.
    pub fn rgb(&self, latents: &Tensor) -> Result<RgbImage> {
        let (channels, height, width) = latents.dims3()?;
        let [factors @ .., constant] = self.factors.as_slice() else { return Err(unfit(channels, 0)) };
        if factors.len() != channels {
            return Err(unfit(channels, factors.len()));
        }
        let latents = latents.to_dtype(DType::F32)?.flatten(1, 2)?.to_vec2::<f32>()?; // (c, h*w)
        let mut pixels = Vec::with_capacity(height * width * 3);
        for position in 0..height * width {
            for primary in 0..3 {
                let mixed = factors.iter().zip(&latents).map(|(by, plane)| by[primary] * f64::from(plane[position]));
                let value = constant[primary] + mixed.sum::<f64>();
                pixels.push(((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8);
            }
        }
        RgbImage::new(width as u32, height as u32, pixels)
    }
}

fn unfit(channels: usize, expected: usize) -> Error {
    Error::Unsupported(format!("a preview of {channels} latent channels was asked of an autoencoder with {expected}"))
}

/// A linear regression of three values, by its normal equations.
struct LeastSquares {
    /// The sum of x xᵀ, and beside it that of x yᵀ: `inputs` rows of `inputs + 3`.
    sums: Vec<Vec<f64>>,
    count: usize,
}

impl LeastSquares {
    fn new(inputs: usize) -> Self {
        Self { sums: vec![vec![0.0; inputs + 3]; inputs], count: 0 }
    }

    fn add(&mut self, x: &[f64], y: [f64; 3]) {
        for (row, &left) in self.sums.iter_mut().zip(x) {
            for (sum, &right) in row.iter_mut().zip(x.iter().chain(&y)) {
                *sum += left * right;
            }
        }
        self.count += 1;
    }

    /// Three factors for each input, by Gauss-Jordan elimination; the ridge makes every pivot positive.
    fn solve(mut self, ridge: f64) -> Result<Vec<[f64; 3]>> {
        let inputs = self.sums.len();
        for i in 0..inputs {
            self.sums[i][i] += ridge * self.count as f64;
        }
        for i in 0..inputs {
            let pivot = self.sums[i][i];
            if !(pivot.is_finite() && pivot > 0.0) {
                return Err(Error::Unsupported("the autoencoder's latents are not finite".to_owned()));
            }
            let row: Vec<f64> = self.sums[i].iter().map(|value| value / pivot).collect();
            for (_, values) in self.sums.iter_mut().enumerate().filter(|(other, _)| *other != i) {
                let by = values[i];
                for (value, from) in values.iter_mut().zip(&row) {
                    *value -= by * from;
                }
            }
            self.sums[i] = row;
        }
        Ok(self.sums.iter().map(|row| [row[inputs], row[inputs + 1], row[inputs + 2]]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_encoder_is_undone() {
        // Four latent channels that are sums of the primaries, one of them a copy: the fit must undo the mixture.
        let mixture: [[f32; 3]; 4] = [[1.0, 0.5, 0.0], [-0.5, 1.0, 0.3], [0.0, 0.2, -1.0], [0.0, 0.2, -1.0]];
        let weight = Tensor::new(&mixture, &Device::Cpu).unwrap();
        let encode = |pictures: &Tensor| -> Result<Tensor> {
            let (b, _, h, w) = pictures.dims4()?;
            let pooled = pictures.avg_pool2d(4)?.reshape((b, 3, h * w / 16))?;
            Ok((weight.broadcast_left(b)?.matmul(&pooled)?.reshape((b, 4, h / 4, w / 4))? + 0.1)?)
        };
        let preview = Preview::fit(4, &Device::Cpu, encode).unwrap();
        let colours = [[1.0, -1.0, 0.0], [0.2, 0.4, -0.6], [0.0, 0.0, 0.0f32]];
        let picture: Vec<f32> = (0..3).flat_map(|primary| colours.map(|colour| colour[primary])).collect();
        let picture = Tensor::from_vec(picture, (1, 3, 1, 3), &Device::Cpu).unwrap();
        let latents = encode(&picture.upsample_nearest2d(4, 12).unwrap()).unwrap();
        let rgb = preview.rgb(&latents.get(0).unwrap()).unwrap();
        assert_eq!((rgb.width, rgb.height), (3, 1));
        for (value, expected) in rgb.pixels.iter().zip(colours.as_flattened()) {
            assert!((f32::from(*value) - (expected + 1.0) * 127.5).abs() < 2.0, "{:?}", rgb.pixels);
        }
    }

    #[test]
    fn the_probes_hold_every_colour_once() {
        let seen = std::cell::RefCell::new(std::collections::BTreeMap::new());
        let encode = |pictures: &Tensor| {
            for row in pictures.permute((0, 2, 3, 1))?.flatten_to(2)?.to_vec2::<f32>()? {
                *seen.borrow_mut().entry(row.iter().map(|v| *v as i32).collect::<Vec<_>>()).or_insert(0) += 1;
            }
            Ok(pictures.clone())
        };
        Preview::fit(1, &Device::Cpu, encode).unwrap();
        assert_eq!(seen.borrow().len(), 27);
        assert!(seen.borrow().values().all(|&count| count == SQUARE * SQUARE));
    }
}
