//! Places in the waiting list, bounded by a key's class.

use super::Caller;
use crate::request::Priority;

impl Caller {
    /// The priority that the caller gets for asking `asked`: never above its class. The second part says so when
    /// an explicit wish was lowered. Lowered, not refused: the picture is the same, it only comes later.
    pub fn bounded(&self, asked: Option<Priority>) -> (Priority, Option<String>) {
        let wish = asked.unwrap_or_default();
        let given = wish.min(self.priority);
        let lowered = asked.is_some() && given < wish;
        let warning = lowered.then(|| format!("`priority` was lowered to {}, the key's class", given.name()));
        (given, warning)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_above_the_class_is_lowered_with_a_warning_and_silence_is_not_warned_of() {
        let caller = |priority| Caller { priority, ..Caller::local() };
        assert_eq!(caller(Priority::High).bounded(Some(Priority::High)), (Priority::High, None));
        assert_eq!(caller(Priority::High).bounded(None), (Priority::Normal, None));
        assert_eq!(caller(Priority::Low).bounded(None), (Priority::Low, None));
        let (given, warning) = caller(Priority::Normal).bounded(Some(Priority::High));
        assert_eq!(given, Priority::Normal);
        assert!(warning.unwrap().contains("normal"));
    }
}
