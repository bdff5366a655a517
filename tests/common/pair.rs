//! Two reactors with one connection between them, and what tests of calls do with it.

use std::{
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use longhaul::{
    Body, CallError, CallId, Config, ConnId, Handle, PendingCall, Reconnect, Responder,
    protocol::AnyProtocol,
};

use super::{PATIENCE, Running, Script};

/// A timeout that no test waits for.
pub const NEVER: Duration = Duration::from_secs(3600);

/// The names of the protocols that have calls.
pub const WITH_CALLS: [&str; 4] = ["native", "tcpstream", "qtk3", "qtk2"];

/// How a call ended: tag and body of its reply, or why there is none.
pub type Ended = Result<(u32, Vec<u8>), CallError>;

pub struct Pair {
    pub server: Running,
    pub client: Running,
    /// The server's end.
    pub accepted: ConnId,
    /// The client's end. It is not dialled again, unless its settings say so.
    pub dialled: ConnId,
}

/// One end of the connection.
#[derive(Clone)]
pub struct Side {
    pub name: &'static str,
    pub handle: Handle<AnyProtocol>,
    pub conn: ConnId,
}

impl Pair {
    pub fn new(protocol: impl Into<AnyProtocol>, server: Script, client: Script) -> Self {
        Self::with(protocol, Config::new(), server, not_redialled(), client)
    }

    pub fn with(
        protocol: impl Into<AnyProtocol>,
        server_config: Config,
        server: Script,
        client_config: Config,
        client: Script,
    ) -> Self {
        let protocol = protocol.into();
        let server = Running::server(protocol, server_config, server);
        let client = Running::client(protocol, client_config.clone(), client);
        let dialled =
            client.handle.connect_and_wait_with(server.addr, &protocol, &client_config).unwrap();
        let accepted = server.events.connected();
        Self { server, client, accepted, dialled }
    }

    /// Each side in turn as the one that calls, with the one that is called.
    pub fn both_ways(&self) -> [(Side, &Running); 2] {
        [(self.dialling_side(), &self.server), (self.accepting_side(), &self.client)]
    }

    pub fn dialling_side(&self) -> Side {
        Side { name: "dialled", handle: self.client.handle.clone(), conn: self.dialled }
    }

    pub fn accepting_side(&self) -> Side {
        Side { name: "accepted", handle: self.server.handle.clone(), conn: self.accepted }
    }
}

impl Side {
    pub fn call(&self, body: impl Body, timeout: Duration) -> Ended {
        self.handle.call_tagged(self.conn, body, timeout).map(|(tag, body)| (tag, body.to_vec()))
    }

    pub fn call_async(&self, body: impl Body, timeout: Duration) -> PendingCall<AnyProtocol> {
        self.handle.call_async(self.conn, body, timeout)
    }

    /// Calls from the loop, with a callback that passes on how the call ended.
    pub fn call_back(
        &self,
        body: impl Body + Send + 'static,
        timeout: Duration,
    ) -> Result<(CallId, Receiver<Ended>), CallError> {
        let (tell, ended) = channel();
        let conn = self.conn;
        let started = self.handle.ask(move |cx| {
            let mut conn = cx.conn(conn).expect("the connection exists");
            conn.call(body, timeout, move |_: &mut Script, _, result| {
                let _ = tell.send(result.map(|reply| (reply.tag(), reply.body().to_vec())));
            })
            .map_err(CallError::from)
        });
        started.unwrap().map(|id| (id, ended))
    }

    /// Starts a call of each kind with the same body: by a blocked thread, as a future that a thread
    /// drives, and with a callback. Tells how each ended.
    pub fn call_three_ways(&self, body: &'static str, timeout: Duration) -> Three {
        let (tell, ended) = channel();
        let blocking = self.clone();
        let tell_it = tell.clone();
        std::thread::spawn(move || {
            let _ = tell_it.send(("blocking", blocking.call(body, timeout)));
        });
        let future = self.call_async(body, timeout);
        let tell_it = tell.clone();
        std::thread::spawn(move || {
            let outcome = block_on(future).map(|body| (0, body.to_vec()));
            let _ = tell_it.send(("future", outcome));
        });
        let conn = self.conn;
        let asked = self.handle.ask(move |cx| {
            let mut conn = cx.conn(conn).expect("the connection exists");
            conn.call(body, timeout, move |_: &mut Script, _, result| {
                let outcome = result.map(|reply| (reply.tag(), reply.body().to_vec()));
                let _ = tell.send(("callback", outcome));
            })
        });
        asked.unwrap().expect("the callback's call starts");
        Three(ended)
    }
}

/// Three calls under way.
pub struct Three(Receiver<(&'static str, Ended)>);

impl Three {
    /// Waits until all have ended, each once.
    pub fn wait(self) -> Vec<(&'static str, Ended)> {
        let mut all: Vec<_> = (0..3)
            .map(|_| {
                self.0.recv_timeout(PATIENCE).expect("each call ends, long before its timeout")
            })
            .collect();
        all.sort_by_key(|(how, _)| *how);
        let kinds: Vec<_> = all.iter().map(|(how, _)| *how).collect();
        assert_eq!(kinds, ["blocking", "callback", "future"]);
        assert!(self.0.recv().is_err(), "a call ended twice");
        all
    }
}

/// Keeps every request, and passes it on.
pub fn keeping() -> (Script, Receiver<Responder<AnyProtocol>>) {
    let (keep, kept) = channel();
    let script = Script::new().on_message(move |conn, msg| {
        let _ = keep.send(conn.defer(&msg).expect("a request"));
    });
    (script, kept)
}

/// Settings of a connection that is not dialled again.
pub fn not_redialled() -> Config {
    Config::new().reconnect(Reconnect::never())
}

/// An executor of one future: it parks the thread until the future's waker unparks it.
pub fn block_on<F: Future>(future: F) -> F::Output {
    use std::{
        pin::pin,
        sync::Arc,
        task::{Context, Poll, Wake, Waker},
        thread::Thread,
    };

    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}
