//! What goes wrong in a simulated world, and how often.

use std::{ops::RangeInclusive, time::Duration};

use super::SimRng;

/// Probabilities from 0 to 1, and ranges that are drawn from evenly.
///
/// Every fault keeps the promises of edge-triggered readiness: what a fault holds back (a late
/// event, an invented `WouldBlock`, a short read) is followed by an event within
/// [`retry_after`](Self::retry_after). The exception is the real one: after an error of `accept`
/// nothing tells of the connections that still wait.
#[derive(Clone, Debug)]
pub(crate) struct Faults {
    /// One way, for each segment; segments of one direction never overtake one another.
    pub(crate) latency: RangeInclusive<Duration>,
    /// How many bytes travel together. At most 64 segments are made of one write.
    pub(crate) segment: RangeInclusive<usize>,
    /// Send buffers, where the stream options name none or `ignore_buffer_options` is set.
    pub(crate) send_buffer: RangeInclusive<usize>,
    /// Receive buffers, likewise.
    pub(crate) receive_buffer: RangeInclusive<usize>,
    /// Draws all buffers from the ranges above.
    pub(crate) ignore_buffer_options: bool,

    /// A read returns less than there is; an event follows at once.
    pub(crate) short_read: f64,
    /// A write takes less than there is room for; an event follows.
    pub(crate) partial_write: f64,
    /// A write claims one byte more than it took, which no kernel does: a bug to be found.
    pub(crate) lost_by_write: f64,
    /// A read, write or accept is interrupted.
    pub(crate) interrupted: f64,
    /// A read, write or accept would block although it need not; an event follows.
    pub(crate) would_block: f64,
    /// When the event comes that follows.
    pub(crate) retry_after: RangeInclusive<Duration>,

    /// A poll returns an event for a socket that nothing happened to, up to three of them.
    pub(crate) spurious_event: f64,
    /// An event comes some polls later.
    pub(crate) late_event: f64,
    /// An event has only the flags that changed, readable and writable in an event each.
    pub(crate) split_event: f64,
    /// A poll returns its events in any order.
    pub(crate) reorder_events: f64,
    /// An end is not hinted at by `read_closed`; a plain readable event follows.
    pub(crate) missing_hint: f64,

    /// A direction delivers nothing for a while; drawn for each segment.
    pub(crate) stall: f64,
    pub(crate) stall_time: RangeInclusive<Duration>,
    /// The hosts of a connection are cut off from one another, one way in a third of the cases;
    /// drawn for each segment.
    pub(crate) partition: f64,
    pub(crate) partition_time: RangeInclusive<Duration>,

    /// The network resets the connection soon; drawn for each write.
    pub(crate) reset: f64,
    /// What had arrived and was not read is lost with a reset.
    pub(crate) reset_loses_unread: f64,
    /// The connection is reset just as `shutdown` is called, which fails.
    pub(crate) shutdown_error: f64,

    /// `accept` fails and takes the connection out of the backlog.
    pub(crate) accept_aborted: f64,
    /// `accept` fails for want of memory and the like; the connection still waits.
    pub(crate) accept_error: f64,
    /// The process runs out of descriptors for a while; drawn for each accept and connect.
    pub(crate) exhausted: f64,
    pub(crate) exhausted_time: RangeInclusive<Duration>,
    /// `register` fails.
    pub(crate) register_error: f64,

    /// `connect` itself fails.
    pub(crate) connect_error: f64,
    /// A started connect is refused.
    pub(crate) connect_refused: f64,
    /// A started connect finds no way.
    pub(crate) connect_unreachable: f64,
    /// A started connect times out, after `connect_delay_time`.
    pub(crate) connect_timeout: f64,
    /// A started connect is never decided.
    pub(crate) black_hole: f64,
    /// A started connect takes long.
    pub(crate) connect_delay: f64,
    pub(crate) connect_delay_time: RangeInclusive<Duration>,
    /// A connection is reset just after it was made.
    pub(crate) connect_reset: f64,
    /// A connect to a port of one's own machine that nobody listens on reaches itself.
    pub(crate) self_connect: f64,

    /// How long looking a name up takes.
    pub(crate) resolve_time: RangeInclusive<Duration>,
    /// A lookup fails.
    pub(crate) resolve_error: f64,
    /// A lookup is not answered before the world is calm.
    pub(crate) resolve_never: f64,
}

