//! What a run says that it did, held against what it may do.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    rc::Rc,
};

use crate::{CallError, ConnId, Fate, reactor::net::sim::ConnectionId};

/// Shared by all handlers of a run.
pub(super) type SharedLedger = Rc<RefCell<Ledger>>;

/// The books of one run.
#[derive(Default)]
pub(super) struct Ledger {
    /// Every accepted message is a push, so that all can be accounted for one by one.
    pub(super) has_only_pushes: bool,
    senders: HashMap<(NodeNumber, ConnId), Sender>,
    flows: HashMap<FlowKey, Flow>,
    /// Messages that broadcasts of a node had to send.
    broadcasts: HashMap<NodeNumber, u64>,
    calls: HashMap<u64, Call>,
    next_call: u64,
}

/// The number of a node; 0 is the server.
pub(super) type NodeNumber = u64;

/// One direction of one TCP connection: whether it goes to the server.
type FlowKey = (ConnectionId, bool);

#[derive(Debug, Default)]
struct Sender {
    accepted: u64,
    /// Given to the system whole, in all epochs.
    written: u64,
    unsent: u64,
    undelivered: u64,
    /// The numbers that some receiver saw.
    seen: HashSet<u64>,
}

#[derive(Debug, Default)]
struct Flow {
    /// The number of the last push that came.
    last_seen: u64,
    /// What the sender had written whole when its epoch ended.
    written: Option<u64>,
    received: Option<u64>,
    /// The receiver read on to the end.
    is_whole: bool,
}

#[derive(Debug, Default)]
struct Call {
    outcomes: u32,
    is_seen: bool,
    /// It ended, and was told that it was not sent.
    is_unsent: bool,
    is_answered: bool,
}

impl Ledger {
    // ---- messages ----

    /// The number of the next message of a sender.
    pub(super) fn next_number(&self, host: NodeNumber, conn: ConnId) -> u64 {
        self.senders.get(&(host, conn)).map_or(0, |sender| sender.accepted) + 1
    }

    pub(super) fn accepted(&mut self, host: NodeNumber, conn: ConnId) {
        self.senders.entry((host, conn)).or_default().accepted += 1;
    }

    /// A message arrived: it was accepted, and it is newer than all before it.
    ///
    /// "Newer" holds within an epoch: what an old connection still carries may come after what its
    /// successor has brought. "Once" holds always.
    pub(super) fn received(
        &mut self,
        from: (NodeNumber, ConnId),
        channel: ConnectionId,
        number: u64,
    ) {
        let sender = self.senders.entry(from).or_default();
        assert!(number <= sender.accepted, "message {number} of {from:?} was never accepted");
        assert!(sender.seen.insert(number), "message {number} of {from:?} came twice");
        let last = &mut self.flows.entry((channel, from.0 != 0)).or_default().last_seen;
        assert!(number > *last, "message {number} of {from:?} came late");
        *last = number;
    }

    /// An epoch ended at its sender: what was written whole, and what was not.
    pub(super) fn sent(
        &mut self,
        from: (NodeNumber, ConnId),
        channel: ConnectionId,
        written: u64,
        unsent: u64,
    ) {
        let sender = self.senders.entry(from).or_default();
        sender.written += written;
        sender.unsent += unsent;
        let flow = self.flows.entry((channel, from.0 != 0)).or_default();
        assert!(flow.written.replace(written).is_none(), "an epoch ended twice at its sender");
    }

    /// An epoch ended at its receiver: what it received, and whether that is all there was.
    pub(super) fn read(
        &mut self,
        to: NodeNumber,
        channel: ConnectionId,
        received: u64,
        is_whole: bool,
    ) {
        let flow = self.flows.entry((channel, to == 0)).or_default();
        assert!(flow.received.replace(received).is_none(), "an epoch ended twice at its receiver");
        flow.is_whole = is_whole;
    }

    /// A broadcast to so many was accepted.
    pub(super) fn broadcast(&mut self, node: NodeNumber, receivers: usize) {
        *self.broadcasts.entry(node).or_default() += receivers as u64;
    }

    pub(super) fn undelivered(&mut self, from: (NodeNumber, ConnId), messages: u64) {
        self.senders.entry(from).or_default().undelivered += messages;
    }

    // ---- calls ----

    pub(super) fn start_call(&mut self) -> u64 {
        self.next_call += 1;
        self.calls.insert(self.next_call, Call::default());
        self.next_call
    }

    /// The call was refused at once, and so has no outcome.
    pub(super) fn refused_call(&mut self, number: u64) {
        self.calls.remove(&number);
    }

    pub(super) fn saw_request(&mut self, number: u64) {
        let call = self.calls.get_mut(&number).expect("a request of a call that was started");
        assert!(!call.is_seen, "request {number} came twice");
        assert!(
            !call.is_unsent,
            "request {number} came, of which its caller knows it was not sent"
        );
        call.is_seen = true;
    }

    pub(super) fn answered(&mut self, number: u64) {
        if let Some(call) = self.calls.get_mut(&number) {
            call.is_answered = true;
        }
    }

    /// The call ended: with the number in its reply, or why not.
    pub(super) fn end_call(&mut self, number: u64, outcome: Result<u64, &CallError>) {
        let call = self.calls.get_mut(&number).expect("a call that was started");
        call.outcomes += 1;
        assert_eq!(call.outcomes, 1, "call {number} ended twice");
        match outcome {
            Ok(answer) => {
                assert_eq!(answer, number, "a reply to another call");
                assert!(call.is_answered, "a reply that nobody gave");
            }
            Err(error) if error.fate() == Fate::NotSent => {
                assert!(!call.is_seen, "call {number} was handled, yet not sent: {error}");
                call.is_unsent = true;
            }
            Err(_) => {}
        }
    }

    /// The end of the run: everything is accounted for.
    pub(super) fn settle(&self) {
        for (number, call) in &self.calls {
            assert_eq!(call.outcomes, 1, "call {number} never ended");
        }
        for (key, flow) in &self.flows {
            let (Some(written), Some(received)) = (flow.written, flow.received) else { continue };
            assert!(received <= written, "{key:?}: more came than was written: {flow:?}");
            assert!(!flow.is_whole || received == written, "{key:?}: some were lost: {flow:?}");
        }
        if !self.has_only_pushes {
            return;
        }
        let mut accounts = self
            .broadcasts
            .iter()
            .map(|(node, count)| (*node, [*count, 0]))
            .collect::<HashMap<_, _>>();
        for ((node, _), sender) in &self.senders {
            let [accepted, ended] = accounts.entry(*node).or_default();
            *accepted += sender.accepted;
            *ended += sender.written + sender.unsent + sender.undelivered;
        }
        for (node, [accepted, ended]) in accounts {
            assert_eq!(accepted, ended, "messages of node {node} are unaccounted for");
        }
    }
}
