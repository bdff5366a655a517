//! Looks names up, off the loop: the system has no non-blocking way to.
//!
//! A few threads that live for as long as names wait. A look-up that hangs, as one does whose name
//! server never answers, soon no longer counts as one of them, so that it does not keep other names
//! waiting. A name that is asked for while it is looked up already is not looked up again.

use std::{
    collections::{HashMap, VecDeque},
    fmt, io,
    net::ToSocketAddrs,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::{Addrs, Ticket, clock::clock};
use crate::threads::mailbox::Wake;

/// Names that are looked up at a time, those that hang aside.
const THREADS: usize = 8;

/// How long a look-up takes that counts as hanging: longer than nearly every one that succeeds, and
/// short beside the timeout of a round.
const HANGS_AFTER: Duration = Duration::from_millis(300);

/// The most threads, when look-ups hang. Each costs a stack, of which little is ever touched.
const MOST_THREADS: usize = 64;

/// The function that asks the system.
type LookUp = dyn Fn(&str, u16) -> Addrs + Send + Sync;

type Key = (String, u16);

/// Looks names up on threads of its own.
pub(super) struct Resolver {
    shared: Arc<Shared>,
    answers: Receiver<(Ticket, Addrs)>,
}

/// The state that the resolver and its threads share.
struct Shared {
    lookups: Mutex<Lookups>,
    /// A look-up has ended.
    ended: Condvar,
    look_up: Box<LookUp>,
    hangs_after: Duration,
    answers: Sender<(Ticket, Addrs)>,
    /// Answers that nobody has taken.
    answered: AtomicUsize,
    /// Rouses who takes them.
    waker: Arc<dyn Wake>,
}

/// *Invariant:* while names wait in the queue, a thread is idle or there are as many as may be.
#[derive(Default)]
struct Lookups {
    /// The askers of each name that is looked up or waits.
    wanted: HashMap<Key, Vec<Ticket>>,
    /// Names that no thread has taken yet.
    queue: VecDeque<Key>,
    /// Threads that look nothing up: they take a name as soon as they may, or end.
    idle: usize,
    /// The look-ups under way, by the count of look-ups before each, and since when.
    running: Vec<(u64, Instant)>,
    count: u64,
}

impl Resolver {
    /// Asks the system. Each answer wakes.
    pub(super) fn of_system(waker: Arc<dyn Wake>) -> Self {
        let of_system = |host: &str, port| (host, port).to_socket_addrs().map(Iterator::collect);
        Self::new(of_system, HANGS_AFTER, waker)
    }

    fn new(
        look_up: impl Fn(&str, u16) -> Addrs + Send + Sync + 'static,
        hangs_after: Duration,
        waker: Arc<dyn Wake>,
    ) -> Self {
        let (sender, answers) = channel();
        let shared = Shared {
            lookups: Mutex::default(),
            ended: Condvar::new(),
            look_up: Box::new(look_up),
            hangs_after,
            answers: sender,
            answered: AtomicUsize::new(0),
            waker,
        };
        Self { shared: Arc::new(shared), answers }
    }

    /// The next answer.
    #[inline]
    pub(super) fn resolved(&self) -> Option<(Ticket, Addrs)> {
        if !self.has_resolved() {
            return None;
        }
        let answer = self.answers.try_recv().ok()?;
        self.shared.answered.fetch_sub(1, Ordering::Relaxed);
        Some(answer)
    }

    /// Whether there is an answer.
    #[inline]
    pub(super) fn has_resolved(&self) -> bool {
        self.shared.answered.load(Ordering::Acquire) > 0
    }

    /// The answer comes later, from a thread of the resolver.
    pub(super) fn resolve(&self, ticket: Ticket, host: &str, port: u16) {
        let mut lookups = self.shared.lock();
        let key = (host.to_owned(), port);
        let tickets = lookups.wanted.entry(key.clone()).or_default();
        tickets.push(ticket);
        if tickets.len() > 1 {
            return;
        }
        lookups.queue.push_back(key);
        let Err(error) = self.shared.hire(&mut lookups) else { return };
        if lookups.threads() > 0 {
            log::warn!("one thread less to resolve names on: {error}");
            return;
        }
        lookups.queue.clear();
        let wanted = std::mem::take(&mut lookups.wanted);
        drop(lookups);
        self.shared.answer(wanted.into_values().flatten(), &Err(error));
    }
}

impl Shared {
    /// Sees to it that a thread takes what waits.
    fn hire(self: &Arc<Self>, lookups: &mut Lookups) -> io::Result<()> {
        if lookups.queue.is_empty() || lookups.idle > 0 || lookups.threads() >= MOST_THREADS {
            return Ok(());
        }
        let shared = self.clone();
        let thread = thread::Builder::new().name("longhaul-resolver".into());
        thread.spawn(move || shared.work())?;
        lookups.idle += 1;
        Ok(())
    }

    fn work(self: &Arc<Self>) {
        let mut lookups = self.lock();
        while !lookups.queue.is_empty() {
            let now = clock();
            if let Some(wait) = lookups.wait_for_room(self.hangs_after, now) {
                lookups = self.wait(lookups, wait);
                continue;
            }
            let Some(key) = lookups.queue.pop_front() else { break };
            let number = lookups.begin(now);
            if let Err(error) = self.hire(&mut lookups) {
                log::warn!("one thread less to resolve names on: {error}");
            }
            drop(lookups);
            let found = (self.look_up)(&key.0, key.1);
            lookups = self.lock();
            lookups.end(number);
            let tickets = lookups.wanted.remove(&key).unwrap_or_default();
            drop(lookups);
            self.ended.notify_all();
            self.answer(tickets, &found);
            lookups = self.lock();
        }
        lookups.idle -= 1;
    }

    /// Answers all who asked for a name. Rouses the loop after that, as it takes what is there when it is
    /// roused.
    fn answer(&self, tickets: impl IntoIterator<Item = Ticket>, found: &Addrs) {
        for ticket in tickets {
            // Where nobody takes answers any more, none is missed.
            if self.answers.send((ticket, copy_of(found))).is_ok() {
                self.answered.fetch_add(1, Ordering::Release);
            }
        }
        self.waker.wake();
    }

    fn lock(&self) -> MutexGuard<'_, Lookups> {
        self.lookups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a look-up has ended, but no longer than this.
    fn wait<'a>(
        &self,
        lookups: MutexGuard<'a, Lookups>,
        wait: Duration,
    ) -> MutexGuard<'a, Lookups> {
        self.ended.wait_timeout(lookups, wait).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Lookups {
    fn threads(&self) -> usize {
        self.idle + self.running.len()
    }

    /// How long it takes, if no look-up ends, until one more may begin; `None`: it may now.
    fn wait_for_room(&self, hangs_after: Duration, now: Instant) -> Option<Duration> {
        let left = self
            .running
            .iter()
            .map(|(_, since)| hangs_after.saturating_sub(now.saturating_duration_since(*since)));
        let lively = left.filter(|left| !left.is_zero());
        // The first of them to hang makes room.
        if lively.clone().count() < THREADS { None } else { lively.min() }
    }

    /// An idle thread looks something up.
    fn begin(&mut self, now: Instant) -> u64 {
        self.idle -= 1;
        self.count += 1;
        self.running.push((self.count, now));
        self.count
    }

    /// It is idle again.
    fn end(&mut self, number: u64) {
        self.running.retain(|(other, _)| *other != number);
        self.idle += 1;
    }
}

fn copy_of(found: &Addrs) -> Addrs {
    match found {
        Ok(addrs) => Ok(addrs.clone()),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("threads", &self.shared.lock().threads())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, net::SocketAddr};

    use super::*;
    use crate::ConnId;

    /// How long a test waits for what must come.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A resolver whose look-ups of "dead" names end when the test says so.
    struct Scene {
        resolver: Resolver,
        dead: Arc<Dead>,
        /// The look-ups that have begun.
        begun: Receiver<String>,
        /// What was asked for, by the round of the ticket.
        asked: RefCell<Vec<String>>,
        wakes: Receiver<()>,
    }

    impl Wake for Sender<()> {
        fn wake(&self) {
            let _ = self.send(());
        }
    }

    #[derive(Default)]
    struct Dead {
        state: Mutex<Hanging>,
        released: Condvar,
    }

    #[derive(Default)]
    struct Hanging {
        is_released: bool,
        now: usize,
        /// The most at a time.
        most: usize,
    }

    impl Scene {
        fn new(hangs_after: Duration) -> Self {
            let dead = Arc::new(Dead::default());
            let (starts, begun) = channel();
            let (sender, wakes) = channel();
            let hang = dead.clone();
            let look_up = move |host: &str, port| {
                starts.send(host.to_owned()).unwrap();
                if host.starts_with("dead") {
                    hang.hang();
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))])
            };
            let resolver = Resolver::new(look_up, hangs_after, Arc::new(sender));
            Self { resolver, dead, begun, asked: RefCell::default(), wakes }
        }

        fn ask(&self, name: &str) {
            let mut asked = self.asked.borrow_mut();
            let round = u32::try_from(asked.len()).unwrap();
            asked.push(name.to_owned());
            self.resolver.resolve(Ticket { conn: ConnId::new(0, 0, 1), round }, name, 80);
        }

        fn ask_dead(&self, count: usize) {
            (0..count).for_each(|number| self.ask(&format!("dead {number}")));
        }

        fn next_begun(&self) -> String {
            self.begun.recv_timeout(PATIENCE).expect("a look-up begins")
        }

        /// Sleeps until it is woken, as the loop does.
        fn next_answer(&self) -> (String, Addrs) {
            loop {
                if let Some((ticket, found)) = self.resolver.resolved() {
                    return (self.asked.borrow()[ticket.round as usize].clone(), found);
                }
                self.wakes.recv_timeout(PATIENCE).expect("an answer comes");
            }
        }

        /// Lets the dead names fail; returns how many there were at a time.
        fn release(&self) -> usize {
            let mut state = self.dead.state.lock().unwrap();
            state.is_released = true;
            self.dead.released.notify_all();
            state.most
        }
    }

    impl Dead {
        fn hang(&self) {
            let mut state = self.state.lock().unwrap();
            state.now += 1;
            state.most = state.most.max(state.now);
            while !state.is_released {
                state = self.released.wait(state).unwrap();
            }
            state.now -= 1;
        }
    }

    #[test]
    fn names_that_hang_keep_no_other_waiting() {
        let scene = Scene::new(Duration::from_millis(1));
        scene.ask_dead(THREADS);
        scene.ask("living");
        let (name, found) = scene.next_answer();
        assert_eq!((&*name, found.unwrap()), ("living", vec!["127.0.0.1:80".parse().unwrap()]));
        scene.release();
        for _ in 0..THREADS {
            assert_eq!(scene.next_answer().1.unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
    }

    #[test]
    fn few_names_are_looked_up_at_a_time_before_they_hang() {
        let scene = Scene::new(Duration::MAX);
        scene.ask_dead(3 * THREADS);
        for _ in 0..THREADS {
            scene.next_begun();
        }
        assert_eq!(scene.begun.try_iter().count(), 0);
        scene.release();
        for _ in 0..3 * THREADS {
            let _ = scene.next_answer();
        }
        assert!(scene.release() <= THREADS);
    }

    #[test]
    fn threads_are_bounded_however_many_names_hang() {
        let scene = Scene::new(Duration::ZERO);
        scene.ask_dead(MOST_THREADS + 10);
        for _ in 0..MOST_THREADS {
            scene.next_begun();
        }
        scene.ask("living");
        assert_eq!(scene.begun.try_iter().count(), 0);
        scene.release();
        for _ in 0..=MOST_THREADS + 10 {
            let _ = scene.next_answer();
        }
        assert!(scene.release() <= MOST_THREADS);
    }

    #[test]
    fn name_that_is_being_looked_up_is_not_looked_up_again() {
        let scene = Scene::new(Duration::ZERO);
        scene.ask("dead");
        assert_eq!(scene.next_begun(), "dead");
        // Its first asker may have given it up by now.
        scene.ask("dead");
        scene.ask("living");
        assert_eq!(scene.next_begun(), "living");
        assert_eq!(scene.next_answer().0, "living");
        scene.release();
        assert_eq!((&*scene.next_answer().0, &*scene.next_answer().0), ("dead", "dead"));
        assert_eq!(scene.begun.try_iter().count(), 0);
        // After that it is.
        scene.ask("dead");
        assert_eq!(scene.next_begun(), "dead");
    }

    #[test]
    fn threads_end_when_no_name_waits() {
        let scene = Scene::new(Duration::from_millis(1));
        scene.ask_dead(2 * THREADS);
        scene.ask("living");
        scene.release();
        for _ in 0..=2 * THREADS {
            let _ = scene.next_answer();
        }
        // Each holds the resolver's shared part until its end.
        let deadline = clock() + PATIENCE;
        while Arc::strong_count(&scene.resolver.shared) > 1 {
            assert!(clock() < deadline, "{:?}", scene.resolver);
            thread::yield_now();
        }
        assert_eq!(scene.resolver.shared.lock().threads(), 0);
    }
}
