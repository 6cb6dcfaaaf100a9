//! Fused attention: which kernel of `cuda/attention.cu`, and its grid.

use candle_core::{DType, Result, Tensor};

use super::fill::{File, Grid, Kernel, aligned, blocks, fill, int};
use crate::plain;

/// `AttentionParameters` of `cuda/attention.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Parameters {
    q: u64,
    k: u64,
    v: u64,
    out: u64,
    mask: u64,
    rows: [i64; 3],
    steps: [i64; 3],
    mask_strides: [i64; 4],
    queries: i32,
    keys: i32,
    heads: i32,
    d: i32,
    scale: f32,
}

/// A form for heads of up to `d` channels, as `cuda/attention.cu` makes them.
struct Fused {
    d: usize,
    /// The columns of the values that a block makes.
    part: usize,
    /// Queries and keys of a tile.
    queries: usize,
    keys: usize,
    /// The kernels without and with a mask.
    names: [&'static str; 2],
}

const FUSED: [Fused; 9] = [
    Fused { d: 32, part: 32, queries: 128, keys: 64, names: ["attention_32", "attention_masked_32"] },
    Fused { d: 48, part: 48, queries: 128, keys: 64, names: ["attention_48", "attention_masked_48"] },
    Fused { d: 64, part: 64, queries: 128, keys: 64, names: ["attention_64", "attention_masked_64"] },
    Fused { d: 80, part: 80, queries: 128, keys: 64, names: ["attention_80", "attention_masked_80"] },
    Fused { d: 96, part: 96, queries: 128, keys: 64, names: ["attention_96", "attention_masked_96"] },
    Fused { d: 128, part: 128, queries: 128, keys: 64, names: ["attention_128", "attention_masked_128"] },
    Fused { d: 160, part: 160, queries: 64, keys: 64, names: ["attention_160", "attention_masked_160"] },
    Fused { d: 256, part: 256, queries: 64, keys: 64, names: ["attention_256", "attention_masked_256"] },
    Fused { d: 512, part: 256, queries: 64, keys: 32, names: ["attention_512", "attention_masked_512"] },
];

/// The kernels in f32 for heads of up to so many channels.
const EXACT: [(usize, &str); 4] = [
    (64, "attention_exact_64"),
    (128, "attention_exact_128"),
    (256, "attention_exact_256"),
    (512, "attention_exact_512"),
];

/// Queries and keys of a tile of the kernels in f32.
const EXACT_TILE: (usize, usize) = (16, 32);

const THREADS: u32 = 128;

/// `q` (b, n, heads·d), `k` and `v` (b, m, heads·d), `mask` (b, heads, n, m) in f32 or none; gives (b, n, heads·d).
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Option<&Tensor>) -> Result<Tensor> {
    let ((b, n, width), m, dtype) = (q.dims3()?, k.dim(1)?, q.dtype());
    let d = width / heads;
    let Some(&(exact_d, exact)) = EXACT.iter().find(|(most, _)| d <= *most) else {
        return plain::attention(q, k, v, heads, mask);
    };
    if b * n * m * width == 0 || k.dtype() != dtype || v.dtype() != dtype {
        return plain::attention(q, k, v, heads, mask);
    }
    let fused = if dtype != DType::F32 && d.is_multiple_of(8) { FUSED.iter().find(|form| d <= form.d) } else { None };
    let room = super::shared_memory(q)?;
    let fused = fused.filter(|form| form.shared() <= room);
    // The kernels in f32 read single values.
    let together = if fused.is_some() { 8 } else { 1 };
    let (q, k, v) = (aligned(q, together)?, aligned(k, together)?, aligned(v, together)?);
    let (name, tiles, shared) = match fused {
        Some(form) => {
            (form.names[usize::from(mask.is_some())], n.div_ceil(form.queries) * form.d / form.part, form.shared())
        }
        None => {
            (exact, n.div_ceil(EXACT_TILE.0), ((EXACT_TILE.0 + EXACT_TILE.1) * (exact_d + 1) * size_of::<f32>()) as u32)
        }
    };
    let grid = Grid { blocks: (blocks(tiles, 1)?, blocks(heads, 1)?, blocks(b, 1)?), threads: THREADS, shared };
    let mut inputs = vec![&q, &k, &v];
    inputs.extend(mask);
    let strides = |axis: usize| [&q, &k, &v].map(|x| x.stride()[axis] as i64);
    let (queries, keys, heads, head) = (int(n)?, int(m)?, int(heads)?, int(d)?);
    let mut mask_strides = [0; 4];
    for (to, from) in mask_strides.iter_mut().zip(mask.map(Tensor::stride).unwrap_or_default()) {
        *to = *from as i64;
    }
    let kernel = Kernel { file: File::Attention, name, dtype };
    // SAFETY: each block writes its queries of its head, and together they write all; the strides are the tensors' own.
    unsafe {
        fill(kernel, grid, &inputs, (b, n, width), dtype, |addresses, out| Parameters {
            q: addresses[0],
            k: addresses[1],
            v: addresses[2],
            out,
            mask: addresses.get(3).copied().unwrap_or(0),
            rows: strides(0),
            steps: strides(1),
            mask_strides,
            queries,
            keys,
            heads,
            d: head,
            scale: (1.0 / (d as f64).sqrt()) as f32,
        })
    }
}

impl Fused {
    /// Bytes of a block's queries, keys and values, each row with 16 more.
    fn shared(&self) -> u32 {
        (((self.queries + self.keys) * (self.d + 8) + self.keys * (self.part + 8)) * 2) as u32
    }
}
