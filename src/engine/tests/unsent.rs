//! What is handed back, and what must not leave, of a format of the application's.

use std::{cell::RefCell, rc::Rc, time::Duration};

use super::fleet::Fleet;
use crate::{
    Audience, CloseReason, CloseReport, Conn, Handler, Message, ReactorBuilder, Tagged,
    net::sim::SimWorld,
    protocol::{DecodeError, Decoded, Head, NoId, Protocol},
};

/// Sends bodies backwards behind a byte of length, and reads them as they come: what it wrote it
/// can't read. A body that begins with `!` is a bug of the encoder's, after so many bytes.
#[derive(Clone, Debug, Default, PartialEq)]
struct Backwards;

impl Protocol for Backwards {
    type Id = NoId;

    fn name(&self) -> &'static str {
        "backwards"
    }

    fn decode(&mut self, buf: &[u8], _: usize) -> Result<Decoded<NoId>, DecodeError> {
        let Some(&len) = buf.first() else { return Ok(Decoded::need(1)) };
        Ok(Decoded::frame(Head::plain(NoId), 1, usize::from(len)))
    }

    fn encode_header(&mut self, _: &Head<NoId>, body_len: usize, out: &mut Vec<u8>) {
        out.push(u8::try_from(body_len).expect("bounded by largest_body"));
    }

    fn encode(&mut self, head: &Head<NoId>, body: &[u8], out: &mut Vec<u8>) {
        let is_broken = body.first() == Some(&b'!');
        assert!(!is_broken || body.len() > 1, "before a byte was written");
        self.encode_header(head, body.len(), out);
        assert!(!is_broken || body.len() > 2, "behind the header");
        out.extend(body.iter().rev());
        assert!(!is_broken, "behind the body");
    }

    fn is_header_then_body(&self) -> bool {
        false
    }

    fn largest_body(&self) -> usize {
        255
    }

    fn push_id(&self, _: u64, _: u64) -> NoId {
        NoId
    }
}

/// What the callbacks saw, in order.
type Log = Rc<RefCell<Vec<String>>>;

/// Sends something when a connection is up.
struct Greeter<F> {
    greet: F,
    log: Log,
}

impl<F: FnMut(&mut Conn<'_, Backwards>) + 'static> Handler for Greeter<F> {
    type Protocol = Backwards;

    fn on_connect(&mut self, conn: &mut Conn<'_, Backwards>) {
        (self.greet)(conn);
    }

    fn on_message(&mut self, _: &mut Conn<'_, Backwards>, msg: Message<'_, Backwards>) {
        self.log.borrow_mut().push(format!("message {}", msg.text()));
    }

    fn on_disconnect(&mut self, conn: &mut Conn<'_, Backwards>, report: &CloseReport) {
        let unsent = conn.take_unsent();
        assert_eq!(report.unsent_messages, unsent.len() as u64);
        for Tagged(tag, body) in unsent {
            self.log.borrow_mut().push(format!("unsent {tag} {}", String::from_utf8_lossy(&body)));
        }
        if let CloseReason::Panicked(_) = report.reason {
            self.log.borrow_mut().push("panicked".into());
        }
    }
}

const SERVER: &str = "10.0.0.1:7001";

type Greet = Box<dyn FnMut(&mut Conn<'_, Backwards>)>;

/// A server that greets so, and so many clients of it; and what they saw.
fn start(
    clients: u8,
    greet: impl FnMut(&mut Conn<'_, Backwards>) + 'static,
) -> (Fleet<Greeter<Greet>>, Log, Log) {
    let (of_server, of_clients) = (Log::default(), Log::default());
    let mut fleet = Fleet::new(SimWorld::new(1));
    // The test judges by itself what a panic costs.
    fleet.may_panic = true;
    let server = Greeter { greet: Box::new(greet) as Greet, log: of_server.clone() };
    fleet.add(1, ReactorBuilder::new(Backwards).seed(1), server);
    fleet.nodes[0].engine.context().listen(SERVER).unwrap();
    for number in 0..clients {
        let client =
            Greeter { greet: Box::new(|_: &mut Conn<'_, _>| ()) as Greet, log: of_clients.clone() };
        let node = fleet.add(number + 2, ReactorBuilder::new(Backwards).seed(2), client);
        fleet.nodes[node].engine.context().connect(SERVER).unwrap();
        fleet.run_for(Duration::from_secs(1));
    }
    (fleet, of_server, of_clients)
}

#[test]
fn what_a_format_transforms_is_handed_back_as_it_was_sent() {
    let (mut fleet, server, client) = start(1, |_| ());
    let mut cx = fleet.nodes[0].engine.context();
    let id = cx.connections().next().unwrap();
    let mut conn = cx.conn(id).unwrap();
    conn.send(Tagged(1, "first")).unwrap();
    conn.send("level").unwrap();
    conn.send(Tagged(3, String::from("third"))).unwrap();
    assert_eq!(conn.cx().broadcast(Audience::All, Tagged(4, "fourth")), 1);
    conn.abort();
    fleet.run_for(Duration::from_secs(1));
    let unsent = ["unsent 1 first", "unsent 0 level", "unsent 3 third", "unsent 4 fourth"];
    assert_eq!(server.take(), unsent);
    assert_eq!(client.take(), [""; 0]);
}

#[test]
fn encoder_that_panics_half_way_sends_nothing_to_its_peer_or_the_next() {
    for broken in ["!", "!!", "!!!"] {
        let mut count = 0;
        let (_, server, clients) = start(3, move |conn| {
            count += 1;
            conn.send("before").unwrap();
            if count < 3 {
                conn.send(broken).unwrap();
            }
        });
        let (server, clients) = (server.take(), clients.take());
        assert_eq!(server, ["panicked"; 2]);
        // Two of the three dialled again.
        assert_eq!(clients, ["message erofeb"; 5], "{broken}");
    }
}
