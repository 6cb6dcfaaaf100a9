//! What a model call costs, as measured: seconds by (model, latent shape, rows).
//!
//! Two questions are answered from it: when something will be done, and how many rows a call should have. The second
//! has no fixed answer: on a CPU twice the rows take twice the time, on a GPU a small picture's rows are nearly
//! free up to some number, and past it they may cost more than one by one. So:
//!
//! - A batch size is taken when a row in it costs at most [`SLOWER`] times what it costs in the best smaller batch.
//! - Calls longer than [`LONG_CALL`] must save something ([`SAVES`]) by each growth, because nobody can join, leave
//!   or cancel during one; where nothing is saved, rows take turns in shorter calls instead.
//! - Past the largest batch measured, twice as many rows are tried, or [`SMALL`] where such a call would not be long.
//!   A model that was never called starts with [`FIRST`]. A batch size that was found not to pay is measured again
//!   after [`FORGET`] calls, since a busy moment may have been to blame.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A row may cost this much more than in the best smaller batch; measurements of short calls vary as much.
const SLOWER: f64 = 1.25;

/// Seconds from which a call must earn its length.
const LONG_CALL: f64 = 2.0;

/// What a row of a long call may cost, of what it costs in the best smaller batch.
const SAVES: f64 = 0.95;

/// Calls after which a batch size that did not pay is tried again.
const FORGET: u64 = 200;

/// Rows of a model's very first call: a guided picture, for it may take a minute.
const FIRST: usize = 2;

/// Rows that are tried at once where they make no long call.
const SMALL: usize = 8;

/// How much a new measurement counts; and how much while the decoder was using the device too.
const NEW: f64 = 0.2;
const NEW_DISTURBED: f64 = 0.05;

/// A model, by its place in the registry, and a latent shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) model: usize,
    pub(super) latent: [usize; 3],
}

/// Everything measured on one device.
#[derive(Default)]
pub(super) struct Costs {
    curves: HashMap<Place, Curve>,
}

/// The cost of calls of one shape.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Curve {
    /// By rows.
    points: BTreeMap<usize, Point>,
    /// Calls measured.
    calls: u64,
    /// Seconds to decode one picture.
    decode: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Point {
    /// Of one call; a moving average.
    seconds: f64,
    samples: u32,
    /// The number of the call that was measured last.
    at: u64,
}

impl Costs {
    /// Takes note of a call. `disturbed` when something else used the device meanwhile.
    pub(super) fn called(&mut self, place: Place, rows: usize, took: Duration, disturbed: bool) {
        self.curves.entry(place).or_default().called(rows, took.as_secs_f64(), disturbed);
    }

    /// What is known of a shape.
    pub(super) fn curve(&self, place: Place) -> Option<&Curve> {
        self.curves.get(&place)
    }

    /// Takes what was known of a shape before.
    pub(super) fn recall(&mut self, place: Place, curve: Curve) {
        self.curves.insert(place, curve);
    }

    /// Takes note of one decoded picture.
    pub(super) fn decoded(&mut self, place: Place, took: Duration) {
        let decode = &mut self.curves.entry(place).or_default().decode;
        let seconds = took.as_secs_f64();
        *decode = Some(decode.map_or(seconds, |old| old + NEW * (seconds - old)));
    }

    /// Rows that a call of this shape should have, at most `most`.
    pub(super) fn rows(&self, place: Place, most: usize) -> usize {
        let short = |seconds: f64| seconds <= LONG_CALL;
        let unknown = || if self.call(place, SMALL).is_some_and(short) { SMALL } else { FIRST };
        self.curves.get(&place).and_then(Curve::rows).unwrap_or_else(unknown).min(most)
    }

    /// Seconds of a call with `rows`: measured, or drawn from the measurements around it, or, for a shape never called,
    /// from the model's other shapes by area. `None` for a model never called.
    pub(super) fn call(&self, place: Place, rows: usize) -> Option<f64> {
        if let Some(seconds) = self.curves.get(&place).and_then(|curve| curve.seconds(rows)) {
            return Some(seconds);
        }
        self.nearest(place, |curve| curve.seconds(rows))
    }

