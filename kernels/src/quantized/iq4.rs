//! ggml's formats of four bits with a code book, IQ4_NL and IQ4_XS.
//!
//! Each code stands for one of sixteen numbers, which lie closer together around zero, as weights do; 32 values share a scale.
//! The layouts are those of `block_iq4_nl` and `block_iq4_xs` in ggml's `ggml-common.h`.

use half::f16;

/// Values that share a scale; their codes are two a byte, first the sixteen lower halves, then the sixteen upper ones.
const GROUP: usize = 32;

/// The code book.
const CODES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// How the scales of the groups are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Iq4 {
    /// One f16 before each group.
    Nl,
    /// One f16 for eight groups, times a whole number of six bits for each.
    Xs,
}

impl Iq4 {
    /// Values of a block, and its bytes.
    pub(super) fn block(self) -> (usize, usize) {
        match self {
            Self::Nl => (GROUP, 2 + GROUP / 2),
            Self::Xs => (8 * GROUP, 8 + 8 * GROUP / 2),
        }
    }

    /// The scale and the codes of each group of whole blocks.
    fn groups(self, bytes: &[u8]) -> impl Iterator<Item = (f32, &[u8])> {
        let (values, size) = self.block();
        let groups = values / GROUP;
        bytes.chunks_exact(size).flat_map(move |block| {
            let (head, codes) = block.split_at(size - values / 2);
            let codes = codes.chunks_exact(GROUP / 2);
            (0..groups).map(move |group| self.scale(head, group)).zip(codes)
        })
    }

    /// The scale of one group, by what stands before a block's codes.
    fn scale(self, head: &[u8], group: usize) -> f32 {
        let pair = |at: usize| [head[at], head[at + 1]];
        let whole = f16::from_le_bytes(pair(0)).to_f32();
        match self {
            Self::Nl => whole,
            Self::Xs => {
                let low = head[4 + group / 2] >> (4 * (group % 2)) & 15;
                let high = (u16::from_le_bytes(pair(2)) >> (2 * group) & 3) as u8;
                whole * f32::from(i16::from(high << 4 | low) - 32)
            }
        }
    }

    /// The values of whole blocks.
    pub(super) fn values(self, bytes: &[u8]) -> Vec<f32> {
        let value = |scale: f32, code: u8| scale * f32::from(CODES[usize::from(code & 15)]);
        let group = |(scale, codes): (f32, &[u8])| -> [f32; GROUP] {
            std::array::from_fn(|at| value(scale, codes[at % (GROUP / 2)] >> (4 * (at / (GROUP / 2)))))
        };
        self.groups(bytes).flat_map(group).collect()
    }

    /// Whole blocks as a device can spread them out: the codes of all groups, sixteen bytes each, and the groups' scales.
    pub(crate) fn split(self, bytes: &[u8]) -> (Vec<u8>, Vec<f32>) {
        let (mut codes, mut scales) = (Vec::with_capacity(bytes.len()), Vec::new());
        for (scale, group) in self.groups(bytes) {
            codes.extend(group);
            scales.push(scale);
        }
        (codes, scales)
    }

    /// What the lower and the upper half of each byte stand for, before the scale: 256 pairs.
    pub(crate) fn pairs() -> Vec<f32> {
        let number = |code: u8| f32::from(CODES[usize::from(code)]);
        (0..=u8::MAX).flat_map(|byte| [number(byte & 15), number(byte >> 4)]).collect()
    }
}
