//! Counters of the reactor and of its connections.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counters of a reactor, since it was made.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The same, to be read by other threads; the loop writes it once a turn.
        #[derive(Debug, Default)]
        pub(crate) struct SharedStats {
            $($name: AtomicU64,)*
        }

        impl SharedStats {
            pub(crate) fn publish(&self, stats: &Stats) {
                $(self.$name.store(stats.$name, Ordering::Relaxed);)*
            }

            pub(crate) fn read(&self) -> Stats {
                Stats { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

stats! {
    /// Turns of the loop.
    turns,
    /// Connections that exist now: up, closing, or dialled and waiting.
    connections,
    /// Connections accepted.
    accepted,
    /// Connections that were refused because of a limit.
    refused,
    /// Epochs of dialled connections that were established.
    dialled,
    /// Rounds of dialling that failed.
    dials_failed,
    /// Accepted connections that ended before they were up, as no hello of the peer's came.
    handshakes_failed,
    /// Epochs that ended, of accepted and dialled connections.
    disconnected,
    /// Messages received: requests, replies and pushes.
    messages_in,
    /// Messages given to the system whole.
    messages_out,
    /// Bytes read.
    bytes_in,
    /// Bytes written.
    bytes_out,
    /// Calls of the write system call.
    writes,
    /// Calls of ours in flight now.
    calls_in_flight,
    /// Calls of ours that timed out.
    calls_timed_out,
    /// Replies to calls that were no longer in flight.
    late_replies,
    /// Accepted messages that were never given to the system whole.
    undelivered,
    /// Commands taken from the mailbox.
    commands,
    /// Callbacks that panicked.
    panics,
    /// Broadcast bodies that were encoded: once for each protocol among the receivers.
    encoded_broadcasts,
    /// Connections closed as slow consumers.
    slow_consumers,
    /// Times that accepting failed.
    accept_errors,
}

/// The counters of one connection, in its present epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnStats {
    /// Messages received: requests, replies and pushes.
    pub messages_in: u64,
    /// Messages given to the system whole.
    pub messages_out: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes queued and not written, with the overhead that they are charged.
    pub queued: usize,
    /// Calls of ours in flight.
    pub calls_in_flight: usize,
    /// Requests of the peer's in flight, those deferred.
    pub requests_in_flight: usize,
    /// Replies to calls that were no longer in flight.
    pub late_replies: u32,
    /// The last round trip of a heartbeat, where there was one.
    pub round_trip: Option<Duration>,
}
