//! Attention a block of queries and a block of keys at a time.
//!
//! The scores of a block of queries with a block of keys stay in the cache; the
//! softmax is carried from block to block (Milakov and Gimelshein, 2018; Dao et
//! al., "FlashAttention", 2022). Keys and values are packed once for each row
//! and head, and shared by its blocks of queries. Blocks have fixed sizes, so
//! that a row's bits depend on its own lengths only.

use candle_core::{CpuStorage, DType, Result, Storage, Tensor, bail};
use pulp::{Simd, WithSimd};

use super::{
    attention_bf16,
    buffer::{Target, filled, room},
    math::{self, EXP_LOW},
    pool::{collect, tasks},
    product::{Block, PASS_DEPTH, Packed, Rows, Start},
    product_bf16,
    simd::{dispatch, load, store},
    tensor, with_values,
};

/// The queries of a task.
pub(super) const QUERIES: usize = 32;
/// The keys of a block: whole panels of every vector size.
pub(super) const KEYS: usize = 384;

/// What packing a key and value costs in the pool's measure.
pub(super) const PACKING: usize = 32;

/// A block of keys (d, keys) and of values (keys, d).
struct KeyBlock {
    keys: Packed,
    values: Packed,
}

/// The mask as it lies in memory: strides of 0 where it is broadcast.
pub(super) struct Mask<'a> {
    values: &'a [f32],
    strides: [usize; 4],
}

impl<'a> Mask<'a> {
    /// The mask of a row's head, from query `first` on.
    pub(super) fn of_queries(&self, row: usize, head: usize, first: usize) -> Mask<'a> {
        let [rows, heads, queries, keys] = self.strides;
        let start = row * rows + head * heads + first * queries;
        Mask { values: &self.values[start..], strides: [0, 0, queries, keys] }
    }

    /// Scales a query's scores with the keys from `first` on, and adds the mask.
    pub(super) fn add_scaled(&self, scores: &mut [f32], scale: f32, query: usize, first: usize) {
        let start = query * self.strides[2] + first * self.strides[3];
        for (key, score) in scores.iter_mut().enumerate() {
            *score = *score * scale + self.values[start + key * self.strides[3]];
        }
    }
}

/// `q` (b, n, heads·d), `k` and `v` (b, m, heads·d), `mask` (b, heads, n, m) in f32 or none; gives (b, n, heads·d).
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Option<&Tensor>) -> Result<Tensor> {
    let Some(mask) = mask else { return masked(q, k, v, heads, None) };
    let (storage, layout) = mask.storage_and_layout();
    let (Storage::Cpu(CpuStorage::F32(values)), &[a, b, c, d]) = (&*storage, layout.stride()) else {
        bail!("attention: the mask must be f32 on the CPU, not {:?} on {:?}", mask.dtype(), mask.device());
    };
    masked(q, k, v, heads, Some(&Mask { values: &values[layout.start_offset()..], strides: [a, b, c, d] }))
}

fn masked(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Option<&Mask>) -> Result<Tensor> {
    let ((b, n, width), m) = (q.dims3()?, k.dim(1)?);
    let d = width / heads;
    if q.dtype() == DType::BF16
        && let Some(form) = product_bf16::form(d)
    {
        return attention_bf16::attention(form, q, k, v, heads, mask);
    }
    with_values(q, |queries| {
        with_values(k, |keys| {
            with_values(v, |values| {
                let pack = |head: usize| pack_head(keys, values, (head / heads * m, m), (head % heads * d, d), width);
                let blocks: Vec<Vec<KeyBlock>> = collect(b * heads, b * m * width * PACKING, pack);
                let mut result = room(b * n * width);
                let target = Target::new(&mut result);
                let per_head = n.div_ceil(QUERIES);
                tasks(b * heads * per_head, b * n * m * width * 2, |task| {
                    let (head, first) = (task / per_head, task % per_head * QUERIES);
                    let count = QUERIES.min(n - first);
                    let (row, column) = (head / heads, head % heads * d);
                    let offset = (row * n + first) * width + column;
                    let mask = mask.map(|mask| mask.of_queries(row, head % heads, first));
                    // SAFETY: the task's queries and head are written by it alone, and lie within the result.
                    unsafe {
                        let to = target.at(offset);
                        query_block(&queries[offset..], &blocks[head], mask.as_ref(), (count, d), to, width);
                    }
                });
                // SAFETY: the tasks cover the result.
                tensor(unsafe { filled(result) }, (b, n, width), q)
            })
        })
    })
}

/// Packs a head's keys and values, which begin at line `row` and channel `column`.
fn pack_head(
    keys: &[f32],
    values: &[f32],
    (row, m): (usize, usize),
    (column, d): (usize, usize),
    width: usize,
) -> Vec<KeyBlock> {
    (0..m)
        .step_by(KEYS)
        .map(|first| {
            let count = KEYS.min(m - first);
            let start = (row + first) * width + column;
            KeyBlock {
                keys: Packed::new(d, count, |channel, key| keys[start + key * width + channel]),
                values: Packed::new(count, d, |key, channel| values[start + key * width + channel]),
            }
        })
        .collect()
}

