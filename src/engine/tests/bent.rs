//! A peer that bends the rules: it speaks as [`Native`] does, but for what a test wants of it.

use std::cell::Cell;

use super::{
    fleet::Fleet,
    script::{SERVER, Script},
};
use crate::{
    Config, ConnId, ReactorBuilder,
    net::sim::SimWorld,
    protocol::{
        Correlation, DecodeError, Decoded, Goaway, Head, HeartbeatBy, Hello, Kind, Native, Protocol,
    },
};

/// What a side does other than [`Native`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bend {
    /// Nothing, but that what begins with [`RAW`] goes out as it is.
    Nothing,
    /// It never says hello.
    Silent,
    /// It says so in its hello.
    Hello { heartbeat_ms: u32, idle_timeout_ms: u32 },
    /// Its bodies have 255 bytes at the most, and it insists on that.
    Short,
    /// It panics where [`panic_at`] says.
    Fragile,
}

/// Where a fragile side panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Clone,
    Decode,
    Encode(Kind),
    Hello,
    PushId,
    LargestBody,
    Handled,
    Compare,
    /// It does not panic there, but takes away what was queued.
    TakeAway,
}

thread_local! {
    static PLAN: Cell<Option<At>> = const { Cell::new(None) };
}

/// The next time that a fragile side comes there, it panics.
pub(super) fn panic_at(at: At) {
    PLAN.set(Some(at));
}

/// Whether the panic that was planned is still to come.
pub(super) fn is_planned() -> bool {
    PLAN.get().is_some()
}

/// A body that begins so is no body: the rest goes on the wire as it is.
const RAW: &[u8] = b"!raw";

/// What puts these bytes on the wire when it is sent.
pub(super) fn raw(bytes: &[u8]) -> Vec<u8> {
    [RAW, bytes].concat()
}

/// The bytes of a frame.
pub(super) fn frame(kind: Kind, id: u64, millis: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Native.encode(&Head { kind, id, tag: 0, millis }, body, &mut out);
    out
}

/// The format of such a side.
#[derive(Debug)]
pub(super) struct Bent(pub(super) Bend);

impl Bent {
    fn come_to(&self, at: At) {
        if self.0 == Bend::Fragile && PLAN.get() == Some(at) {
            PLAN.set(None);
            panic!("as planned");
        }
    }
}

impl Clone for Bent {
    fn clone(&self) -> Self {
        self.come_to(At::Clone);
        Self(self.0)
    }
}

impl PartialEq for Bent {
    fn eq(&self, other: &Self) -> bool {
        self.come_to(At::Compare);
        self.0 == other.0
    }
}

impl Protocol for Bent {
    type Id = u64;

    fn name(&self) -> &'static str {
        "bent"
    }

    fn decode(&mut self, buf: &[u8], max_body: usize) -> Result<Decoded<u64>, DecodeError> {
        let decoded = Native.decode(buf, max_body)?;
        if matches!(&decoded, Decoded::Frame { head, .. } if head.kind == Kind::Push) {
            self.come_to(At::Decode);
        }
        Ok(decoded)
    }

    fn encode_header(&mut self, head: &Head<u64>, body_len: usize, out: &mut Vec<u8>) {
        Native.encode_header(head, body_len, out);
    }

    fn encode(&mut self, head: &Head<u64>, body: &[u8], out: &mut Vec<u8>) {
        if let Some(bytes) = body.strip_prefix(RAW) {
            out.extend_from_slice(bytes);
            return;
        }
        assert!(body.len() <= self.largest_body(), "bounded by largest_body");
        if self.0 == Bend::Fragile && PLAN.get() == Some(At::TakeAway) {
            PLAN.set(None);
            return out.clear();
        }
        // Half a frame is there when it panics.
        out.extend_from_slice(b"torn");
        self.come_to(At::Encode(head.kind));
        out.truncate(out.len() - 4);
        Native.encode(head, body, out);
    }

    fn is_header_then_body(&self) -> bool {
        false
    }

    fn largest_body(&self) -> usize {
        self.come_to(At::LargestBody);
        if self.0 == Bend::Short { 255 } else { Native.largest_body() }
    }

    fn correlation(&self) -> Correlation {
        Native.correlation()
    }

    fn heartbeat(&self) -> HeartbeatBy {
        Native.heartbeat()
    }

    fn call_id(&self, n: u64, salt: u64) -> Option<u64> {
        Native.call_id(n, salt)
    }

    fn push_id(&self, n: u64, salt: u64) -> u64 {
        self.come_to(At::PushId);
        Native.push_id(n, salt)
    }

    fn goaway_id(&self, goaway: Goaway<u64>) -> Option<u64> {
        Native.goaway_id(goaway)
    }

    fn may_be_handled(&self, id: &u64, last: &u64) -> bool {
        self.come_to(At::Handled);
        Native.may_be_handled(id, last)
    }

    fn has_hello(&self) -> bool {
        true
    }

    fn encode_hello(&mut self, hello: &Hello, out: &mut Vec<u8>) {
        self.come_to(At::Hello);
        let mut hello = *hello;
        match self.0 {
            Bend::Silent => return,
            Bend::Hello { heartbeat_ms, idle_timeout_ms } => {
                hello.heartbeat_ms = heartbeat_ms;
                hello.idle_timeout_ms = idle_timeout_ms;
            }
            _ => {}
        }
        Native.encode_hello(&hello, out);
    }

    fn decode_hello(&self, body: &[u8]) -> Result<Hello, DecodeError> {
        Native.decode_hello(body)
    }
}

/// As [`pair`](super::script::pair), each side bent in its own way.
pub(super) fn bent_pair(
    world: &SimWorld,
    bends: [Bend; 2],
    scripts: [Script<Bent>; 2],
    config: &Config,
) -> (Fleet<Script<Bent>>, ConnId) {
    let mut fleet = Fleet::new(world.clone());
    fleet.may_panic = bends.contains(&Bend::Fragile);
    for ((number, bend), script) in (1..).zip(bends).zip(scripts) {
        let builder = ReactorBuilder::new(Bent(bend)).config(config.clone());
        fleet.add(number, builder.seed(u64::from(number)), script);
    }
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    let conn = fleet.nodes[1].engine.context().connect(SERVER).unwrap();
    fleet.run_for(std::time::Duration::from_secs(1));
    (fleet, conn)
}
