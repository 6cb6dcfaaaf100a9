//! What the samples of a run say, and how sure that is.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use super::{Run, Sample};

/// Resamples of the bootstrap; the ends of its interval are then steady to about a percent of its width.
const RESAMPLES: usize = 1000;

/// A number, and the interval that holds the true one with 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
}

/// One run in numbers. Latencies are in seconds and of successful requests alone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The setting in words.
    pub load: String,
    /// Requests a second that were due; of a closed loop, what it came to.
    pub offered: f64,
    /// Successful requests a second.
    pub throughput: f64,
    /// Pictures a second.
    pub pictures: f64,
    /// Successful requests a second within the SLO; without one, every success counts.
    pub goodput: f64,
    /// Requests in all.
    pub requests: usize,
    /// Requests that failed or were refused.
    pub failed: usize,
    /// Mean latency.
    pub mean: f64,
    /// Latencies that half, 90 %, 95 % and 99 % of the requests do not exceed; `None` without a success.
    pub percentiles: Option<[(f64, Estimate); 4]>,
    /// Shares of the server's time in its queue, encoders, steps and decoder, where it says so.
    pub shares: Option<[f64; 4]>,
}

/// The percentiles that are told.
const TOLD: [f64; 4] = [50.0, 90.0, 95.0, 99.0];

/// Sums a run up; `slo` is in seconds.
pub fn summarise(run: &Run, slo: Option<f64>) -> Summary {
    let good = |sample: &&Sample| sample.error.is_none();
    let mut latencies: Vec<f64> = run.samples.iter().filter(good).map(|sample| sample.seconds).collect();
    latencies.sort_by(f64::total_cmp);
    let within = latencies.iter().filter(|seconds| slo.is_none_or(|slo| **seconds <= slo)).count();
    let pictures: usize = run.samples.iter().filter(good).map(|sample| sample.pictures).sum();
    let a_second = |count: usize| if run.seconds > 0.0 { count as f64 / run.seconds } else { 0.0 };
    let last_due = run.samples.iter().map(|sample| sample.due).fold(0.0, f64::max);
    let offered = if last_due > 0.0 { (run.samples.len() - 1) as f64 / last_due } else { a_second(run.samples.len()) };
    let mut random = StdRng::seed_from_u64(0);
    Summary {
        load: run.arrivals.describe(),
        offered,
        throughput: a_second(latencies.len()),
        pictures: a_second(pictures),
        goodput: a_second(within),
        requests: run.samples.len(),
        failed: run.samples.len() - latencies.len(),
        mean: latencies.iter().sum::<f64>() / latencies.len().max(1) as f64,
        percentiles: (!latencies.is_empty()).then(|| TOLD.map(|p| (p, estimate(&latencies, p, &mut random)))),
        shares: shares(&run.samples),
    }
}

/// The value that `p` percent of `sorted` do not exceed, interpolated as numpy does.
pub(super) fn percentile(sorted: &[f64], p: f64) -> f64 {
    let place = p / 100.0 * sorted.len().saturating_sub(1) as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(a), Some(b)) => a + (b - a) * place.fract(),
        _ => f64::NAN,
    }
}

/// A percentile with its bootstrap interval (Efron, 1979).
fn estimate(sorted: &[f64], p: f64, random: &mut StdRng) -> Estimate {
    let mut resampled: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut draw: Vec<f64> = sorted.iter().map(|_| sorted[random.random_range(0..sorted.len())]).collect();
            draw.sort_by(f64::total_cmp);
            percentile(&draw, p)
        })
        .collect();
    resampled.sort_by(f64::total_cmp);
    Estimate { value: percentile(sorted, p), low: percentile(&resampled, 2.5), high: percentile(&resampled, 97.5) }
}

/// Where the server's time went, as shares of all of it.
fn shares(samples: &[Sample]) -> Option<[f64; 4]> {
    let mut sums = [0.0; 4];
    for times in samples.iter().filter_map(|sample| sample.server) {
        for (sum, ms) in sums.iter_mut().zip([times.queue, times.encode, times.denoise, times.decode]) {
            *sum += ms;
        }
    }
    let all: f64 = sums.iter().sum();
    (all > 0.0).then(|| sums.map(|sum| sum / all))
}

#[cfg(test)]
mod tests {
    use super::super::Arrivals;
    use super::*;

    fn sample(due: f64, seconds: f64, failed: bool) -> Sample {
        let error = failed.then(|| "429 queue_full".to_owned());
        Sample { kind: 0, due, seconds, status: 200, error, pictures: 1, server: None }
    }

    #[test]
    fn percentiles_are_numpys() {
        let values = [1.0, 2.0, 3.0, 4.0, 10.0];
        // numpy.percentile([1, 2, 3, 4, 10], [0, 50, 90, 95, 100])
        let expected = [(0.0, 1.0), (50.0, 3.0), (90.0, 7.6), (95.0, 8.8), (100.0, 10.0)];
        for (p, value) in expected {
            assert!((percentile(&values, p) - value).abs() < 1e-12, "{p}");
        }
    }

    #[test]
    fn failures_count_as_failures_and_in_no_latency() {
        let samples = vec![sample(0.0, 1.0, false), sample(1.0, 3.0, false), sample(2.0, 0.001, true)];
        let run = Run { arrivals: Arrivals::Poisson { rate: 1.0 }, seconds: 4.0, samples };
        let summary = summarise(&run, Some(2.0));
        assert_eq!((summary.requests, summary.failed), (3, 1));
        assert_eq!((summary.throughput, summary.goodput, summary.offered, summary.mean), (0.5, 0.25, 1.0, 2.0));
        let (p, median) = summary.percentiles.unwrap()[0];
        assert_eq!((p, median.value), (50.0, 2.0));
        assert!(median.low >= 1.0 && median.high <= 3.0 && median.low < median.high);
    }

    #[test]
    fn an_interval_holds_the_true_median_about_as_often_as_it_says() {
        // 200 runs of 60 latencies that are uniform over 0..1, whose median is 0.5.
        let mut random = StdRng::seed_from_u64(5);
        let held = (0..200).filter(|_| {
            let mut values: Vec<f64> = (0..60).map(|_| random.random()).collect();
            values.sort_by(f64::total_cmp);
            let Estimate { low, high, .. } = estimate(&values, 50.0, &mut random);
            (low..=high).contains(&0.5)
        });
        // 95 % of 200 is 190, with a deviation of 3.
        let held = held.count();
        assert!((178..=199).contains(&held), "{held}");
    }

    #[test]
    fn a_run_without_a_success_has_no_latency() {
        let run =
            Run { arrivals: Arrivals::Closed { concurrency: 1 }, seconds: 1.0, samples: vec![sample(0.0, 0.1, true)] };
        let summary = summarise(&run, None);
        assert_eq!((summary.percentiles, summary.throughput, summary.shares), (None, 0.0, None));
    }
}
