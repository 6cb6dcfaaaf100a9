//! What holds for every tile, whichever a layer would choose.

use candle_core::{DType, Device, Result, Tensor};
use half::bf16;

use super::*;
use crate::{
    Conv2dConfig, Padding, plain,
    tests::{distance, noise},
    weight_bytes,
};

/// A convolution at some sizes, with its weight and images.
struct Case {
    /// (images, h, w, in).
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    padding: Padding,
}

impl Case {
    fn new(seed: u64, x: [usize; 4], out: usize, padding: Padding) -> Result<Self> {
        let weight = noise(seed + 1, (out, x[3], 3, 3))?;
        Ok(Self { x: noise(seed, x.as_slice())?, weight, bias: noise(seed + 2, out)?, padding })
    }

    /// Of sizes that the seed chooses.
    fn random(seed: u64) -> Result<Self> {
        let numbers = noise(seed, 16)?.to_vec1::<f32>()?;
        let mut numbers = numbers.into_iter().map(|number| ((number + 2.0) * 1e4) as usize);
        let mut below = |bound: usize| numbers.next().unwrap_or(0) % bound;
        let padding = Padding { top: below(3), left: below(3), bottom: below(3), right: below(3) };
        let smallest = |before: usize, after: usize| 3_usize.saturating_sub(before + after).max(1);
        let h = smallest(padding.top, padding.bottom) + below(13);
        let w = smallest(padding.left, padding.right) + below(13);
        Self::new(seed, [1 + below(3), h, w, 1 + below(70)], 1 + below(70), padding)
    }

    fn config(&self) -> Conv2dConfig {
        Conv2dConfig { stride: 1, padding: self.padding }
    }

    /// What the plain form gives.
    fn plain(&self) -> Result<Tensor> {
        plain::Conv2d::new(&self.weight, Some(&self.bias), self.config())?.forward(&self.x)
    }

    /// What `tile` gives for some of the images.
    fn by(&self, tile: Tile, images: Range<usize>) -> Result<Vec<f32>> {
        let x = self.x.narrow(0, images.start, images.len())?.flatten_all()?.to_vec1::<f32>()?;
        let bias = self.bias.to_vec1::<f32>()?;
        Ok(Winograd::new(&self.weight, tile)?.convolve(
            &x,
            self.sizes(images.len())?,
            Addends { bias: Some(&bias), residual: None },
        ))
    }

