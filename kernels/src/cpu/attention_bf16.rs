//! Attention of bf16 values, by the instructions of AVX-512 BF16.
//!
//! The computation is that of [`super::attention`]: blocks of queries and keys of fixed sizes, and a softmax in f32 carried from
//! block to block. Both products multiply bf16 values and sum in f32; between them the weights of the keys are
//! rounded to bf16, as in the flash attention of GPUs. Keys and values are read where they lie in memory.

use std::ops::Range;

use candle_core::{Result, Tensor};
use half::bf16;

use super::{
    attention::{KEYS, Mask, PACKING, QUERIES},
    buffer::{Target, filled, room},
    pool::{collect, tasks},
    product_bf16::{Form, PackedBf16, Sums},
    with_bf16,
};

/// A block of keys (d, keys) and of values (keys, d), both filled up with a key of zeros to an even number.
struct KeyBlock {
    keys: PackedBf16,
    values: PackedBf16,
    count: usize,
}

/// Where a head's values lie: the lines of its row, and its channels in each.
struct Head<'a> {
    values: &'a [bf16],
    width: usize,
    lines: Range<usize>,
    channels: Range<usize>,
}

impl Head<'_> {
    /// The channels of line `index` of the row.
    fn line(&self, index: usize) -> &[bf16] {
        let start = (self.lines.start + index) * self.width;
        &self.values[start..][self.channels.clone()]
    }
}

/// As [`super::attention::attention`], for bf16 and heads that there is a [`super::product_bf16::form`] for.
pub(super) fn attention(
    form: Form,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    mask: Option<&Mask>,
) -> Result<Tensor> {
    let ((b, n, width), m) = (q.dims3()?, k.dim(1)?);
    let d = width / heads;
    with_bf16(q, |queries| {
        with_bf16(k, |keys| {
            with_bf16(v, |values| {
                let of_head = |values, head: usize, lines: usize| {
                    let (row, channel) = (head / heads, head % heads * d);
                    Head { values, width, lines: row * lines..(row + 1) * lines, channels: channel..channel + d }
                };
                let blocks: Vec<Vec<KeyBlock>> = collect(b * heads, b * m * width * PACKING, |head| {
                    pack_head(form, &of_head(keys, head, m), &of_head(values, head, m), (m, d))
                });
                let mut result = room(b * n * width);
                let target = Target::new(&mut result);
                let per_head = n.div_ceil(QUERIES);
                tasks(b * heads * per_head, b * n * m * width, |task| {
                    let (head, first) = (task / per_head, task % per_head * QUERIES);
                    let from = of_head(queries, head, n);
                    let table: Vec<_> = (first..n.min(first + QUERIES)).map(|n| from.line(n).as_ptr()).collect();
                    let mask = mask.map(|mask| mask.of_queries(head / heads, head % heads, first));
                    let offset = (head / heads * n + first) * width + head % heads * d;
                    // SAFETY: the pointers are at `d` values each; the task's queries and head are written by it
                    // alone, and lie within the result.
                    unsafe {
                        let sums = Sums::new(form);
                        query_block(sums, &table, &blocks[head], mask.as_ref(), d, target.at(offset), width);
                    }
                });
                // SAFETY: the tasks cover the result.
                Tensor::from_vec(unsafe { filled(result) }, (b, n, width), q.device())
            })
        })
    })
}

/// Packs the `m` keys and values of a head.
fn pack_head(form: Form, keys: &Head, values: &Head, (m, d): (usize, usize)) -> Vec<KeyBlock> {
    let nothing = vec![bf16::ZERO; d];
    let block = |first: usize| {
        let count = KEYS.min(m - first);
        let value = |index: usize| if index < count { values.line(first + index) } else { &nothing };
        KeyBlock {
            keys: PackedBf16::of_columns(form, d, count, |index| keys.line(first + index)),
            values: PackedBf16::of_rows(form, count.next_multiple_of(2), d, value),
            count,
        }
    };
    (0..m).step_by(KEYS).map(block).collect()
}

