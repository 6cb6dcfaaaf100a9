//! The waiting list and its order: priorities first, then owners in turn, then first come, first served.
//!
//! - Within a priority, owners take turns by start-time fair queueing (Goyal, Vin and Cheng, 1996): each owner's next
//!   picture has a tag, the sum of what its earlier ones asked for, and the lowest tag is next. An owner who was away
//!   starts at the present tag, so idleness earns no credit; many small requests and few large ones get the same
//!   share.
//! - A lower priority is passed over by at most [`PATIENCE`] pictures before one of its own is next, so nothing
//!   starves.
//!
//! Knows neither threads nor models.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;

use crate::request::Priority;

/// Pictures of higher priorities that may go before a waiting one of a lower priority.
const PATIENCE: u32 = 8;

const PRIORITIES: usize = 3;

/// What is known of a picture's batch before it is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Class {
    /// The model's place in the registry.
    pub(super) model: usize,
    pub(super) width: u32,
    pub(super) height: u32,
}

/// One job's pictures that have not begun.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) owner: Arc<str>,
    pub(super) priority: Priority,
    pub(super) class: Class,
    /// Rows of each picture in a model call.
    pub(super) rows: usize,
    /// Steps of each picture.
    pub(super) steps: usize,
    /// Pictures that have not begun; at least one.
    pub(super) pictures: usize,
    /// What each asks of the device, in any unit that is the same for all.
    pub(super) asks: f64,
}

/// The waiting list.
#[derive(Default)]
pub(super) struct Waiting {
    entries: HashMap<u64, Entry>,
    lines: [Line; PRIORITIES],
    /// Jobs by class, to know when nobody who waits could be taken.
    classes: HashMap<Class, usize>,
    /// Jobs by model and priority, to know which models are wanted.
    models: HashMap<usize, [usize; PRIORITIES]>,
}

/// Those who wait with one priority.
#[derive(Default)]
struct Line {
    owners: BTreeMap<Arc<str>, Owner>,
    /// The tag of the picture taken last.
    now: f64,
    /// Pictures of higher priorities taken while this line waited.
    passed: u32,
    /// Jobs in it.
    jobs: usize,
}

#[derive(Default)]
struct Owner {
    /// The tag that the next picture would have if the owner had been here all the time.
    tag: f64,
    jobs: BTreeSet<u64>,
}

impl Waiting {
    /// Lets the job with this number wait. Numbers grow, and tell who came first.
    pub(super) fn push(&mut self, job: u64, entry: Entry) {
        let line = &mut self.lines[entry.priority as usize];
        line.jobs += 1;
        line.owners.entry(Arc::clone(&entry.owner)).or_default().jobs.insert(job);
        *self.classes.entry(entry.class).or_default() += 1;
        self.models.entry(entry.class.model).or_default()[entry.priority as usize] += 1;
        self.entries.insert(job, entry);
    }

    /// Lets one more picture of `job` wait, like the others of it that do, or else like `entry`.
    pub(super) fn push_one(&mut self, job: u64, entry: Entry) {
        match self.entries.get_mut(&job) {
            Some(known) => known.pictures += 1,
            None => self.push(job, Entry { pictures: 1, ..entry }),
        }
    }

    /// Takes one picture of `job` off the list and charges its owner.
    pub(super) fn take(&mut self, job: u64) {
        let Some(entry) = self.entries.get_mut(&job) else { return };
        let priority = entry.priority as usize;
        entry.pictures -= 1;
        let (owner, asks, last) = (Arc::clone(&entry.owner), entry.asks, entry.pictures == 0);
        let line = &mut self.lines[priority];
        if let Some(owner) = line.owners.get_mut(&owner) {
            let start = owner.tag.max(line.now);
            owner.tag = start + asks;
            line.now = start;
        }
        line.passed = 0;
        for lower in &mut self.lines[..priority] {
            if lower.jobs > 0 {
                lower.passed = lower.passed.saturating_add(1);
            }
        }
        if last {
            self.remove(job);
        }
    }

    /// Takes `job` off the list altogether.
    pub(super) fn remove(&mut self, job: u64) {
        let Some(entry) = self.entries.remove(&job) else { return };
        if let Some(count) = self.classes.get_mut(&entry.class) {
            *count -= 1;
            if *count == 0 {
                self.classes.remove(&entry.class);
            }
        }
        if let Some(counts) = self.models.get_mut(&entry.class.model) {
            counts[entry.priority as usize] -= 1;
        }
        let line = &mut self.lines[entry.priority as usize];
        line.jobs -= 1;
        if let Some(owner) = line.owners.get_mut(&entry.owner) {
            owner.jobs.remove(&job);
        }
        if line.jobs == 0 {
            // With nobody waiting there is no order to remember.
            *line = Line::default();
        } else {
            let now = line.now;
            line.owners.retain(|_, owner| !owner.jobs.is_empty() || owner.tag > now);
        }
    }

