//! A reactor in a task of tokio's: an `AsyncFd` watches its descriptor, as the example `own_loop` says.

use std::{
    io,
    os::fd::AsFd,
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use longhaul::{ClientBuilder, Conn, Handler, Message, Reactor, protocol::Native};
use tokio::io::{Interest, unix::AsyncFd};

const SECOND: Duration = Duration::from_secs(1);

/// Answers every request with its own body.
struct Echo;

impl Handler for Echo {
    type Protocol = Native;

    fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
        let _ = conn.reply(&msg, msg.body());
    }
}

async fn drive(mut reactor: Reactor<Echo>) -> Result<(), Box<dyn std::error::Error>> {
    let fd = reactor.as_fd().try_clone_to_owned()?;
    #[expect(
        deprecated,
        reason = "what replaces it is unsafe, and an `OwnedFd` keeps its descriptor"
    )]
    let readiness = AsyncFd::with_interest(fd, Interest::READABLE)?;
    while reactor.turn(Some(Duration::ZERO))? {
        let readable = readiness.readable();
        match reactor.next_deadline() {
            Some(at) => {
                if let Ok(ready) = tokio::time::timeout_at(at.into(), readable).await {
                    ready?.clear_ready();
                }
            }
            None => readable.await?.clear_ready(),
        }
    }
    Ok(())
}

#[test]
fn reactor_runs_in_a_task_and_sleeps_while_there_is_nothing_to_do() {
    let mut reactor = Reactor::new(Echo).unwrap();
    let (_, addr) = reactor.listen("127.0.0.1:0").unwrap();
    let handle = reactor.handle();
    let calls = thread::spawn(move || -> io::Result<u64> {
        let client = ClientBuilder::new(Native).connect(addr.to_string()).unwrap();
        for number in 0..1000_u32 {
            let reply = client.call(number.to_string(), 10 * SECOND).unwrap();
            assert_eq!(reply.as_ref(), number.to_string().as_bytes());
        }
        let before = handle.stats().turns;
        // Nobody sends anything: it waits.
        let (_idle, nothing) = channel::<()>();
        assert_eq!(nothing.recv_timeout(SECOND), Err(RecvTimeoutError::Timeout));
        let idle = handle.stats().turns - before;
        handle.stop();
        Ok(idle)
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(drive(reactor)).unwrap();
    let idle = calls.join().unwrap().unwrap();
    assert!(idle < 100, "{idle} turns in a second without anything to do");
}
