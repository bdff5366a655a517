//! How far a stop has come, of the reactor or of a listener with what it accepted.

use std::{collections::VecDeque, time::Duration};

use crate::{CloseReport, DrainReport, ListenerId, id::TimerKey, moment::Moment};

/// Listeners and reactors that are stopping, and their reports so far.
#[derive(Debug)]
pub(crate) struct Stopping {
    phase: StopPhase,
    /// When stopping is cut, and the timer of that.
    alarm: Option<(TimerKey, Moment)>,
    /// How long stopping may take where nobody has said so.
    timeout: Duration,
    /// Walks over the connections that are to drain.
    sweeps: VecDeque<Sweep>,
    /// Listeners whose connections are to end.
    drains: Vec<Drain>,
    report: DrainReport,
}

/// How far stopping has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StopPhase {
    Running,
    /// Connections drain.
    Stopping,
    /// Every connection is gone.
    Stopped,
}

/// A walk over all slots, which drains their connections.
#[derive(Debug)]
struct Sweep {
    /// Only what this listener accepted.
    listener: Option<ListenerId>,
    /// The slot to look at next.
    next: usize,
}

/// A listener that is closed, and whose connections are to end.
#[derive(Debug)]
struct Drain {
    listener: ListenerId,
    /// Connections that have not ended.
    left: usize,
    report: DrainReport,
}

impl Stopping {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self {
            phase: StopPhase::Running,
            alarm: None,
            timeout,
            sweeps: VecDeque::new(),
            drains: Vec::new(),
            report: DrainReport::default(),
        }
    }

    #[inline]
    pub(crate) const fn phase(&self) -> StopPhase {
        self.phase
    }

    /// How long stopping may take where nobody has said so.
    pub(crate) const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The report of stopping, so far.
    pub(crate) const fn report(&self) -> DrainReport {
        self.report
    }

    /// Whether a turn has something to do.
    #[inline]
    pub(crate) fn has_work(&self) -> bool {
        !self.sweeps.is_empty() || self.drains.iter().any(|drain| drain.left == 0)
    }

    // ---- the reactor ----

    /// All connections drain from now on.
    pub(crate) fn begin(&mut self) {
        self.phase = StopPhase::Stopping;
        self.sweeps.push_back(Sweep { listener: None, next: 0 });
    }

    /// When it is cut, and the timer of that.
    pub(crate) const fn alarm(&self) -> Option<(TimerKey, Moment)> {
        self.alarm
    }

    pub(crate) const fn set_alarm(&mut self, alarm: Option<(TimerKey, Moment)>) {
        self.alarm = alarm;
    }

    /// The rest is dropped.
    pub(crate) fn cut(&mut self) {
        self.alarm = None;
        self.sweeps.clear();
    }

    /// Every connection is gone.
    pub(crate) fn end(&mut self) {
        self.cut();
        self.phase = StopPhase::Stopped;
    }

    // ---- listeners ----

    /// The connections that a closed listener accepted drain; there are so many.
    pub(crate) fn begin_drain(&mut self, listener: ListenerId, connections: usize) {
        let report = DrainReport::default();
        self.drains.push(Drain { listener, left: connections, report });
        self.sweeps.push_back(Sweep { listener: Some(listener), next: 0 });
    }

    /// Whether connections of closed listeners are to end.
    #[inline]
    pub(crate) const fn has_drains(&self) -> bool {
        !self.drains.is_empty()
    }

    /// A listener whose last connection has ended, and what was cut.
    #[inline]
    pub(crate) fn take_drained(&mut self) -> Option<(ListenerId, DrainReport)> {
        let place = self.drains.iter().position(|drain| drain.left == 0)?;
        let Drain { listener, report, .. } = self.drains.remove(place);
        Some((listener, report))
    }

    fn drain_mut(&mut self, listener: Option<ListenerId>) -> Option<&mut Drain> {
        self.drains.iter_mut().find(|drain| Some(drain.listener) == listener)
    }

    // ---- connections ----

    /// The next slot whose connection is to drain, if this listener or any has accepted it. `None` if
    /// there is none below `end` for the walk that is the oldest, or no walk.
    pub(crate) fn next_to_drain(&mut self, end: usize) -> Option<(usize, Option<ListenerId>)> {
        let sweep = self.sweeps.front_mut()?;
        if sweep.next >= end {
            self.sweeps.pop_front();
            return None;
        }
        sweep.next += 1;
        Some((sweep.next - 1, sweep.listener))
    }

    /// Whether connections are left to drain.
    #[inline]
    pub(crate) fn has_sweeps(&self) -> bool {
        !self.sweeps.is_empty()
    }

    /// An epoch of a connection has ended.
    pub(crate) fn count_end(&mut self, listener: Option<ListenerId>, report: &CloseReport) {
        if self.phase != StopPhase::Running {
            self.report.add(report);
        }
        if let Some(drain) = self.drain_mut(listener) {
            drain.report.add(report);
        }
    }

    /// A connection that this listener accepted, if one did, is gone.
    pub(crate) fn count_gone(&mut self, listener: Option<ListenerId>) {
        if let Some(drain) = self.drain_mut(listener) {
            drain.left -= 1;
        }
    }

    /// A message that was accepted found no connection.
    pub(crate) fn count_unsent(&mut self) {
        if self.phase != StopPhase::Running {
            self.report.unsent_messages += 1;
        }
    }
}