    /// The job's entry, while it waits.
    pub(super) fn get(&self, job: u64) -> Option<&Entry> {
        self.entries.get(&job)
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The highest priority of those who wait for a model, if somebody does.
    pub(super) fn highest(&self, model: usize) -> Option<Priority> {
        let counts = self.models.get(&model)?;
        [Priority::High, Priority::Normal, Priority::Low].into_iter().find(|&priority| counts[priority as usize] > 0)
    }

    /// Those who wait for a model, in no particular order.
    pub(super) fn of(&self, model: usize) -> impl Iterator<Item = u64> {
        self.entries.iter().filter(move |(_, entry)| entry.class.model == model).map(|(&job, _)| job)
    }

    /// Classes that somebody waits for.
    pub(super) fn classes(&self) -> usize {
        self.classes.len()
    }

    /// The jobs' pictures in the order in which they would be taken if nobody else came; a job comes once for each.
    pub(super) fn order(&self) -> Order<'_> {
        let lines = self.lines.each_ref().map(|line| {
            let heads = line.owners.values().filter_map(|owner| {
                let mut jobs = owner.jobs.iter();
                let job = *jobs.next()?;
                Some(Head { tag: owner.tag.max(line.now), job, taken: 0, jobs })
            });
            (heads.collect(), line.passed)
        });
        Order { entries: &self.entries, lines }
    }
}

/// Walks the waiting list in order; see [`Waiting::order`].
pub(super) struct Order<'a> {
    entries: &'a HashMap<u64, Entry>,
    lines: [(BinaryHeap<Head<'a>>, u32); PRIORITIES],
}

/// An owner's next picture.
struct Head<'a> {
    tag: f64,
    job: u64,
    /// Pictures of `job` that the walk has passed.
    taken: usize,
    jobs: std::collections::btree_set::Iter<'a, u64>,
}

impl Iterator for Order<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let waits = |line: &(BinaryHeap<Head<'_>>, u32)| !line.0.is_empty();
        let first = self.lines.iter().rposition(waits)?;
        let starving = (0..first)
            .filter(|&line| waits(&self.lines[line]) && self.lines[line].1 >= PATIENCE)
            .max_by_key(|&line| self.lines[line].1);
        let chosen = starving.unwrap_or(first);
        self.lines[chosen].1 = 0;
        for lower in &mut self.lines[..chosen] {
            lower.1 = lower.1.saturating_add(u32::from(waits(lower)));
        }
        let heads = &mut self.lines[chosen].0;
        let mut head = heads.pop()?;
        let (job, entry) = (head.job, self.entries.get(&head.job)?);
        head.tag += entry.asks;
        head.taken += 1;
        if head.taken < entry.pictures {
            heads.push(head);
        } else if let Some(&next) = head.jobs.next() {
            heads.push(Head { job: next, taken: 0, ..head });
        }
        Some(job)
    }
}

impl Ord for Head<'_> {
    /// The greatest is next: the lowest tag, then the earliest job.
    fn cmp(&self, other: &Self) -> Ordering {
        other.tag.total_cmp(&self.tag).then(other.job.cmp(&self.job))
    }
}

