//! What a run is found guilty of.
//!
//! The reactor catches the panics of callbacks, so an assertion that fails in one goes unnoticed.
//! Whatever is checked there is noted here, and judged between two turns, where nobody catches it.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// What is checked of each run.
///
/// For each there is a bug in `plants` that it must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    // Messages.
    /// What arrives was accepted.
    Accepted,
    /// No message arrives twice.
    Once,
    /// Messages of an epoch arrive in the order in which they were accepted.
    InOrder,
    /// Broadcasts arrive once and in order.
    News,
    /// A receiver that read to the end received all that was written.
    NoneLost,
    /// No more arrives than was written.
    NoneInvented,
    /// An epoch ends once, at either side.
    SenderEndsOnce,
    ReceiverEndsOnce,
    /// Each message was written, or reported as unsent or as undelivered.
    Accounts,
    /// The handler is given as many messages as are counted.
    Counts,
    /// A body is as it was sent.
    Whole,
    /// A frame is of the kind that it was sent as.
    Kind,
    /// No peer breaks the format.
    Format,

    // Calls.
    /// A request that arrives is of a call that was started.
    Started,
    /// No request arrives twice.
    RequestOnce,
    /// A request that arrives was not told to be unsent before,
    UnsentStays,
    /// nor is it told afterwards.
    SeenIsSent,
    /// A call ends once,
    EndsOnce,
    /// and not never.
    Ends,
    /// A reply is that to its call,
    OwnReply,
    /// and somebody gave it.
    GivenReply,
    /// Only what was cancelled ends as cancelled.
    CancelsOwn,

    // Connections.
    /// A connection connects once an epoch.
    ConnectsOnce,
    /// It disconnects once, and only after that.
    Disconnects,
    /// Messages come between the two.
    WithinEpoch,
    /// Each side speaks the format that belongs to the port.
    Speaks,
    /// Who took everything, or sent something in time, is not cut as silent or as slow.
    HealthyStays,
    /// An id of another reactor finds nothing.
    OwnIds,
    /// What was ended for good does not connect again.
    StaysEnded,
    /// A reactor that stops takes nothing new.
    RefusesNew,
    /// A client comes back once the network has recovered.
    ComesBack,
    /// Stopping takes as long as was said.
    Stops,
    /// Nothing is left when all has stopped.
    NothingLeft,

    // The run itself.
    /// Callbacks panic where that is planned.
    Panics,
}

/// A check that failed, and how.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    pub(super) check: Check,
    pub(super) text: String,
}

/// The verdicts of a run; clones are the same list.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdicts {
    found: Rc<RefCell<Vec<Verdict>>>,
    /// Panics that callbacks were made to have.
    planned: Arc<AtomicU64>,
}

/// The text of a panic that is meant to be.
pub(super) const PLANNED: &str = "planned";

/// More of one run help nobody.
const MOST: usize = 10;

impl Verdicts {
    /// Notes a verdict unless this holds. Whether it does.
    pub(super) fn check(&self, check: Check, holds: bool, text: impl FnOnce() -> String) -> bool {
        if !holds {
            self.note(check, text());
        }
        holds
    }

    pub(super) fn note(&self, check: Check, text: String) {
        let mut found = self.found.borrow_mut();
        if found.len() < MOST {
            found.push(Verdict { check, text });
        }
    }

    /// Panics in a callback, as the test means it to.
    pub(super) fn plan_panic(&self) -> ! {
        self.planned.fetch_add(1, Ordering::Relaxed);
        panic!("{PLANNED}");
    }

    /// Panics if there is a verdict; to be called where nobody catches that. `panics` is how many
    /// the reactors have caught.
    #[track_caller]
    pub(super) fn judge(&self, panics: u64) {
        let planned = self.planned.load(Ordering::Relaxed);
        if panics != planned && self.found.borrow().is_empty() {
            let text = format!("{panics} panics of callbacks, of which {planned} were planned");
            self.note(Check::Panics, text);
        }
        self.judge_found();
    }

    /// Panics if there is a verdict, whatever panicked: a test of panics judges these itself.
    #[track_caller]
    pub(super) fn judge_found(&self) {
        let found = self.found.borrow();
        assert!(found.is_empty(), "{found:#?}");
    }

    /// Counts the panics that are planned where a callback has nothing else of the test.
    pub(super) fn planner(&self) -> Arc<AtomicU64> {
        self.planned.clone()
    }

    /// The first verdict.
    pub(super) fn first(&self) -> Option<Verdict> {
        self.found.borrow().first().cloned()
    }
}
