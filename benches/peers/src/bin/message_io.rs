//! message-io, with framing over its plain TCP transport.
//!
//! Its own framed transport leaves Nagle's algorithm on and writes twice a message.

use std::{collections::HashMap, io};

use clap::Parser;
use message_io::{
    network::{Endpoint, NetEvent, ResourceId, SendStatus, Transport},
    node::{self, NodeHandler},
};
use peers::{
    serve::{Serve, announce},
    wire,
};

/// message-io.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    serve: Serve,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    let (node, listener) = node::split::<()>();
    let (_, addr) = node.network().listen(Transport::Tcp, args.serve.listen)?;
    announce(addr)?;
    let mut echo = Echo { node, rests: HashMap::new() };
    listener.for_each(move |event| match event.network() {
        NetEvent::Message(endpoint, data) => echo.on_data(endpoint, data),
        NetEvent::Disconnected(endpoint) => {
            echo.rests.remove(&endpoint.resource_id());
        }
        NetEvent::Accepted(..) | NetEvent::Connected(..) => {}
    });
    Ok(())
}

struct Echo {
    node: NodeHandler<()>,
    /// The first parts of split frames.
    rests: HashMap<ResourceId, Vec<u8>>,
}

impl Echo {
    /// What one read has brought.
    fn on_data(&mut self, endpoint: Endpoint, data: &[u8]) {
        let id = endpoint.resource_id();
        let result = match self.rests.remove(&id) {
            None => self.answer(endpoint, data).map(|whole| data[whole..].to_vec()),
            Some(mut rest) => {
                rest.extend_from_slice(data);
                self.answer(endpoint, &rest).map(|whole| {
                    rest.drain(..whole);
                    rest
                })
            }
        };
        match result {
            Ok(rest) if rest.is_empty() => {}
            Ok(rest) => {
                self.rests.insert(id, rest);
            }
            Err(_) => {
                self.node.network().remove(id);
            }
        }
    }

    /// Sends back what is whole, and returns its length.
    fn answer(&self, endpoint: Endpoint, bytes: &[u8]) -> io::Result<usize> {
        let whole = wire::frames(bytes)?.whole;
        if whole > 0 && self.node.network().send(endpoint, &bytes[..whole]) != SendStatus::Sent {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(whole)
    }
}