/// Computes some queries of a head, whose results begin at `to`, `width` values from one to the next.
///
/// # Safety
/// The keys and values must be packed in the form of `multiplier`, the pointers readable and the result writable for `d` values of each query.
unsafe fn query_block(
    mut multiplier: Sums,
    queries: &[*const bf16],
    blocks: &[KeyBlock],
    mask: Option<&Mask>,
    d: usize,
    to: *mut bf16,
    width: usize,
) {
    let count = queries.len();
    let widest = blocks.first().map_or(0, |block| PackedBf16::pitch(block.count));
    let pitch = PackedBf16::pitch(d);
    let mut scores = vec![0_f32; count * widest];
    let mut weights = vec![bf16::ZERO; count * widest];
    let mut sums = vec![0_f32; count * pitch];
    let (mut highest, mut totals) = (vec![f32::NEG_INFINITY; count], vec![0_f32; count]);
    let scale = 1.0 / (d as f64).sqrt();
    for (index, block) in blocks.iter().enumerate() {
        // SAFETY: the queries are as the caller promised, and the scores have room for whole vectors of the keys.
        unsafe { multiplier.add(queries, &block.keys, scores.as_mut_ptr(), widest, true) };
        for query in 0..count {
            let scores = &mut scores[query * widest..][..block.count];
            if let Some(mask) = mask {
                mask.add_scaled(scores, scale as f32, query, index * KEYS);
            }
            // The weights are powers of two, so the logarithm of e is put into the factor on the scores.
            let factor = if mask.is_some() { std::f64::consts::LOG2_E } else { scale * std::f64::consts::LOG2_E };
            let weights = &mut weights[query * widest..][..block.count.next_multiple_of(2)];
            let (high, total) = (&mut highest[query], &mut totals[query]);
            // SAFETY: the instructions are there, as the caller promised.
            let fade = unsafe { softmax(scores, factor as f32, weights, high, total) };
            if index > 0 && fade != 1.0 {
                for sum in &mut sums[query * pitch..][..d] {
                    *sum *= fade;
                }
            }
        }
        let rows: Vec<*const bf16> = weights.chunks_exact(widest).map(<[bf16]>::as_ptr).collect();
        // SAFETY: the weights are as many as the values, and the sums have room for whole vectors of the channels.
        unsafe { multiplier.add(&rows, &block.values, sums.as_mut_ptr(), pitch, index == 0) };
    }
    for (query, (sums, total)) in sums.chunks_exact(pitch).zip(&totals).enumerate() {
        // SAFETY: the caller's promise.
        let to = unsafe { std::slice::from_raw_parts_mut(to.add(query * width), d) };
        for (to, sum) in to.iter_mut().zip(sums) {
            *to = super::convert::round(sum / total);
        }
    }
}

#[cfg(target_arch = "x86_64")]
use x86::softmax;

