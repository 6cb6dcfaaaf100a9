//! Who joins which batch, whose call is next, and which rows are in it.
//!
//! Pure functions of the state, without threads, clocks or models. What they aim at:
//!
//! - *A request joins at the next step boundary.* It takes a seat in the running group of its class while there are
//!   any. When all are taken, these join all the same: an owner with no row in the group, a higher priority than all of
//!   its rows, and a picture that is short beside what they have to go ([`SHORT`]). The rows then take turns in the
//!   calls ([`seats`]).
//! - *Groups share the device by time, not by calls* ([`turn`]), so a large model's slow step does not starve a small
//!   model. Each owner has the same share, spread over the groups that it has rows in, times its priority's weight
//!   ([`shares`]).
//! - *No group starves others of a place.* Only so many groups run at once. When one more is wanted, the group that
//!   is nearest to its end takes no more rows: the least remaining time can then only fall, so some group ends and
//!   makes room. An owner or a model with nothing running need not wait for that.
//! - *Models share it alike.* An owner's share is spread over its models first, and then over each model's groups, so
//!   that requests for many sizes of one model take nothing from another.

use std::collections::HashMap;
use std::sync::Arc;

use super::waiting::{Class, Entry, Waiting};
use crate::request::Priority;

/// The share of a priority's rows where they compete with others for calls.
pub(super) fn weight(priority: Priority) -> f64 {
    match priority {
        Priority::Low => 1.0,
        Priority::Normal => 4.0,
        Priority::High => 16.0,
    }
}

/// A picture is short when it has at most this part of the steps that the nearest to its end still has to go. Letting
/// it in then costs those who run little, and saves it much.
const SHORT: usize = 4;

fn short(entry: &Entry, beside: usize) -> bool {
    entry.steps * SHORT <= beside
}

/// A running group as the policy sees it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Room {
    pub(super) class: Class,
    /// Rows that the group's pictures take in a call of all of them.
    pub(super) rows: usize,
    /// Rows that a call may have.
    pub(super) seats: usize,
    /// Device time until its last row is done, in any unit.
    pub(super) left: f64,
    /// The fewest steps that one of its rows has to go.
    pub(super) nearest: usize,
    /// Whose pictures these are, and the highest priority of each owner's.
    pub(super) owners: HashMap<Arc<str>, Priority>,
}

impl Room {
    /// Whether `entry`'s next picture may join.
    fn admits(&self, entry: &Entry) -> bool {
        if self.rows == 0 || self.rows + entry.rows <= self.seats {
            return true;
        }
        let newcomer = !self.owners.contains_key(&entry.owner);
        let urgent = self.owners.values().all(|&other| other < entry.priority);
        (newcomer || urgent || short(entry, self.nearest)) && self.stands(entry.rows)
    }

    /// Whether rows beyond the seats, which take turns in the calls, may be so many more.
    fn stands(&self, rows: usize) -> bool {
        self.rows + rows <= 2 * self.seats.max(rows)
    }

    /// The room of a class in which nothing runs.
    fn empty(class: Class, seats: usize) -> Self {
        // Its work is not known yet, but it has only just begun.
        Self { class, rows: 0, seats, left: f64::INFINITY, nearest: usize::MAX, owners: HashMap::new() }
    }

    fn join(&mut self, entry: &Entry) {
        self.rows += entry.rows;
        self.nearest = self.nearest.min(entry.steps);
        let highest = self.owners.entry(Arc::clone(&entry.owner)).or_insert(entry.priority);
        *highest = entry.priority.max(*highest);
    }
}

/// The room of a class that has the fewest rows beyond its seats, if there is one.
fn roomiest(rooms: &[Room], class: Class) -> Option<usize> {
    let of_class = (0..rooms.len()).filter(|&room| rooms[room].class == class);
    of_class.min_by_key(|&room| rooms[room].rows.saturating_sub(rooms[room].seats))
}

