//! Both sides of each connection call the other at the same time, thousands in flight.
//!
//! ```sh
//! cargo run --release --example both_ways -- --clients 4 --calls 100000 --in-flight 2000
//! ```
//!
//! Server and clients in one program. Every call carries a number and is answered with it; at the
//! end both sides' counts are printed, and must agree.
#![allow(clippy::print_stdout, reason = "a program that talks on its terminal")]

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Sender, channel},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use longhaul::{
    CallError, Conn, Handler, Message, Reactor, ReactorBuilder, Reply, protocol::Native,
};

/// Server and clients call each other over the same connections.
#[derive(Parser)]
struct Args {
    /// How many clients
    #[arg(long, value_name = "N", default_value_t = 4)]
    clients: u64,
    /// How many calls each side makes on each connection
    #[arg(long, value_name = "M", default_value_t = 100_000)]
    calls: u64,
    /// How many of them are in flight at a time
    #[arg(long, value_name = "K", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=4096))]
    in_flight: u64,
}

/// What one side has counted.
#[derive(Default)]
struct Counts {
    asked: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    served: AtomicU64,
}

/// One side: asks as much as it may, and answers what it is asked.
struct Side {
    counts: Arc<Counts>,
    calls: u64,
    in_flight: u64,
    /// Told once for each connection on which all was answered.
    done: Sender<()>,
    bar: ProgressBar,
}

/// How far one connection has come.
struct Progress {
    asked: u64,
    ended: u64,
}

const TIMEOUT: Duration = Duration::from_secs(60);

impl Side {
    /// Asks the next question; its end asks the one after.
    fn ask(&mut self, conn: &mut Conn<'_, Native>) {
        let Some(progress) = conn.data_mut::<Progress>() else { return };
        if progress.asked == self.calls {
            return;
        }
        progress.asked += 1;
        let number = progress.asked;
        self.counts.asked.fetch_add(1, Ordering::Relaxed);
        let ended = move |side: &mut Self,
                          conn: &mut Conn<'_, Native>,
                          result: Result<Reply<'_>, CallError>| {
            let is_right = result.is_ok_and(|reply| reply.body() == number.to_be_bytes());
            side.ended(conn, is_right);
        };
        if conn.call::<Self>(&number.to_be_bytes(), TIMEOUT, ended).is_err() {
            self.ended(conn, false);
        }
    }

    fn ended(&mut self, conn: &mut Conn<'_, Native>, is_right: bool) {
        let count = if is_right { &self.counts.answered } else { &self.counts.failed };
        count.fetch_add(1, Ordering::Relaxed);
        self.bar.inc(1);
        let Some(progress) = conn.data_mut::<Progress>() else { return };
        progress.ended += 1;
        if progress.ended == self.calls {
            let _ = self.done.send(());
        }
        self.ask(conn);
    }
}

impl Handler for Side {
    type Protocol = Native;

    fn on_connect(&mut self, conn: &mut Conn<'_, Native>) {
        conn.set_data(Progress { asked: 0, ended: 0 });
        for _ in 0..self.in_flight.min(self.calls) {
            self.ask(conn);
        }
    }

    fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
        if conn.reply(&msg, &msg).is_ok() {
            self.counts.served.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn main() -> ExitCode {
    env_logger::init();
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let total = 2 * args.clients * args.calls;
    let bar = ProgressBar::new(total).with_style(ProgressStyle::with_template(
        "{bar:40} {pos} of {len} calls, {per_sec}, {eta} left",
    )?);
    let (done, ends) = channel();
    let [server, clients] = [Arc::new(Counts::default()), Arc::new(Counts::default())];
    let side = |counts: &Arc<Counts>| Side {
        counts: counts.clone(),
        calls: args.calls,
        in_flight: args.in_flight,
        done: done.clone(),
        bar: bar.clone(),
    };
    let mut serving: Reactor<Side> = ReactorBuilder::new(Native).build(side(&server))?;
    let (_, addr) = serving.listen("127.0.0.1:0")?;
    let mut calling: Reactor<Side> = ReactorBuilder::new(Native).build(side(&clients))?;
    for _ in 0..args.clients {
        calling.connect(addr)?;
    }
    let handles = [calling.handle(), serving.handle()];
    let threads =
        [std::thread::spawn(move || calling.run()), std::thread::spawn(move || serving.run())];
    if args.calls > 0 {
        (0..2 * args.clients).try_for_each(|_| ends.recv())?;
    }
    handles.iter().for_each(longhaul::Handle::stop);
    for thread in threads {
        thread.join().expect("the loop catches panics")?;
    }
    bar.finish_and_clear();
    for (name, counts) in [("server", &server), ("clients", &clients)] {
        let [asked, answered, failed, done] =
            [&counts.asked, &counts.answered, &counts.failed, &counts.served]
                .map(|count| count.load(Ordering::Relaxed));
        println!("{name}: {asked} asked, {answered} answered, {failed} failed, {done} served");
    }
    for (asking, serving) in [(&server, &clients), (&clients, &server)] {
        let answered = asking.answered.load(Ordering::Relaxed);
        ensure!(answered == args.clients * args.calls, "{answered} calls were answered");
        ensure!(answered == serving.served.load(Ordering::Relaxed), "the counts do not agree");
    }
    println!("the counts agree");
    Ok(())
}
