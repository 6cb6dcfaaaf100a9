//! The normalisations: statistics in one pass, the result in another.

use candle_core::{D, Result, Tensor};
use pulp::{Simd, WithSimd};

use super::{
    buffer::{Target, filled, room},
    element::{Element, in_own_type, load_at},
    math,
    pool::tasks,
    simd::{dispatch, load, store},
    tensor, with, with_values,
};

/// The positions over which a group's sums are kept in f32; beyond, they are added up in f64. Fixed, since it decides the bits.
const POSITIONS: usize = 64;
/// What a value costs in the pool's measure.
const COST: usize = 16;

/// Group normalisation with its weights.
#[derive(Debug, Clone)]
pub(crate) struct GroupNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    pub(crate) fn new(weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Self> {
        let values = |tensor| with_values(tensor, |values| Ok(values.to_vec()));
        Ok(Self { weight: values(weight)?, bias: values(bias)?, groups, eps })
    }

    /// `x` (b, .., c) with a vector (b, c) added at every position, then SiLU if `silu`.
    pub(crate) fn forward(&self, x: &Tensor, vector: Option<&Tensor>, silu: bool) -> Result<Tensor> {
        let Some(vector) = vector else { return in_own_type!(x, group_norm(self, x, None, silu)) };
        with_values(vector, |vectors| in_own_type!(x, group_norm(self, x, Some(vectors), silu)))
    }

    /// What to do with each channel of a row, from the sums of its chunks and from the row's vector, which moves the mean of
    /// the channel and nothing else.
    ///
    /// The sums are about a shift of each channel, its first value, so that a mean far from zero cancels no digits;
    /// channels are put together by their means and squares (Chan, Golub and LeVeque, 1983).
    fn channel_map(&self, sums: &[f32], shift: &[f32], vector: Option<&[f32]>, row_len: usize) -> ChannelMap {
        let channels = self.weight.len();
        let (size, count) = (channels / self.groups, (row_len / channels) as f64);
        let mut total = vec![0f64; 2 * channels];
        for chunk in sums.chunks_exact(2 * channels) {
            for (total, sum) in total.iter_mut().zip(chunk) {
                *total += f64::from(*sum);
            }
        }
        let (sum, square) = total.split_at(channels);
        let mut map = ChannelMap::default();
        for group in 0..self.groups {
            let members = group * size..(group + 1) * size;
            let moved = |channel: usize| vector.map_or(0.0, |vector| f64::from(vector[channel]));
            let mean_of = |channel: usize| f64::from(shift[channel]) + sum[channel] / count + moved(channel);
            let mean = members.clone().map(mean_of).sum::<f64>() / size as f64;
            let squares: f64 = members
                .clone()
                .map(|c| square[c] - sum[c] * sum[c] / count + count * (mean_of(c) - mean).powi(2))
                .sum();
            let factor = 1.0 / (squares.max(0.0) / (count * size as f64) + self.eps).sqrt();
            for channel in members {
                let scale = factor * f64::from(self.weight[channel]);
                let mean = mean - moved(channel);
                let rounded = mean as f32;
                map.means.push(rounded);
                map.scales.push(scale as f32);
                map.biases.push((f64::from(self.bias[channel]) - (mean - f64::from(rounded)) * scale) as f32);
            }
        }
        map
    }
}

fn group_norm<E: Element>(norm: &GroupNorm, x: &Tensor, vectors: Option<&[f32]>, silu: bool) -> Result<Tensor> {
    let (rows, channels) = (x.dim(0)?, norm.weight.len());
    with(x, |values: &[E]| {
        let row_len = values.len() / rows.max(1);
        let (chunk, work) = (POSITIONS * channels, values.len() * COST);
        let chunks = row_len.div_ceil(chunk.max(1));
        let part = |task: usize| {
            let start = task % chunks * chunk;
            task / chunks * row_len + start..task / chunks * row_len + row_len.min(start + chunk)
        };

        // The first values of a row's channels; a row without positions has none.
        let shifts = |row: usize| -> Vec<f32> {
            values[row * row_len..][..channels.min(row_len)].iter().map(|value| value.to_f32()).collect()
        };
        // Each chunk's sums of x - shift and of its square, for each channel.
        let mut sums = room(rows * chunks * 2 * channels);
        let target = Target::new(&mut sums);
        tasks(rows * chunks, work, |task| {
            let shift = shifts(task / chunks);
            // SAFETY: each task writes 2 · channels sums of its own.
            let to = unsafe { target.at(task * 2 * channels) };
            dispatch(Sums { values: &values[part(task)], shift: &shift, to });
        });
        // SAFETY: the tasks cover the sums.
        let sums = unsafe { filled(sums) };
        let channel_maps: Vec<ChannelMap> = (0..rows)
            .map(|row| {
                let sums = &sums[row * chunks * 2 * channels..][..chunks * 2 * channels];
                let vector = vectors.map(|vectors| &vectors[row * channels..][..channels]);
                norm.channel_map(sums, &shifts(row), vector, row_len)
            })
            .collect();

        let mut result = room(values.len());
        let target = Target::new(&mut result);
        tasks(rows * chunks, work, |task| {
            let part = part(task);
            // SAFETY: the parts lie within the result and do not overlap.
            let to = unsafe { target.at(part.start) };
            dispatch(Scale { values: &values[part], map: &channel_maps[task / chunks], silu, to });
        });
        // SAFETY: the parts cover the result.
        tensor::<E>(unsafe { filled(result) }, x.shape(), x)
    })
}

