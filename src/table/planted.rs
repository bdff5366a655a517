//! Bugs that only the reactor itself can have, planted by tests so that their checks find them.
//!
//! Outside of tests none is ever planted, and the compiler removes every question for one.

/// What goes wrong where it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// What is queued for a connection that was dropped is written all the same.
    WritesDropped,
    /// Every call that ends is told that its request was not sent.
    SaysNotSent,
    /// The callback of a call that ends without a reply is not run.
    ForgetsCalls,
    /// Fewer messages are reported as unsent than there are.
    ReportsFewerUnsent,
    /// The timers of a connection that is gone stay armed.
    KeepsTimers,
}

#[cfg(not(test))]
pub(crate) const fn is_planted(_: Bug) -> bool {
    false
}

#[cfg(test)]
pub(crate) use self::tests::{Planted, is_planted};

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    pub(crate) fn is_planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Keeps a bug planted, in the reactors of this thread, until it is dropped.
    pub(crate) struct Planted(());

    impl Planted {
        pub(crate) fn new(bug: Option<Bug>) -> Self {
            PLANTED.set(bug);
            Self(())
        }
    }

    impl Drop for Planted {
        fn drop(&mut self) {
            PLANTED.set(None);
        }
    }
}
