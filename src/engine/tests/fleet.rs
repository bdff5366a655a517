//! Several reactors on one simulated network, run turn by turn in virtual time.

use std::time::Duration;

use super::verdicts::{Check, Verdicts};
use crate::{
    Handle, Handler, ReactorBuilder,
    engine::Engine,
    moment::Moment,
    net::sim::{HostId, SimNet, SimWorld},
};

/// One reactor and its host.
pub(super) struct Node<H: Handler> {
    pub(super) host: HostId,
    pub(super) engine: Engine<H, SimNet>,
    /// Until when it runs no turns, although the time goes on.
    away_until: Option<Moment>,
}

impl<H: Handler> Node<H> {
    /// Whether a turn has something to do.
    fn is_due(&self, world: &SimWorld) -> bool {
        world.is_due(self.host)
            || self.engine.has_post()
            || self.engine.next_deadline().is_some_and(|at| at <= world.now())
    }

    const fn runs(&self) -> bool {
        !self.engine.is_stopped() && self.away_until.is_none()
    }
}

/// All reactors of a run.
pub(super) struct Fleet<H: Handler> {
    pub(super) world: SimWorld,
    pub(super) nodes: Vec<Node<H>>,
    steps: u32,
    /// Turns since the time went on.
    standing: u32,
    /// Whether the invariants are checked after each turn, which costs as much as there are slots.
    pub(super) is_checked: bool,
    /// What callbacks found wrong, judged after each turn.
    pub(super) verdicts: Verdicts,
    /// The test is about panics, and judges by itself what they cost.
    pub(super) may_panic: bool,
}

/// Turns at one moment after which nothing can be happening any more but a spin.
const SPIN: u32 = 1_000_000;

/// One step in so many is a turn for all, whether they have something to do or not.
const IDLE_TURN: u32 = 8;

impl<H: Handler> Fleet<H> {
    pub(super) fn new(world: SimWorld) -> Self {
        Self {
            world,
            nodes: Vec::new(),
            steps: 0,
            standing: 0,
            is_checked: true,
            verdicts: Verdicts::default(),
            may_panic: false,
        }
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
        self.nodes.push(Node { host, engine, away_until: None });
        self.nodes.len() - 1
    }

    pub(super) fn handle(&self, node: usize) -> Handle<H::Protocol> {
        Handle::new(self.nodes[node].engine.shared.clone())
    }

    /// The node runs no turns for a while, as a process that is suspended.
    pub(super) fn send_away(&mut self, node: usize, time: Duration) {
        let until = self.world.now() + time;
        self.nodes[node].away_until = Some(until);
        self.world.pause(self.nodes[node].host, true);
    }

    /// Whoever was away long enough is back; with `all` the others, too.
    pub(super) fn call_back(&mut self, all: bool) {
        let now = self.world.now();
        for node in &mut self.nodes {
            if node.away_until.is_some_and(|until| all || until <= now) {
                node.away_until = None;
                self.world.pause(node.host, node.engine.is_stopped());
            }
        }
    }

    /// Runs everything that is due, then jumps to what is due next, or to `end`. False if nothing is
    /// due before that.
    fn step(&mut self, end: Moment) -> bool {
        self.call_back(false);
        self.steps += 1;
        // Now and then one whose poll returns for nothing.
        let is_idle_turn = self.steps.is_multiple_of(IDLE_TURN);
        for node in &mut self.nodes {
            if node.runs() && (is_idle_turn || node.is_due(&self.world)) {
                node.engine.turn(Some(Duration::ZERO)).expect("the simulated poll does not fail");
                if self.is_checked {
                    node.engine.check();
                }
                if node.engine.is_stopped() {
                    // Whoever wakes it now waits for nothing.
                    self.world.pause(node.host, true);
                }
            }
        }
        self.judge();
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

    /// Panics if a callback found something wrong, or panicked although that was not planned.
    #[track_caller]
    pub(super) fn judge(&self) {
        if self.may_panic {
            return self.verdicts.judge_found();
        }
        self.verdicts.judge(self.nodes.iter().map(|node| node.engine.state.stats.panics).sum());
    }

    /// As [`check_empty`](Self::check_empty), judged at once, where the test judges the panics itself.
    #[track_caller]
    pub(super) fn assert_empty(&self) {
        self.check_empty();
        let verdict = self.verdicts.first();
        assert!(verdict.is_none(), "{verdict:?}");
    }

    fn next(&self) -> Option<Moment> {
        let running = || self.nodes.iter().filter(|node| node.runs());
        let deadlines = running().filter_map(|node| node.engine.next_deadline());
        let returns = self.nodes.iter().filter_map(|node| node.away_until);
        let posts = running().any(|node| node.engine.has_post());
        deadlines
            .chain(returns)
            .chain(self.world.next_event())
            .chain(posts.then(|| self.world.now()))
            .min()
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
    pub(super) fn check_empty(&self) {
        let leaves = |what: &str, count: usize| {
            self.verdicts
                .check(Check::NothingLeft, count == 0, || format!("{what} are left: {count}"))
        };
        let count = |number: u64| usize::try_from(number).expect("a count");
        for node in &self.nodes {
            let state = &node.engine.state;
            leaves("slots", state.slots.len());
            leaves("timers", state.clock.timers());
            leaves("listeners", state.listeners.len());
            leaves("groups", state.fanouts.groups.len());
            leaves("addresses of peers", state.listeners.peers());
            leaves("threads that wait", state.awaiters.len());
            leaves("ended connections", state.work.amounts().ended);
            leaves("ended calls", state.work.amounts().ended_calls);
            leaves("undelivered messages", usize::from(!state.losses.is_empty()));
            leaves("commands", usize::from(node.engine.has_post()));
            leaves("calls in flight", count(state.stats.calls_in_flight));
            leaves("connections", count(state.stats.connections));
            leaves("broadcasts", state.fanouts.len());
        }
        leaves("descriptors", self.world.open_descriptors());
        leaves("sockets that were dropped and not closed", self.world.leaks());
    }
}
