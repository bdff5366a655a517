//! The last of a value of the application's.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::panic_text;

/// Drops what the application gave, which may panic: here nothing is left that this could end.
pub(crate) fn drop_quietly(drops: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(drops)) {
        log::error!("dropping a value of the application panicked: {}", panic_text(&*panic));
    }
}
