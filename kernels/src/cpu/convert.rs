//! Between bf16 and f32, over the pool's threads.

use half::bf16;

use super::{
    buffer::{Target, filled, room},
    pool::tasks,
};

/// The values of one task.
const CHUNK: usize = 1 << 14;

/// The same values in f32.
pub(super) fn to_f32(values: &[bf16]) -> Vec<f32> {
    map(values, widen)
}

/// The value in f32: `bf16::to_f32` in a form that becomes vectors.
#[inline(always)]
pub(super) fn widen(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// The nearest values in bf16.
pub(super) fn to_bf16(values: &[f32]) -> Vec<bf16> {
    map(values, round)
}

/// The nearest bf16, halves to even: `bf16::from_f32` in a form that becomes vectors.
#[inline(always)]
pub(super) fn round(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // A NaN whose payload were rounded away would become an infinity.
    bf16::from_bits(if value.is_nan() { 0x7fc0 } else { rounded as u16 })
}

fn map<A: Copy + Sync, B: Send>(values: &[A], f: impl Fn(A) -> B + Sync + Send) -> Vec<B> {
    let mut result = room::<B>(values.len());
    let target = Target::new(&mut result);
    // Reading and writing a value takes about as long as eight products in registers.
    tasks(values.len().div_ceil(CHUNK), 8 * values.len(), |task| {
        let from = task * CHUNK;
        let values = &values[from..values.len().min(from + CHUNK)];
        // SAFETY: the chunk lies within the result, and is this task's alone.
        let to =
            unsafe { std::slice::from_raw_parts_mut(target.at(from).cast::<std::mem::MaybeUninit<B>>(), values.len()) };
        for (to, value) in to.iter_mut().zip(values) {
            to.write(f(*value));
        }
    });
    // SAFETY: the chunks cover the result.
    unsafe { filled(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_type() {
        let patterns = (0..=u32::MAX).step_by(65_521).chain([0x3f80_8000, 0x3f81_8000, 0x7f7f_ffff, 0xff80_0000]);
        let values: Vec<f32> = patterns.map(f32::from_bits).collect();
        for (value, ours) in values.iter().zip(to_bf16(&values)) {
            let theirs = bf16::from_f32(*value);
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{value:e}");
        }
        let back = to_f32(&to_bf16(&values));
        assert!(values.iter().zip(back).all(|(value, back)| value.is_nan() || back == bf16::from_f32(*value).to_f32()));
    }
}
