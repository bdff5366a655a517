//! tokio and tokio-util: a task per connection, a codec, `Framed`.
//!
//! What was received together is answered together: frames are fed while more are there, and
//! flushed when they are not.

use std::{io, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use clap::Parser;
use futures_util::{FutureExt, SinkExt, StreamExt};
use peers::{
    serve::{Idle, Serve},
    wire::{self, HEADER_LEN},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::codec::{Decoder, Encoder, Framed};

/// tokio's current-thread runtime and tokio-util's `Framed`.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    serve: Serve,
    #[command(flatten)]
    idle: Idle,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let args = Args::parse();
    let listener = TcpListener::from_std(args.serve.bind()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(echo(stream, args.idle.timeout()));
    }
}

async fn echo(stream: TcpStream, idle: Option<Duration>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut framed = Framed::new(stream, Codec);
    loop {
        let next = match idle {
            Some(idle) => tokio::time::timeout(idle, framed.next()).await?,
            None => framed.next().await,
        };
        let Some(frame) = next else { return Ok(()) };
        framed.feed(frame?).await?;
        while let Some(Some(frame)) = framed.next().now_or_never() {
            framed.feed(frame?).await?;
        }
        framed.flush().await?;
    }
}

struct Frame {
    seq: u64,
    msg_type: u32,
    body: Bytes,
}

struct Codec;

impl Decoder for Codec {
    type Item = Frame;
    type Error = io::Error;

    fn decode(&mut self, src: &mut BytesMut) -> io::Result<Option<Frame>> {
        let Some(len) = wire::frame_len(src)? else { return Ok(None) };
        if src.len() < len {
            src.reserve(len - src.len());
            return Ok(None);
        }
        let mut frame = src.split_to(len).freeze();
        frame.advance(6); // the magic and the length
        let (seq, msg_type) = (frame.get_u64(), frame.get_u32());
        Ok(Some(Frame { seq, msg_type, body: frame }))
    }
}

impl Encoder<Frame> for Codec {
    type Error = io::Error;

    fn encode(&mut self, frame: Frame, dst: &mut BytesMut) -> io::Result<()> {
        dst.reserve(HEADER_LEN + frame.body.len());
        dst.put_slice(&wire::header(frame.body.len(), frame.seq, frame.msg_type));
        dst.put_slice(&frame.body);
        Ok(())
    }
}
