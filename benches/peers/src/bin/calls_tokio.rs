//! Threads that call over one connection of a tokio runtime and block.
//!
//! The runtime has a thread of its own. A call is a body and a one-shot channel for the reply; one
//! task writes all calls that wait with one write, another reads and completes them.

use std::{cell::RefCell, collections::HashMap, io, net::SocketAddr, rc::Rc, thread};

use anyhow::Context as _;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use clap::Parser;
use peers::{calls::Calls, wire};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime,
    sync::{mpsc, oneshot},
    task::{self, LocalSet},
};

/// A good client on tokio.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    calls: Calls,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse().calls;
    let client = Client::connect(args.connect)?;
    let summary = args.drive(|body| client.call(body))?;
    println!("{summary}");
    Ok(())
}

/// Calls that wait to be written, at most.
const QUEUE: usize = 1024;
const BATCH: usize = 256;
const BUFFER_LEN: usize = 64 * 1024;

struct Client {
    calls: mpsc::Sender<Call>,
}

struct Call {
    body: Bytes,
    reply: oneshot::Sender<Bytes>,
}

/// Those that wait for a reply, by the number of their call.
type Pending = Rc<RefCell<HashMap<u64, oneshot::Sender<Bytes>>>>;

impl Client {
    fn connect(addr: SocketAddr) -> anyhow::Result<Self> {
        let (calls, queue) = mpsc::channel(QUEUE);
        let (told, outcome) = oneshot::channel();
        thread::spawn(move || -> io::Result<()> {
            let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
            LocalSet::new().block_on(&runtime, async {
                let stream = match TcpStream::connect(addr).await {
                    Ok(stream) => stream,
                    Err(error) => {
                        let _ = told.send(Err(error));
                        return Ok(());
                    }
                };
                stream.set_nodelay(true)?;
                let _ = told.send(Ok(()));
                let (reader, writer) = stream.into_split();
                let pending = Pending::default();
                task::spawn_local(write(writer, queue, pending.clone()));
                read(reader, pending).await
            })
        });
        outcome.blocking_recv().context("the runtime has ended")??;
        Ok(Self { calls })
    }

    fn call(&self, body: &[u8]) -> anyhow::Result<Bytes> {
        let (reply, answer) = oneshot::channel();
        let call = Call { body: Bytes::copy_from_slice(body), reply };
        self.calls.blocking_send(call).ok().context("the connection has ended")?;
        answer.blocking_recv().context("the connection has ended")
    }
}

async fn write(
    mut writer: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Call>,
    pending: Pending,
) -> io::Result<()> {
    let mut seq = 0;
    let mut batch = Vec::with_capacity(BATCH);
    let mut out = BytesMut::with_capacity(BUFFER_LEN);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        for call in batch.drain(..) {
            seq += 1;
            out.put_slice(&wire::header(call.body.len(), seq, 0));
            out.put_slice(&call.body);
            pending.borrow_mut().insert(seq, call.reply);
        }
        writer.write_all(&out).await?;
        out.clear();
    }
    Ok(())
}

async fn read(mut reader: OwnedReadHalf, pending: Pending) -> io::Result<()> {
    let mut buf = BytesMut::with_capacity(BUFFER_LEN);
    while reader.read_buf(&mut buf).await? > 0 {
        let mut next = 0;
        while let Some(len) = wire::frame_len(&buf)? {
            if buf.len() < len {
                next = len;
                break;
            }
            let mut frame = buf.split_to(len).freeze();
            frame.advance(6); // the magic and the length
            let seq = frame.get_u64();
            frame.advance(4); // the message type
            if let Some(waiter) = pending.borrow_mut().remove(&seq) {
                let _ = waiter.send(frame);
            }
        }
        buf.reserve(BUFFER_LEN.max(next).saturating_sub(buf.len()));
    }
    Ok(())
}