impl Faults {
    /// A network that works: 100 µs of latency, buffers of 256 KiB, and nothing goes wrong.
    pub(crate) const fn none() -> Self {
        const LATENCY: Duration = Duration::from_micros(100);
        Self {
            latency: LATENCY..=LATENCY,
            segment: 65_536..=65_536,
            send_buffer: 262_144..=262_144,
            receive_buffer: 262_144..=262_144,
            ignore_buffer_options: false,
            short_read: 0.0,
            partial_write: 0.0,
            lost_by_write: 0.0,
            interrupted: 0.0,
            would_block: 0.0,
            retry_after: Duration::ZERO..=Duration::from_millis(20),
            spurious_event: 0.0,
            late_event: 0.0,
            split_event: 0.0,
            reorder_events: 0.0,
            missing_hint: 0.0,
            stall: 0.0,
            stall_time: Duration::from_millis(1)..=Duration::from_mins(1),
            partition: 0.0,
            partition_time: Duration::from_millis(100)..=Duration::from_mins(2),
            reset: 0.0,
            reset_loses_unread: 0.0,
            shutdown_error: 0.0,
            accept_aborted: 0.0,
            accept_error: 0.0,
            exhausted: 0.0,
            exhausted_time: Duration::from_millis(10)..=Duration::from_secs(10),
            register_error: 0.0,
            connect_error: 0.0,
            connect_refused: 0.0,
            connect_unreachable: 0.0,
            connect_timeout: 0.0,
            black_hole: 0.0,
            connect_delay: 0.0,
            connect_delay_time: Duration::from_millis(10)..=Duration::from_secs(130),
            connect_reset: 0.0,
            self_connect: 0.0,
            resolve_time: LATENCY..=LATENCY,
            resolve_error: 0.0,
            resolve_never: 0.0,
        }
    }

    /// Draws first which faults there are, then how strong each is, so that some seeds are calm and
    /// some savage.
    pub(crate) fn from_seed(rng: &mut SimRng) -> Self {
        let latency = Duration::from_micros(1) * (1_u32 << rng.below(22));
        let mut faults = Self::none();
        faults.latency = latency / 4..=latency;
        faults.resolve_time = latency / 4..=latency * 2;
        if rng.chance(0.5) {
            faults.segment = 1..=1 << rng.below(17);
        }
        if rng.chance(0.5) {
            faults.ignore_buffer_options = true;
            faults.send_buffer = 1..=1 << rng.below(19);
            faults.receive_buffer = 1..=1 << rng.below(19);
        }
        for (fault, most) in faults.probabilities() {
            // Squared, for there is more to see between 0 and a tenth than above.
            *fault = if rng.chance(0.5) { most * rng.fraction().powi(2) } else { 0.0 };
        }
        faults
    }

    /// The same without what loses bytes or keeps a connection from being made: whatever is written
    /// arrives in the end, unless an end is closed early.
    pub(crate) fn lossless(self) -> Self {
        Self {
            reset: 0.0,
            shutdown_error: 0.0,
            accept_aborted: 0.0,
            connect_error: 0.0,
            connect_refused: 0.0,
            connect_unreachable: 0.0,
            connect_timeout: 0.0,
            black_hole: 0.0,
            connect_reset: 0.0,
            ..self
        }
    }

    /// Each probability with the most that a seed makes of it.
    fn probabilities(&mut self) -> [(&mut f64, f64); 28] {
        [
            (&mut self.short_read, 1.0),
            (&mut self.partial_write, 0.5),
            (&mut self.interrupted, 0.2),
            (&mut self.would_block, 0.2),
            (&mut self.spurious_event, 0.2),
            (&mut self.late_event, 0.2),
            (&mut self.split_event, 1.0),
            (&mut self.reorder_events, 1.0),
            (&mut self.missing_hint, 0.5),
            (&mut self.stall, 0.02),
            (&mut self.partition, 0.005),
            (&mut self.reset, 0.02),
            (&mut self.reset_loses_unread, 1.0),
            (&mut self.shutdown_error, 0.2),
            (&mut self.accept_aborted, 0.2),
            (&mut self.accept_error, 0.2),
            (&mut self.exhausted, 0.05),
            (&mut self.register_error, 0.1),
            (&mut self.connect_error, 0.1),
            (&mut self.connect_refused, 0.2),
            (&mut self.connect_unreachable, 0.2),
            (&mut self.connect_timeout, 0.1),
            (&mut self.black_hole, 0.1),
            (&mut self.connect_delay, 0.2),
            (&mut self.connect_reset, 0.2),
            (&mut self.self_connect, 1.0),
            (&mut self.resolve_error, 0.2),
            (&mut self.resolve_never, 0.05),
        ]
    }
}
