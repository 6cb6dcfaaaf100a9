//! The rows that are running, in groups that may share a model call.

use std::collections::HashMap;
use std::sync::Arc;

use easel_models::samplers::Progress;
use easel_models::{BatchKey, Mismatch, Trajectory};

use super::cost::Place;
use super::policy::{self, Seat};
use super::waiting::Class;
use crate::request::Priority;

/// Steps of a picture that another model does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Elsewhere {
    /// Done by the first model.
    pub(super) before: usize,
    /// Left for the second, as far as can be told before it has begun.
    pub(super) after: usize,
}

/// One picture on its way.
pub(super) struct Row {
    pub(super) job: u64,
    /// Which of the job's pictures.
    pub(super) image: usize,
    /// Which of the job's models this is: 0, or 1 for the second.
    pub(super) stage: usize,
    /// Steps that the picture has had, or will have, from the job's other model.
    pub(super) elsewhere: Elsewhere,
    pub(super) trajectory: Trajectory,
    pub(super) owner: Arc<str>,
    pub(super) priority: Priority,
    /// Model calls that it took part in.
    pub(super) calls: usize,
    /// Those calls divided by the priority's weight, from where its neighbours were when it joined.
    pub(super) used: f64,
    /// Previews sent so far.
    pub(super) previews: u32,
    /// Whether it takes part in the call at hand.
    pub(super) seated: bool,
    /// Steps finished as of its last call.
    stepped: usize,
}

impl Row {
    /// A picture that is about to join.
    pub(super) fn new(job: u64, image: usize, trajectory: Trajectory, owner: Arc<str>, priority: Priority) -> Self {
        let stepped = trajectory.progress().step;
        let elsewhere = Elsewhere::default();
        let (calls, used, previews, seated) = (0, 0.0, 0, false);
        Self { job, image, stage: 0, elsewhere, trajectory, owner, priority, calls, used, previews, seated, stepped }
    }

    /// The same in this stage of its job, after these previews of the stage before.
    pub(super) fn in_stage(self, stage: usize, elsewhere: Elsewhere, previews: u32) -> Self {
        Self { stage, elsewhere, previews, ..self }
    }

    /// How far the picture is, both models' steps counted.
    pub(super) fn progress(&self) -> Progress {
        let Progress { step, steps } = self.trajectory.progress();
        let Elsewhere { before, after } = self.elsewhere;
        Progress { step: before + step, steps: before + steps + after }
    }

    /// Takes note of a call; gives the steps that it finished, which is none in the middle of a second-order step.
    pub(super) fn called(&mut self) -> usize {
        self.calls += 1;
        self.used += 1.0 / policy::weight(self.priority);
        let step = self.trajectory.progress().step;
        let steps = step.saturating_sub(self.stepped);
        self.stepped = step;
        steps
    }

    /// Model calls that it still needs; second-order samplers make two a step, as the calls so far show.
    pub(super) fn calls_left(&self) -> f64 {
        let progress = self.trajectory.progress();
        let left = progress.steps.saturating_sub(progress.step) as f64;
        if progress.step == 0 { left } else { left * (self.calls as f64 / progress.step as f64).max(1.0) }
    }
}

/// Rows that may share a model call.
pub(super) struct Group {
    pub(super) class: Class,
    pub(super) key: BatchKey,
    pub(super) rows: Vec<Row>,
    /// Device time used, divided by the share at the time.
    pub(super) used: f64,
    /// Of the device's time, in proportion to the other groups'.
    pub(super) share: f64,
    /// Whose rows these are, and the highest priority of each owner's.
    pub(super) owners: HashMap<Arc<str>, Priority>,
    /// Bytes that a row of a call takes, as the model estimates it.
    pub(super) row_bytes: u64,
    pub(super) on_cpu: bool,
    /// Set when its rows failed together although each of them works alone: they are then called one by one.
    pub(super) alone: bool,
}

impl Group {
    /// Its key in the cost model.
    pub(super) fn place(&self) -> Place {
        Place { model: self.class.model, latent: self.key.latent }
    }

