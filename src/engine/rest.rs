//! When memory that is kept for the next step goes back to the system.

use std::time::{Duration, Instant};

/// How long nothing must have been asked for.
const PAUSE: Duration = Duration::from_secs(5);

/// Since when there has been nothing to do.
#[derive(Debug, Default)]
pub(super) struct Rest {
    since: Option<Instant>,
}

impl Rest {
    /// When to give back `kept` bytes, if there are some and there is no job (`idle`).
    pub(super) fn ends(&mut self, idle: bool, kept: usize, now: Instant) -> Option<Instant> {
        if !idle {
            self.since = None;
            return None;
        }
        let since = *self.since.get_or_insert(now);
        (kept > 0).then(|| since + PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_when_nothing_was_asked_for_in_a_while() {
        let (mut rest, start) = (Rest::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(rest.ends(false, 100, start), None);
        assert_eq!(rest.ends(true, 100, start), Some(start + PAUSE));
        assert_eq!(rest.ends(true, 100, start + second), Some(start + PAUSE), "other news do not put it off");
        assert_eq!(rest.ends(true, 0, start + second), None, "there is nothing to give back");
        assert_eq!(rest.ends(false, 100, start + 2 * second), None);
        assert_eq!(rest.ends(true, 100, start + 3 * second), Some(start + 3 * second + PAUSE));
    }
}
