//! A server and its clients call each other over the same connections, all at the same time.
//!
//! ```sh
//! cargo run --release --example both_ways -- --clients 8 --calls 100000 --in-flight 2000
//! ```
//!
//! On each connection both sides keep thousands of calls in flight, with the same ids. At the end
//! what one side asked must be what the other has answered; if not, the status is not 0.

#![allow(clippy::print_stdout, reason = "a program that prints")]

mod args;

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::Duration,
};

use args::Options;
use indicatif::{ProgressBar, ProgressStyle};
use longhaul::{
    CallError, Client, ClientBuilder, Config, Conn, Handler, Message, ReactorBuilder, Reply,
    Server, protocol::Native,
};

/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy)]
struct Args {
    clients: u64,
    calls: u64,
    in_flight: u16,
}

impl Args {
    fn read() -> Self {
        let mut args = Self { clients: 8, calls: 50_000, in_flight: 2000 };
        Options::new("Lets a server and its clients call each other")
            .number("--clients <CLIENTS>", "Connections", 1..=1000, &mut args.clients)
            .number("--calls <CALLS>", "Calls each way on each connection", 1.., &mut args.calls)
            .number(
                "--in-flight <IN_FLIGHT>",
                "Calls in flight each way on each connection",
                1..,
                &mut args.in_flight,
            )
            .read();
        args
    }
}

/// What one side has done; read by the main thread.
#[derive(Default)]
struct Counts {
    /// Calls that got the right reply.
    replied: AtomicU64,
    /// Requests of the other side's that were answered.
    answered: AtomicU64,
}

/// One side: asks on every connection, and answers what is asked.
struct Side {
    args: Args,
    counts: Arc<Counts>,
    /// Told once if a call fails, and closed with the handler.
    failed: Sender<String>,
}

/// The calls of one connection, kept with it.
#[derive(Default)]
struct Flow {
    started: u64,
    ended: u64,
}

impl Side {
    /// Starts calls until as many are in flight as may be.
    fn ask(&self, conn: &mut Conn<'_, Native>) {
        while let Some(flow) = conn.data_mut::<Flow>()
            && flow.started < self.args.calls
            && flow.started - flow.ended < u64::from(self.args.in_flight)
        {
            let number = flow.started;
            flow.started += 1;
            let asked =
                conn.call(&number.to_be_bytes(), TIMEOUT, move |side: &mut Self, conn, result| {
                    side.take_reply(conn, number, result);
                });
            if let Err(error) = asked {
                let _ = self.failed.send(format!("call {number} did not start: {error}"));
                return;
            }
        }
    }

    fn take_reply(
        &self,
        conn: &mut Conn<'_, Native>,
        number: u64,
        result: Result<Reply<'_>, CallError>,
    ) {
        match result {
            Ok(reply) if reply.body() == number.to_be_bytes() => {
                self.counts.replied.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => drop(self.failed.send(format!("call {number} got the reply of another"))),
            Err(error) => drop(self.failed.send(format!("call {number}: {error}"))),
        }
        if let Some(flow) = conn.data_mut::<Flow>() {
            flow.ended += 1;
        }
        self.ask(conn);
    }
}

impl Handler for Side {
    type Protocol = Native;

    fn on_connect(&mut self, conn: &mut Conn<'_, Native>) {
        conn.set_data(Flow::default());
        self.ask(conn);
    }

    fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
        if conn.reply(&msg, &msg).is_ok() {
            self.counts.answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn main() -> ExitCode {
    env_logger::init();
    match run(Args::read()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether both sides counted the same.
fn run(args: Args) -> anyhow::Result<bool> {
    let config = Config::new().max_calls(args.in_flight.into()).max_requests(args.in_flight.into());
    let (failed, failures) = channel();
    let side = |failed| {
        let counts = Arc::new(Counts::default());
        (counts.clone(), Side { args, counts, failed })
    };
    let (server_counts, side_of_server) = side(failed.clone());
    let (client_counts, side_of_clients) = side(failed);

    let builder = ReactorBuilder::new(Native).config(config.clone());
    let server = Server::bind_with("127.0.0.1:0", builder, side_of_server)?;
    let builder = ClientBuilder::new(Native).config(config.clone());
    let first = builder.connect_with(server.addr(), side_of_clients)?;
    // The others are guests of its reactor, and of its handler.
    let others: Result<Vec<_>, _> = (1..args.clients)
        .map(|_| Client::connect_on_with(&first.handle(), server.addr(), &Native, &config))
        .collect();

    let total = args.clients * args.calls;
    await_all(2 * total, [&server_counts, &client_counts], &failures)?;
    drop(others?);
    first.stop()?;
    server.stop()?;

    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let [asked, answered] = [read(&client_counts.replied), read(&server_counts.answered)];
    println!("clients asked {asked}, the server answered {answered}");
    let [asked_back, answered_back] = [read(&server_counts.replied), read(&client_counts.answered)];
    println!("the server asked {asked_back}, clients answered {answered_back}");
    Ok([asked, answered, asked_back, answered_back] == [total; 4])
}

/// Shows the progress until `total` calls have their replies, or one has failed.
fn await_all(total: u64, counts: [&Counts; 2], failures: &Receiver<String>) -> anyhow::Result<()> {
    let style = "{bar:40} {human_pos}/{human_len} calls, {per_sec}, {eta} left";
    let progress = ProgressBar::new(total).with_style(ProgressStyle::with_template(style)?);
    while progress.position() < total {
        match failures.recv_timeout(Duration::from_millis(50)) {
            Ok(failure) => anyhow::bail!(failure),
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("both sides ended early"),
            Err(RecvTimeoutError::Timeout) => {}
        }
        progress.set_position(counts.iter().map(|c| c.replied.load(Ordering::Relaxed)).sum());
    }
    progress.finish_and_clear();
    Ok(())
}
