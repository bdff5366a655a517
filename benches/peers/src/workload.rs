//! The table of the workloads.

/// What is asked of the servers, and how it is called.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    pub name: &'static str,
    pub title: &'static str,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Each connection keeps `depth` messages of `size` bytes of body under way.
    Echo { connections: usize, depth: usize, size: usize, cores: On },
    /// Threads that call over one connection and block.
    Calls { threads: usize },
    /// Connections that are there and say nothing.
    Idle { connections: usize },
    /// One message to all connections at a time.
    Broadcast { connections: usize, size: usize },
    /// The smallest echo server: how it builds.
    Build,
}

/// Where server and load run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    OneCore,
    TwoCores,
}

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

pub const WORKLOADS: [Workload; 13] = [
    echo("one", "1 connection, depth 1, 64 B, both ends on one core", 1, 1, 64, On::OneCore),
    echo("ping", "1 connection, depth 1, 64 B, each end on a core", 1, 1, 64, On::TwoCores),
    echo("many", "64 connections, depth 1, 64 B", 64, 1, 64, On::TwoCores),
    echo("crowd", "5 000 connections, depth 1, 64 B", 5_000, 1, 64, On::TwoCores),
    echo("deep", "16 connections, depth 64, 64 B", 16, 64, 64, On::TwoCores),
    echo("stream", "1 connection, depth 256, 32 B", 1, 256, 32, On::TwoCores),
    echo("large", "4 connections, depth 4, 64 KiB", 4, 4, 64 * KIB, On::TwoCores),
    echo("huge", "1 connection, depth 2, 4 MiB", 1, 2, 4 * MIB, On::TwoCores),
    calls("calls-1", "blocking calls, 1 thread on one connection", 1),
    calls("calls-8", "blocking calls, 8 threads on one connection", 8),
    calls("calls-64", "blocking calls, 64 threads on one connection", 64),
    Workload {
        name: "idle",
        title: "10 000 idle connections",
        kind: Kind::Idle { connections: 10_000 },
    },
    Workload {
        name: "broadcast",
        title: "broadcast of 64 B to 10 000 connections",
        kind: Kind::Broadcast { connections: 10_000, size: 64 },
    },
];

/// Asked for by name only: it takes longer than all others together.
pub const BUILD: Workload = Workload {
    name: "build",
    title: "the smallest echo server: size and build",
    kind: Kind::Build,
};

const fn echo(
    name: &'static str,
    title: &'static str,
    connections: usize,
    depth: usize,
    size: usize,
    cores: On,
) -> Workload {
    Workload { name, title, kind: Kind::Echo { connections, depth, size, cores } }
}

const fn calls(name: &'static str, title: &'static str, threads: usize) -> Workload {
    Workload { name, title, kind: Kind::Calls { threads } }
}