/// (x - mean) · scale + bias for each channel of a row. What the mean loses in f32 is put into the bias.
#[derive(Default)]
struct ChannelMap {
    means: Vec<f32>,
    scales: Vec<f32>,
    biases: Vec<f32>,
}

/// Sums of (n, c) values about `shift` (c): to (2, c), the differences and their squares.
struct Sums<'a, E> {
    values: &'a [E],
    shift: &'a [f32],
    to: *mut f32,
}

impl<E: Element> WithSimd for Sums<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let channels = self.shift.len();
        let wide = 4 * S::F32_LANES;
        let mut channel = 0;
        // SAFETY: the channels passed on exist.
        unsafe {
            while channel + wide <= channels {
                self.columns::<S, 4>(simd, channel);
                channel += wide;
            }
            while channel < channels {
                self.columns::<S, 1>(simd, channel);
                channel += S::F32_LANES;
            }
        }
    }
}

impl<E: Element> Sums<'_, E> {
    /// The sums of V vectors of channels from `channel` on.
    ///
    /// # Safety
    /// V vectors of channels must exist there, or one that may be broken if V is 1.
    #[inline(always)]
    unsafe fn columns<S: Simd, const V: usize>(&self, simd: S, channel: usize) {
        let channels = self.shift.len();
        let left = |v: usize| channels - channel - v * S::F32_LANES;
        let zero = simd.splat_f32s(0.0);
        let (mut shift, mut sums, mut squares) = ([zero; V], [zero; V], [zero; V]);
        // SAFETY: no more is read of a line, nor written, than `left` allows.
        unsafe {
            for (v, shift) in shift.iter_mut().enumerate() {
                *shift = load(simd, self.shift.as_ptr().add(channel + v * S::F32_LANES), left(v));
            }
            for line in self.values.chunks_exact(channels) {
                for v in 0..V {
                    let x = E::load(simd, line.as_ptr().add(channel + v * S::F32_LANES), left(v));
                    let x = simd.sub_f32s(x, shift[v]);
                    sums[v] = simd.add_f32s(sums[v], x);
                    squares[v] = simd.mul_add_e_f32s(x, x, squares[v]);
                }
            }
            for v in 0..V {
                let to = self.to.add(channel + v * S::F32_LANES);
                store(simd, to, left(v), sums[v]);
                store(simd, to.add(channels), left(v), squares[v]);
            }
        }
    }
}

/// Maps (n, c) values, then applies SiLU if asked for.
struct Scale<'a, E> {
    values: &'a [E],
    map: &'a ChannelMap,
    silu: bool,
    to: *mut E,
}

impl<E: Element> WithSimd for Scale<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let channels = self.map.means.len();
        for (index, line) in self.values.chunks_exact(channels).enumerate() {
            for channel in (0..channels).step_by(S::F32_LANES) {
                let left = channels - channel;
                // SAFETY: no more is read or written than the line has left.
                unsafe {
                    let x = simd.sub_f32s(load_at(simd, line, channel), load_at(simd, &self.map.means, channel));
                    let y = simd.mul_add_e_f32s(
                        x,
                        load_at(simd, &self.map.scales, channel),
                        load_at(simd, &self.map.biases, channel),
                    );
                    let y = if self.silu { math::silu(simd, y) } else { y };
                    E::store(simd, self.to.add(index * channels + channel), left, y);
                }
            }
        }
    }
}

/// `x` (.., c), normalised over c.
pub(crate) fn layer_norm(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    in_own_type!(x, lines(x, weight, bias, true, eps))
}

/// `x` (.., c), divided by the root of its mean square over c.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    in_own_type!(x, lines(x, Some(weight), None, false, eps))
}

/// `x` (b, n, c), normalised over c, then scaled and shifted by the row's vectors.
pub(crate) fn ada_layer_norm(x: &Tensor, scale: &Tensor, shift: &Tensor, eps: f64) -> Result<Tensor> {
    in_own_type!(x, ada_layer_norm_of(x, scale, shift, eps))
}

