//! When previews are due.

/// The step after which preview `index` (from 0) of `wanted` is due, for a picture of `steps` steps.
///
/// Previews are spread evenly and none falls on the last step, after which the picture itself comes. `None` when
/// there are no more, which is also so when more are wanted than there are steps to show.
pub(super) fn due(index: u32, wanted: u32, steps: usize) -> Option<usize> {
    let shown = (wanted as usize).min(steps.saturating_sub(1));
    let place = index as usize + 1;
    (place <= shown).then(|| (place * steps).div_ceil(shown + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(wanted: u32, steps: usize) -> Vec<usize> {
        (0..).map_while(|index| due(index, wanted, steps)).collect()
    }

    #[test]
    fn previews_are_spread_evenly() {
        assert_eq!(all(3, 20), [5, 10, 15]);
        assert_eq!(all(1, 20), [10]);
        assert_eq!(all(2, 10), [4, 7]);
        assert!(all(0, 20).is_empty());
    }

    #[test]
    fn every_preview_has_a_step_of_its_own_before_the_last() {
        for steps in 0..40 {
            for wanted in 0..45 {
                let steps_shown = all(wanted, steps);
                assert!(steps_shown.windows(2).all(|pair| pair[0] < pair[1]), "{wanted} of {steps}: {steps_shown:?}");
                assert!(steps_shown.iter().all(|step| (1..steps).contains(step)), "{wanted} of {steps}");
                assert_eq!(steps_shown.len(), (wanted as usize).min(steps.saturating_sub(1)));
            }
        }
    }
}
