//! The settings of a reactor.

use std::{any::TypeId, sync::Arc, time::Duration};

use crate::{
    Config, ConfigError, Error, Handler, Stats,
    api::shared::Shared,
    config::at_most,
    core::{rng::Rng, spin::Spin, write_queue::QueuePool},
    engine::Engine,
    id::MAX_SLOTS,
    net::Net,
    protocol::Protocol,
    table::{
        awaiters::Awaiters, broadcasts::Fanouts, clock::Clock, listeners::Listeners,
        losses::Losses, profile::Profiles, serving::Serving, slots::Slots, state::State,
        stopping::Stopping, work::Work,
    },
    threads::number::ReactorNumber,
};

/// Descriptors that connections leave to the rest of the process.
const RESERVED_DESCRIPTORS: usize = 32;

/// Settings of a reactor, as against those of its connections.
///
/// # Examples
///
/// ```
/// # use longhaul::{Conn, Handler, Message};
/// # struct Echo;
/// # impl Handler for Echo {
/// #     type Protocol = Length;
/// #     fn on_message(&mut self, _: &mut Conn<'_, Length>, _: Message<'_, Length>) {}
/// # }
/// use longhaul::{ReactorBuilder, protocol::Length};
///
/// let reactor = ReactorBuilder::new(Length::default()).max_connections(100).build(Echo)?;
/// # Ok::<(), longhaul::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ReactorBuilder<P> {
    protocol: P,
    config: Config,
    mailbox_commands: usize,
    mailbox_bytes: usize,
    max_connections: Option<usize>,
    stop_timeout: Duration,
    busy_poll: Duration,
    seed: Option<u64>,
    first_call: Option<u64>,
    /// The reactor's number, where a test has fixed it.
    #[cfg(test)]
    number: Option<u8>,
}

impl<P: Protocol> ReactorBuilder<P> {
    /// The defaults, and the protocol of listeners and dialled connections that are given none of
    /// their own.
    pub fn new(protocol: P) -> Self {
        Self {
            protocol,
            config: Config::default(),
            mailbox_commands: 65_536,
            mailbox_bytes: 64 * 1024 * 1024,
            max_connections: None,
            stop_timeout: Duration::from_secs(5),
            busy_poll: Duration::ZERO,
            seed: None,
            first_call: None,
            #[cfg(test)]
            number: None,
        }
    }

    /// The settings of listeners and dialled connections that are given none of their own.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    pub(crate) const fn default_config(&self) -> &Config {
        &self.config
    }

    /// The commands, and the bytes of bodies in them, that wait in the mailbox at most; more are
    /// refused as full. One body is taken even if it is longer than that. Both at least 1. Default: 65 536,
    /// 64 MiB.
    ///
    /// Commands that end something wait beside them. Their number is bounded by what exists: at most three
    /// for a connection, one for a call or a deferred request, and one to stop.
    #[must_use]
    pub const fn mailbox(mut self, commands: usize, bytes: usize) -> Self {
        self.mailbox_commands = commands;
        self.mailbox_bytes = at_most(bytes);
        self
    }

    /// The upper bound on connections, accepted and dialled together. Further accepted ones are closed at
    /// once. Default: the process' limit on descriptors less 32; never more than 2²⁴, for which ids have
    /// room. At least 1.
    #[must_use]
    pub const fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = Some(connections);
        self
    }

    /// How long stopping may take until what is left is cut. Zero: at once. Default: 5 s.
    #[must_use]
    pub const fn stop_timeout(mut self, timeout: Duration) -> Self {
        self.stop_timeout = timeout;
        self
    }

    /// How long the loop looks for work, again and again, before it sleeps. Default: zero, it sleeps
    /// at once.
    ///
    /// Saves the time that the system takes to wake the loop, and costs a processor that is busy for
    /// that long after every message. Worth it where a message comes sooner than that most of the
    /// time, and a core is to spare; `docs/performance.md` has figures. The loop yields between two
    /// looks, so it takes no time from other threads of its core.
    #[must_use]
    pub const fn busy_poll(mut self, duration: Duration) -> Self {
        self.busy_poll = duration;
        self
    }

    /// The seed of what is random here: jitter and ids. Default: from the system.
    #[must_use]
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Where call numbers start, to test their end.
    #[cfg(test)]
    pub(crate) const fn first_call(mut self, number: u64) -> Self {
        self.first_call = Some(number);
        self
    }

    /// Fixes the number that the ids of the connections name, so that a run can be repeated.
    #[cfg(test)]
    pub(crate) const fn number(mut self, number: u8) -> Self {
        self.number = Some(number);
        self
    }

    /// Checks that the settings can work.
    fn validate(&self) -> Result<(), ConfigError> {
        for (setting, number) in [
            ("mailbox", Some(self.mailbox_commands)),
            ("mailbox", Some(self.mailbox_bytes)),
            ("max_connections", self.max_connections),
        ] {
            if number == Some(0) {
                return Err(ConfigError { setting, problem: "must be at least 1".into() });
            }
        }
        self.config.validate()
    }

    /// Makes the reactor on a network.
    pub(crate) fn build_on<H: Handler<Protocol = P>, N: Net>(
        self,
        handler: H,
        mut net: N,
    ) -> Result<Engine<H, N>, Error> {
        self.validate()?;
        let descriptors = net.descriptor_limit().unwrap_or(usize::MAX);
        let of_system = descriptors.saturating_sub(RESERVED_DESCRIPTORS).clamp(1, MAX_SLOTS);
        let now = net.now();
        let seed = self.seed.unwrap_or_else(|| net.seed());
        #[cfg(not(test))]
        let number = ReactorNumber::take();
        #[cfg(test)]
        let number = self.number.map_or_else(ReactorNumber::take, ReactorNumber::fixed);
        let shared = Arc::new(Shared::new(
            number,
            net.waker(),
            self.mailbox_commands,
            self.mailbox_bytes,
            TypeId::of::<H>(),
        ));
        let state = State {
            slots: Slots::default(),
            board: shared.board.clone(),
            clock: Clock::new(net.origin(), now),
            work: Work::default(),
            serving: Serving::default(),
            fanouts: Fanouts::default(),
            listeners: Listeners::new(self.max_connections.unwrap_or(of_system).min(of_system)),
            awaiters: Awaiters::default(),
            losses: Losses::default(),
            stopping: Stopping::new(self.stop_timeout),
            profiles: Profiles::new(self.protocol, self.config),
            pool: QueuePool::default(),
            stats: Stats::default(),
            rng: Rng::new(seed),
            first_call: self.first_call,
        };
        Ok(Engine::new(handler, state, net, shared, Spin::new(self.busy_poll)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Native;

    #[test]
    fn zero_that_means_nothing_is_refused_by_the_name_of_its_setting() {
        let refused = |builder: ReactorBuilder<Native>| builder.validate().err();
        let new = || ReactorBuilder::new(Native);
        for (setting, builder) in [
            ("mailbox", new().mailbox(0, 1)),
            ("mailbox", new().mailbox(1, 0)),
            ("max_connections", new().max_connections(0)),
        ] {
            assert_eq!(refused(builder).map(|error| error.setting), Some(setting));
        }
        let least = new().mailbox(1, 1).max_connections(1);
        assert_eq!(refused(least.stop_timeout(Duration::ZERO).busy_poll(Duration::ZERO)), None);
    }
}
