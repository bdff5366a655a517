//! What the system knows: processors, processor time, resident memory, descriptors.

use std::{
    fs, io, mem,
    os::unix::process::CommandExt,
    process::Command,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;

/// The processors that the measurement uses.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    pub server: usize,
    pub load: usize,
}

impl Cores {
    /// The last two that this process may use.
    pub fn find() -> io::Result<Self> {
        let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
        check(unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) })?;
        let mut allowed = (0..libc::CPU_SETSIZE.cast_unsigned() as usize)
            .rev()
            .filter(|&core| unsafe { libc::CPU_ISSET(core, &set) });
        let server = allowed.next().unwrap_or(0);
        Ok(Self { server, load: allowed.next().unwrap_or(server) })
    }
}

/// Keeps this thread on one processor.
pub fn pin(core: usize) -> io::Result<()> {
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    unsafe { libc::CPU_SET(core, &mut set) };
    check(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) }).map(drop)
}

/// Keeps a process, all its threads, on one processor.
pub fn pin_command(command: &mut Command, core: usize) {
    // SAFETY: one system call, and nothing of this process is touched.
    unsafe { command.pre_exec(move || pin(core)) };
}

/// Allows as many descriptors as the system does; an error if that is too few.
pub fn raise_descriptors(needed: u64) -> anyhow::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    anyhow::ensure!(limit.rlim_cur >= needed, "{} descriptors, {needed} needed", limit.rlim_cur);
    Ok(())
}

/// The processor time of a process, user and system, of all threads that it has and had.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let mut clock = 0;
    let failed = unsafe { libc::clock_getcpuclockid(pid.cast_signed(), &raw mut clock) };
    if failed != 0 {
        return Err(io::Error::from_raw_os_error(failed));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    check(unsafe { libc::clock_gettime(clock, &raw mut time) })?;
    Ok(Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or(0)))
}

/// The processor time of this process' children that have ended, and of theirs.
pub fn children_cpu_time() -> io::Result<Duration> {
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    check(unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) })?;
    let time = |value: libc::timeval| {
        Duration::from_secs(value.tv_sec.cast_unsigned())
            + Duration::from_micros(value.tv_usec.cast_unsigned())
    };
    Ok(time(usage.ru_utime) + time(usage.ru_stime))
}

/// The resident memory of a process, in bytes.
pub fn resident(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("can't read {path}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("Rss:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .with_context(|| format!("{path} has no line Rss"))
}

/// How many descriptors a process has open.
pub fn descriptors(pid: u32) -> io::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Keeps processors awake, by threads that run only where nobody else wants to.
///
/// To wake a processor that sleeps can be most of a message's time on a virtual machine.
#[derive(Debug)]
pub struct Awake(Arc<AtomicBool>);

impl Awake {
    pub fn new(cores: Cores) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        for core in [cores.server, cores.load] {
            let is_over = is_over.clone();
            thread::spawn(move || {
                let lowest = libc::sched_param { sched_priority: 0 };
                let idle = unsafe {
                    libc::sched_setscheduler(0, libc::SCHED_IDLE, ptr::from_ref(&lowest))
                };
                if check(idle).is_ok() && pin(core).is_ok() {
                    while !is_over.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                }
            });
        }
        Self(is_over)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
