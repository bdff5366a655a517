//! Messages there and back over real sockets, through the public API.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::large_stack_arrays,
    clippy::needless_pass_by_value,
    clippy::redundant_closure_for_method_calls,
    clippy::similar_names,
    reason = "a test says so by panicking, and its numbers are small"
)]

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use longhaul::{
    CloseReport, Conn, ConnId, Handler, Message, ReactorBuilder, Tagged,
    protocol::{AnyProtocol, Protocol},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Sends back what it gets.
struct Echo;

impl Handler for Echo {
    type Protocol = AnyProtocol;

    fn on_message(&mut self, conn: &mut Conn<'_, AnyProtocol>, msg: Message<'_, AnyProtocol>) {
        match msg.kind() {
            longhaul::protocol::Kind::Push => conn.send(&msg).unwrap(),
            _ => conn.reply(&msg, &msg).unwrap(),
        }
    }
}

#[derive(Debug, PartialEq)]
enum Event {
    Connected(ConnId),
    Message(u32, Vec<u8>),
    Disconnected,
}

/// Tells what it sees.
struct Tell(Sender<Event>);

impl Handler for Tell {
    type Protocol = AnyProtocol;

    fn on_connect(&mut self, conn: &mut Conn<'_, AnyProtocol>) {
        let _ = self.0.send(Event::Connected(conn.id()));
    }

    fn on_message(&mut self, _: &mut Conn<'_, AnyProtocol>, msg: Message<'_, AnyProtocol>) {
        let _ = self.0.send(Event::Message(msg.tag(), msg.body().to_vec()));
    }

    fn on_disconnect(&mut self, _: &mut Conn<'_, AnyProtocol>, _: &CloseReport) {
        let _ = self.0.send(Event::Disconnected);
    }
}

fn next(events: &Receiver<Event>) -> Event {
    events.recv_timeout(PATIENCE).unwrap()
}

fn echo_over(name: &str) {
    let protocol: AnyProtocol = name.parse().unwrap();
    let mut server = ReactorBuilder::new(protocol).build(Echo).unwrap();
    let (_, addr) = server.listen("127.0.0.1:0").unwrap();
    let stop = server.handle();
    let serving = std::thread::spawn(move || server.run().unwrap());

    let (tell, events) = channel();
    let mut client = ReactorBuilder::new(protocol).build(Tell(tell)).unwrap();
    let conn = client.connect(addr).unwrap();
    let handle = client.handle();
    let calling = std::thread::spawn(move || client.run().unwrap());
    assert_eq!(next(&events), Event::Connected(conn));
    for len in [0, 1, 100, 70_000, 1_000_000] {
        let body = vec![b'x'; len];
        handle.send(conn, Tagged(7, &body)).unwrap();
        let Event::Message(tag, echoed) = next(&events) else { panic!("no message") };
        assert!(echoed == body, "{name}: {} of {len} bytes", echoed.len());
        let has_tag = matches!(protocol, AnyProtocol::Native(_) | AnyProtocol::Tcpstream(_));
        assert_eq!(tag, if has_tag { 7 } else { 0 }, "{}", protocol.name());
    }
    handle.close(conn);
    assert_eq!(next(&events), Event::Disconnected);
    handle.stop();
    calling.join().unwrap();
    stop.stop();
    serving.join().unwrap();
}

#[test]
fn native_messages_come_back_unchanged() {
    echo_over("native");
}

#[test]
fn tcpstream_messages_come_back_unchanged() {
    echo_over("tcpstream");
}

#[test]
fn qtk3_messages_come_back_unchanged() {
    echo_over("qtk3");
}

#[test]
fn qtk2_messages_come_back_unchanged() {
    echo_over("qtk2");
}

#[test]
fn length_messages_come_back_unchanged() {
    echo_over("length");
}
