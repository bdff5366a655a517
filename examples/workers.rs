//! A server whose answers are computed by a few threads, and come out of order.
//!
//! ```sh
//! cargo run --release --example workers -- --threads 4 --requests 20
//! ```
//!
//! A client in the same program has all its requests in flight at once, and prints the answers as
//! they come. Then it asks for too much and does not wait for it, and the work is dropped.

mod args;

use std::{
    fmt::Display,
    io::{self, Write},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use anyhow::{bail, ensure};
use args::Options;
use longhaul::{
    CallError, ClientBuilder, Conn, Handler, Message, Reply, Responder, Server, error_code,
    protocol::Native,
};

struct Args {
    /// Threads that compute.
    threads: u32,
    /// Requests in flight.
    requests: u32,
}

impl Args {
    fn read() -> Self {
        let mut args = Self { threads: 4, requests: 20 };
        Options::new(
            "Counts primes on a few threads, for a client that asks for everything at once",
        )
        .number("--threads <N>", "Threads that compute", 1..=64, &mut args.threads)
        .number("--requests <N>", "Requests in flight", 1..=4096, &mut args.requests)
        .read();
        args
    }
}

fn main() -> anyhow::Result<()> {
    env_logger::init();
    let args = Args::read();
    let (jobs, waiting) = channel();
    let waiting = Arc::new(Mutex::new(waiting));
    let workers: Vec<_> = (0..args.threads)
        .map(|_| {
            let waiting = waiting.clone();
            thread::spawn(move || work(&waiting))
        })
        .collect();
    let server = Server::bind("127.0.0.1:0", Front { jobs })?;

    let (done, ended) = channel();
    let asker = Asker { requests: args.requests, ended: 0, failed: 0, done };
    let client = ClientBuilder::new(Native).connect_with(server.addr(), asker)?;
    let failed = ended.recv()?;
    ensure!(failed == 0, "{failed} requests failed");

    match client.call(u64::MAX.to_string(), Duration::from_millis(100)) {
        Err(error @ CallError::Timeout { .. }) => say(format_args!("too much was asked: {error}")),
        other => bail!("a timeout was expected: {other:?}"),
    }
    client.stop()?;
    server.stop()?; // and with its handler the queue of jobs ends, and so do the workers
    for worker in workers {
        worker.join().expect("a worker does not panic");
    }
    Ok(())
}

/// A request that waits for a worker.
struct Job {
    limit: String,
    responder: Responder<Native>,
}

/// The server's side on the loop, which never computes: it hands every request on.
struct Front {
    jobs: Sender<Job>,
}

impl Handler for Front {
    type Protocol = Native;

    fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
        // No more jobs wait than requests may be in flight, 4096 on a connection. A message that is
        // no request has no responder.
        if let Ok(responder) = conn.defer(&msg) {
            let _ = self.jobs.send(Job { limit: msg.text().into_owned(), responder });
        }
    }
}

/// A worker: one job after the other, while there may be more.
fn work(waiting: &Mutex<Receiver<Job>>) {
    loop {
        let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { limit, responder }) = job else { return };
        let Ok(limit) = limit.parse() else {
            let _ = responder.fail(error_code::FAILED, "this is no number");
            continue;
        };
        match count_primes(limit, || responder.is_cancelled()) {
            Some(primes) => {
                // A worker whose asker takes no answers waits a while. An error: the asker has gone.
                let _ = responder.reply_wait(primes.to_string(), Duration::from_secs(10));
            }
            None => say(format_args!("a worker stops counting below {limit}: nobody waits")),
        }
    }
}

/// The slow way, which takes its time. `None` if it was cancelled.
fn count_primes(limit: u64, is_cancelled: impl Fn() -> bool) -> Option<u64> {
    let mut primes = 0;
    for number in 2..limit {
        if is_cancelled() {
            return None;
        }
        let is_prime = (2..number).take_while(|d| d * d <= number).all(|d| number % d != 0);
        primes += u64::from(is_prime);
    }
    Some(primes)
}

/// The client's side on its loop: asks for everything, and hears the answers as they come.
struct Asker {
    requests: u32,
    ended: u32,
    failed: u32,
    /// Told how many failed, when all have ended.
    done: Sender<u32>,
}

impl Handler for Asker {
    type Protocol = Native;

    fn on_connect(&mut self, conn: &mut Conn<'_, Native>) {
        for request in 1..=self.requests {
            let limit = 200 * (1 + request * 7919 % 50); // some are quick, some are not
            let timeout = Duration::from_mins(1);
            let call = conn.call(limit.to_string(), timeout, move |asker: &mut Self, _, result| {
                asker.on_end(request, limit, result);
            });
            if let Err(error) = call {
                self.on_end(request, limit, Err(error.into()));
            }
        }
    }

    fn on_message(&mut self, _: &mut Conn<'_, Native>, _: Message<'_, Native>) {}
}

impl Asker {
    fn on_end(&mut self, request: u32, limit: u32, result: Result<Reply<'_>, CallError>) {
        match result.map(|reply| String::from_utf8_lossy(reply.body()).into_owned()) {
            Ok(primes) => say(format_args!("request {request}: {primes} primes below {limit}")),
            Err(error) => {
                self.failed += 1;
                say(format_args!("request {request}: {error}"));
            }
        }
        self.ended += 1;
        if self.ended == self.requests {
            let _ = self.done.send(self.failed);
        }
    }
}

/// Prints a line at once, if somebody reads it.
fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}
