//! The smallest echo server on tokio and tokio-util, of the same frames.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::codec::{Decoder, Encoder, Framed};

const HEADER_LEN: usize = 18;
const MAGIC: u16 = 0xAD12;
const LARGEST_BODY: usize = 8 * 1024 * 1024;

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
        let Some(mut header) = src.first_chunk::<HEADER_LEN>().map(|header| &header[..]) else {
            return Ok(None);
        };
        let (magic, len) = (header.get_u16(), header.get_u32() as usize);
        let (seq, msg_type) = (header.get_u64(), header.get_u32());
        if magic != MAGIC || len > LARGEST_BODY {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if src.len() < HEADER_LEN + len {
            src.reserve(HEADER_LEN + len - src.len());
            return Ok(None);
        }
        src.advance(HEADER_LEN);
        Ok(Some(Frame { seq, msg_type, body: src.split_to(len).freeze() }))
    }
}

impl Encoder<Frame> for Codec {
    type Error = io::Error;

    fn encode(&mut self, frame: Frame, dst: &mut BytesMut) -> io::Result<()> {
        let len = u32::try_from(frame.body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        dst.reserve(HEADER_LEN + frame.body.len());
        dst.put_u16(MAGIC);
        dst.put_u32(len);
        dst.put_u64(frame.seq);
        dst.put_u32(frame.msg_type);
        dst.put_slice(&frame.body);
        Ok(())
    }
}

async fn echo(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut framed = Framed::new(stream, Codec);
    while let Some(frame) = framed.next().await {
        framed.feed(frame?).await?;
        while let Some(Some(frame)) = framed.next().now_or_never() {
            framed.feed(frame?).await?;
        }
        framed.flush().await?;
    }
    Ok(())
}

fn main() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("listening on {}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(echo(stream));
        }
    })
}