/// Gives a picture of `entry` that was let in, and has not joined yet, its seats in the room that it will join as far as can
/// be told.
pub(super) fn reserve(rooms: &mut Vec<Room>, entry: &Entry, seats: impl Fn(Class) -> usize) {
    let room = roomiest(rooms, entry.class).unwrap_or_else(|| {
        rooms.push(Room::empty(entry.class, seats(entry.class)));
        rooms.len() - 1
    });
    rooms[room].join(entry);
}

/// The jobs whose next pictures join now, in order; a job comes once for each picture.
///
/// `rooms` are the running groups, at most `groups` of them unless newcomers need more; `seats` tells the rows of a
/// call of a class with no group; only models that are `open` let pictures in. Within a class nobody overtakes, so a
/// picture of two rows is not starved by pictures of one, but a picture that is short beside all whom it overtakes and all
/// who run: once it runs, no other is.
pub(super) fn admit(
    waiting: &Waiting,
    mut rooms: Vec<Room>,
    groups: usize,
    open: impl Fn(usize) -> bool,
    seats: impl Fn(Class) -> usize,
) -> Vec<u64> {
    let mut admitted = Vec::new();
    // The classes of which somebody waits on, with the fewest steps of those.
    let mut blocked: Vec<(Class, usize)> = Vec::new();
    let mut sealed: Option<usize> = None;
    for job in waiting.order() {
        let Some(entry) = waiting.get(job) else { continue };
        let ahead = blocked.iter().position(|(class, _)| *class == entry.class);
        if let Some(ahead) = ahead
            && !short(entry, blocked[ahead].1)
        {
            blocked[ahead].1 = blocked[ahead].1.min(entry.steps);
            continue;
        }
        // Several groups have one class where context lengths differ; which one it will be shows only when it has
        // begun.
        let group = roomiest(&rooms, entry.class);
        let admits = match group {
            _ if !open(entry.class.model) => false,
            Some(room) if ahead.is_some() => {
                sealed != Some(room) && short(entry, rooms[room].nearest) && rooms[room].stands(entry.rows)
            }
            Some(room) => sealed != Some(room) && rooms[room].admits(entry),
            None if ahead.is_some() => false,
            None => {
                let newcomer = rooms.iter().all(|room| !room.owners.contains_key(&entry.owner))
                    || rooms.iter().all(|room| room.class.model != entry.class.model)
                    || rooms.iter().flat_map(|room| room.owners.values()).all(|&other| other < entry.priority);
                let room = rooms.len() < groups || (newcomer && rooms.len() < 2 * groups);
                if !room {
                    sealed = (0..rooms.len()).min_by(|&a, &b| rooms[a].left.total_cmp(&rooms[b].left));
                }
                room
            }
        };
        if admits {
            let room = group.unwrap_or_else(|| {
                rooms.push(Room::empty(entry.class, seats(entry.class)));
                rooms.len() - 1
            });
            rooms[room].join(entry);
            admitted.push(job);
        } else if let Some(ahead) = ahead {
            blocked[ahead].1 = blocked[ahead].1.min(entry.steps);
        } else {
            blocked.push((entry.class, entry.steps));
        }
        // Nobody further back can be let in.
        let full = |room: &Room| room.nearest < SHORT || !room.stands(1);
        if blocked.len() == waiting.classes() && rooms.iter().all(full) {
            break;
        }
    }
    admitted
}

/// The share of the device that each group has, by what its owners and their priorities give it. The groups' owners
/// are given with the highest priority of their rows, beside the groups' models.
pub(super) fn shares(groups: &[(usize, &HashMap<Arc<str>, Priority>)]) -> Vec<f64> {
    // By owner, its groups of each model.
    let mut spread: HashMap<&str, HashMap<usize, f64>> = HashMap::new();
    for (model, owners) in groups {
        for owner in owners.keys() {
            *spread.entry(owner).or_default().entry(*model).or_default() += 1.0;
        }
    }
    let share = |model: usize, owner: &Arc<str>, priority: Priority| {
        let parts = spread.get(&**owner).map_or(1.0, |models| models.len() as f64 * models.get(&model).unwrap_or(&1.0));
        weight(priority) / parts
    };
    let sum = |&(model, owners): &(usize, &HashMap<Arc<str>, Priority>)| {
        owners.iter().map(|(owner, &priority)| share(model, owner, priority)).sum()
    };
    groups.iter().map(sum).collect()
}

