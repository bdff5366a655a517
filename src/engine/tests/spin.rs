//! That the loop looks for the replies of blocked threads and learns from it. On real sockets: the
//! simulated clock stands still while a loop looks.

use std::{thread, time::Duration};

use crate::{
    Conn, Handler, Message, Reactor, ReactorBuilder, core::spin::MOST_LUCK, protocol::Tcpstream,
};

const PATIENCE: Duration = Duration::from_secs(20);

struct Echo;

impl Handler for Echo {
    type Protocol = Tcpstream;

    fn on_message(&mut self, conn: &mut Conn<'_, Tcpstream>, msg: Message<'_, Tcpstream>) {
        conn.reply(&msg, &msg).unwrap();
    }
}

fn reactor() -> Reactor<Echo> {
    ReactorBuilder::new(Tcpstream).build(Echo).unwrap()
}

#[test]
fn loop_learns_whether_looking_brings_the_replies_of_blocked_threads() {
    let (mut server, mut client) = (reactor(), reactor());
    let (_, addr) = server.listen("127.0.0.1:0").unwrap();
    let conn = client.connect(addr).unwrap();
    let handle = client.handle();
    while server.stats().accepted == 0 || !handle.is_up(conn) {
        client.turn(Some(Duration::ZERO)).unwrap();
        server.turn(Some(Duration::ZERO)).unwrap();
    }
    let caller = thread::spawn(move || handle.call(conn, "hello", PATIENCE).unwrap());
    while !client.engine.shared.has_blocked() {
        thread::yield_now();
    }
    client.turn(Some(Duration::ZERO)).unwrap(); // sends the call

    client.turn(Some(Duration::from_millis(1))).unwrap();
    assert_eq!(client.engine.spin.luck(), MOST_LUCK - 1, "in vain");

    while server.stats().messages_out == 0 {
        server.turn(Some(PATIENCE)).unwrap();
    }
    // The reply waits in the socket.
    client.turn(Some(PATIENCE)).unwrap();
    assert_eq!(client.engine.spin.luck(), MOST_LUCK);
    assert_eq!(caller.join().unwrap(), "hello");
    assert_eq!((server.stats().panics, client.stats().panics), (0, 0));
}