    /// Rows of a call that all of its pictures took part in.
    pub(super) fn width(&self) -> usize {
        self.rows.iter().map(|row| row.trajectory.rows()).sum()
    }

    /// Rows of the call at hand.
    pub(super) fn seated(&self) -> usize {
        self.rows.iter().filter(|row| row.seated).map(|row| row.trajectory.rows()).sum()
    }

    /// Chooses the pictures of the next call, of at most `most` rows.
    pub(super) fn seat(&mut self, most: usize) {
        let pictures: Vec<Seat> = self.rows.iter().map(Seat::from).collect();
        self.unseat();
        policy::seats(&pictures, most, |row| self.rows[row].seated = true);
    }

    /// Takes everyone out of the call at hand.
    pub(super) fn unseat(&mut self) {
        for row in &mut self.rows {
            row.seated = false;
        }
    }

    /// The row of one picture.
    pub(super) fn find(&self, job: u64, image: usize) -> Option<usize> {
        self.rows.iter().position(|row| row.job == job && row.image == image)
    }

    fn recount(&mut self) {
        self.owners.clear();
        for row in &self.rows {
            let highest = self.owners.entry(Arc::clone(&row.owner)).or_insert(row.priority);
            *highest = row.priority.max(*highest);
        }
    }
}

impl From<&Row> for Seat {
    fn from(row: &Row) -> Self {
        let progress = row.trajectory.progress();
        let left = progress.steps.saturating_sub(progress.step);
        Self { rows: row.trajectory.rows(), used: row.used, left }
    }
}

/// Every running group of a device.
#[derive(Default)]
pub(super) struct Groups {
    list: Vec<Group>,
    /// Whether rows left since the last sweep.
    left: bool,
}

impl Groups {
    /// Whether nothing runs.
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The groups, in no particular order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Group> {
        self.list.iter()
    }

    /// The group whose call is next.
    pub(super) fn turn(&self) -> Option<usize> {
        policy::turn(self.list.iter().map(|group| group.used))
    }

    /// A group by its place.
    pub(super) fn get(&self, group: usize) -> &Group {
        &self.list[group]
    }

    /// A group by its place.
    pub(super) fn get_mut(&mut self, group: usize) -> &mut Group {
        &mut self.list[group]
    }

    /// Lets a row join the group with its key, or opens one; `row_bytes` is asked for a new group only. Returns why the
    /// row could not join the groups that were there, one reason each, when it had to open one.
    pub(super) fn join(&mut self, class: Class, mut row: Row, row_bytes: impl FnOnce() -> u64) -> Vec<Mismatch> {
        let key = row.trajectory.key();
        // The model's place is compared beside its name: one source may be served under two names.
        let same = |group: &&mut Group| group.class.model == class.model && group.key.mismatch(key).is_none();
        if let Some(group) = self.list.iter_mut().find(same) {
            // At the head of those who have waited for a seat longest, so that it has one in the next call.
            row.used = group.rows.iter().map(|row| row.used).min_by(f64::total_cmp).unwrap_or_default();
            group.rows.push(row);
            self.rebalance();
            return Vec::new();
        }
        let refused =
            self.list.iter().map(|group| group.key.mismatch(key).unwrap_or(Mismatch::Model)).collect::<Vec<_>>();
        let on_cpu = row.trajectory.latents().device().is_cpu();
        self.list.push(Group {
            class,
            key: key.clone(),
            used: self.list.iter().map(|group| group.used).min_by(f64::total_cmp).unwrap_or_default(),
            share: 1.0,
            owners: HashMap::new(),
            row_bytes: row_bytes(),
            on_cpu,
            alone: false,
            rows: vec![row],
        });
        self.rebalance();
        refused
    }

    /// Drops rows that are not to be kept. Groups keep their places until [`Self::sweep`], since a call may be under
    /// way.
    pub(super) fn retain(&mut self, keep: impl Fn(&Row) -> bool) {
        for group in &mut self.list {
            group.rows.retain(&keep);
        }
        self.left = true;
    }

    /// Takes the finished rows out of a group.
    pub(super) fn take_done(&mut self, group: usize) -> Vec<Row> {
        let done: Vec<Row> = self.list[group].rows.extract_if(.., |row| row.trajectory.done()).collect();
        self.left |= !done.is_empty();
        done
    }