/// Never called, because such products are never taken here.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn softmax(_: &[f32], _: f32, _: &mut [bf16], _: &mut f32, _: &mut f32) -> f32 {
    1.0
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256bh, __m256i, __m512, _CMP_NLT_UQ, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm256_mask_storeu_epi16,
        _mm256_storeu_si256, _mm512_add_ps, _mm512_cmp_ps_mask, _mm512_cvtneps_pbh, _mm512_fmadd_ps, _mm512_fmsub_ps,
        _mm512_loadu_ps, _mm512_mask_loadu_ps, _mm512_maskz_scalef_ps, _mm512_max_ps, _mm512_reduce_add_ps,
        _mm512_reduce_max_ps, _mm512_roundscale_ps, _mm512_set1_ps, _mm512_sub_ps,
    };

    use half::bf16;

    const LANES: usize = 16;

    /// The polynomial of degree 4 that is nearest to 2^x over -0.5..=0.5, by the greatest relative error: 2.6e-6.
    const COEFFICIENTS: [f32; 5] = [0.999_999_3, 0.693_121_8, 0.240_247_44, 0.055_917_86, 0.009_570_101];

    /// Turns a query's scores into 2^(factor · score - highest), with the highest product so far, and adds them to the total;
    /// gives the factor on what was summed before. Weights beyond the scores become 0.
    ///
    /// # Safety
    /// The instructions must be there.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn softmax(
        scores: &[f32],
        factor: f32,
        weights: &mut [bf16],
        high: &mut f32,
        total: &mut f32,
    ) -> f32 {
        let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
        // The last vector may be a broken one.
        let (whole, rest) = scores.split_at(scores.len() / LANES * LANES);
        let last = lanes(rest.len());
        // SAFETY: no more is read than the rest has.
        let rest = unsafe { _mm512_mask_loadu_ps(lowest, last, rest.as_ptr()) };
        // Several, since each waits for the one before. Where a score is NaN, x86 takes it, for it is the second.
        let mut highest = [rest, lowest, lowest, lowest];
        for (index, part) in whole.chunks_exact(LANES).enumerate() {
            // SAFETY: the part is as long.
            let part = unsafe { _mm512_loadu_ps(part.as_ptr()) };
            highest[index % 4] = _mm512_max_ps(highest[index % 4], part);
        }
        let highest = _mm512_max_ps(_mm512_max_ps(highest[0], highest[1]), _mm512_max_ps(highest[2], highest[3]));
        // The factor is positive.
        let new = high.max(_mm512_reduce_max_ps(highest) * factor);
        // Where every key so far is forbidden, 2^-∞ is 0 about any other number; about -∞ it would be NaN.
        let about = if new == f32::NEG_INFINITY { 0.0 } else { new };
        let (factor_lanes, about_lanes) = (_mm512_set1_ps(factor), _mm512_set1_ps(about));
        let mut sum = _mm512_set1_ps(0.0);
        let (weights, weights_left) = weights.split_at_mut(whole.len());
        for (scores, weights) in whole.chunks_exact(LANES).zip(weights.chunks_exact_mut(LANES)) {
            // SAFETY: the parts are as long as what is read and written.
            unsafe {
                let score = _mm512_loadu_ps(scores.as_ptr());
                let weight = exp2(_mm512_fmsub_ps(score, factor_lanes, about_lanes));
                sum = _mm512_add_ps(sum, weight);
                let rounded = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(weight));
                _mm256_storeu_si256(weights.as_mut_ptr().cast(), rounded);
            }
        }
        if !weights_left.is_empty() {
            let weight = exp2(_mm512_fmsub_ps(rest, factor_lanes, about_lanes));
            sum = _mm512_add_ps(sum, weight);
            // SAFETY: no more is written than there is room for; there is less than a vector left.
            unsafe {
                let rounded = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(weight));
                _mm256_mask_storeu_epi16(weights_left.as_mut_ptr().cast(), lanes(weights_left.len()), rounded);
            }
        }
        let fade = if *high == new { 1.0 } else { (*high - about).exp2() };
        *total = *total * fade + _mm512_reduce_add_ps(sum);
        *high = new;
        fade
    }

    /// The mask of the first `count` lanes.
    fn lanes(count: usize) -> u16 {
        if count >= LANES { u16::MAX } else { (1 << count) - 1 }
    }

    /// 2^x for x below 1, and 0 where that is less than the smallest normal number; within 3e-6 of the exact value, relative to it,
    /// which bf16 does not show.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn exp2(x: __m512) -> __m512 {
        // A NaN is not less either, and goes through.
        let counts = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(-126.0));
        let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
        let r = _mm512_sub_ps(x, n);
        let mut p = _mm512_set1_ps(COEFFICIENTS[4]);
        for coefficient in COEFFICIENTS[..4].iter().rev() {
            p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*coefficient));
        }
        _mm512_maskz_scalef_ps(counts, p, n)
    }
}
