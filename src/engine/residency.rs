//! Whose weights are in memory: what is loaded, and what makes room for it.
//!
//! A pure function of the state, without threads, clocks or models. What it aims at:
//!
//! - *A model that somebody waits for is loaded* as soon as there is room in the budget. One is read from the disk at a
//!   time, so that the first is there soonest; those that come over the network do not hold up the others.
//! - *Room is made by those who miss it least*: models that nobody uses, the one unused longest first. Pinned models
//!   are never asked.
//! - *Models that do not fit together take turns.* One that is in use keeps the memory for its turn, which is long
//!   beside its loading; then it takes no more pictures, those that run are finished, and it goes. Who waits is served
//!   by the time waited, times the weight of the priority, so that nobody waits for ever.
//! - *Only one makes room at a time*, so that a large model is not kept out by small ones that fit in the gaps.

use std::time::{Duration, Instant};

/// A model as the policy sees it.
#[derive(Debug, Clone)]
pub(super) struct Tenant {
    pub(super) hold: Hold,
    /// Bytes that its weights take.
    pub(super) bytes: u64,
    pub(super) pinned: bool,
    /// Whether its weights are in use: rows run, or pictures are being decoded.
    pub(super) busy: bool,
    /// Who waits for it, if somebody does.
    pub(super) wish: Option<Wish>,
    /// Whether the operator wants it unloaded.
    pub(super) dismissed: bool,
    /// When it was last in use or waited for.
    pub(super) used: Instant,
    /// When it was loaded.
    pub(super) since: Instant,
    /// For how long from then on it need not make room while it is in use.
    pub(super) turn: Duration,
    /// For how long after its last use, within its turn, more is expected of its callers.
    pub(super) linger: Duration,
}

/// Where a model's weights are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// Not in memory.
    Out,
    /// On their way; over the network, or from the disk.
    Loading { fetching: bool },
    /// In memory.
    Ready,
    /// Being given back.
    Leaving,
}

/// Who waits for a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Wish {
    /// Since when.
    pub(super) since: Instant,
    /// The weight of the highest priority among them.
    pub(super) weight: f64,
    /// Whether it is only expected to be needed: nobody who is in use goes for that.
    pub(super) soon: bool,
}

/// Why a model is unloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// Nobody has used it for the configured time.
    Idle,
    /// Another model needs the memory.
    Evicted,
    /// The operator wants it.
    Asked,
}

/// What is to be done now.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Moves {
    pub(super) load: Vec<usize>,
    pub(super) unload: Vec<(usize, Reason)>,
    /// Loaded models that take no more pictures, because they are to go once they are free.
    pub(super) closed: Vec<usize>,
    /// Wanted models that do not fit beside the pinned ones, or at all.
    pub(super) hopeless: Vec<usize>,
    /// When to ask again, if nothing happens before.
    pub(super) next: Option<Instant>,
}

impl Moves {
    fn look_again(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }
}

/// What to do at `now`, with `budget` bytes for the weights of all models, and models unused for `idle` unloaded.
pub(super) fn decide(tenants: &[Tenant], budget: Option<u64>, idle: Option<Duration>, now: Instant) -> Moves {
    let mut moves = Moves::default();
    for (place, tenant) in tenants.iter().enumerate().filter(|(_, tenant)| tenant.hold == Hold::Ready) {
        if tenant.dismissed {
            moves.closed.push(place);
            if !tenant.busy {
                moves.unload.push((place, Reason::Asked));
            }
        } else if let Some(idle) = idle.filter(|_| !tenant.pinned && !tenant.busy && tenant.wish.is_none()) {
            match tenant.used.checked_add(idle) {
                Some(end) if end <= now => moves.unload.push((place, Reason::Idle)),
                Some(end) => moves.look_again(end),
                None => {}
            }
        }
    }

    let mut candidates: Vec<(usize, Wish)> = tenants
        .iter()
        .enumerate()
        .filter(|(_, tenant)| tenant.hold == Hold::Out)
        .filter_map(|(place, tenant)| Some((place, tenant.wish?)))
        .collect();
    let waited = |wish: &Wish| now.saturating_duration_since(wish.since).as_secs_f64() * wish.weight;
    candidates.sort_by(|(_, a), (_, b)| {
        a.soon.cmp(&b.soon).then(waited(b).total_cmp(&waited(a))).then(b.weight.total_cmp(&a.weight))
    });
    let budget = budget.unwrap_or(u64::MAX);
    let held = |tenant: &&Tenant| tenant.hold != Hold::Out;
    let mut taken: u64 = tenants.iter().filter(held).map(|tenant| tenant.bytes).sum();
    let mut reading = tenants.iter().any(|tenant| tenant.hold == Hold::Loading { fetching: false });
    for (place, wish) in candidates {
        let bytes = tenants[place].bytes;
        let pinned: u64 = tenants.iter().filter(|other| other.pinned && held(other)).map(|other| other.bytes).sum();
        if bytes > budget.saturating_sub(pinned) {
            if !wish.soon {
                moves.hopeless.push(place);
            }
            continue;
        }
        if taken.saturating_add(bytes) <= budget {
            if !reading {
                moves.load.push(place);
                reading = true;
            }
            // Whether it is read now or next, the room is its own.
            taken += bytes;
            continue;
        }
        make_room(tenants, &mut moves, taken.saturating_add(bytes) - budget, wish.soon, now);
        break;
    }
    moves
}

