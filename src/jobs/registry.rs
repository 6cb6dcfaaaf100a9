//! The jobs that this process knows without asking the store.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::live::Live;

/// Ended jobs whose events can still be replayed.
const RECENT: usize = 64;
/// Those of them whose previews can, too: previews are large, and a listener is rarely that late.
const RECENT_PREVIEWS: usize = 4;
/// Ends that the pace is taken from.
const PACE: usize = 32;
/// What a caller of a full queue is told to wait before anything is known, and at least and at most. Some
/// clients give up when they are told to wait for more than a minute.
const WAIT: [Duration; 3] = [Duration::from_secs(5), Duration::from_secs(1), Duration::from_secs(60)];

/// Jobs by id: all that are on their way here, and the last that have ended.
#[derive(Default)]
pub(super) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    jobs: HashMap<String, Arc<Live>>,
    /// Those that have ended, oldest first.
    recent: VecDeque<String>,
    /// When the last jobs ended.
    ends: VecDeque<Instant>,
}

impl Registry {
    pub(super) fn insert(&self, id: &str, live: Arc<Live>) {
        self.lock().jobs.insert(id.to_owned(), live);
    }

    pub(super) fn get(&self, id: &str) -> Option<Arc<Live>> {
        self.lock().jobs.get(id).cloned()
    }

    pub(super) fn remove(&self, id: &str) {
        self.lock().jobs.remove(id);
    }

    /// Every job on its way.
    pub(super) fn open(&self) -> Vec<Arc<Live>> {
        self.lock().jobs.values().filter(|live| !live.over()).cloned().collect()
    }

    /// A job has ended: it is kept for a while.
    pub(super) fn ended(&self, id: &str, at: Instant) {
        let mut inner = self.lock();
        inner.recent.push_back(id.to_owned());
        if inner.recent.len() > RECENT
            && let Some(oldest) = inner.recent.pop_front()
        {
            inner.jobs.remove(&oldest);
        }
        if let Some(older) = inner.recent.iter().rev().nth(RECENT_PREVIEWS)
            && let Some(live) = inner.jobs.get(older)
        {
            live.drop_previews();
        }
        inner.ends.push_back(at);
        if inner.ends.len() > PACE {
            inner.ends.pop_front();
        }
    }

    /// How long it takes until a place in a full queue is free, in whole seconds: the mean time between the starts
    /// that are forecast, the jobs that wait and the time until all have begun; or that between the last ends.
    pub(super) fn retry_after(&self, forecast: Option<(usize, Duration)>) -> Duration {
        let [unknown, least, most] = WAIT;
        if let Some((waiting, until)) = forecast.filter(|(waiting, _)| *waiting > 0) {
            return Duration::from_secs((until.as_secs_f64() / waiting as f64).ceil() as u64).clamp(least, most);
        }
        let inner = self.lock();
        let (Some(first), Some(last), Some(gaps)) =
            (inner.ends.front(), inner.ends.back(), inner.ends.len().checked_sub(1).filter(|gaps| *gaps > 0))
        else {
            return unknown;
        };
        let mean = last.duration_since(*first).as_secs_f64() / gaps as f64;
        Duration::from_secs(mean.ceil() as u64).clamp(least, most)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_is_tried_again_at_the_pace_of_the_last_jobs() {
        let registry = Registry::default();
        assert_eq!(registry.retry_after(None), Duration::from_secs(5));
        let start = Instant::now();
        for second in [0, 3, 5] {
            registry.ended("a", start + Duration::from_secs(second));
        }
        assert_eq!(registry.retry_after(None), Duration::from_secs(3));
        registry.ended("a", start + Duration::from_secs(3600));
        assert_eq!(registry.retry_after(None), Duration::from_secs(60));
        for _ in 0..PACE {
            registry.ended("a", start + Duration::from_secs(3600));
        }
        assert_eq!(registry.retry_after(None), Duration::from_secs(1));
    }

    #[test]
    fn a_full_queue_is_tried_again_at_the_pace_that_the_engine_forecasts() {
        let registry = Registry::default();
        for (waiting, seconds, expected) in [(10, 25, 3), (100, 1, 1), (1, 3600, 60), (0, 0, 5)] {
            let forecast = Some((waiting, Duration::from_secs(seconds)));
            assert_eq!(registry.retry_after(forecast), Duration::from_secs(expected));
        }
    }
}
