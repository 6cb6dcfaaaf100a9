//! SentencePiece's files: a model's pieces, and the table by which its texts are normalised.
//!
//! Kudo and Richardson, "SentencePiece", 2018; the messages are those of `sentencepiece_model.proto` as far as an
//! encoder needs them.

use prost::Message;
use tokenizers::normalizers::Precompiled;

/// `spiece.model`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Model {
    /// The vocabulary, in the order of the ids.
    #[prost(message, repeated, tag = "1")]
    pub(super) pieces: Vec<Piece>,
    /// How the pieces were found.
    #[prost(message, optional, tag = "2")]
    pub(super) trainer_spec: Option<TrainerSpec>,
    /// What is done with a text first.
    #[prost(message, optional, tag = "3")]
    pub(super) normalizer_spec: Option<NormalizerSpec>,
}

/// One token.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Piece {
    /// Its text.
    #[prost(string, tag = "1")]
    pub(super) piece: String,
    /// The logarithm of its probability.
    #[prost(float, tag = "2")]
    pub(super) score: f32,
    /// What it stands for.
    #[prost(enumeration = "Kind", optional, tag = "3")]
    pub(super) kind: Option<i32>,
}

/// What a piece stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Kind {
    /// A part of a text.
    Normal = 1,
    /// Whatever no other piece matches.
    Unknown = 2,
    /// A mark that no text holds.
    Control = 3,
    /// A text that is never split.
    UserDefined = 4,
    /// A piece that is not used.
    Unused = 5,
    /// One byte.
    Byte = 6,
}

/// How the pieces were found.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TrainerSpec {
    /// 1 for a unigram model, which is the default, 2 for byte pairs, 3 for words, 4 for characters.
    #[prost(int32, optional, tag = "3")]
    pub(super) model_type: Option<i32>,
}

/// What is done with a text first.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NormalizerSpec {
    /// A trie of texts and what replaces them.
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(super) precompiled_charsmap: Option<Vec<u8>>,
}

/// Units of a trie that the bytes below one state lie within: a byte is put in by exclusive or.
const BLOCK: usize = 256;

/// The normaliser of a precompiled table.
///
/// The table is walked through once, because a damaged one would send the normaliser beyond its end.
///
/// # Errors
/// Says what is wrong with the table.
pub(super) fn charsmap(table: &[u8]) -> std::result::Result<Precompiled, String> {
    let short = || "is cut off".to_owned();
    let (size, rest) = table.split_first_chunk().ok_or_else(short)?;
    let size = u32::from_le_bytes(*size) as usize;
    let (units, replacements) = rest.split_at_checked(size).ok_or_else(short)?;
    let units: Vec<u32> = units.as_chunks().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
    let replacements = std::str::from_utf8(replacements).map_err(|error| format!("holds no UTF-8: {error}"))?;
    if !size.is_multiple_of(4) || !walks_inside(&units, replacements) {
        return Err("leads out of itself".to_owned());
    }
    Precompiled::from(table).map_err(|error| error.to_string())
}

/// Whether every way through a double-array trie stays inside of it, and every leaf names a place in `replacements`.
///
/// Yata et al., "A compact static double-array keeping character codes", 2007, in the layout of darts-clone.
fn walks_inside(units: &[u32], replacements: &str) -> bool {
    let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
    let label = |unit: u32| unit & ((1 << 31) | 0xff);
    let has_leaf = |unit: u32| (unit >> 8) & 1 == 1;
    let Some(&root) = units.first() else { return false };
    let mut seen = vec![false; units.len()];
    // Places that the next byte is put into.
    let mut waiting = vec![offset(root)];
    while let Some(base) = waiting.pop() {
        if (base | (BLOCK - 1)) >= units.len() {
            return false;
        }
        for byte in 1..BLOCK {
            let at = base ^ byte;
            let unit = units[at];
            if label(unit) as usize != byte || std::mem::replace(&mut seen[at], true) {
                continue;
            }
            let next = at ^ offset(unit);
            if has_leaf(unit) {
                let value = units.get(next).map(|leaf| (leaf & ((1 << 31) - 1)) as usize);
                if !value.is_some_and(|value| replacements.is_char_boundary(value)) {
                    return false;
                }
            }
            waiting.push(next);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table that replaces "a" by "b": the root's block, a block for the state after it, and the replacements.
    fn table(state: u32, leaf: u32, replacements: &str) -> Vec<u8> {
        let mut units = vec![0u32; 2 * BLOCK];
        units[0] = 1 << 18; // its bytes are put into place 256
        units[BLOCK ^ 0x61] = (state << 10) | (1 << 8) | 0x61;
        units[BLOCK ^ 0x61 ^ state as usize] = leaf | (1 << 31);
        let mut table = (units.len() as u32 * 4).to_le_bytes().to_vec();
        table.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        table.extend(replacements.as_bytes());
        table
    }

    #[test]
    fn a_table_replaces_what_it_says() {
        let map = charsmap(&table(0x61, 0, "b\0")).unwrap();
        assert_eq!(map.normalize_string("banana"), "bbnbnb");
    }

    #[test]
    fn a_damaged_table_is_refused() {
        let told = |table: &[u8]| charsmap(table).unwrap_err();
        assert_eq!(told(&[]), "is cut off");
        assert_eq!(told(&[9, 0, 0, 0, 1]), "is cut off");
        let whole = table(0x61, 0, "b\0");
        assert_eq!(told(&whole[..300]), "is cut off");
        assert_eq!(told(&table(0x61, 7, "b\0")), "leads out of itself");
        let mut beyond = whole.clone();
        beyond[4..8].copy_from_slice(&(1u32 << 24).to_le_bytes());
        assert_eq!(told(&beyond), "leads out of itself");
        let mut binary = whole;
        *binary.last_mut().unwrap() = 0xff;
        assert!(told(&binary).starts_with("holds no UTF-8"));
        assert_eq!(told(&[0, 0, 0, 0]), "leads out of itself");
    }
}