/// Chooses who goes so that `need` bytes become free.
fn make_room(tenants: &[Tenant], moves: &mut Moves, need: u64, soon: bool, now: Instant) {
    let going = |moves: &Moves, place: usize| {
        tenants[place].hold == Hold::Leaving || moves.unload.iter().any(|&(other, _)| other == place)
    };
    let mut freed: u64 =
        (0..tenants.len()).filter(|&place| going(moves, place)).map(|place| tenants[place].bytes).sum();
    let mut others: Vec<usize> =
        (0..tenants.len()).filter(|&place| tenants[place].hold == Hold::Ready && !tenants[place].pinned).collect();
    others.retain(|&place| !going(moves, place));
    others.sort_by_key(|&place| tenants[place].used);
    let (unused, used): (Vec<usize>, Vec<usize>) =
        others.into_iter().partition(|&place| !tenants[place].busy && tenants[place].wish.is_none());
    for place in unused {
        let tenant = &tenants[place];
        if freed >= need {
            return;
        }
        freed += tenant.bytes;
        // Callers who ask again as soon as they have an answer would have it loaded and unloaded for each picture.
        let patience = (tenant.used + tenant.linger).min(tenant.since + tenant.turn);
        if patience > now {
            moves.look_again(patience);
        } else {
            moves.unload.push((place, Reason::Evicted));
        }
    }
    if soon {
        return;
    }
    let mut used = used;
    used.sort_by_key(|&place| tenants[place].since + tenants[place].turn);
    for place in used {
        let tenant = &tenants[place];
        if freed >= need {
            return;
        }
        freed += tenant.bytes;
        let end = tenant.since + tenant.turn;
        if end > now {
            moves.look_again(end);
            continue;
        }
        if !moves.closed.contains(&place) {
            moves.closed.push(place);
        }
        if !tenant.busy {
            moves.unload.push((place, Reason::Evicted));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Duration = Duration::from_secs(10);

    fn start() -> Instant {
        // Far enough from the clock's own start for times before it.
        Instant::now() + Duration::from_secs(1000)
    }

    fn ago(now: Instant, seconds: u64) -> Instant {
        now - Duration::from_secs(seconds)
    }

    fn out(now: Instant, bytes: u64) -> Tenant {
        Tenant {
            hold: Hold::Out,
            bytes,
            pinned: false,
            busy: false,
            wish: None,
            dismissed: false,
            used: ago(now, 100),
            since: ago(now, 100),
            turn: TURN,
            linger: Duration::from_secs(1),
        }
    }

    fn ready(now: Instant, bytes: u64, unused: u64) -> Tenant {
        Tenant { hold: Hold::Ready, used: ago(now, unused), ..out(now, bytes) }
    }

    fn wanted(now: Instant, seconds: u64) -> Option<Wish> {
        Some(Wish { since: ago(now, seconds), weight: 4.0, soon: false })
    }

    #[test]
    fn what_is_wanted_is_loaded_and_nothing_else() {
        let now = start();
        let tenants = [out(now, 5), Tenant { wish: wanted(now, 1), ..out(now, 5) }];
        assert_eq!(decide(&tenants, Some(10), None, now), Moves { load: vec![1], ..Moves::default() });
        assert_eq!(decide(&tenants, None, None, now).load, [1]);
    }

    #[test]
    fn one_is_read_from_the_disk_at_a_time_and_downloads_do_not_count() {
        let now = start();
        let wish = |bytes, seconds| Tenant { wish: wanted(now, seconds), ..out(now, bytes) };
        let tenants = [wish(1, 1), wish(1, 9)];
        assert_eq!(decide(&tenants, Some(10), None, now).load, [1]);
        let loading = |fetching| Tenant { hold: Hold::Loading { fetching }, ..out(now, 1) };
        assert_eq!(decide(&[wish(1, 1), loading(false)], Some(10), None, now).load, [] as [usize; 0]);
        assert_eq!(decide(&[wish(1, 1), loading(true)], Some(10), None, now).load, [0]);
    }

    #[test]
    fn the_longest_unused_makes_room_and_no_more_than_needed() {
        let now = start();
        let wish = Tenant { wish: wanted(now, 1), ..out(now, 4) };
        let tenants = [ready(now, 4, 20), ready(now, 4, 50), wish];
        assert_eq!(decide(&tenants, Some(8), None, now).unload, [(1, Reason::Evicted)]);
        // It is loaded once the other has gone.
        let tenants = [tenants[0].clone(), Tenant { hold: Hold::Leaving, ..out(now, 4) }, tenants[2].clone()];
        let moves = decide(&tenants, Some(8), None, now);
        assert_eq!((moves.load, moves.unload), (vec![], vec![]));
    }

    #[test]
    fn a_pinned_model_never_makes_room() {
        let now = start();
        let pinned = Tenant { pinned: true, ..ready(now, 4, 50) };
        let wish = |bytes| Tenant { wish: wanted(now, 1), ..out(now, bytes) };
        let moves = decide(&[pinned.clone(), ready(now, 4, 20), wish(4)], Some(8), Some(TURN), now);
        assert_eq!(moves.unload, [(1, Reason::Idle)]);
        assert_eq!(decide(&[pinned, wish(5)], Some(8), None, now).hopeless, [1]);
        assert_eq!(decide(&[wish(9)], Some(8), None, now).hopeless, [0]);
    }

    #[test]
    fn a_model_in_use_keeps_its_turn_and_then_takes_no_more_pictures() {
        let now = start();
        let wish = Tenant { wish: wanted(now, 1), ..out(now, 4) };
        let user = |since, busy| Tenant { since: ago(now, since), busy, wish: wanted(now, 0), ..ready(now, 8, 0) };
        let moves = decide(&[user(4, true), wish.clone()], Some(8), None, now);
        assert_eq!(moves, Moves { next: Some(now + Duration::from_secs(6)), ..Moves::default() });
        let moves = decide(&[user(11, true), wish.clone()], Some(8), None, now);
        assert_eq!(moves, Moves { closed: vec![0], ..Moves::default() });
        let moves = decide(&[user(11, false), wish], Some(8), None, now);
        assert_eq!((moves.closed, moves.unload), (vec![0], vec![(0, Reason::Evicted)]));
    }

    #[test]
    fn a_model_whose_callers_may_come_back_lingers_within_its_turn() {
        let now = start();
        let wish = Tenant { wish: wanted(now, 1), ..out(now, 8) };
        let between = |since| Tenant { since: ago(now, since), ..ready(now, 8, 0) };
        let moves = decide(&[between(4), wish.clone()], Some(8), None, now);
        assert_eq!(moves, Moves { next: Some(now + Duration::from_secs(1)), ..Moves::default() });
        assert_eq!(decide(&[between(11), wish], Some(8), None, now).unload, [(0, Reason::Evicted)]);
    }

    #[test]
    fn who_has_waited_longest_is_next_and_priorities_count() {
        let now = start();
        let wish = |seconds, weight| {
            let since = ago(now, seconds);
            Tenant { wish: Some(Wish { since, weight, soon: false }), ..out(now, 8) }
        };
        assert_eq!(decide(&[wish(5, 4.0), wish(6, 4.0)], Some(8), None, now).load, [1]);
        assert_eq!(decide(&[wish(5, 16.0), wish(6, 4.0)], Some(8), None, now).load, [0]);
        assert_eq!(decide(&[wish(5, 16.0), wish(100, 1.0)], Some(8), None, now).load, [1]);
    }

    #[test]
    fn a_large_model_is_not_kept_out_by_small_ones() {
        let now = start();
        let wish = |bytes, seconds| Tenant { wish: wanted(now, seconds), ..out(now, bytes) };
        let busy = Tenant { busy: true, ..ready(now, 6, 0) };
        let moves = decide(&[busy, wish(8, 5), wish(2, 1)], Some(8), None, now);
        assert_eq!(moves, Moves { closed: vec![0], ..Moves::default() });
    }

    #[test]
    fn nobody_in_use_goes_for_a_model_that_is_only_expected() {
        let now = start();
        let soon = Some(Wish { since: now, weight: 4.0, soon: true });
        let expected = Tenant { wish: soon, ..out(now, 4) };
        let busy = Tenant { busy: true, ..ready(now, 8, 0) };
        assert_eq!(decide(&[busy, expected.clone()], Some(8), None, now), Moves::default());
        assert_eq!(decide(&[ready(now, 8, 50), expected], Some(8), None, now).unload, [(0, Reason::Evicted)]);
    }

    #[test]
    fn an_unused_model_goes_after_the_configured_time_and_not_before() {
        let now = start();
        let idle = Some(Duration::from_secs(60));
        let moves = decide(&[ready(now, 1, 40)], None, idle, now);
        assert_eq!(moves, Moves { next: Some(now + Duration::from_secs(20)), ..Moves::default() });
        assert_eq!(decide(&[ready(now, 1, 60)], None, idle, now).unload, [(0, Reason::Idle)]);
        for kept in [Tenant { busy: true, ..ready(now, 1, 60) }, Tenant { pinned: true, ..ready(now, 1, 60) }] {
            assert_eq!(decide(&[kept], None, idle, now), Moves::default());
        }
        assert_eq!(decide(&[ready(now, 1, 60)], None, Some(Duration::MAX), now), Moves::default());
    }

    #[test]
    fn a_dismissed_model_goes_when_its_pictures_are_done() {
        let now = start();
        let dismissed = |busy| Tenant { dismissed: true, busy, ..ready(now, 1, 0) };
        assert_eq!(decide(&[dismissed(true)], None, None, now), Moves { closed: vec![0], ..Moves::default() });
        assert_eq!(decide(&[dismissed(false)], None, None, now).unload, [(0, Reason::Asked)]);
    }
}