    /// Seconds to decode one picture, as [`Self::call`] knows them.
    pub(super) fn decode(&self, place: Place) -> Option<f64> {
        self.curves.get(&place).and_then(|curve| curve.decode).or_else(|| self.nearest(place, |curve| curve.decode))
    }

    /// The same model's shape of the nearest area, scaled to this one's.
    fn nearest(&self, place: Place, seconds: impl Fn(&Curve) -> Option<f64>) -> Option<f64> {
        let area = |latent: [usize; 3]| (latent[1] * latent[2]) as f64;
        self.curves
            .iter()
            .filter(|(other, _)| other.model == place.model)
            .filter_map(|(other, curve)| Some((area(place.latent) / area(other.latent), seconds(curve)?)))
            .min_by(|a, b| a.0.ln().abs().total_cmp(&b.0.ln().abs()))
            .map(|(scale, seconds)| scale * seconds)
    }
}

impl Curve {
    fn called(&mut self, rows: usize, seconds: f64, disturbed: bool) {
        self.calls += 1;
        let at = self.calls;
        self.points
            .entry(rows)
            .and_modify(|point| {
                // The first call of a shape also allocates, compiles and warms caches: a quicker second one stands
                // alone.
                let new = if point.samples == 1 && seconds < point.seconds {
                    1.0
                } else if disturbed {
                    NEW_DISTURBED
                } else {
                    NEW
                };
                point.seconds += new * (seconds - point.seconds);
                point.samples = point.samples.saturating_add(1);
                point.at = at;
            })
            .or_insert(Point { seconds, samples: 1, at });
    }

    /// Whether its numbers can be.
    pub(super) fn sound(&self) -> bool {
        let time = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
        self.points.iter().all(|(&rows, point)| rows > 0 && time(point.seconds) && point.at <= self.calls)
            && self.decode.is_none_or(time)
    }

    /// Rows, seconds and samples of what was measured.
    pub(super) fn measured(&self) -> impl Iterator<Item = (usize, f64, u32)> {
        self.points.iter().map(|(&rows, point)| (rows, point.seconds, point.samples))
    }

    /// Seconds to decode one picture.
    pub(super) fn decode_seconds(&self) -> Option<f64> {
        self.decode
    }

    /// The rule at the head of this file; `None` before the first call.
    fn rows(&self) -> Option<usize> {
        let mut taken: Option<(usize, f64)> = None;
        for (&rows, point) in &self.points {
            let a_row = point.seconds / rows as f64;
            if let Some((best_rows, best)) = taken {
                let bound = if point.seconds > LONG_CALL { SAVES } else { SLOWER };
                if a_row > best * bound {
                    // One sample may have been the warming up, and an old one may have met a busy moment.
                    let doubtful = point.samples < 2 || self.calls - point.at > FORGET;
                    return Some(if doubtful { rows } else { best_rows });
                }
            }
            taken = Some((rows, taken.map_or(a_row, |(_, best)| best.min(a_row))));
        }
        let (largest, _) = taken?;
        let small = self.seconds(SMALL).filter(|&seconds| seconds <= LONG_CALL).map_or(0, |_| SMALL);
        Some(largest.saturating_mul(2).max(small))
    }

