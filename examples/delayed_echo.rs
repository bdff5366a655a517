//! The Node library's demonstration: a server that echoes at once, one that echoes after three
//! seconds, and a client of both.
//!
//! ```sh
//! cargo run --release --example delayed_echo
//! cargo run --release --example delayed_echo -- --delay 0.5 --protocol qtk2
//! ```
//!
//! Both servers and the client share one thread. The delay is a timer of the loop: nothing waits for
//! it, and a million of them would cost a few bytes each.

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program that prints, and has no simulated clock"
)]

mod args;

use std::{
    collections::HashMap,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{anyhow, ensure};
use args::{Options, Seconds};
use longhaul::{
    Bytes, CallError, Config, Conn, Context, Error, Handler, ListenerId, Message, ReactorBuilder,
    Reply, Responder, Timer, TimerId,
    protocol::{AnyProtocol, Qtk3},
};

/// Echoes and delayed echoes, and the client that asks for them.
struct Demo {
    delay: Duration,
    began: Instant,
    /// The listener whose connections get their echo late.
    late: Option<ListenerId>,
    waiting: HashMap<TimerId, (Responder<AnyProtocol>, Bytes)>,
    /// What came back, and after what time.
    echoes: Vec<(String, Duration)>,
    failure: Option<String>,
}

impl Demo {
    /// Dials both servers, once they listen.
    fn begin(&mut self, cx: &mut Context<'_, AnyProtocol>) -> Result<(), Error> {
        let (_, echo) = cx.listen("127.0.0.1:0")?;
        let (late, delayed_echo) = cx.listen("127.0.0.1:0")?;
        self.late = Some(late);
        println!("echo on {echo}, delayed echo on {delayed_echo}");
        for addr in [echo, delayed_echo] {
            cx.connect(addr)?;
        }
        Ok(())
    }

    fn on_echo(&mut self, conn: &mut Conn<'_, AnyProtocol>, echo: Result<Reply<'_>, CallError>) {
        match echo {
            Ok(reply) => {
                let time = self.began.elapsed();
                println!("'{}' came back after {time:.1?}", reply.text());
                self.echoes.push((reply.text().into_owned(), time));
            }
            Err(error) => self.failure = Some(error.to_string()),
        }
        if self.echoes.len() == 2 || self.failure.is_some() {
            conn.cx().stop();
        }
    }
}

impl Handler for Demo {
    type Protocol = AnyProtocol;

    fn on_start(&mut self, cx: &mut Context<'_, AnyProtocol>) {
        if let Err(error) = self.begin(cx) {
            self.failure = Some(error.to_string());
            cx.stop();
        }
    }

    fn on_connect(&mut self, conn: &mut Conn<'_, AnyProtocol>) {
        if conn.is_dialled() {
            let patience = self.delay + Duration::from_secs(10);
            let text = format!("hello from {}", conn.id());
            if let Err(error) = conn.call(text, patience, Self::on_echo) {
                self.failure = Some(error.to_string());
                conn.cx().stop();
            }
        }
    }

    fn on_message(&mut self, conn: &mut Conn<'_, AnyProtocol>, msg: Message<'_, AnyProtocol>) {
        if conn.listener() != self.late {
            let _ = conn.reply(&msg, &msg);
        } else if let Ok(responder) = conn.defer(&msg) {
            let timer = conn.set_timer(self.delay, 0);
            self.waiting.insert(timer, (responder, msg.into_bytes()));
        }
    }

    fn on_timer(&mut self, _: &mut Context<'_, AnyProtocol>, timer: Timer) {
        if let Some((responder, body)) = self.waiting.remove(&timer.id) {
            let _ = responder.reply(body); // an error says that its client has gone
        }
    }
}

struct Args {
    /// How long the delayed echo takes.
    delay: Seconds,
    protocol: AnyProtocol,
}

impl Args {
    fn read() -> Self {
        let mut args =
            Self { delay: Seconds(Duration::from_secs(3)), protocol: AnyProtocol::Qtk3(Qtk3) };
        Options::new("Says hello to a server that echoes at once, and to one that takes its time")
            .value(
                "--delay <SECS>",
                "How long the delayed echo takes; fractions are fine",
                &mut args.delay,
            )
            .value(
                "--protocol <qtk3|qtk2|native|tcpstream>",
                "The wire format: the library's version 3 or 2, or another one with calls",
                &mut args.protocol,
            )
            .read();
        args
    }
}

fn main() -> ExitCode {
    env_logger::init();
    match run(&Args::read()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let mut reactor = ReactorBuilder::new(args.protocol).config(Config::qtk()).build(Demo {
        delay: args.delay.0,
        began: Instant::now(),
        late: None,
        waiting: HashMap::new(),
        echoes: Vec::new(),
        failure: None,
    })?;
    reactor.run()?;
    let demo = reactor.handler();
    if let Some(failure) = demo.failure.take() {
        return Err(anyhow!(failure));
    }
    ensure!(demo.echoes.len() == 2, "an echo is missing");
    ensure!(demo.echoes[1].1 >= demo.delay, "an echo came too early");
    Ok(())
}
