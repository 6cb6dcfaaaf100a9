//! When requests come.

use rand::Rng;
use rand::rngs::StdRng;
use serde::Serialize;
use serde_json::Value;

/// How requests come.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "loop")]
pub enum Arrivals {
    /// So many callers, each of whom asks again once it was answered.
    Closed {
        /// Callers.
        concurrency: usize,
    },
    /// At random, independently of each other and of the replies.
    Poisson {
        /// Requests a second, on average.
        rate: f64,
    },
    /// Several at once, and then a pause.
    Bursts {
        /// Requests of a burst.
        size: usize,
        /// Seconds from one burst to the next.
        every: f64,
    },
    /// As they came once before.
    Trace {
        /// Seconds after the start, rising, and the request's body where the trace has one.
        requests: Vec<(f64, Option<Value>)>,
    },
}

impl Arrivals {
    /// Seconds after the start at which each of `count` requests is due; `None` in a closed loop, where the replies decide.
    pub(super) fn times(&self, count: usize, random: &mut StdRng) -> Option<Vec<f64>> {
        match self {
            Self::Closed { .. } => None,
            Self::Poisson { rate } => {
                let mut at = 0.0;
                let times = (0..count).map(|_| {
                    let now = at;
                    // The gaps of a Poisson process are exponential; 1 - u is never 0.
                    at += -(1.0 - random.random::<f64>()).ln() / rate;
                    now
                });
                Some(times.collect())
            }
            Self::Bursts { size, every } => Some((0..count).map(|i| (i / size) as f64 * every).collect()),
            Self::Trace { requests } => Some(requests.iter().take(count).map(|(at, _)| *at).collect()),
        }
    }

    /// The setting in words.
    pub fn describe(&self) -> String {
        match self {
            Self::Closed { concurrency } => format!("closed loop, {concurrency} callers"),
            Self::Poisson { rate } => format!("Poisson, {rate} requests/s"),
            Self::Bursts { size, every } => format!("bursts of {size} every {every} s"),
            Self::Trace { requests } => format!("a trace of {} requests", requests.len()),
        }
    }
}

/// A trace that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct TraceError {
    line: usize,
    message: String,
}

/// Reads a trace: a line a request, with the seconds after the start, and after a tab or a comma the body in JSON if it
/// has its own. Empty lines and lines that begin with `#` are left out.
///
/// # Errors
/// Names the line whose time is no number, or earlier than the one before, or whose body is no object.
pub fn read_trace(text: &str) -> Result<Arrivals, TraceError> {
    let mut requests: Vec<(f64, Option<Value>)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let fault = |message: String| TraceError { line: index + 1, message };
        let (time, body) = line.split_once(['\t', ',']).map_or((line, None), |(time, body)| (time, Some(body)));
        let at: f64 = time.trim().parse().map_err(|_| fault(format!("{time:?} is not a number of seconds")))?;
        if !at.is_finite() || at < requests.last().map_or(0.0, |last| last.0) {
            return Err(fault(format!("{at} s is not after the request before it")));
        }
        let body = body.map(serde_json::from_str::<Value>).transpose().map_err(|error| fault(error.to_string()))?;
        if body.as_ref().is_some_and(|body| !body.is_object()) {
            return Err(fault("the body is not a JSON object".into()));
        }
        requests.push((at, body));
    }
    if requests.is_empty() {
        return Err(TraceError { line: 1, message: "there is no request in it".into() });
    }
    Ok(Arrivals::Trace { requests })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_poisson_process_has_the_rate_and_the_spread_that_it_should() {
        let times = Arrivals::Poisson { rate: 4.0 }.times(20_000, &mut StdRng::seed_from_u64(7)).unwrap();
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // Of exponential gaps, mean and deviation are both 1/rate; 20,000 of them are within 3 % with near certainty.
        assert!((mean * 4.0 - 1.0).abs() < 0.03 && (variance.sqrt() * 4.0 - 1.0).abs() < 0.03, "{mean} {variance}");
        assert!(gaps.iter().all(|gap| *gap >= 0.0));
    }

    #[test]
    fn bursts_come_at_once_and_then_pause() {
        let times = Arrivals::Bursts { size: 3, every: 2.5 }.times(7, &mut StdRng::seed_from_u64(0));
        assert_eq!(times.unwrap(), [0.0, 0.0, 0.0, 2.5, 2.5, 2.5, 5.0]);
    }

    #[test]
    fn a_trace_is_replayed_as_it_stands() {
        let trace = read_trace("# seconds, body\n0\n0.5, {\"steps\": 3}\n\n2\t{}\n").unwrap();
        let Arrivals::Trace { requests } = &trace else { panic!("a trace") };
        assert_eq!(requests[1].1.as_ref().unwrap()["steps"], 3);
        assert_eq!(trace.times(9, &mut StdRng::seed_from_u64(0)).unwrap(), [0.0, 0.5, 2.0]);
        let fault = |text: &str| read_trace(text).unwrap_err().to_string();
        assert_eq!(fault("1\n0.5"), "line 2: 0.5 s is not after the request before it");
        assert_eq!(fault("soon"), "line 1: \"soon\" is not a number of seconds");
        assert_eq!(fault("0,[]"), "line 1: the body is not a JSON object");
        assert_eq!(fault("#\n"), "line 1: there is no request in it");
    }
}
