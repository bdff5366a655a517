//! tokio without a codec: a task and a read buffer per connection, one write per read.

use std::io;

use bytes::{Buf, BytesMut};
use clap::Parser;
use peers::{serve::Serve, wire};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A buffer begins so small, and doubles as long as reads fill it.
const SMALLEST: usize = 4 * 1024;
const LARGEST: usize = 64 * 1024;

/// tokio's current-thread runtime, by hand.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    serve: Serve,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let args = Args::parse();
    let listener = TcpListener::from_std(args.serve.bind()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(echo(stream));
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut room = SMALLEST;
    let mut buf = BytesMut::with_capacity(room);
    loop {
        let asked = buf.capacity() - buf.len();
        let n = stream.read_buf(&mut buf).await?;
        if n == 0 {
            return Ok(());
        }
        let found = wire::frames(&buf)?;
        if found.whole > 0 {
            stream.write_all(&buf[..found.whole]).await?;
            buf.advance(found.whole);
        }
        if n == asked {
            room = (2 * room).min(LARGEST);
        }
        // Takes the front of the buffer back where that is enough.
        buf.reserve(room.max(found.next).saturating_sub(buf.len()));
    }
}