    fn sizes(&self, images: usize) -> Result<Sizes> {
        let (_, h, w, _) = self.x.dims4()?;
        let result = self.config().output_size((h, w), (3, 3))?;
        Ok(Sizes { images, image: (h, w), result, padding: (self.padding.top, self.padding.left) })
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_tile_gives_what_the_plain_form_gives_and_each_image_as_alone() -> Result<()> {
    for seed in 0..40 {
        let case = Case::random(seed)?;
        let plain = case.plain()?;
        let images = plain.dims()[0];
        for tile in [Tile::Two, Tile::Four] {
            let y = case.by(tile, 0..images)?;
            let distance = distance(&Tensor::from_slice(&y, plain.shape(), &Device::Cpu)?, &plain)?;
            let at = format!("{tile:?} of {:?} to {:?} by {:?}", case.x, plain, case.padding);
            assert!(distance < 2e-6, "{at}: {distance}");
            for (image, together) in y.chunks(y.len() / images).enumerate() {
                assert!(bits(together) == bits(&case.by(tile, image..image + 1)?), "{at}: image {image}");
            }
        }
    }
    Ok(())
}

#[test]
fn more_threads_and_several_groups_of_tiles_give_the_same_bits() -> Result<()> {
    // One thread takes 2 MiB of transformed values at a time: of 4x4 tiles of 640 channels 64, of which there are 100.
    let case = Case::new(1, [1, 40, 37, 640], 17, Padding::same(1))?;
    let plain = case.plain()?;
    for tile in [Tile::Two, Tile::Four] {
        let of = |threads| -> Result<Vec<f32>> {
            let pool =
                rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(candle_core::Error::wrap)?;
            pool.install(|| case.by(tile, 0..1))
        };
        let alone = of(1)?;
        assert!(bits(&alone) == bits(&of(3)?), "{tile:?}");
        let distance = distance(&Tensor::from_slice(&alone, plain.shape(), &Device::Cpu)?, &plain)?;
        assert!(distance < 2e-6, "{tile:?}: {distance}");
    }
    Ok(())
}

/// How far `y` is from the exact sums over their norm, by every 17th pixel.
fn error(case: &Case, y: &[f32]) -> Result<f64> {
    let (_, h, w, channels) = case.x.dims4()?;
    let (xs, ws) = (case.x.flatten_all()?.to_vec1::<f32>()?, case.weight.flatten_all()?.to_vec1::<f32>()?);
    let bias = case.bias.to_vec1::<f32>()?;
    let columns = bias.len();
    let (mut squares, mut all) = (0.0, 0.0);
    for pixel in (0..h * w).step_by(17) {
        for (out, bias) in bias.iter().enumerate() {
            let mut exact = f64::from(*bias);
            for tap in 0..9 {
                let (at_y, at_x) = ((pixel / w + tap / 3).wrapping_sub(1), (pixel % w + tap % 3).wrapping_sub(1));
                if at_y < h && at_x < w {
                    let x = &xs[(at_y * w + at_x) * channels..][..channels];
                    let product = |(c, x): (usize, &f32)| f64::from(*x) * f64::from(ws[(out * channels + c) * 9 + tap]);
                    exact += x.iter().enumerate().map(product).sum::<f64>();
                }
            }
            squares += (f64::from(y[pixel * columns + out]) - exact).powi(2);
            all += exact.powi(2);
        }
    }
    Ok((squares / all).sqrt())
}

#[test]
fn the_error_stays_near_that_of_a_direct_sum() -> Result<()> {
    for channels in [64, 320, 1280] {
        let case = Case::new(7, [1, 16, 16, channels], 16, Padding::same(1))?;
        // What is above zero on the average, as after an activation, makes the sums' errors larger.
        let case = Case { x: case.x.relu()?, ..case };
        for (tile, allowed) in [(Tile::Two, 8e-7), (Tile::Four, 2e-6)] {
            let error = error(&case, &case.by(tile, 0..1)?)?;
            assert!(error < allowed, "{tile:?} with {channels} channels: {error}");
        }
    }
    Ok(())
}

#[test]
fn bf16_images_are_computed_in_f32_and_rounded_once() -> Result<()> {
    let case = Case::new(3, [2, 9, 10, 33], 20, Padding::same(1))?;
    let half = case.x.to_dtype(DType::BF16)?;
    let case = Case { x: half.to_dtype(DType::F32)?, ..case };
    let (bias, half) = (case.bias.to_vec1::<f32>()?, half.flatten_all()?.to_vec1::<bf16>()?);
    for tile in [Tile::Two, Tile::Four] {
        let y = Winograd::new(&case.weight, tile)?.convolve(
            &half,
            case.sizes(2)?,
            Addends { bias: Some(&bias), residual: None },
        );
        let expected: Vec<bf16> = case.by(tile, 0..2)?.into_iter().map(bf16::from_f32).collect();
        assert!(y == expected, "{tile:?}");
    }
    Ok(())
}

#[test]
fn a_layer_chooses_by_its_window_and_its_channels() {
    let tile = |out, channels| Tile::of(&[out, channels, 3, 3], 1);
    assert_eq!((tile(320, 320), tile(16, 16), tile(640, 1280)), (Some(Tile::Four), Some(Tile::Four), Some(Tile::Four)));
    assert_eq!((tile(1280, 1280), tile(1280, 2560)), (Some(Tile::Two), Some(Tile::Two)));
    assert_eq!((tile(4, 320), tile(320, 4)), (None, None));
    assert_eq!(Tile::of(&[320, 320, 3, 3], 2), None);
    assert_eq!((Tile::of(&[320, 320, 1, 1], 1), Tile::of(&[320, 320], 1), Tile::of(&[320], 1)), (None, None, None));
}

#[test]
fn memory_is_foretold_with_the_transformed_weights() -> Result<()> {
    for (out, channels) in [(32, 48), (1040, 1024)] {
        let shape = [out, channels, 3, 3];
        let weight = Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as(&shape)?;
        let tile = Tile::of(&shape, 1).ok_or_else(|| candle_core::Error::msg("a tile is expected"))?;
        let kept: usize =
            Winograd::new(&weight, tile)?.places.iter().map(|place| place.depth() * place.columns()).sum();
        assert_eq!(weight_bytes(&shape, DType::F32, &Device::Cpu), 4 * kept);
    }
    assert_eq!(weight_bytes(&[32, 48, 1, 1], DType::F32, &Device::Cpu), 4 * 32 * 48);
    assert_eq!(weight_bytes(&[32], DType::F16, &Device::Cpu), 4 * 32);
    Ok(())
}
