//! What every server does the same: its arguments, how it listens, how it says so.
//!
//! They all end on SIGTERM, by its default action.

use std::{
    fmt,
    io::{self, Write},
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use clap::Args;
use socket2::{Domain, Socket, Type};

/// Room for all that connect at once; the system may cap it.
const BACKLOG: i32 = 4096;

/// The arguments that every server takes.
#[derive(Args, Clone, Copy, Debug)]
pub struct Serve {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
}

impl Serve {
    /// Listens without blocking, and says where.
    pub fn bind(&self) -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(self.listen), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&self.listen.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        announce(listener.local_addr()?)?;
        Ok(listener)
    }
}

/// How long a silent peer is kept, for servers that can tell.
#[derive(Args, Clone, Copy, Debug)]
pub struct Idle {
    /// Close a connection on which nothing was received for so many seconds
    #[arg(long, value_name = "SECONDS")]
    idle_timeout: Option<u64>,
}

impl Idle {
    pub fn timeout(self) -> Option<Duration> {
        self.idle_timeout.map(Duration::from_secs)
    }
}

/// The line that the runner waits for.
pub fn announce(addr: impl fmt::Display) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "listening on {addr}")?;
    out.flush()
}