/// Computes `count` queries of a head: `queries` begins at the first, whose next one is `width` values on, as at `to`.
///
/// # Safety
/// The result must be writable for `d` values of each query.
unsafe fn query_block(
    queries: &[f32],
    blocks: &[KeyBlock],
    mask: Option<&Mask>,
    (count, d): (usize, usize),
    to: *mut f32,
    width: usize,
) {
    let scale = (1.0 / (d as f64).sqrt()) as f32;
    let mut scaled = Vec::with_capacity(count * d);
    for query in 0..count {
        scaled.extend(queries[query * width..][..d].iter().map(|value| value * scale));
    }
    let pointers: Vec<*const f32> = scaled.chunks_exact(d).map(<[f32]>::as_ptr).collect();
    let widest = blocks.first().map_or(0, |block| block.keys.columns());
    let mut scores = vec![0f32; count * widest];
    let mut sums = vec![0f32; count * d];
    let (mut highest, mut totals) = (vec![f32::NEG_INFINITY; count], vec![0f32; count]);
    for (index, block) in blocks.iter().enumerate() {
        let keys = block.keys.columns();
        let rows = Rows { table: &pointers, pitch: count, count, taps: 1, channels: d };
        let panels = 0..block.keys.panels();
        // SAFETY: the pointers are at `d` scaled values, and the scores have room for `keys` of each query.
        unsafe {
            let (right, to) = (&block.keys, scores.as_mut_ptr());
            let (start, residual, pass) = (Start::Bias(None), None, PASS_DEPTH);
            Block { rows, right, panels, start, residual, pass, to, stride: widest }.compute();
        }
        for query in 0..count {
            let scores = &mut scores[query * widest..][..keys];
            if let Some(mask) = mask {
                mask.add_scaled(scores, 1.0, query, index * KEYS);
            }
            let (high, total) = (&mut highest[query], &mut totals[query]);
            let fade = dispatch(Softmax { scores, high, total });
            if index > 0 && fade != 1.0 {
                for sum in &mut sums[query * d..][..d] {
                    *sum *= fade;
                }
            }
        }
        let pointers: Vec<*const f32> = scores.chunks_exact(widest).map(<[f32]>::as_ptr).collect();
        let rows = Rows { table: &pointers, pitch: count, count, taps: 1, channels: keys };
        let panels = 0..block.values.panels();
        let start = if index == 0 { Start::Bias(None) } else { Start::Result };
        // SAFETY: the pointers are at `keys` scores, and the sums have room for `d` values of each query.
        unsafe {
            let (right, residual, to) = (&block.values, None, sums.as_mut_ptr());
            Block { rows, right, panels, start, residual, pass: PASS_DEPTH, to, stride: d }.compute();
        }
    }
    for query in 0..count {
        for channel in 0..d {
            // SAFETY: the caller's promise.
            unsafe { *to.add(query * width + channel) = sums[query * d + channel] / totals[query] };
        }
    }
}

/// Turns a query's scores into e^(score - highest), with the highest so far, and adds them to the total; gives the factor on
/// what was summed before.
struct Softmax<'a> {
    scores: &'a mut [f32],
    high: &'a mut f32,
    total: &'a mut f32,
}

impl WithSimd for Softmax<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (len, values) = (self.scores.len(), self.scores.as_mut_ptr());
        let mut highest = simd.splat_f32s(f32::NEG_INFINITY);
        let whole = len - len % S::F32_LANES;
        // SAFETY: whole vectors up to `whole`, then single values, all within the scores.
        unsafe {
            for index in (0..whole).step_by(S::F32_LANES) {
                highest = simd.max_f32s(load(simd, values.add(index), S::F32_LANES), highest);
            }
        }
        let mut high = self.high.max(simd.reduce_max_f32s(highest));
        for value in &self.scores[whole..] {
            high = high.max(*value);
        }
        // Where every key so far is forbidden, e^-∞ is 0 about any other number; about -∞ it would be NaN.
        let about = if high == f32::NEG_INFINITY { 0.0 } else { high };
        let (zero, about_lanes) = (simd.splat_f32s(0.0), simd.splat_f32s(about));
        let mut total = zero;
        // SAFETY: as above; the rest is less than a vector.
        unsafe {
            for index in (0..whole).step_by(S::F32_LANES) {
                let weight = weigh(simd, load(simd, values.add(index), S::F32_LANES), about_lanes);
                store(simd, values.add(index), S::F32_LANES, weight);
                total = simd.add_f32s(total, weight);
            }
            if whole < len {
                let left = len - whole;
                let weight = weigh(simd, load(simd, values.add(whole), left), about_lanes);
                let weight = simd.select_f32s(simd.mask_between_m32s(0, left as u32).mask(), weight, zero);
                store(simd, values.add(whole), left, weight);
                total = simd.add_f32s(total, weight);
            }
        }
        let fade = if *self.high == high { 1.0 } else { (*self.high - about).exp() };
        *self.total = *self.total * fade + simd.reduce_sum_f32s(total);
        *self.high = high;
        fade
    }
}

/// e^(score - about); a forbidden key counts nothing at all, which `exp` alone would not give.
#[inline(always)]
fn weigh<S: Simd>(simd: S, score: S::f32s, about: S::f32s) -> S::f32s {
    let x = simd.sub_f32s(score, about);
    let low = simd.less_than_f32s(x, simd.splat_f32s(EXP_LOW));
    simd.select_f32s(low, simd.splat_f32s(0.0), math::exp(simd, x))
}
