//! Threads: one per connection, which blocks.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    thread,
};

use clap::Parser;
use peers::{serve::Serve, wire};

/// A buffer begins so small, and doubles as long as reads fill it.
const SMALLEST: usize = 4 * 1024;
const LARGEST: usize = 64 * 1024;
const STACK: usize = 32 * 1024;

/// A blocking thread per connection.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    serve: Serve,
}

fn main() -> io::Result<()> {
    let listener = Args::parse().serve.bind()?;
    listener.set_nonblocking(false)?;
    loop {
        let (stream, _) = listener.accept()?;
        thread::Builder::new().stack_size(STACK).spawn(|| echo(stream))?;
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buf = vec![0; SMALLEST];
    let mut len = 0;
    loop {
        let n = match stream.read(&mut buf[len..]) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        len += n;
        let found = wire::frames(&buf[..len])?;
        if found.whole > 0 {
            stream.write_all(&buf[..found.whole])?;
        }
        let is_full = len == buf.len();
        buf.copy_within(found.whole..len, 0);
        len -= found.whole;
        let room = if is_full { (2 * buf.len()).min(LARGEST) } else { 0 };
        buf.resize(buf.len().max(room).max(found.next), 0);
    }
}
