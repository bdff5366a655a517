//! Bugs that are planted so that the checks find them: a check that finds nothing has gone blind.

use super::{
    talker::{ANSWER, NEWS, PUSH, Parsed, REQUEST},
    verdicts::Check,
};
use crate::{
    layer::records::LayerBug,
    protocol::{
        AnyId, AnyProtocol, Correlation, DecodeError, Decoded, Goaway, Head, HeartbeatBy, Hello,
        Kind, Protocol,
    },
    table::planted::Bug,
};

/// A bug, somewhere between the wire and the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plant {
    // In the format.
    EncodesPushTwice,
    EncodesNewsTwice,
    EncodesRequestTwice,
    EncodesMore,
    EncodesReplyOfAnother,
    EncodesReplyAsPush,
    EncodesNumberOfNoCall,
    EncodesTornBody,
    EncodesNonsense,
    DecodesTooFew,
    // In what the handler is told.
    ConnectsTwice,
    SkipsConnect,
    DisconnectsTwice,
    HandsMessageLate,
    HandsTooFew,
    EndsCallTwice,
    CancelsAnother,
    ForgetsCall,
    SaysUnsent,
    ReportsFewerUnsent,
    ReportsWrittenTwice,
    ReportsReadTwice,
    Panics,
    // In what it does.
    SendsWhatWasRefused,
    AnswersUnasked,
    ListensInAnother,
    TakesOwnIdForForeign,
    CutsTheHealthy,
    EndsInWordOnly,
    TakesRunningForStopping,
    DrawsFromOutside,
    // In the network.
    WritesLess,
    NeverRecovers,
    NeverComesBack,
    InReactor(Bug),
    InLayer(LayerBug),
}

impl Plant {
    /// Each bug, the check that must find it, and within how many seeds.
    pub(super) const ALL: [(Self, Check, u64); 42] = [
        (Self::SendsWhatWasRefused, Check::Accepted, 20),
        (Self::EncodesPushTwice, Check::Once, 20),
        (Self::HandsMessageLate, Check::InOrder, 20),
        (Self::EncodesNewsTwice, Check::News, 50),
        (Self::DecodesTooFew, Check::NoneLost, 200),
        (Self::EncodesMore, Check::NoneInvented, 100),
        (Self::ReportsWrittenTwice, Check::SenderEndsOnce, 20),
        (Self::ReportsReadTwice, Check::ReceiverEndsOnce, 20),
        (Self::ReportsFewerUnsent, Check::Accounts, 200),
        (Self::HandsTooFew, Check::Counts, 50),
        (Self::EncodesTornBody, Check::Whole, 20),
        (Self::EncodesReplyAsPush, Check::Kind, 100),
        (Self::EncodesNonsense, Check::Format, 50),
        (Self::WritesLess, Check::Format, 100),
        (Self::EncodesNumberOfNoCall, Check::Started, 50),
        (Self::EncodesRequestTwice, Check::RequestOnce, 50),
        (Self::SaysUnsent, Check::UnsentStays, 200),
        (Self::SaysUnsent, Check::SeenIsSent, 200),
        (Self::EndsCallTwice, Check::EndsOnce, 50),
        (Self::ForgetsCall, Check::Ends, 50),
        (Self::EncodesReplyOfAnother, Check::OwnReply, 200),
        (Self::AnswersUnasked, Check::GivenReply, 50),
        (Self::CancelsAnother, Check::CancelsOwn, 100),
        (Self::ListensInAnother, Check::Speaks, 20),
        (Self::TakesOwnIdForForeign, Check::OwnIds, 20),
        (Self::CutsTheHealthy, Check::HealthyStays, 200),
        (Self::InReactor(Bug::WritesDropped), Check::UnsentStays, 200),
        (Self::InReactor(Bug::SaysNotSent), Check::SeenIsSent, 50),
        (Self::InReactor(Bug::ForgetsCalls), Check::Ends, 50),
        (Self::InReactor(Bug::ReportsFewerUnsent), Check::Accounts, 200),
        (Self::InReactor(Bug::KeepsTimers), Check::NothingLeft, 50),
        (Self::EndsInWordOnly, Check::StaysEnded, 50),
        (Self::TakesRunningForStopping, Check::RefusesNew, 50),
        (Self::NeverComesBack, Check::Stops, 20),
        (Self::ConnectsTwice, Check::ConnectsOnce, 20),
        (Self::DisconnectsTwice, Check::Disconnects, 20),
        (Self::SkipsConnect, Check::WithinEpoch, 20),
        (Self::NeverRecovers, Check::ComesBack, 200),
        (Self::Panics, Check::Panics, 20),
        (Self::InLayer(LayerBug::CountsLate), Check::NoneInvented, 200),
        (Self::InLayer(LayerBug::LosesRecord), Check::Format, 50),
        (Self::InLayer(LayerBug::SkipsHandshake), Check::ComesBack, 50),
    ];
}

