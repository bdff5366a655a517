//! A chat server: rooms are groups, and who reads too slowly is cut off alone.
//!
//! ```sh
//! cargo run --release --example chat -- --listen 127.0.0.1:7002
//! cargo run --release -p longhaul-cli -- talk 127.0.0.1:7002
//! ```
//!
//! Everyone starts in the room `lobby`. `/name NICK`, `/join ROOM`, `/who` and `/quit` are
//! commands; every other line goes to the room.
#![allow(clippy::print_stdout, reason = "a program that talks on its terminal")]

mod args;

use std::{
    io::{Write, stdout},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use args::Options;
use longhaul::{
    Audience, CloseReport, Config, Conn, Handler, Message, Reactor, ReactorBuilder,
    protocol::AnyProtocol,
};

struct Args {
    listen: String,
    protocol: AnyProtocol,
    /// How many bytes may wait for a reader.
    hard_limit: usize,
}

impl Args {
    fn read() -> Self {
        let mut args = Self {
            listen: "127.0.0.1:7002".to_owned(),
            protocol: AnyProtocol::default(),
            hard_limit: 256 * 1024,
        };
        Options::new("A chat server with rooms and names")
            .value("--listen <ADDR>", "Where to listen", &mut args.listen)
            .value(
                "--protocol <native|tcpstream|qtk3|qtk2|length>",
                "The wire format",
                &mut args.protocol,
            )
            .value(
                "--hard-limit <BYTES>",
                "How many bytes may wait for a reader before it is cut off",
                &mut args.hard_limit,
            )
            .read();
        args
    }
}

/// Who a connection is; kept with it.
struct Guest {
    name: String,
    room: String,
}

/// Nothing to keep: who is where is known by the connections and their groups.
struct Chat;

type Link<'a> = Conn<'a, AnyProtocol>;

impl Chat {
    /// Tells everyone in the guest's room.
    fn announce(conn: &mut Link<'_>, line: &str) {
        if let Some(room) = conn.data::<Guest>().map(|guest| guest.room.clone()) {
            conn.cx().broadcast(Audience::group(room), line);
        }
    }

    fn rename(conn: &mut Link<'_>, name: &str) {
        let Some(guest) = conn.data_mut::<Guest>() else { return };
        let before = std::mem::replace(&mut guest.name, name.to_owned());
        Self::announce(conn, &format!("* {before} is now {name}"));
    }

    fn enter(conn: &mut Link<'_>, room: &str) {
        let Some(guest) = conn.data_mut::<Guest>() else { return };
        let before = std::mem::replace(&mut guest.room, room.to_owned());
        let name = guest.name.clone();
        conn.leave(&before);
        conn.join(room);
        conn.cx().broadcast(Audience::group(before), format!("* {name} left for {room}"));
        Self::announce(conn, &format!("* {name} came"));
    }

    /// The names in the guest's room.
    fn who(conn: &mut Link<'_>) {
        let Some(room) = conn.data::<Guest>().map(|guest| guest.room.clone()) else { return };
        let ids: Vec<_> = conn.cx().connections().collect();
        let mut names = Vec::new();
        for id in ids {
            if let Some(other) = conn.cx().conn(id)
                && let Some(guest) = other.data::<Guest>()
                && guest.room == room
            {
                names.push(guest.name.clone());
            }
        }
        let _ = conn.send(format!("* in {room}: {}", names.join(", ")));
    }
}

impl Handler for Chat {
    type Protocol = AnyProtocol;

    fn on_connect(&mut self, conn: &mut Link<'_>) {
        let name = format!("guest-{}", conn.id());
        conn.set_data(Guest { name: name.clone(), room: "lobby".into() });
        conn.join("lobby");
        Self::announce(conn, &format!("* {name} came"));
    }

    fn on_message(&mut self, conn: &mut Link<'_>, msg: Message<'_, AnyProtocol>) {
        let text = msg.text();
        let (command, rest) = text.split_once(' ').unwrap_or((&text, ""));
        match (command, rest.trim()) {
            ("/name", name) if !name.is_empty() => Self::rename(conn, name),
            ("/join", room) if !room.is_empty() => Self::enter(conn, room),
            ("/who", "") => Self::who(conn),
            ("/quit", "") => conn.close(),
            _ if text.starts_with('/') => {
                let _ = conn.send("* /name NICK, /join ROOM, /who, /quit");
            }
            _ => {
                let name = conn.data::<Guest>().map(|guest| guest.name.clone());
                Self::announce(conn, &format!("{}: {text}", name.unwrap_or_default()));
            }
        }
    }

    fn on_disconnect(&mut self, conn: &mut Link<'_>, report: &CloseReport) {
        let name = conn.data::<Guest>().map(|guest| guest.name.clone()).unwrap_or_default();
        say(&format!("{name} ({}): {report}", conn.id()));
        Self::announce(conn, &format!("* {name} left"));
    }
}

fn main() -> ExitCode {
    env_logger::init();
    match serve(&Args::read()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &Args) -> Result<()> {
    // A line is short: who is behind by a quarter of the limit is not listened to for a while.
    let config = Config::new()
        .watermarks(args.hard_limit / 8, args.hard_limit / 4)
        .hard_limit(args.hard_limit)
        .max_body(16 * 1024);
    let mut reactor: Reactor<Chat> =
        ReactorBuilder::new(args.protocol).config(config).build(Chat)?;
    let (_, addr) = reactor.listen(&args.listen).context("can't listen")?;
    let handle = reactor.handle();
    ctrlc::set_handler(move || handle.stop())?;
    say(&format!("listening on {addr} ({})", args.protocol));
    Ok(reactor.run()?)
}

/// Prints a line at once; a terminal that is gone is no reason to stop.
fn say(line: &str) {
    let mut out = stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
