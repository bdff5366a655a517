//! One measurement: a server is started, loaded and ended.

use std::{
    env,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use crate::{
    build,
    calls::Summary,
    load::{self, Idle, Outcome, Plan},
    peer::{Cast, Program},
    system::{self, Cores},
    workload::{Kind, On},
};

/// How long, and where.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub warm_up: Duration,
    pub window: Duration,
    pub cores: Cores,
}

/// A column of the result.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub title: &'static str,
    /// Whether each value is also divided by that of the one all are compared with.
    pub is_compared: bool,
}

/// What is measured for a workload: the values of [`run`], in this order.
pub const fn columns(kind: Kind) -> &'static [Column] {
    const fn compared(title: &'static str) -> Column {
        Column { title, is_compared: true }
    }
    const fn plain(title: &'static str) -> Column {
        Column { title, is_compared: false }
    }
    match kind {
        Kind::Echo { .. } => {
            const {
                &[
                    compared("server CPU, µs a message"),
                    plain("messages/s"),
                    plain("p50, µs"),
                    plain("p99, µs"),
                    plain("p99.9, µs"),
                    plain("resident, KiB"),
                ]
            }
        }
        Kind::Calls { .. } => {
            const {
                &[
                    compared("calls/s"),
                    compared("client CPU, µs a call"),
                    plain("p50, µs"),
                    plain("p99, µs"),
                    plain("p99.9, µs"),
                ]
            }
        }
        Kind::Idle { .. } => {
            const {
                &[
                    compared("fresh, resident bytes each"),
                    compared("used once, resident bytes each"),
                    plain("server CPU to accept, µs each"),
                ]
            }
        }
        Kind::Broadcast { .. } => {
            const {
                &[
                    compared("server CPU, µs a delivery"),
                    plain("deliveries/s"),
                    plain("all have it, p50, ms"),
                    plain("all have it, p99, ms"),
                ]
            }
        }
        Kind::Build => {
            const { &[compared("stripped, KiB"), compared("crates"), compared("build CPU, s")] }
        }
    }
}

/// Measures once.
pub fn run(kind: Kind, cast: &Cast, settings: Settings) -> anyhow::Result<Vec<f64>> {
    match kind {
        Kind::Build => {
            let built = build::build(cast.package.context("no package")?)?;
            Ok(vec![built.size as f64 / 1024.0, built.crates as f64, built.cpu])
        }
        Kind::Calls { threads } => calls(threads, cast, settings),
        Kind::Echo { .. } | Kind::Idle { .. } | Kind::Broadcast { .. } => {
            // On a thread of its own, which is pinned and then gone.
            thread::scope(|scope| {
                let load = scope.spawn(|| loaded(kind, cast, settings));
                load.join().expect("the load does not panic")
            })
        }
    }
}

fn loaded(kind: Kind, cast: &Cast, settings: Settings) -> anyhow::Result<Vec<f64>> {
    let mut cores = settings.cores;
    if let Kind::Echo { cores: On::OneCore, .. } = kind {
        cores.load = cores.server;
    }
    system::pin(cores.load)?;
    let server = Server::start(&cast.server, cores.server)?;
    let (connections, depth, size) = match kind {
        Kind::Echo { connections, depth, size, .. } => (connections, depth, size),
        Kind::Broadcast { connections, size } => (connections, 1, size),
        _ => (1, 1, 64),
    };
    let plan = Plan {
        addr: server.addr,
        format: cast.format,
        connections,
        depth,
        size,
        warm_up: settings.warm_up,
        window: settings.window,
    };
    let mut sample = || Ok(system::cpu_time(server.pid())?);
    match kind {
        Kind::Broadcast { .. } => {
            let outcome = load::broadcast(&plan, &mut sample)?;
            let all = |at| outcome.latency.value_at_quantile(at) as f64 / 1e6;
            Ok(vec![cpu_each(&outcome), rate(&outcome), all(0.5), all(0.99)])
        }
        Kind::Idle { connections } => idle(&server, &Plan { connections, ..plan }),
        _ => {
            let outcome = load::echo(&plan, &mut sample)?;
            let latency = |at| outcome.latency.value_at_quantile(at) as f64 / 1e3;
            let resident = system::resident(server.pid())? as f64 / 1024.0;
            let (p50, p99, p999) = (latency(0.5), latency(0.99), latency(0.999));
            Ok(vec![cpu_each(&outcome), rate(&outcome), p50, p99, p999, resident])
        }
    }
}

