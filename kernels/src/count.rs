//! Counting the floating-point operations of the products.

use std::cell::Cell;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// Runs `body`, and says how many floating-point operations its matrix products, convolutions and attention took on this
/// thread, by their shapes: a product and a sum are two. What is not a product of matrices is not counted, and neither is
/// work that a form saves or adds.
pub fn counted<T>(body: impl FnOnce() -> T) -> (T, u64) {
    let before = COUNT.get();
    let result = body();
    (result, COUNT.get().wrapping_sub(before))
}

/// Counts a product of `outputs` elements, each a sum over `depth`.
pub(crate) fn product(outputs: usize, depth: usize) {
    COUNT.set(COUNT.get().wrapping_add(2 * (outputs as u64) * (depth as u64)));
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Result, Tensor};

    use super::*;
    use crate::{Conv2d, Conv2dConfig, Linear, Padding, attention};

    #[test]
    fn products_are_counted_by_their_shapes() -> Result<()> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let linear = Linear::new(zeros(&[5, 3])?, None)?;
        let (y, operations) = counted(|| linear.forward(&zeros(&[2, 7, 3]).unwrap()));
        assert_eq!((y?.dims(), operations), ([2, 7, 5].as_slice(), 2 * 2 * 7 * 5 * 3));

        let config = Conv2dConfig { stride: 1, padding: Padding::same(1) };
        let conv = Conv2d::new(zeros(&[4, 3, 3, 3])?, None, config)?;
        let (_, operations) = counted(|| conv.forward(&zeros(&[1, 5, 6, 3]).unwrap()));
        assert_eq!(operations, 2 * 5 * 6 * 4 * (3 * 3 * 3));

        let (q, k) = (zeros(&[2, 7, 8])?, zeros(&[2, 9, 8])?);
        let (_, operations) = counted(|| attention(&q, &k, &k, 2, None));
        assert_eq!(operations, 2 * (2 * 2 * 7 * 9 * 8));
        Ok(())
    }
}
