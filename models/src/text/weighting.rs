//! Prompt weighting: `(word)`, `(word:1.3)` and `[word]`, as AUTOMATIC1111's web UI introduced them.
//!
//! `(x)` weighs x 1.1 times, `[x]` by 1/1.1, `(x:w)` w times; they nest, and multiply. A backslash makes the next bracket
//! a plain letter. The reference is `parse_prompt_attention` of diffusers' community pipeline
//! `lpw_stable_diffusion`, which does what the web UI does.

use candle_core::{DType, Tensor};

use crate::Result;

/// What `(x)` weighs, and `[x]` the inverse of.
const STEP: f64 = 1.1;

/// A piece of a prompt, and how much it counts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Weighted {
    /// The text, its brackets taken off.
    pub(super) text: String,
    /// 1 is the plain weight.
    pub(super) weight: f64,
}

/// Multiplies states, (l, d), by their tokens' weights, and brings them back to the mean that they had before.
///
/// # Errors
/// When a tensor operation fails.
pub(super) fn apply(states: &Tensor, weights: &[f32]) -> Result<Tensor> {
    let plain = states.to_dtype(DType::F32)?;
    let weights = Tensor::from_slice(weights, (weights.len(), 1), states.device())?;
    let weighted = plain.broadcast_mul(&weights)?;
    let mean = |tensor: &Tensor| -> Result<f64> { Ok(f64::from(tensor.mean_all()?.to_scalar::<f32>()?)) };
    let (before, after) = (mean(&plain)?, mean(&weighted)?);
    // A mean of exactly 0 can be brought to no other by a factor.
    let factor = if after == 0.0 { 1.0 } else { before / after };
    Ok((weighted * factor)?.to_dtype(states.dtype())?)
}

/// Splits a prompt into its weighted pieces, neighbours of one weight joined. Brackets that are never closed count to the
/// end, and ones that close nothing are letters, as in the web UI. A text without a piece gives one empty piece.
pub(super) fn parse(prompt: &str) -> Vec<Weighted> {
    let mut pieces: Vec<Weighted> = Vec::new();
    // Where the pieces of brackets that are still open begin.
    let (mut round, mut square) = (Vec::new(), Vec::new());
    let mut rest = prompt;
    while let Some(first) = rest.chars().next() {
        let mut used = first.len_utf8();
        match first {
            '\\' => {
                let escaped = rest[used..].chars().next().filter(|next| r"\()[]".contains(*next));
                used += escaped.map_or(0, char::len_utf8);
                push(&mut pieces, &escaped.unwrap_or(first).to_string());
            }
            '(' => round.push(pieces.len()),
            '[' => square.push(pieces.len()),
            ':' => match (closing_weight(rest), round.is_empty()) {
                (Some((weight, length)), false) => {
                    used = length;
                    weigh(&mut pieces, round.pop(), weight);
                }
                _ => push(&mut pieces, ":"),
            },
            ')' if !round.is_empty() => weigh(&mut pieces, round.pop(), STEP),
            ']' if !square.is_empty() => weigh(&mut pieces, square.pop(), 1.0 / STEP),
            letter => {
                let plain = rest.find(['\\', '(', '[', ':', ')', ']']).unwrap_or(rest.len()).max(letter.len_utf8());
                used = plain;
                push(&mut pieces, &rest[..plain]);
            }
        }
        rest = &rest[used..];
    }
    for open in round {
        weigh(&mut pieces, Some(open), STEP);
    }
    for open in square {
        weigh(&mut pieces, Some(open), 1.0 / STEP);
    }
    let mut joined: Vec<Weighted> = Vec::new();
    for piece in pieces {
        match joined.last_mut() {
            Some(last) if last.weight == piece.weight => last.text.push_str(&piece.text),
            _ => joined.push(piece),
        }
    }
    if joined.is_empty() {
        joined.push(Weighted { text: String::new(), weight: 1.0 });
    }
    joined
}

/// The number of `:1.3)` at the start of `text`, and how many bytes it takes.
fn closing_weight(text: &str) -> Option<(f64, usize)> {
    let end = text.find(')')?;
    let number = text[1..end].trim_matches(char::is_whitespace);
    let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
    let plain = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit() || c == '.');
    let weight = number.parse().ok().filter(|weight: &f64| plain && weight.is_finite())?;
    Some((weight, end + 1))
}

fn push(pieces: &mut Vec<Weighted>, text: &str) {
    pieces.push(Weighted { text: text.to_owned(), weight: 1.0 });
}

/// Multiplies the weights of everything since a bracket.
fn weigh(pieces: &mut [Weighted], since: Option<usize>, weight: f64) {
    for piece in since.and_then(|since| pieces.get_mut(since..)).into_iter().flatten() {
        piece.weight *= weight;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(prompt: &str) -> Vec<(String, f64)> {
        let round = |weight: f64| (weight * 1e6).round() / 1e6;
        parse(prompt).into_iter().map(|Weighted { text, weight }| (text, round(weight))).collect()
    }

    fn expect(prompt: &str, expected: &[(&str, f64)]) {
        let expected: Vec<_> = expected.iter().map(|(text, weight)| ((*text).to_owned(), *weight)).collect();
        assert_eq!(pieces(prompt), expected, "{prompt:?}");
    }

    #[test]
    fn brackets_weigh_what_is_inside_of_them() {
        expect("normal text", &[("normal text", 1.0)]);
        expect("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]);
        expect("(unbalanced", &[("unbalanced", 1.1)]);
        expect(r"\(literal\]", &[("(literal]", 1.0)]);
        expect("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]);
        expect("", &[("", 1.0)]);
        expect("a) b] c: d", &[("a) b] c: d", 1.0)]);
        expect(
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        );
    }

    #[test]
    fn what_is_no_number_is_no_weight() {
        expect("(a:b)", &[("a:b", 1.1)]);
        expect("(a:1e3)", &[("a:1e3", 1.1)]);
        expect("(a: 2 )", &[("a", 2.0)]);
        expect("(a:-0.5)b", &[("a", -0.5), ("b", 1.0)]);
        expect("12:30", &[("12:30", 1.0)]);
        expect("é (日本:1.5)\\", &[("é ", 1.0), ("日本", 1.5), ("\\", 1.0)]);
    }
}