impl PartialOrd for Head<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Head<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASS: Class = Class { model: 0, width: 64, height: 64 };

    fn entry(owner: &str, priority: Priority, pictures: usize, asks: f64) -> Entry {
        Entry { owner: owner.into(), priority, class: CLASS, rows: 1, steps: 10, pictures, asks }
    }

    fn list(entries: impl IntoIterator<Item = Entry>) -> Waiting {
        let mut waiting = Waiting::default();
        for (job, entry) in entries.into_iter().enumerate() {
            waiting.push(job as u64, entry);
        }
        waiting
    }

    fn order(waiting: &Waiting) -> Vec<u64> {
        waiting.order().collect()
    }

    /// Takes pictures one by one, as the engine does.
    fn drain(waiting: &mut Waiting) -> Vec<u64> {
        std::iter::from_fn(|| {
            let job = waiting.order().next()?;
            waiting.take(job);
            Some(job)
        })
        .collect()
    }

    #[test]
    fn one_owners_jobs_are_served_in_the_order_they_came() {
        assert_eq!(order(&list((0..4).map(|_| entry("a", Priority::Normal, 1, 1.0)))), [0, 1, 2, 3]);
    }

    #[test]
    fn owners_take_turns_however_many_jobs_one_of_them_has() {
        let mut entries: Vec<_> = (0..6).map(|_| entry("a", Priority::Normal, 1, 1.0)).collect();
        entries.push(entry("b", Priority::Normal, 1, 1.0));
        entries.push(entry("b", Priority::Normal, 1, 1.0));
        assert_eq!(order(&list(entries)), [0, 6, 1, 7, 2, 3, 4, 5]);
    }

    #[test]
    fn turns_are_counted_by_what_is_asked_not_by_pictures() {
        let mut entries = vec![entry("big", Priority::Normal, 2, 3.0)];
        entries.extend((0..4).map(|_| entry("small", Priority::Normal, 1, 1.0)));
        assert_eq!(order(&list(entries)), [0, 1, 2, 3, 0, 4]);
    }

    #[test]
    fn a_higher_priority_goes_first() {
        let entries = [
            entry("a", Priority::Low, 1, 1.0),
            entry("a", Priority::Normal, 1, 1.0),
            entry("b", Priority::High, 1, 1.0),
        ];
        assert_eq!(order(&list(entries)), [2, 1, 0]);
    }

    #[test]
    fn a_lower_priority_is_passed_over_a_bounded_number_of_times() {
        let mut entries = vec![entry("a", Priority::Low, 1, 1.0), entry("a", Priority::Normal, 1, 1.0)];
        entries.extend((0..40).map(|_| entry("b", Priority::High, 1, 1.0)));
        let order = order(&list(entries));
        let place = |job| order.iter().position(|&other| other == job).unwrap();
        assert_eq!(place(1).min(place(0)), PATIENCE as usize);
        assert!(place(0) <= 2 * PATIENCE as usize + 1, "{order:?}");
        assert!(place(1) <= 2 * PATIENCE as usize + 1, "{order:?}");
    }

    #[test]
    fn the_forecast_is_what_happens() {
        let priorities = [Priority::Low, Priority::Normal, Priority::High];
        let entries = (0..30)
            .map(|i| entry(["a", "b", "c", "d"][i % 4], priorities[i * 7 % 3], 1 + i % 3, 1.0 + (i * 5 % 7) as f64));
        let mut waiting = list(entries);
        let forecast = order(&waiting);
        assert_eq!(drain(&mut waiting), forecast);
        assert!(waiting.is_empty());
        assert_eq!(waiting.classes(), 0);
    }

    #[test]
    fn an_owner_who_was_away_has_no_credit() {
        let mut waiting = list((0..4).map(|_| entry("a", Priority::Normal, 1, 1.0)));
        waiting.take(0);
        waiting.take(1);
        waiting.push(4, entry("b", Priority::Normal, 3, 1.0));
        assert_eq!(order(&waiting), [4, 2, 4, 3, 4]);
    }

    #[test]
    fn a_model_is_wanted_with_the_highest_priority_of_those_who_wait_for_it() {
        let other = Entry { class: Class { model: 1, ..CLASS }, ..entry("a", Priority::High, 1, 1.0) };
        let mut waiting = list([entry("a", Priority::Low, 1, 1.0), entry("b", Priority::Normal, 2, 1.0), other]);
        assert_eq!(waiting.highest(0), Some(Priority::Normal));
        assert_eq!(waiting.highest(1), Some(Priority::High));
        assert_eq!((waiting.of(1).collect::<Vec<_>>(), waiting.of(2).count()), (vec![2], 0));
        waiting.remove(1);
        waiting.take(2);
        assert_eq!((waiting.highest(0), waiting.highest(1)), (Some(Priority::Low), None));
    }

    #[test]
    fn pictures_that_come_one_by_one_wait_as_one_job() {
        let mut waiting = Waiting::default();
        for _ in 0..3 {
            waiting.push_one(7, entry("a", Priority::Normal, 9, 1.0));
        }
        assert_eq!(drain(&mut waiting), [7, 7, 7]);
        waiting.push_one(7, entry("a", Priority::Normal, 9, 1.0));
        assert_eq!(drain(&mut waiting), [7]);
    }

    #[test]
    fn a_removed_job_leaves_no_trace() {
        let mut waiting = list([entry("a", Priority::Normal, 2, 1.0), entry("b", Priority::Normal, 1, 1.0)]);
        waiting.remove(0);
        assert_eq!(order(&waiting), [1]);
        waiting.remove(1);
        waiting.remove(1);
        assert!(waiting.is_empty());
        assert!(waiting.lines.iter().all(|line| line.owners.is_empty()));
    }
}
