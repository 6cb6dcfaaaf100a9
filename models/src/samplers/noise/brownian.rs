//! A Brownian path by seed: torchsde's `BrownianInterval` as diffusers' `BrownianTreeNoiseSampler` uses it.
//!
//! The path over an interval is drawn from its middle outwards: an interval's increment, split in two halves, leaves one
//! normal draw free, whose seed depends only on the interval's place in the tree (Kidger et al., "Efficient and Accurate Gradients for
//! Neural SDEs", 2021, section 4). So any increment can be asked for in any order, and finer steps follow the same path.

use candle_core::{Device, Tensor};

use super::{Noise, TorchCpu};
use crate::Result;

/// Times are rounded to this many decimals, torchsde's tolerance of 1e-6.
const DECIMALS: usize = 6;
/// Words of numpy's entropy pool.
const POOL: usize = 24;

/// The increments of one Brownian path between noise levels, scaled to standard normal.
///
/// Plain draws (the first latents, other samplers) come from torch's CPU generator of the same seed.
pub struct BrownianTree {
    seed: u64,
    plain: Box<dyn Noise>,
    /// The smallest and largest level, in f32 as torch keeps them.
    ends: (f64, f64),
    /// The nodes from the root to the last one asked for, with their increments.
    path: Vec<Node>,
}

/// One interval of the tree.
#[derive(Clone)]
struct Node {
    start: f64,
    end: f64,
    /// The node's place: its parent's doubled, plus one for a right half.
    key: u64,
    /// The seed of the draw that splits the increment.
    split_seed: u32,
    increment: Vec<f32>,
}

impl BrownianTree {
    /// The path of this seed over the levels from `min` to `max`; `plain` gives what is not asked of the path.
    pub fn new(seed: u64, min: f64, max: f64, plain: Box<dyn Noise>) -> Self {
        let ends = (f64::from(min as f32), f64::from(max as f32));
        Self { seed, plain, ends, path: Vec::new() }
    }

    /// The path's increment from time `from` to a later time `to`, for `count` independent values.
    pub fn increment(&mut self, from: f64, to: f64, count: usize) -> Vec<f32> {
        if self.path.first().is_none_or(|root| root.increment.len() != count) {
            self.path = vec![self.root(count)];
        }
        let (start, end) = (self.path[0].start, self.path[0].end);
        let (from, to) = (from.clamp(start, end), to.clamp(start, end));
        let mut pieces = Vec::new();
        if from < to {
            pieces_of((start, end), (round(from), round(to)), &mut pieces);
        }
        let mut sum: Option<Vec<f32>> = None;
        for piece in pieces {
            let increment = &self.descend(piece).increment;
            sum = Some(match sum {
                None => increment.clone(),
                Some(sum) => sum.iter().zip(increment).map(|(a, b)| a + b).collect(),
            });
        }
        sum.unwrap_or_else(|| vec![0.0; count])
    }

    fn root(&self, count: usize) -> Node {
        let (start, end) = self.ends;
        let first = seed_sequence::<1>(self.seed, None)[0];
        let scale = (end - start).sqrt() as f32;
        let increment = TorchCpu::new(u64::from(first)).values(count).into_iter().map(|v| v * scale).collect();
        let split_seed = seed_sequence::<1>(self.seed, Some((0, 0)))[0];
        Node { start: round(start), end: round(end), key: 0, split_seed, increment }
    }

    /// Follows the tree down to the node of this interval; what the last walk shares with this one is not drawn again.
    fn descend(&mut self, (start, end): (f64, f64)) -> &Node {
        let shared = self.path.iter().take_while(|node| node.start <= start && end <= node.end).count().max(1);
        self.path.truncate(shared);
        let mut at = shared - 1;
        while self.path[at].start < start || end < self.path[at].end {
            let child = self.child(&self.path[at], start, at as u64 + 1);
            self.path.push(child);
            at += 1;
        }
        &self.path[at]
    }

    /// The half of `parent` that `time` is in.
    fn child(&self, parent: &Node, time: f64, depth: u64) -> Node {
        let middle = round(0.5 * (parent.end + parent.start));
        let (left, right) = (middle - parent.start, parent.end - middle);
        let reciprocal = 1.0 / (parent.end - parent.start);
        // torch multiplies by one number after the other, each rounded to f32.
        let (scale, reciprocal_f32) = ((left * right * reciprocal).sqrt() as f32, reciprocal as f32);
        let draw = TorchCpu::new(u64::from(parent.split_seed)).values(parent.increment.len());
        let lefts = parent.increment.iter().zip(draw).map(|(w, z)| (left as f32 * w) * reciprocal_f32 + scale * z);
        let is_left = time < middle;
        let increment =
            if is_left { lefts.collect() } else { parent.increment.iter().zip(lefts).map(|(w, l)| w - l).collect() };
        let key = 2 * parent.key + u64::from(!is_left);
        let (start, end) = if is_left { (parent.start, middle) } else { (middle, parent.end) };
        let split_seed = seed_sequence::<1>(self.seed, Some((key, depth)))[0];
        Node { start, end, key, split_seed, increment }
    }
}

