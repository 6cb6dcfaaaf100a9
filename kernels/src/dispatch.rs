//! The choice between an operation's forms.
//!
//! `EASEL_PLAIN=1` in the environment (read once) forces the plain forms
//! everywhere: the first thing to try when a picture looks wrong. A test forces
//! them for a closure with [`with_plain_forms`]. A layer that owns weights
//! chooses when it is made, because a fast form may keep them in another
//! arrangement; an operation without weights chooses at each call.

use std::{cell::Cell, sync::LazyLock};

static PLAIN: LazyLock<bool> =
    LazyLock::new(|| std::env::var("EASEL_PLAIN").is_ok_and(|value| !value.is_empty() && value != "0"));

thread_local! {
    static PLAIN_HERE: Cell<bool> = const { Cell::new(false) };
    static DIRECT_HERE: Cell<bool> = const { Cell::new(false) };
}

/// Whether the plain forms are forced, by the environment or on this thread.
#[must_use]
pub fn plain_forms() -> bool {
    *PLAIN || PLAIN_HERE.get()
}

/// Runs `body` with the plain forms forced on this thread.
pub fn with_plain_forms<T>(body: impl FnOnce() -> T) -> T {
    /// Puts the former choice back, also when `body` panics.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            PLAIN_HERE.set(self.0);
        }
    }
    let _restore = Restore(PLAIN_HERE.replace(true));
    body()
}

/// Runs `body`, in which layers that are made keep the direct form of convolution on the CPU: for benches and tests, to
/// compare Winograd's form with.
pub fn with_direct_convolutions<T>(body: impl FnOnce() -> T) -> T {
    /// Puts the former choice back, also when `body` panics.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            DIRECT_HERE.set(self.0);
        }
    }
    let _restore = Restore(DIRECT_HERE.replace(true));
    body()
}

/// Whether convolutions are to be direct on this thread.
pub(crate) fn direct_convolutions() -> bool {
    DIRECT_HERE.get()
}

/// The function `$name` of the form that is to compute `$x`: of the first module that takes it, or the plain one. All of
/// them have one signature.
macro_rules! form {
    ($x:expr, $name:ident in [$($module:ident),+]) => {
        match () {
            $(() if crate::$module::takes($x) => crate::$module::$name,)+
            () => crate::plain::$name,
        }
    };
}
pub(crate) use form;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forced_choice_ends_with_its_closure() {
        let before = plain_forms();
        assert!(with_plain_forms(|| with_plain_forms(plain_forms) && plain_forms()));
        assert_eq!(plain_forms(), before);
    }
}
