//! The table of the peers.

use std::path::PathBuf;

use crate::{load::Format, workload::Kind};

/// One that takes part, under its name.
#[derive(Clone, Debug)]
pub struct Peer {
    pub name: String,
    /// What it is, for the report.
    pub what: String,
    server: &'static str,
    args: &'static [&'static str],
    /// How it is told to give up a silent peer, if it can be.
    idle: &'static [&'static str],
    format: Format,
    plays: Plays,
    /// Where its programs are, unless they are this package's.
    folder: Option<PathBuf>,
}

/// In which workloads it takes part.
#[derive(Clone, Copy, Debug)]
struct Plays {
    echo: bool,
    idle: bool,
    broadcast: bool,
    /// The client.
    calls: Option<&'static str>,
    /// The package.
    build: Option<&'static str>,
}

/// What to start for a workload.
#[derive(Clone, Debug)]
pub struct Cast {
    pub server: Program,
    pub client: Option<Program>,
    pub format: Format,
    /// The folder of the package of the smallest server.
    pub package: Option<&'static str>,
}

#[derive(Clone, Debug)]
pub struct Program {
    pub name: &'static str,
    pub folder: Option<PathBuf>,
    pub args: Vec<&'static str>,
}

const NOTHING: Plays =
    Plays { echo: false, idle: false, broadcast: false, calls: None, build: None };
const ECHO: Plays = Plays { echo: true, ..NOTHING };
const ECHO_AND_IDLE: Plays = Plays { idle: true, ..ECHO };
const TIMEOUT: &[&str] = &["--idle-timeout", "30"];

/// All peers, the floor first.
pub fn all() -> Vec<Peer> {
    let peer = |name: &str, server, args, plays, what: &str| Peer {
        name: name.into(),
        what: what.into(),
        server,
        args,
        idle: &[],
        format: Format::Tcpstream,
        plays,
        folder: None,
    };
    let broadcast = Plays { broadcast: true, ..ECHO_AND_IDLE };
    let ours =
        Plays { calls: Some("calls_longhaul"), build: Some("minimal/longhaul"), ..broadcast };
    let tokio = Plays { build: Some("minimal/tokio"), ..ECHO_AND_IDLE };
    let client = Plays { calls: Some("calls_tokio"), ..NOTHING };
    vec![
        peer("floor", "floor", &[], broadcast, "edge-triggered epoll by hand"),
        peer("floor_drain", "floor", &["--drain"], ECHO, "the same, which reads to `WouldBlock`"),
        peer("plain_mio", "plain_mio", &[], ECHO_AND_IDLE, "a loop over mio, without `unsafe`"),
        peer("tokio_hand", "tokio_hand", &[], ECHO_AND_IDLE, "tokio, one thread, a buffer by hand"),
        Peer {
            idle: TIMEOUT,
            ..peer("tokio_framed", "tokio_framed", &[], tokio, "tokio, one thread, `Framed`")
        },
        peer(
            "message_io",
            "message_io",
            &[],
            ECHO_AND_IDLE,
            "message-io, own framing over its TCP",
        ),
        peer("threads", "threads", &[], ECHO_AND_IDLE, "a blocking thread per connection"),
        Peer {
            idle: TIMEOUT,
            ..peer("longhaul", "longhaul", &[], ours, "longhaul on `tcpstream`")
        },
        Peer {
            format: Format::Native,
            ..peer(
                "longhaul_native",
                "longhaul",
                &["--protocol", "native"],
                ECHO_AND_IDLE,
                "longhaul on `native`, with heartbeats",
            )
        },
        peer(
            "longhaul_any",
            "longhaul",
            &["--protocol", "any"],
            ECHO,
            "longhaul on `tcpstream`, chosen at run time with `AnyProtocol`",
        ),
        peer(
            "longhaul_spin",
            "longhaul",
            &["--busy-poll", "100"],
            Plays { calls: ours.calls, ..ECHO },
            "longhaul on `tcpstream`, which looks for work for 100 µs before it sleeps",
        ),
        peer("tokio_client", "floor", &[], client, "a tokio client, one-shots and a writer task"),
    ]
}

impl Peer {
    /// longhaul as it is elsewhere: the folder has its programs.
    pub fn beside(name: &str, folder: PathBuf) -> Option<Self> {
        let ours = all().into_iter().find(|peer| peer.name == "longhaul")?;
        let plays = Plays { build: None, ..ours.plays };
        Some(Self {
            name: name.into(),
            what: "longhaul, another build".into(),
            folder: Some(folder),
            plays,
            ..ours
        })
    }

    /// What it plays in a workload; `None` if it takes no part.
    pub fn cast(&self, kind: Kind) -> Option<Cast> {
        let with = |args: &[&'static str]| Program {
            name: self.server,
            folder: self.folder.clone(),
            args: [self.args, args].concat(),
        };
        let mut cast = Cast { server: with(&[]), client: None, format: self.format, package: None };
        let takes_part = match kind {
            Kind::Echo { .. } => self.plays.echo,
            Kind::Idle { .. } => {
                cast.server = with(self.idle);
                self.plays.idle
            }
            Kind::Broadcast { .. } => {
                cast.server = with(&["--broadcast"]);
                self.plays.broadcast
            }
            Kind::Calls { .. } => {
                // All clients call the same server.
                cast.server = Program { name: "floor", folder: None, args: Vec::new() };
                cast.client = self.plays.calls.map(|name| Program {
                    name,
                    folder: self.folder.clone(),
                    args: self.args.to_vec(),
                });
                cast.client.is_some()
            }
            Kind::Build => {
                cast.package = self.plays.build;
                cast.package.is_some()
            }
        };
        takes_part.then_some(cast)
    }
}

/// Whom the others are compared with.
pub const fn baseline(kind: Kind) -> &'static str {
    match kind {
        Kind::Echo { .. } | Kind::Idle { .. } | Kind::Broadcast { .. } => "floor",
        Kind::Calls { .. } => "tokio_client",
        Kind::Build => "tokio_framed",
    }
}
