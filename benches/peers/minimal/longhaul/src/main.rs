//! The smallest echo server on longhaul.

use longhaul::{Conn, Handler, Message, ReactorBuilder, protocol::Tcpstream};

struct Echo;

impl Handler for Echo {
    type Protocol = Tcpstream;

    fn on_message(&mut self, conn: &mut Conn<'_, Tcpstream>, msg: Message<'_, Tcpstream>) {
        let _ = conn.reply(&msg, &msg);
    }
}

fn main() -> longhaul::Result<()> {
    let mut reactor = ReactorBuilder::new(Tcpstream).build(Echo)?;
    let (_, addr) = reactor.listen("127.0.0.1:0")?;
    println!("listening on {addr}");
    reactor.run()?;
    Ok(())
}