/// The format of a conversation, with a bug if one is planted in it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Spoken {
    pub(super) any: AnyProtocol,
    pub(super) plant: Option<Plant>,
}

impl Spoken {
    /// Whether the bug strikes this body: one that the conversation made, of every third number.
    fn strikes(kind: u8, body: &[u8]) -> bool {
        Parsed::of(body).is_some_and(|parsed| parsed.kind == kind && parsed.number % 3 == 0)
    }

    fn encode_with(&mut self, plant: Plant, head: &Head<AnyId>, body: &[u8], out: &mut Vec<u8>) {
        let any = &mut self.any;
        match plant {
            Plant::EncodesPushTwice if Self::strikes(PUSH, body) => any.encode(head, body, out),
            Plant::EncodesNewsTwice if Self::strikes(NEWS, body) => any.encode(head, body, out),
            Plant::EncodesRequestTwice if Self::strikes(REQUEST, body) => {
                any.encode(head, body, out);
            }
            Plant::EncodesMore if head.kind == Kind::Plain && Self::strikes(PUSH, body) => {
                let more = [&[ANSWER], &body[1..]].concat();
                any.encode(head, &more, out);
            }
            Plant::EncodesReplyOfAnother if head.kind == Kind::Reply => {
                let AnyId::Native(id) = head.id else { return any.encode(head, body, out) };
                let other = Head { id: AnyId::Native(id ^ 1), ..*head };
                return any.encode(&other, body, out);
            }
            Plant::EncodesReplyAsPush if head.kind == Kind::Reply => {
                let id = any.push_id(1, 0);
                return any.encode(&Head { kind: Kind::Push, id, ..*head }, body, out);
            }
            Plant::EncodesNumberOfNoCall if Self::strikes(REQUEST, body) => {
                let mut body = body[..25].to_vec();
                body[17] = 0x7F;
                return any.encode(head, &body, out);
            }
            Plant::EncodesTornBody if body.len() > 26 => {
                let mut body = body.to_vec();
                body[26] ^= 1;
                return any.encode(head, &body, out);
            }
            Plant::EncodesNonsense if Self::strikes(PUSH, body) => out.extend([0xFF; 64]),
            _ => {}
        }
        any.encode(head, body, out);
    }
}

impl Protocol for Spoken {
    type Id = AnyId;

    fn name(&self) -> &'static str {
        self.any.name()
    }

    #[inline]
    fn decode(&mut self, buf: &[u8], max_body: usize) -> Result<Decoded<AnyId>, DecodeError> {
        let first = self.any.decode(buf, max_body)?;
        if self.plant == Some(Plant::DecodesTooFew)
            && let Decoded::Frame { body, len, .. } = &first
            && let (Some(body), Some(rest)) = (buf.get(body.clone()), buf.get(*len..))
            && Self::strikes(PUSH, body)
            && let Decoded::Frame { head, body, len: second } = self.any.decode(rest, max_body)?
            && second <= rest.len()
        {
            let body = body.start + len..body.end + len;
            return Ok(Decoded::Frame { head, body, len: len + second });
        }
        Ok(first)
    }

    #[inline]
    fn encode_header(&mut self, head: &Head<AnyId>, body_len: usize, out: &mut Vec<u8>) {
        self.any.encode_header(head, body_len, out);
    }

    #[inline]
    fn encode(&mut self, head: &Head<AnyId>, body: &[u8], out: &mut Vec<u8>) {
        match self.plant {
            None => self.any.encode(head, body, out),
            Some(plant) => self.encode_with(plant, head, body, out),
        }
    }

    fn is_header_then_body(&self) -> bool {
        self.plant.is_none() && self.any.is_header_then_body()
    }

    fn largest_body(&self) -> usize {
        self.any.largest_body()
    }

    fn correlation(&self) -> Correlation {
        self.any.correlation()
    }

    fn heartbeat(&self) -> HeartbeatBy {
        self.any.heartbeat()
    }

    fn call_id(&self, n: u64, salt: u64) -> Option<AnyId> {
        self.any.call_id(n, salt)
    }

    fn first_call(&self, salt: u64) -> u64 {
        self.any.first_call(salt)
    }

    fn push_id(&self, n: u64, salt: u64) -> AnyId {
        self.any.push_id(n, salt)
    }

    fn goaway_id(&self, goaway: Goaway<AnyId>) -> Option<AnyId> {
        self.any.goaway_id(goaway)
    }

    fn may_be_handled(&self, id: &AnyId, last: &AnyId) -> bool {
        self.any.may_be_handled(id, last)
    }

    fn has_hello(&self) -> bool {
        self.any.has_hello()
    }

    fn encode_hello(&mut self, hello: &Hello, out: &mut Vec<u8>) {
        self.any.encode_hello(hello, out);
    }

    fn decode_hello(&self, body: &[u8]) -> Result<Hello, DecodeError> {
        self.any.decode_hello(body)
    }
}