/// The group whose call is next: the one that has had the least device time for its share, of those given by
/// time used divided by share.
pub(super) fn turn(used: impl Iterator<Item = f64>) -> Option<usize> {
    used.enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).map(|(group, _)| group)
}

/// A row that may take part in the next call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Seat {
    /// Rows that its picture takes.
    pub(super) rows: usize,
    /// Calls it has had, divided by its weight.
    pub(super) used: f64,
    /// Steps that it has to go.
    pub(super) left: usize,
}

/// Which pictures take part in a call of at most `most` rows: all if they fit, else those that have had the fewest
/// calls for their weight, then those nearest to their end. At least one always does.
pub(super) fn seats(pictures: &[Seat], most: usize, mut seat: impl FnMut(usize)) {
    if pictures.iter().map(|picture| picture.rows).sum::<usize>() <= most {
        (0..pictures.len()).for_each(seat);
        return;
    }
    let mut order: Vec<usize> = (0..pictures.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (&pictures[a], &pictures[b]);
        a.used.total_cmp(&b.used).then(a.left.cmp(&b.left))
    });
    let mut rows = 0;
    for picture in order {
        if rows == 0 || rows + pictures[picture].rows <= most {
            rows += pictures[picture].rows;
            seat(picture);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::waiting::Entry;
    use super::*;

    fn class(width: u32) -> Class {
        Class { model: 0, width, height: 64 }
    }

    fn entry(owner: &str, priority: Priority, width: u32, rows: usize) -> Entry {
        Entry { owner: owner.into(), priority, class: class(width), rows, steps: 10, pictures: 1, asks: 1.0 }
    }

    fn list(entries: impl IntoIterator<Item = Entry>) -> Waiting {
        let mut waiting = Waiting::default();
        for (job, entry) in entries.into_iter().enumerate() {
            waiting.push(job as u64, entry);
        }
        waiting
    }

    fn room(width: u32, rows: usize, seats: usize, left: f64, owner: &str) -> Room {
        let owners = HashMap::from([(owner.into(), Priority::Normal)]);
        Room { class: class(width), rows, seats, left, nearest: 10, owners }
    }

    #[test]
    fn a_batch_is_filled_and_no_more() {
        let waiting = list((0..6).map(|_| entry("a", Priority::Normal, 64, 2)));
        assert_eq!(admit(&waiting, vec![], 4, |_| true, |_| 8), [0, 1, 2, 3]);
        assert_eq!(admit(&waiting, vec![room(64, 5, 8, 1.0, "a")], 4, |_| true, |_| 8), [0]);
    }

    #[test]
    fn one_picture_runs_even_where_it_does_not_fit() {
        let waiting = list([entry("a", Priority::Normal, 64, 2), entry("a", Priority::Normal, 64, 2)]);
        assert_eq!(admit(&waiting, vec![], 4, |_| true, |_| 1), [0]);
    }

    #[test]
    fn another_owner_joins_a_full_batch_but_not_without_bound() {
        let full = room(64, 4, 4, 1.0, "a");
        let waiting = list([
            entry("a", Priority::Normal, 64, 2),
            entry("b", Priority::Normal, 128, 2),
            entry("b", Priority::Normal, 128, 2),
        ]);
        assert_eq!(admit(&waiting, vec![full.clone()], 4, |_| true, |_| 2), [1]);
        let waiting = list([
            entry("b", Priority::Normal, 64, 2),
            entry("c", Priority::Normal, 64, 2),
            entry("d", Priority::Normal, 64, 2),
        ]);
        assert_eq!(admit(&waiting, vec![full], 4, |_| true, |_| 2), [0, 1]);
    }

    #[test]
    fn a_higher_priority_joins_a_full_batch() {
        let waiting = list([entry("a", Priority::High, 64, 2), entry("a", Priority::High, 64, 2)]);
        assert_eq!(admit(&waiting, vec![room(64, 4, 4, 1.0, "a")], 4, |_| true, |_| 4), [0]);
    }

    #[test]
    fn a_short_picture_joins_a_full_batch_of_long_ones() {
        let full = Room { nearest: 40, ..room(64, 4, 4, 1.0, "a") };
        let waiting = list([entry("a", Priority::Normal, 64, 2), entry("a", Priority::Normal, 64, 2)]);
        // The second is not short beside the first.
        assert_eq!(admit(&waiting, vec![full], 4, |_| true, |_| 4), [0]);
        let full = Room { nearest: 39, ..room(64, 4, 4, 1.0, "a") };
        assert_eq!(admit(&waiting, vec![full], 4, |_| true, |_| 4), [] as [u64; 0]);
    }

    #[test]
    fn what_is_being_prepared_has_its_seats() {
        let pending = entry("b", Priority::High, 64, 2);
        let mut rooms = vec![room(64, 2, 4, 1.0, "a")];
        reserve(&mut rooms, &pending, |_| 8);
        let taken = Room { rows: 4, owners: HashMap::from([("b".into(), Priority::High)]), ..rooms[0].clone() };
        assert_eq!((rooms.len(), rooms[0].rows, rooms[0].owners["b"]), (1, 4, Priority::High));
        // Nobody of its own owner finds a seat any more, and where its class has no room yet, it has opened one.
        let waiting = list([entry("b", Priority::High, 64, 2)]);
        assert_eq!(admit(&waiting, vec![taken], 4, |_| true, |_| 8), [] as [u64; 0]);
        reserve(&mut rooms, &Entry { class: class(128), ..pending }, |_| 8);
        assert_eq!((rooms.len(), rooms[1].rows, rooms[1].seats), (2, 2, 8));
    }

    #[test]
    fn nobody_overtakes_within_a_class() {
        let waiting = list([entry("a", Priority::Normal, 64, 2), entry("a", Priority::Normal, 64, 1)]);
        assert_eq!(admit(&waiting, vec![room(64, 3, 4, 1.0, "a")], 4, |_| true, |_| 4), [] as [u64; 0]);
    }

    #[test]
    fn a_picture_that_is_short_beside_all_before_it_overtakes_them_alone() {
        let of = |steps, rows| Entry { steps, ..entry("a", Priority::Normal, 64, rows) };
        let room = |nearest| Room { nearest, ..room(64, 4, 4, 1.0, "a") };
        let admitted = |entries: &[Entry], room| admit(&list(entries.iter().cloned()), vec![room], 4, |_| true, |_| 4);
        // The last one is not short beside the one that has gone before.
        assert_eq!(admitted(&[of(40, 2), of(30, 2), of(4, 2), of(4, 2)], room(40)), [2]);
        // It must be short beside those who wait, those who overtook nobody included, and beside those who run.
        assert_eq!(admitted(&[of(40, 2), of(12, 2), of(4, 2)], room(40)), [] as [u64; 0]);
        assert_eq!(admitted(&[of(40, 2), of(4, 2)], room(12)), [] as [u64; 0]);
        // There is a bound on those who stand.
        assert_eq!(admitted(&[of(40, 2), of(4, 2)], Room { rows: 7, ..room(40) }), [] as [u64; 0]);
        // Where nothing of its class runs, nobody is overtaken.
        let elsewhere = Room { class: class(128), ..room(40) };
        assert_eq!(admit(&list([of(40, 2), of(4, 2)]), vec![elsewhere], 1, |_| true, |_| 4), [] as [u64; 0]);
    }

    #[test]
    fn another_class_goes_past_a_full_group() {
        let waiting = list([entry("a", Priority::Normal, 64, 2), entry("a", Priority::Normal, 128, 2)]);
        assert_eq!(admit(&waiting, vec![room(64, 4, 4, 1.0, "a")], 4, |_| true, |_| 4), [1]);
    }

    #[test]
    fn a_group_near_its_end_takes_no_more_rows_while_another_group_wants_its_place() {
        let rooms = || vec![room(64, 1, 4, 9.0, "a"), room(128, 1, 4, 3.0, "a")];
        let waiting = list([
            entry("a", Priority::Normal, 256, 1),
            entry("a", Priority::Normal, 64, 1),
            entry("a", Priority::Normal, 128, 1),
        ]);
        assert_eq!(admit(&waiting, rooms(), 2, |_| true, |_| 4), [1]);
        assert_eq!(admit(&waiting, rooms(), 3, |_| true, |_| 4), [0, 1, 2]);
    }

    #[test]
    fn an_owner_with_nothing_running_need_not_wait_for_a_groups_place() {
        let rooms = vec![room(64, 1, 4, 9.0, "a"), room(128, 1, 4, 3.0, "a")];
        assert_eq!(admit(&list([entry("b", Priority::Normal, 256, 1)]), rooms, 2, |_| true, |_| 4), [0]);
    }

    #[test]
    fn an_owners_share_is_spread_over_its_groups() {
        let both = HashMap::from([("a".into(), Priority::Normal), ("b".into(), Priority::Normal)]);
        let one = HashMap::from([("b".into(), Priority::Normal)]);
        assert_eq!(shares(&[(0, &both), (0, &one)]), [6.0, 2.0]);
        let high = HashMap::from([("c".into(), Priority::High)]);
        assert_eq!(shares(&[(0, &one), (0, &high)]), [4.0, 16.0]);
    }

    #[test]
    fn an_owners_share_is_the_same_for_each_of_its_models() {
        let one = HashMap::from([("a".into(), Priority::Normal)]);
        assert_eq!(shares(&[(0, &one), (0, &one), (0, &one), (1, &one)]), [4.0 / 6.0, 4.0 / 6.0, 4.0 / 6.0, 2.0]);
    }

    #[test]
    fn a_model_with_nothing_running_need_not_wait_for_a_groups_place() {
        let rooms = || vec![room(64, 1, 4, 9.0, "a"), room(128, 1, 4, 3.0, "a")];
        let of =
            |model, width| Entry { class: Class { model, ..class(width) }, ..entry("a", Priority::Normal, width, 1) };
        assert_eq!(admit(&list([of(0, 256), of(1, 256), of(1, 64)]), rooms(), 2, |_| true, |_| 4), [1]);
    }

    #[test]
    fn a_model_that_is_not_open_lets_nobody_in_and_holds_up_nobody() {
        let other = Entry { class: Class { model: 1, ..class(64) }, ..entry("a", Priority::Normal, 64, 1) };
        let waiting = list([entry("a", Priority::High, 64, 1), other]);
        assert_eq!(admit(&waiting, vec![room(64, 1, 4, 9.0, "a")], 4, |model| model == 1, |_| 4), [1]);
    }

    #[test]
    fn slow_and_fast_groups_get_the_same_time() {
        let (cost, mut used, mut calls) = ([10.0, 1.0], [0.0, 0.0], [0, 0]);
        for _ in 0..110 {
            let group = turn(used.into_iter()).unwrap();
            used[group] += cost[group];
            calls[group] += 1;
        }
        assert_eq!(calls, [10, 100]);
    }

    #[test]
    fn rows_that_do_not_fit_take_turns_and_a_heavier_one_gets_more_of_them() {
        let weights = [1.0, 1.0, 4.0];
        let mut pictures = [Seat { rows: 2, used: 0.0, left: 50 }; 3];
        let mut calls = [0; 3];
        for _ in 0..60 {
            let mut seated = vec![];
            seats(&pictures, 3, |picture| seated.push(picture));
            assert_eq!(seated.len(), 1);
            for picture in seated {
                pictures[picture].used += 1.0 / weights[picture];
                calls[picture] += 1;
            }
        }
        assert_eq!(calls, [10, 10, 40]);
    }

    #[test]
    fn one_row_fills_the_seat_that_two_rows_leave_and_both_keep_running() {
        let mut pictures = [Seat { rows: 2, used: 0.0, left: 9 }, Seat { rows: 2, used: 0.0, left: 9 }];
        pictures[1].rows = 1;
        let mut calls = [0; 2];
        for _ in 0..10 {
            let mut seated = vec![];
            seats(&pictures, 2, |picture| seated.push(picture));
            for picture in seated {
                pictures[picture].used += 1.0;
                calls[picture] += 1;
            }
        }
        assert_eq!(calls, [5, 5]);
    }
}
