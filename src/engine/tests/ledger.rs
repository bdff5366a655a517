//! What a run says that it did, held against what it may do.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::verdicts::{Check, Verdicts};
use crate::{CallError, ConnId, Fate, net::sim::ConnectionId};

/// Shared by all handlers of a run.
pub(super) type SharedLedger = Rc<RefCell<Ledger>>;

/// The books of one run.
#[derive(Default)]
pub(super) struct Ledger {
    verdicts: Verdicts,
    /// Every accepted message is a push, so that all can be accounted for one by one.
    pub(super) has_only_pushes: bool,
    senders: HashMap<(NodeNumber, ConnId), Sender>,
    flows: HashMap<FlowKey, Flow>,
    /// Messages that broadcasts of a node had to send.
    broadcasts: HashMap<NodeNumber, u64>,
    /// The same of broadcasts from other threads, as their filters count them.
    counted: Vec<(NodeNumber, Arc<AtomicU64>)>,
    /// Connections that were ended for good.
    ended: HashSet<(NodeNumber, ConnId)>,
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
#[expect(clippy::struct_excessive_bools, reason = "facts that hold side by side")]
struct Call {
    outcomes: u32,
    is_seen: bool,
    /// It ended, and was told that it was not sent.
    is_unsent: bool,
    is_answered: bool,
    /// Somebody cancelled it by its id, before it ended or after.
    is_cancelled: bool,
    /// Nobody waits for its outcome any more.
    is_abandoned: bool,
}

impl Ledger {
    pub(super) fn new(verdicts: Verdicts) -> Self {
        Self { verdicts, ..Self::default() }
    }

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
        let Self { verdicts, senders, flows, .. } = self;
        let sender = senders.entry(from).or_default();
        let what = |how| move || format!("message {number} of {from:?} {how}");
        verdicts.check(Check::Accepted, number <= sender.accepted, what("was never accepted"));
        verdicts.check(Check::Once, sender.seen.insert(number), what("came twice"));
        let last = &mut flows.entry((channel, from.0 != 0)).or_default().last_seen;
        verdicts.check(Check::InOrder, number > *last, what("came late"));
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
        let is_first = flow.written.replace(written).is_none();
        self.verdicts.check(Check::SenderEndsOnce, is_first, || format!("{channel:?}"));
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
        let is_first = flow.received.replace(received).is_none();
        self.verdicts.check(Check::ReceiverEndsOnce, is_first, || format!("{channel:?}"));
        flow.is_whole = is_whole;
    }

    /// A broadcast to so many was accepted.
    pub(super) fn broadcast(&mut self, node: NodeNumber, receivers: usize) {
        *self.broadcasts.entry(node).or_default() += receivers as u64;
    }

    /// A broadcast of which its filter counts the receivers.
    pub(super) fn counted_broadcast(&mut self, node: NodeNumber, receivers: Arc<AtomicU64>) {
        self.counted.push((node, receivers));
    }

    pub(super) fn undelivered(&mut self, from: (NodeNumber, ConnId), messages: u64) {
        self.senders.entry(from).or_default().undelivered += messages;
    }

    // ---- connections ----

    /// The connection is ended, and must not connect again.
    pub(super) fn end(&mut self, node: NodeNumber, conn: ConnId) {
        self.ended.insert((node, conn));
    }

    pub(super) fn connected(&self, node: NodeNumber, conn: ConnId) {
        let is_ended = self.ended.contains(&(node, conn));
        self.verdicts.check(Check::StaysEnded, !is_ended, || format!("{conn} of node {node}"));
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
        let Some(call) = self.calls.get_mut(&number) else {
            return self.verdicts.note(Check::Started, format!("request {number}, of no call"));
        };
        let what = |how| move || format!("request {number} {how}");
        self.verdicts.check(Check::RequestOnce, !call.is_seen, what("came twice"));
        self.verdicts.check(
            Check::UnsentStays,
            !call.is_unsent,
            what("came, of which its caller knows it was not sent"),
        );
        call.is_seen = true;
    }

    /// The call is cancelled by its id; it may have ended already.
    pub(super) fn cancel_call(&mut self, number: u64) {
        if let Some(call) = self.calls.get_mut(&number) {
            call.is_cancelled = true;
        }
    }

    /// The caller leaves, and hears no outcome.
    pub(super) fn abandon_call(&mut self, number: u64) {
        if let Some(call) = self.calls.get_mut(&number) {
            call.is_abandoned = true;
        }
    }

    pub(super) fn answered(&mut self, number: u64) {
        if let Some(call) = self.calls.get_mut(&number) {
            call.is_answered = true;
        }
    }

    /// The call ended: with the number in its reply, or why not.
    pub(super) fn end_call(&mut self, number: u64, outcome: Result<u64, &CallError>) {
        let Self { verdicts, calls, .. } = self;
        let Some(call) = calls.get_mut(&number) else {
            return verdicts.note(Check::EndsOnce, format!("call {number} was refused, yet ended"));
        };
        call.outcomes += 1;
        let what = |how| move || format!("call {number} {how}");
        verdicts.check(Check::EndsOnce, call.outcomes == 1, what("ended twice"));
        let is_cancelled = matches!(outcome, Err(CallError::Cancelled { .. }));
        verdicts.check(
            Check::CancelsOwn,
            call.is_cancelled || !is_cancelled,
            what("was cancelled by nobody"),
        );
        match outcome {
            Ok(answer) => {
                verdicts.check(Check::OwnReply, answer == number, what("got another's reply"));
                verdicts.check(Check::GivenReply, call.is_answered, what("got nobody's reply"));
            }
            Err(error) if error.fate() == Fate::NotSent => {
                verdicts.check(Check::SeenIsSent, !call.is_seen, || {
                    format!("call {number} was handled, yet not sent: {error}")
                });
                call.is_unsent = true;
            }
            Err(_) => {}
        }
    }

    /// The end of the run: everything is accounted for.
    pub(super) fn settle(&self) {
        let verdicts = &self.verdicts;
        for (number, call) in &self.calls {
            let has_ended = call.outcomes > 0 || call.is_abandoned;
            verdicts.check(Check::Ends, has_ended, || format!("call {number} never ended"));
        }
        for (key, flow) in &self.flows {
            let (Some(written), Some(received)) = (flow.written, flow.received) else { continue };
            verdicts.check(Check::NoneInvented, received <= written, || {
                format!("{key:?}: more came than was written: {flow:?}")
            });
            verdicts.check(Check::NoneLost, !flow.is_whole || received >= written, || {
                format!("{key:?}: some were lost: {flow:?}")
            });
        }
        if !self.has_only_pushes {
            return;
        }
        let mut accounts = self
            .broadcasts
            .iter()
            .map(|(node, count)| (*node, [*count, 0]))
            .collect::<HashMap<_, _>>();
        for (node, receivers) in &self.counted {
            accounts.entry(*node).or_default()[0] += receivers.load(Ordering::Relaxed);
        }
        for ((node, _), sender) in &self.senders {
            let [accepted, ended] = accounts.entry(*node).or_default();
            *accepted += sender.accepted;
            *ended += sender.written + sender.unsent + sender.undelivered;
        }
        for (node, [accepted, ended]) in accounts {
            verdicts.check(Check::Accounts, accepted == ended, || {
                format!("node {node}: {accepted} messages were accepted, {ended} accounted for")
            });
        }
    }
}