fn ada_layer_norm_of<E: Element>(x: &Tensor, scale: &Tensor, shift: &Tensor, eps: f64) -> Result<Tensor> {
    let (_, n, channels) = x.dims3()?;
    let factors = with_values(scale, |scale| Ok(scale.iter().map(|scale| 1.0 + scale).collect::<Vec<_>>()))?;
    with_values(shift, |shifts| {
        with(x, |values: &[E]| {
            let mut result = room(values.len());
            let target = Target::new(&mut result);
            let chunk = (8192 / channels.max(1)).clamp(1, n.max(1));
            let chunks = n.div_ceil(chunk);
            tasks(factors.len() / channels.max(1) * chunks, values.len() * COST, |task| {
                let (row, first) = (task / chunks, task % chunks * chunk);
                let part = (row * n + first) * channels..(row * n + n.min(first + chunk)) * channels;
                let of_row = row * channels..(row + 1) * channels;
                // SAFETY: the parts lie within the result and do not overlap.
                let to = unsafe { target.at(part.start) };
                let (weight, bias) = (Some(&factors[of_row.clone()]), Some(&shifts[of_row]));
                dispatch(Lines { values: &values[part], channels, weight, bias, centre: true, eps, to });
            });
            // SAFETY: the parts cover the result.
            tensor::<E>(unsafe { filled(result) }, x.shape(), x)
        })
    })
}

fn lines<E: Element>(
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    centre: bool,
    eps: f64,
) -> Result<Tensor> {
    let channels = x.dim(D::Minus1)?;
    let vector = |tensor: Option<&Tensor>| tensor.map(|t| with_values(t, |values| Ok(values.to_vec()))).transpose();
    let (weight, bias) = (vector(weight)?, vector(bias)?);
    with(x, |values: &[E]| {
        let mut result = room(values.len());
        let target = Target::new(&mut result);
        let chunk = (8192 / channels.max(1)).max(1) * channels;
        tasks(values.len().div_ceil(chunk.max(1)), values.len() * COST, |task| {
            let part = task * chunk..values.len().min((task + 1) * chunk);
            // SAFETY: the parts lie within the result and do not overlap.
            let to = unsafe { target.at(part.start) };
            let (weight, bias) = (weight.as_deref(), bias.as_deref());
            dispatch(Lines { values: &values[part], channels, weight, bias, centre, eps, to });
        });
        // SAFETY: the parts cover the result.
        tensor::<E>(unsafe { filled(result) }, x.shape(), x)
    })
}

/// Lines of `channels` values, each normalised by its own statistics.
struct Lines<'a, E> {
    values: &'a [E],
    channels: usize,
    weight: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
    centre: bool,
    eps: f64,
    to: *mut E,
}

impl<E: Element> WithSimd for Lines<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (index, line) in self.values.chunks_exact(self.channels).enumerate() {
            let count = self.channels as f64;
            let mean = if self.centre { (f64::from(sum(simd, line, None)) / count) as f32 } else { 0.0 };
            let squares = f64::from(sum(simd, line, Some(mean)));
            let factor = simd.splat_f32s((1.0 / (squares / count + self.eps).sqrt()) as f32);
            let mean = simd.splat_f32s(mean);
            for channel in (0..self.channels).step_by(S::F32_LANES) {
                let left = self.channels - channel;
                // SAFETY: no more is read or written than the line has left; weight and bias have as many values.
                unsafe {
                    let mut y = simd.mul_f32s(simd.sub_f32s(load_at(simd, line, channel), mean), factor);
                    y = match (self.weight, self.bias) {
                        (Some(weight), Some(bias)) => {
                            simd.mul_add_e_f32s(y, load_at(simd, weight, channel), load_at(simd, bias, channel))
                        }
                        (Some(weight), None) => simd.mul_f32s(y, load_at(simd, weight, channel)),
                        (None, Some(bias)) => simd.add_f32s(y, load_at(simd, bias, channel)),
                        (None, None) => y,
                    };
                    E::store(simd, self.to.add(index * self.channels + channel), left, y);
                }
            }
        }
    }
}

/// The sum of `line`, or of the squares of what differs from `about`; four vectors of sums, so nearly pairwise.
#[inline(always)]
fn sum<S: Simd, E: Element>(simd: S, line: &[E], about: Option<f32>) -> f32 {
    let mut sums = [simd.splat_f32s(0.0); 4];
    let about_lanes = simd.splat_f32s(about.unwrap_or(0.0));
    for (index, part) in line.chunks(S::F32_LANES).enumerate() {
        // SAFETY: the part has that many values.
        let mut x = unsafe { E::load(simd, part.as_ptr(), part.len()) };
        if about.is_some() {
            x = simd.sub_f32s(x, about_lanes);
            x = simd.mul_f32s(x, x);
            if part.len() < S::F32_LANES {
                // The lanes beyond the line hold the square of `about`, which must not count.
                let mask = simd.mask_between_m32s(0, part.len() as u32).mask();
                x = simd.select_f32s(mask, x, simd.splat_f32s(0.0));
            }
        }
        sums[index % 4] = simd.add_f32s(sums[index % 4], x);
    }
    simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(sums[0], sums[1]), simd.add_f32s(sums[2], sums[3])))
}