    /// Drops groups without rows, once rows were dropped or done.
    pub(super) fn sweep(&mut self) {
        if std::mem::take(&mut self.left) {
            self.list.retain(|group| !group.rows.is_empty());
            self.rebalance();
        }
    }

    /// Brings owners and shares up to date after rows came or went.
    fn rebalance(&mut self) {
        self.list.iter_mut().for_each(Group::recount);
        let owners: Vec<_> = self.list.iter().map(|group| (group.class.model, &group.owners)).collect();
        let shares = policy::shares(&owners);
        for (group, share) in self.list.iter_mut().zip(shares) {
            group.share = share;
        }
    }
}

#[cfg(test)]
mod tests {
    use easel_models::Pipeline;
    use easel_models::samplers::SamplingSpec;
    use easel_models::{Prompt, RenderSpec};

    use super::super::tests::fake::Fake;
    use super::*;

    /// A row that is about to join, and its class. A text of more than 40 letters has a longer context.
    fn row(model: usize, width: u32, text: &str, owner: &str) -> (Class, Row) {
        let fake = Fake::new(["first", "second"][model]);
        let conditioning = fake.encode(&Prompt::new(text)).unwrap();
        let spec = RenderSpec::new(width, 64, 0, SamplingSpec::steps(5));
        let trajectory = fake.begin(&spec, Arc::new(conditioning), None).unwrap();
        (Class { model, width, height: 64 }, Row::new(0, 0, trajectory, owner.into(), Priority::Normal))
    }

    fn join(groups: &mut Groups, (class, row): (Class, Row)) -> Vec<Mismatch> {
        groups.join(class, row, || 1)
    }

    const LONG: &str = "a text that takes more than the forty letters of one chunk";

    #[test]
    fn a_row_that_opens_its_own_group_has_a_reason_for_every_other() {
        let mut groups = Groups::default();
        assert_eq!(join(&mut groups, row(0, 64, "a", "x")), []);
        assert_eq!(join(&mut groups, row(0, 128, "a", "x")), [Mismatch::LatentShape]);
        assert_eq!(join(&mut groups, row(0, 128, LONG, "x")), [Mismatch::LatentShape, Mismatch::ContextLength]);
        assert_eq!(join(&mut groups, row(1, 64, "a", "x")), [Mismatch::Model; 3]);
        assert_eq!(join(&mut groups, row(0, 64, "another", "y")), []);
        assert_eq!(groups.iter().map(|group| group.rows.len()).collect::<Vec<_>>(), [2, 1, 1, 1]);
    }

    #[test]
    fn one_source_under_two_names_is_two_models() {
        let mut groups = Groups::default();
        join(&mut groups, row(0, 64, "a", "x"));
        let (class, row) = row(0, 64, "a", "x");
        assert_eq!(join(&mut groups, (Class { model: 1, ..class }, row)), [Mismatch::Model]);
    }

    #[test]
    fn who_joins_late_starts_where_the_others_are() {
        let mut groups = Groups::default();
        join(&mut groups, row(0, 64, "a", "x"));
        groups.get_mut(0).used = 7.0;
        groups.get_mut(0).rows[0].used = 3.0;
        join(&mut groups, row(0, 64, "b", "x"));
        join(&mut groups, row(0, 128, "b", "y"));
        assert_eq!(groups.get(0).rows[1].used, 3.0);
        assert_eq!(groups.get(1).used, 7.0);
    }

    #[test]
    fn groups_keep_their_places_until_they_are_swept() {
        let mut groups = Groups::default();
        join(&mut groups, row(0, 64, "a", "x"));
        join(&mut groups, row(0, 128, "a", "y"));
        groups.retain(|row| row.owner.as_ref() != "x");
        assert_eq!(groups.iter().map(|group| group.rows.len()).collect::<Vec<_>>(), [0, 1]);
        groups.sweep();
        assert_eq!(groups.get(0).class.width, 128);
        assert_eq!(groups.get(0).share, policy::weight(Priority::Normal));
    }
}