fn cpu_each(outcome: &Outcome) -> f64 {
    outcome.server_cpu.as_secs_f64() * 1e6 / outcome.messages as f64
}

fn rate(outcome: &Outcome) -> f64 {
    outcome.messages as f64 / outcome.elapsed.as_secs_f64()
}

fn idle(server: &Server, plan: &Plan) -> anyhow::Result<Vec<f64>> {
    // The code that is used is in memory before anything is compared.
    let mut first = Idle::open(&Plan { connections: 8, ..*plan })?;
    first.use_once()?;
    let before = settled(server.pid())?;
    let descriptors = system::descriptors(server.pid())?;
    let cpu = system::cpu_time(server.pid())?;

    let mut all = Idle::open(plan)?;
    let begun = Instant::now();
    while system::descriptors(server.pid())? < descriptors + plan.connections {
        ensure!(begun.elapsed() < Duration::from_secs(30), "not all connections were accepted");
        thread::sleep(Duration::from_millis(5));
    }
    let fresh = settled(server.pid())?;
    let cpu = system::cpu_time(server.pid())?.saturating_sub(cpu);
    all.use_once()?;
    let used = settled(server.pid())?;
    let each = |now: u64| (now as f64 - before as f64) / plan.connections as f64;
    let accepted = cpu.as_secs_f64() * 1e6 / plan.connections as f64;
    Ok(vec![each(fresh), each(used), accepted])
}

/// The resident memory once the process has nothing more to do.
fn settled(pid: u32) -> anyhow::Result<u64> {
    let mut cpu = system::cpu_time(pid)?;
    for _ in 0..200 {
        thread::sleep(Duration::from_millis(50));
        let now = system::cpu_time(pid)?;
        if now.saturating_sub(cpu) < Duration::from_millis(1) {
            break;
        }
        cpu = now;
    }
    system::resident(pid)
}

fn calls(threads: usize, cast: &Cast, settings: Settings) -> anyhow::Result<Vec<f64>> {
    let server = Server::start(&cast.server, settings.cores.server)?;
    let client = cast.client.as_ref().context("no client")?;
    let mut command = client.command()?;
    command
        .arg(format!("--connect={}", server.addr))
        .arg(format!("--threads={threads}"))
        .arg(format!("--warm-up={}", settings.warm_up.as_secs_f64()))
        .arg(format!("--seconds={}", settings.window.as_secs_f64()))
        .stderr(Stdio::inherit());
    system::pin_command(&mut command, settings.cores.load);
    let output = command.output()?;
    ensure!(output.status.success(), "{} failed", client.name);
    let summary: Summary = String::from_utf8(output.stdout)?.trim().parse()?;
    let [p50, p99, p999] = summary.latency.map(|nanos| nanos as f64 / 1e3);
    let calls = summary.calls as f64;
    let cpu = summary.cpu.as_secs_f64() * 1e6 / calls;
    Ok(vec![calls / summary.elapsed.as_secs_f64(), cpu, p50, p99, p999])
}

impl Program {
    fn command(&self) -> anyhow::Result<Command> {
        let path = match &self.folder {
            Some(folder) => folder.join(self.name),
            None => own_folder()?.join(self.name),
        };
        let mut command = Command::new(path);
        command.args(&self.args).stdin(Stdio::null());
        Ok(command)
    }
}

/// The programs of this package are beside this one.
pub fn own_folder() -> anyhow::Result<PathBuf> {
    let mut path = env::current_exe()?;
    path.pop();
    Ok(path)
}

/// A server that runs; dropping it ends it.
struct Server {
    child: Child,
    addr: SocketAddr,
}

impl Server {
    fn start(program: &Program, core: usize) -> anyhow::Result<Self> {
        let mut command = program.command()?;
        command.stdout(Stdio::piped());
        system::pin_command(&mut command, core);
        let child = command.spawn().with_context(|| format!("can't start {}", program.name))?;
        let mut server = Self { child, addr: SocketAddr::from(([127, 0, 0, 1], 0)) };
        let stdout = server.child.stdout.take().context("its output is piped")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let addr = line.trim().strip_prefix("listening on ").unwrap_or_default();
        server.addr = addr.parse().with_context(|| format!("{} says {line:?}", program.name))?;
        Ok(server)
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SAFETY: a signal to a child that was not waited for yet, so the number is still its own.
        unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGTERM) };
        let begun = Instant::now();
        while let Ok(None) = self.child.try_wait() {
            if begun.elapsed() > Duration::from_secs(5) {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}
