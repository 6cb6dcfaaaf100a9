//! What is asked: kinds of request, and how often each comes.

use rand::Rng;
use rand::rngs::StdRng;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// A kind of request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kind {
    /// How it was written.
    pub name: String,
    /// How often it comes, against the others.
    pub weight: f64,
    /// The fields of its body.
    pub body: Map<String, Value>,
}

/// A kind of request that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KindError(String);

impl std::str::FromStr for Kind {
    type Err = KindError;

    /// Reads fields of the request and a weight: `steps=20,size=512x512,model=sdxl,weight=3`. Numbers and `true` and
    /// `false` are what they look like, everything else is a string.
    fn from_str(text: &str) -> Result<Self, KindError> {
        let mut kind = Self { name: text.to_owned(), weight: 1.0, body: Map::new() };
        for field in text.split(',').map(str::trim).filter(|field| !field.is_empty()) {
            let (name, value) = field
                .split_once('=')
                .ok_or_else(|| KindError(format!("{field:?} is not FIELD=VALUE, as in steps=20")))?;
            if name == "weight" {
                kind.weight = value
                    .parse()
                    .ok()
                    .filter(|weight: &f64| weight.is_finite() && *weight > 0.0)
                    .ok_or_else(|| KindError(format!("weight={value}: a number above 0 is expected")))?;
                continue;
            }
            let plain =
                serde_json::from_str::<Value>(value).ok().filter(|value| value.is_number() || value.is_boolean());
            kind.body.insert(name.to_owned(), plain.unwrap_or_else(|| json!(value)));
        }
        Ok(kind)
    }
}

/// One of `kinds` at random, by their weights.
pub(super) fn pick(kinds: &[Kind], random: &mut StdRng) -> usize {
    let all: f64 = kinds.iter().map(|kind| kind.weight).sum();
    let mut left = random.random::<f64>() * all;
    for (index, kind) in kinds.iter().enumerate() {
        left -= kind.weight;
        if left < 0.0 {
            return index;
        }
    }
    kinds.len().saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_kind_is_read_from_its_fields() {
        let kind: Kind = "steps=20,size=512x512, weight=2.5,cache=false,guidance=3.5".parse().unwrap();
        let body = json!({"steps": 20, "size": "512x512", "cache": false, "guidance": 3.5});
        assert_eq!((kind.weight, Value::Object(kind.body)), (2.5, body));
        let fault = |text: &str| text.parse::<Kind>().unwrap_err().to_string();
        assert_eq!(fault("steps"), "\"steps\" is not FIELD=VALUE, as in steps=20");
        assert_eq!(fault("weight=0"), "weight=0: a number above 0 is expected");
    }

    #[test]
    fn kinds_come_as_often_as_their_weights_say() {
        let kinds: Vec<Kind> = ["weight=1", "weight=3"].iter().map(|text| text.parse().unwrap()).collect();
        let mut random = StdRng::seed_from_u64(3);
        let second = (0..10_000).filter(|_| pick(&kinds, &mut random) == 1).count();
        // Three quarters; the deviation of 10,000 draws is 43.
        assert!(second.abs_diff(7500) < 200, "{second}");
    }
}
