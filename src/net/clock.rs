//! The clock of the system.

use std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
pub(super) fn clock() -> Instant {
    Instant::now()
}
