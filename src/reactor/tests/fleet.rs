//! Several reactors on one simulated network, run turn by turn in virtual time.

use std::time::Duration;

use crate::{
    Handle, Handler, ReactorBuilder,
    core::moment::Moment,
    reactor::{
        net::sim::{HostId, SimNet, SimWorld},
        turn::Engine,
    },
};

/// One reactor and its host.
pub(super) struct Node<H: Handler> {
    pub(super) host: HostId,
    pub(super) engine: Engine<H, SimNet>,
}

/// All reactors of a run.
pub(super) struct Fleet<H: Handler> {
    pub(super) world: SimWorld,
    pub(super) nodes: Vec<Node<H>>,
    /// Turns since the time went on.
    standing: u32,
    /// Whether the invariants are checked after each turn, which costs as much as there are slots.
    pub(super) is_checked: bool,
}

/// Turns at one moment after which nothing can be happening any more but a spin.
const SPIN: u32 = 1_000_000;

impl<H: Handler> Fleet<H> {
    pub(super) fn new(world: SimWorld) -> Self {
        Self { world, nodes: Vec::new(), standing: 0, is_checked: true }
    }

    /// Starts a reactor on the host of that number, at 10.0.0.number.
    pub(super) fn add(
        &mut self,
        number: u8,
        builder: ReactorBuilder<H::Protocol>,
        handler: H,
    ) -> usize {
        let net = self.world.host([10, 0, 0, number]);
        let host = net.id();
        let engine = builder.number(number).build_on(handler, net).expect("the settings work");
        self.nodes.push(Node { host, engine });
        self.nodes.len() - 1
    }

    pub(super) fn handle(&self, node: usize) -> Handle<H::Protocol> {
        Handle::new(self.nodes[node].engine.state.shared.clone())
    }

    /// Runs everything that is due, then jumps to what is due next, or to `end`. False if nothing is
    /// due before that.
    fn step(&mut self, end: Moment) -> bool {
        for node in &mut self.nodes {
            if !node.engine.is_stopped() {
                node.engine.turn(Some(Duration::ZERO)).expect("the simulated poll does not fail");
                if self.is_checked {
                    node.engine.check();
                }
            }
        }
        match self.next() {
            Some(at) if at < end => {
                self.standing = if at > self.world.now() { 0 } else { self.standing + 1 };
                let work = || {
                    self.nodes.iter().map(|node| node.engine.work()).collect::<Vec<_>>().join(" | ")
                };
                assert!(self.standing < SPIN, "the loops spin: {}", work());
                self.world.advance_to(at);
                true
            }
            _ => {
                self.world.advance_to(end);
                self.standing = 0;
                false
            }
        }
    }

    fn next(&self) -> Option<Moment> {
        let running = self.nodes.iter().filter(|node| !node.engine.is_stopped());
        let deadlines = running.filter_map(|node| node.engine.next_deadline());
        let posts = self.nodes.iter().any(|node| node.engine.has_post());
        deadlines.chain(self.world.next_event()).chain(posts.then(|| self.world.now())).min()
    }

    /// Runs for this long.
    pub(super) fn run_for(&mut self, time: Duration) {
        let end = self.world.now() + time;
        while self.step(end) {}
    }

    /// Runs until this holds; false if that takes longer than `limit`.
    pub(super) fn run_until(
        &mut self,
        limit: Duration,
        mut holds: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        let end = self.world.now() + limit;
        while !holds(self) {
            if !self.step(end) {
                return holds(self);
            }
        }
        true
    }

    /// Stops every reactor and runs until they have.
    pub(super) fn stop(&mut self) -> bool {
        for node in 0..self.nodes.len() {
            self.handle(node).stop();
        }
        self.run_until(Duration::from_secs(60), |fleet| {
            fleet.nodes.iter().all(|node| node.engine.is_stopped())
        })
    }

    /// What must hold when all has stopped: nothing is left anywhere.
    pub(super) fn assert_empty(&self) {
        for node in &self.nodes {
            let state = &node.engine.state;
            assert_eq!(state.slots.len(), 0, "slots are left");
            assert_eq!(state.wheel.len(), 0, "timers are left");
            assert!(state.listeners.is_empty() && state.groups.is_empty());
            assert!(state.per_peer.is_empty() && state.awaited.is_empty());
            assert!(
                state.ended.is_empty()
                    && state.ended_calls.is_empty()
                    && state.undelivered.is_empty()
            );
            assert!(!node.engine.has_post(), "commands are left");
            assert_eq!(state.stats.calls_in_flight, 0);
            assert_eq!(state.stats.connections, 0);
        }
        assert_eq!(self.world.open_descriptors(), 0, "descriptors are left");
        assert_eq!(self.world.leaks(), 0, "sockets were dropped and not closed");
    }
}