    /// Seconds of a call with `rows`: measured, on the line between its neighbours, or in proportion past the ends.
    fn seconds(&self, rows: usize) -> Option<f64> {
        let below = self.points.range(..=rows).next_back();
        let above = self.points.range(rows..).next();
        match (below, above) {
            (Some((&low, a)), Some((&high, b))) if low < high => {
                let share = (rows - low) as f64 / (high - low) as f64;
                Some(a.seconds + share * (b.seconds - a.seconds))
            }
            (Some((&near, point)), _) | (None, Some((&near, point))) => Some(point.seconds * rows as f64 / near as f64),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A curve on which every one of `rows` was measured often enough to be believed.
    fn curve(seconds: impl Fn(usize) -> f64, rows: &[usize]) -> Curve {
        let mut curve = Curve::default();
        for &rows in rows {
            for _ in 0..3 {
                curve.called(rows, seconds(rows), false);
            }
        }
        curve
    }

    /// Rows of the first calls of a model, when this is what they cost.
    fn first_calls(seconds: impl Fn(usize) -> f64) -> [usize; 6] {
        let mut costs = Costs::default();
        let place = Place { model: 0, latent: [4, 8, 8] };
        std::array::from_fn(|_| {
            let rows = costs.rows(place, 64);
            costs.called(place, rows, Duration::from_secs_f64(seconds(rows)), false);
            rows
        })
    }

    #[test]
    fn a_model_starts_with_one_picture_and_grows_as_that_pays() {
        assert_eq!(first_calls(|_| 0.1), [2, 8, 16, 32, 64, 64]);
        assert_eq!(first_calls(|rows| 8.0 * rows as f64), [2, 4, 4, 2, 2, 2]);
    }

    #[test]
    fn another_shape_of_a_quick_model_starts_larger() {
        let mut costs = Costs::default();
        let place = |side| Place { model: 0, latent: [4, side, side] };
        costs.called(place(8), 2, Duration::from_millis(100), false);
        assert_eq!(costs.rows(place(16), 64), SMALL);
        assert_eq!(costs.rows(place(64), 64), FIRST);
        assert_eq!(costs.rows(place(16), 3), 3);
    }

    #[test]
    fn rows_that_cost_no_more_than_alone_may_join_short_calls() {
        assert_eq!(curve(|rows| 0.01 * rows as f64, &[1, 2, 4, 8]).rows(), Some(16));
    }

    #[test]
    fn rows_that_cost_more_than_in_a_smaller_batch_are_left_out() {
        let knee = |rows: usize| if rows <= 4 { 0.1 } else { 0.1 * rows as f64 };
        assert_eq!(curve(knee, &[1, 2, 4, 8]).rows(), Some(4));
    }

    #[test]
    fn long_calls_grow_only_where_that_saves() {
        assert_eq!(curve(|rows| 3.0 * rows as f64, &[1, 2]).rows(), Some(1));
        assert_eq!(curve(|rows| 3.0 + 0.1 * rows as f64, &[1, 2]).rows(), Some(4));
    }

    #[test]
    fn a_size_that_did_not_pay_is_tried_again_later() {
        let mut curve = curve(|rows| if rows == 8 { 10.0 } else { 0.1 }, &[2, 4, 8]);
        assert_eq!(curve.rows(), Some(4));
        for _ in 0..=FORGET {
            curve.called(4, 0.1, false);
        }
        assert_eq!(curve.rows(), Some(8));
        for _ in 0..40 {
            curve.called(8, 0.1, false);
        }
        assert_eq!(curve.rows(), Some(16));
    }

    #[test]
    fn a_slow_first_call_does_not_stand() {
        let mut curve = Curve::default();
        curve.called(2, 5.0, false);
        curve.called(2, 0.125, false);
        assert_eq!(curve.seconds(2), Some(0.125));
    }

    #[test]
    fn costs_between_and_beyond_measurements_are_drawn_from_them() {
        let curve = curve(|rows| if rows == 2 { 1.0 } else { 3.0 }, &[2, 6]);
        assert_eq!(curve.seconds(4), Some(2.0));
        assert_eq!(curve.seconds(12), Some(6.0));
        assert_eq!(curve.seconds(1), Some(0.5));
    }

    #[test]
    fn an_uncalled_shape_is_estimated_from_the_models_others_by_area() {
        let mut costs = Costs::default();
        let small = Place { model: 0, latent: [4, 8, 8] };
        costs.called(small, 2, Duration::from_secs(1), false);
        costs.decoded(small, Duration::from_secs(2));
        let large = Place { model: 0, latent: [4, 16, 16] };
        assert_eq!(costs.call(large, 2), Some(4.0));
        assert_eq!(costs.decode(large), Some(8.0));
        assert_eq!(costs.call(Place { model: 1, ..small }, 2), None);
    }

    #[test]
    fn a_curve_survives_being_stored() {
        let curve = curve(|rows| rows as f64 / 8.0, &[1, 2, 4]);
        let stored = serde_json::to_string(&curve).unwrap();
        assert_eq!(serde_json::from_str::<Curve>(&stored).unwrap(), curve);
    }
}