/// The tree's intervals that make up `wanted`, from left to right.
fn pieces_of(node: (f64, f64), wanted: (f64, f64), pieces: &mut Vec<(f64, f64)>) {
    let middle = round(0.5 * (node.1 + node.0));
    if wanted == node || middle <= node.0 || middle >= node.1 {
        pieces.push(node);
    } else if wanted.1 <= middle {
        pieces_of((node.0, middle), wanted, pieces);
    } else if wanted.0 >= middle {
        pieces_of((middle, node.1), wanted, pieces);
    } else {
        pieces_of((node.0, middle), (wanted.0, middle), pieces);
        pieces_of((middle, node.1), (middle, wanted.1), pieces);
    }
}

/// Python's `round(x, 6)`: the nearest decimal to the exact value of `x`.
fn round(x: f64) -> f64 {
    format!("{x:.DECIMALS$}").parse().unwrap_or(x)
}

/// The first `N` words of numpy's `SeedSequence(entropy, spawn_key=…, pool_size=24)` (after O'Neill's `seed_seq_fe`).
fn seed_sequence<const N: usize>(entropy: u64, spawn: Option<(u64, u64)>) -> [u32; N] {
    let words = |value: u64| {
        let (low, high) = (value as u32, (value >> 32) as u32);
        if high == 0 { vec![low] } else { vec![low, high] }
    };
    let mut input = words(entropy);
    if let Some((key, depth)) = spawn {
        input.resize(POOL, 0);
        input.extend(words(key));
        input.extend(words(depth));
    }
    let mut constant = 0x43b0_d7e5_u32;
    let mut hash = |value: u32| {
        let value = value ^ constant;
        constant = constant.wrapping_mul(0x931e_8875);
        let value = value.wrapping_mul(constant);
        value ^ (value >> 16)
    };
    let mix = |x: u32, y: u32| {
        let value = x.wrapping_mul(0xca01_f9dd).wrapping_sub(y.wrapping_mul(0x4973_f715));
        value ^ (value >> 16)
    };
    let mut pool = [0_u32; POOL];
    for (i, word) in pool.iter_mut().enumerate() {
        *word = hash(input.get(i).copied().unwrap_or(0));
    }
    for source in 0..POOL {
        for target in (0..POOL).filter(|target| *target != source) {
            pool[target] = mix(pool[target], hash(pool[source]));
        }
    }
    for word in input.iter().skip(POOL) {
        for target in &mut pool {
            *target = mix(*target, hash(*word));
        }
    }
    let mut constant = 0x8b51_f9dd_u32;
    std::array::from_fn(|i| {
        let value = pool[i % POOL] ^ constant;
        constant = constant.wrapping_mul(0x58f3_8ded);
        let value = value.wrapping_mul(constant);
        value ^ (value >> 16)
    })
}

impl Noise for BrownianTree {
    fn seed(&self) -> u64 {
        self.seed
    }

    fn normal(&mut self, shape: &[usize], device: &Device) -> Result<Tensor> {
        self.plain.normal(shape, device)
    }

    fn between(&mut self, from: f64, to: f64, shape: &[usize], device: &Device) -> Result<Tensor> {
        let (a, b) = (f64::from(from as f32), f64::from(to as f32));
        let increment = self.increment(a.min(b), a.max(b), shape.iter().product());
        // The path runs from the smallest level up; a step down takes its increment backwards.
        let scale = if a < b { 1.0 } else { -1.0 } / (b as f32 - a as f32).abs().sqrt();
        let values: Vec<f32> = increment.into_iter().map(|w| w * scale).collect();
        Ok(Tensor::from_vec(values, shape, device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        seed: u64,
        min: f64,
        max: f64,
        from: f64,
        to: f64,
        values: Vec<f32>,
    }

    #[test]
    fn increments_are_those_of_torchsde() {
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../../../tests/data/samplers_brownian.json")).unwrap();
        assert!(cases.len() > 20);
        for case in cases {
            let mut tree = BrownianTree::new(case.seed, case.min, case.max, Box::new(TorchCpu::new(0)));
            let values: Vec<f32> = tree
                .between(case.from, case.to, &[1, 4, 5], &Device::Cpu)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap();
            for (value, expected) in values.iter().zip(&case.values) {
                assert!((value - expected).abs() < 2e-6, "seed {} {} {}", case.seed, case.from, case.to);
            }
        }
    }

    #[test]
    fn the_path_does_not_depend_on_what_was_asked_before() {
        let tree = || BrownianTree::new(3, 0.03, 14.6, Box::new(TorchCpu::new(0)));
        let mut asked = tree();
        for i in 0..20 {
            asked.increment(0.1 + 0.3 * f64::from(i), 0.9 + 0.5 * f64::from(i), 16);
        }
        assert_eq!(asked.increment(1.0, 5.0, 16), tree().increment(1.0, 5.0, 16));
        // Increments add up: from 1 to 3 and from 3 to 5 make from 1 to 5.
        let mut fresh = tree();
        let (a, b, whole) =
            (fresh.increment(1.0, 3.0, 16), fresh.increment(3.0, 5.0, 16), fresh.increment(1.0, 5.0, 16));
        for i in 0..16 {
            assert!((a[i] + b[i] - whole[i]).abs() < 1e-5);
        }
    }
}
