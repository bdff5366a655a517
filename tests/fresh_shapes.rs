//! Targets, addresses and settings, as the public API has them: what a fresh look tried against their docs.
#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::redundant_closure_for_method_calls,
    reason = "a test says so by panicking, and its numbers are small"
)]

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs},
    sync::mpsc::{Sender, channel},
    time::Duration,
};

use longhaul::{
    Addr, CallError, Client, ClientBuilder, Config, ConfigError, Conn, Context, Error, Handler,
    Incident, Keepalive, Message, Reactor, ReactorBuilder, Reconnect, Server, Target,
    protocol::Native,
};

const PATIENCE: Duration = Duration::from_secs(20);
const ZERO: Duration = Duration::ZERO;
const SECOND: Duration = Duration::from_secs(1);

/// Answers with what it is asked.
struct Echo;

impl Handler for Echo {
    type Protocol = Native;

    fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
        let _ = conn.reply(&msg, msg.body());
    }
}

/// Tells of incidents.
struct Tell(Sender<String>);

impl Handler for Tell {
    type Protocol = Native;

    fn on_message(&mut self, _: &mut Conn<'_, Native>, _: Message<'_, Native>) {}

    fn on_error(&mut self, _: &mut Context<'_, Native>, incident: &Incident) {
        let _ = self.0.send(incident.to_string());
    }
}

fn target(text: &str) -> Target {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refused(text: &str) -> Error {
    text.parse::<Target>().expect_err(text)
}

// ---- targets ----

/// What a target shows is a target, and the same one.
#[test]
fn what_a_target_shows_is_the_same_target() {
    for text in [
        "127.0.0.1:0",
        "127.0.0.1:65535",
        "0.0.0.0:1",
        "[::]:0",
        "[::1]:7001",
        "[fe80::1%7]:7001",
        "[2001:db8::1]:65535",
        "[::ffff:1.2.3.4]:80",
        "localhost:0",
        "hub.example.:65535",
        "xn--bcher-kva.example:1",
        "tcp://hub.example:7001",
        "tcp://[fe80::1%7]:7001",
        "unix:/run/hub.sock",
        "unix:relative.sock",
        "unix:///run/hub.sock",
        "unix:/with space:and:colons",
    ] {
        let shown = target(text).to_string();
        assert_eq!(target(&shown), target(text), "{text} is shown as {shown}");
        assert_eq!(target(&shown).to_string(), shown);
    }
}

/// `Addr`: "As a `Target` takes it."
#[test]
fn what_an_addr_shows_is_that_addr_as_a_target() {
    let scoped = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 7001, 0, 3);
    for addr in [
        Addr::Ip(SocketAddr::from((Ipv4Addr::BROADCAST, 65535))),
        Addr::Ip(scoped.into()),
        Addr::Unix("/run/a b".into()),
        Addr::Unix("relative".into()),
    ] {
        assert_eq!(target(&addr.to_string()), Target::from(&addr), "{addr}");
    }
}

/// As above, of a path that begins with two slashes, as `format!("{root}/{name}")` makes one of "/".
#[test]
fn path_with_two_slashes_in_front_is_shown_as_itself() {
    let addr = Addr::Unix("//run/hub.sock".into());
    assert_eq!(target(&addr.to_string()), Target::from(&addr), "{addr}");
}

#[test]
fn address_with_flow_information_is_shown_as_one_that_is_dialled_alike() {
    let addr = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 7001, 5, 0);
    let shown = target(&Addr::Ip(addr.into()).to_string());
    assert_eq!(shown.to_string(), "[::1]:7001");
}

/// "As text it is `ip:port`, `[ipv6]:port` or `host:port`."
#[test]
fn port_is_a_number_and_nothing_else() {
    for port in ["", "-1", "65536", "99999999999999999999", "0x50", "80 ", " 80", "80/", "8_0", "٣"]
    {
        for host in ["host", "127.0.0.1", "[::1]"] {
            let text = format!("{host}:{port}");
            assert!(matches!(refused(&text), Error::Address(shown) if shown == text));
        }
    }
}

#[test]
fn port_with_a_sign_is_no_port() {
    for text in ["host:+80", "127.0.0.1:+80", "tcp://host:+80"] {
        let parsed = text.parse::<Target>();
        assert!(matches!(parsed, Err(Error::Address(_))), "{text}: {parsed:?}");
    }
}

#[test]
fn host_has_no_white_space_and_no_control_characters() {
    for text in ["a\tb:1", "a\n:1", "\r:1", "a\0b:1", "\u{a0}:1", "\u{2003}a:1"] {
        let parsed = text.parse::<Target>();
        assert!(matches!(parsed, Err(Error::Address(_))), "{text:?}: {parsed:?}");
    }
}

/// A URL is no `host:port`: what is between the scheme and the host would be looked up as a part of it.
#[test]
fn host_has_nothing_of_a_url() {
    for text in ["tcp://user@host:80", "tcp://host?x:80", "tcp://#host:80"] {
        let parsed = text.parse::<Target>();
        assert!(matches!(parsed, Err(Error::Address(_))), "{text:?}: {parsed:?}");
    }
}

#[test]
fn schemes_stand_once_and_in_lower_case() {
    for text in ["tcp://tcp://a:1", "TCP://a:1", "tcp:/a:1", "tcp://unix:/a", "udp://a:1", "://a:1"]
    {
        assert!(matches!(refused(text), Error::Address(_)), "{text}");
    }
    for text in ["tls://", "ws://", "wss://", "tls://a", "wss://[::1]:1/path?query"] {
        assert!(matches!(refused(text), Error::Unsupported(shown) if shown == text), "{text}");
    }
}

#[test]
fn pair_is_what_its_text_is() {
    for (host, port) in [("localhost", 0), ("127.0.0.1", 80), ("::1", 80), ("::", 65535)] {
        let pair = Target::try_from((host, port)).unwrap();
        assert_eq!(target(&pair.to_string()), pair);
    }
    for host in ["", "a:b", "a/b", "a b"] {
        assert!(Target::try_from((host, 1)).is_err(), "{host:?}");
    }
}

/// "A name or an IP address, and a port": a link-local address has a scope.
#[test]
fn pair_of_a_scoped_address_is_that_address() {
    let pair = Target::try_from(("fe80::1%7", 7001));
    assert_eq!(pair.ok(), Some(target("[fe80::1%7]:7001")));
}

#[test]
fn name_of_any_length_is_an_error_where_it_is_used_and_no_panic() {
    let name = "a".repeat(100_000);
    let long = format!("{name}:1");
    let (tell, told) = channel();
    let config = Config::new().reconnect(Reconnect::never());
    let mut reactor = ReactorBuilder::new(Native).config(config).build(Tell(tell)).unwrap();
    assert!(matches!(reactor.listen(&*long), Err(Error::Io(_))));
    reactor.connect(&*long).unwrap();
    let mut turns = 0;
    let incident = loop {
        if let Ok(incident) = told.try_recv() {
            break incident;
        }
        turns += 1;
        assert!(turns < 3000, "no incident");
        reactor.turn(Some(Duration::from_millis(10))).unwrap();
    };
    assert!(incident.contains("aaaa"));
}

/// "`tls://`, `ws://`, `wss://` and Unix sockets are known and refused as `Unsupported`."
#[test]
fn schemes_that_this_version_has_not_are_refused_by_every_way_in() {
    let mut reactor = Reactor::new(Echo).unwrap();
    for text in ["tls://a:1", "ws://a:1", "wss://a:1"] {
        let is_unsupported = |error: Error| matches!(error, Error::Unsupported(_));
        assert!(is_unsupported(reactor.listen(text).unwrap_err()), "{text}");
        assert!(is_unsupported(reactor.connect(text).unwrap_err()), "{text}");
        assert!(is_unsupported(Client::connect(text).unwrap_err()), "{text}");
        assert!(is_unsupported(Server::bind(text, Echo).unwrap_err()), "{text}");
    }
}

#[test]
fn unix_socket_is_refused_where_it_is_to_be_listened_on() {
    let mut reactor = Reactor::new(Echo).unwrap();
    let unix = Addr::Unix("/tmp/hub.sock".into());
    assert!(matches!(reactor.listen("unix:/tmp/hub.sock"), Err(Error::Unsupported(_))));
    assert!(matches!(reactor.listen(unix.clone()), Err(Error::Unsupported(_))));
    assert!(matches!(Server::bind(&unix, Echo), Err(Error::Unsupported(_))));
    assert!(unix.to_socket_addrs().is_err());
}

#[test]
fn unix_socket_is_refused_where_it_is_to_be_dialled() {
    let mut reactor = Reactor::new(Echo).unwrap();
    let unix = Addr::Unix("/tmp/hub.sock".into());
    assert!(matches!(reactor.connect(unix), Err(Error::Unsupported(_))));
    assert!(matches!(reactor.connect("unix:/tmp/hub.sock"), Err(Error::Unsupported(_))));
}

/// Each id ends with one event, and who blocks until a connection is up, or has failed, comes back.
#[test]
fn who_waits_for_a_unix_socket_to_be_up_does_not_wait_for_ever() {
    let (told, done) = channel();
    std::thread::spawn(move || told.send(Client::connect("unix:/tmp/hub.sock").err()));
    let error = done.recv_timeout(PATIENCE).expect("it comes back");
    assert!(matches!(error, Some(Error::Unsupported(_))), "{error:?}");
}

#[test]
fn all_that_can_be_listened_on_can_be_dialled_by_what_is_shown() {
    let any: Vec<Target> = vec![
        target("127.0.0.1:0"),
        target("tcp://127.0.0.1:0"),
        target("localhost:0"),
        (Ipv4Addr::LOCALHOST, 0).into(),
        (Ipv6Addr::LOCALHOST, 0).into(),
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into(),
        Target::try_from(("localhost", 0)).unwrap(),
    ];
    for to in any {
        let server = Server::bind(to.clone(), Echo).unwrap();
        for shown in [server.addr().to_string(), format!("tcp://{}", server.addr())] {
            let client = Client::connect(&*shown).unwrap();
            assert_eq!(client.call("x", PATIENCE).unwrap(), "x");
            client.stop().unwrap();
        }
        server.stop().unwrap();
    }
}

// ---- settings ----

fn wrong(config: Config) -> Option<&'static str> {
    config.validate().err().map(|ConfigError { setting, .. }| setting)
}

#[test]
fn never_is_taken_in_every_way_of_saying_it() {
    let never: Option<Duration> = None;
    for config in [
        Config::new().heartbeat(None),
        Config::new().heartbeat(never).idle_timeout(never),
        Config::new().idle_timeout(None).heartbeat(SECOND),
        Config::new().heartbeat(Some(SECOND)).idle_timeout(2 * SECOND),
        Config::new().tcp_keepalive(None).tcp_user_timeout(None),
        Config::new().tcp_keepalive(Some(Keepalive::default())),
        Config::go_tcpstream(),
        Config::qtk(),
    ] {
        assert_eq!(config.validate(), Ok(()));
    }
}

#[test]
fn last_value_that_is_set_holds() {
    let config = Config::new().heartbeat(ZERO).heartbeat(None).idle_timeout(ZERO);
    assert_eq!(wrong(config.clone()), Some("idle_timeout"));
    assert_eq!(wrong(config.idle_timeout(SECOND)), None);
    assert_eq!(Config::new().max_body(0).max_body(8 << 20), Config::new());
}

#[test]
fn heartbeat_is_shorter_than_the_idle_timeout_to_the_nanosecond() {
    let nano = Duration::from_nanos(1);
    let both = |beats, idle| wrong(Config::new().heartbeat(beats).idle_timeout(idle));
    assert_eq!(both(SECOND, SECOND), Some("heartbeat"));
    assert_eq!(both(SECOND, SECOND + nano), None);
    assert_eq!(both(SECOND + nano, SECOND), Some("heartbeat"));
    assert_eq!(both(Duration::MAX, Duration::MAX), Some("heartbeat"));
    assert_eq!(both(Duration::MAX.checked_sub(nano).unwrap(), Duration::MAX), None);
}

#[test]
fn keepalive_is_what_linux_takes() {
    let keepalive = |idle, interval, probes| {
        wrong(Config::new().tcp_keepalive(Keepalive { idle, interval, probes }))
    };
    let most = Duration::from_secs(32_767);
    for (idle, interval, probes) in [(SECOND, SECOND, 1), (most, most, 127), (SECOND, most, 127)] {
        assert_eq!(keepalive(idle, interval, probes), None);
    }
    for (idle, interval, probes) in [
        (ZERO, SECOND, 1),
        (SECOND, ZERO, 1),
        (SECOND, SECOND, 0),
        (SECOND, SECOND, 128),
        (SECOND, SECOND, u32::MAX),
        (most + SECOND, SECOND, 1),
        (SECOND, most + SECOND, 1),
        (Duration::MAX, SECOND, 1),
        (SECOND.checked_sub(Duration::from_nanos(1)).unwrap(), SECOND, 1),
    ] {
        assert_eq!(keepalive(idle, interval, probes), Some("tcp_keepalive"));
    }
}

#[test]
fn watermarks_limits_and_policies_are_checked_together() {
    for (config, setting) in [
        (Config::new().watermarks(1, 1), Some("watermarks")),
        (Config::new().watermarks(2, 1), Some("watermarks")),
        (Config::new().watermarks(0, 0), Some("watermarks")),
        (Config::new().watermarks(0, 1).hard_limit(0), Some("hard_limit")),
        (Config::new().watermarks(0, 1).hard_limit(1), None),
        (Config::new().offline_queue(1, ZERO), Some("offline_queue")),
        (Config::new().offline_queue(usize::MAX, Duration::MAX), None),
        (Config::new().max_requests(usize::MAX), Some("max_requests")),
        (Config::new().max_calls(usize::MAX), None),
        (Config::new().frame_rate(usize::MAX), None),
        (Config::new().backlog(u32::MAX), None),
        (Config::new().reconnect(Reconnect::exponential(2 * SECOND, SECOND)), Some("reconnect")),
        (Config::new().reconnect(Reconnect::exponential(ZERO, ZERO)), Some("reconnect")),
        (Config::new().reconnect(Reconnect::exponential(ZERO, SECOND)), Some("reconnect")),
        (Config::new().reconnect(Reconnect::never().max_attempts(0)), Some("reconnect")),
        (Config::new().reconnect(Reconnect::custom(|_| None).max_attempts(0)), Some("reconnect")),
        (Config::new().reconnect(Reconnect::exponential(SECOND, Duration::MAX)), None),
    ] {
        let text = format!("{config:?}");
        assert_eq!(wrong(config), setting, "{text}");
    }
}

/// "low must be below high", and it is.
#[test]
fn watermarks_near_the_top_are_taken_as_the_others_are() {
    let config = Config::new().watermarks(usize::MAX - 1, usize::MAX).hard_limit(usize::MAX);
    assert_eq!(config.validate(), Ok(()));
}

/// A setting that can't work is found where it is used, also by those that make a thread first.
#[test]
fn wrong_setting_is_told_by_every_way_in() {
    let config = Config::new().max_body(0);
    let is_told =
        |error: &Error| matches!(error, Error::Config(wrong) if wrong.setting == "max_body");
    let mut reactor = Reactor::new(Echo).unwrap();
    assert!(is_told(&reactor.listen_with("127.0.0.1:0", &Native, &config).unwrap_err()));
    assert!(is_told(&reactor.connect_with("127.0.0.1:9", &Native, &config).unwrap_err()));
    let client = ClientBuilder::new(Native).config(config).connect("127.0.0.1:9");
    assert!(is_told(&client.unwrap_err()));
}

/// All times at their longest, all limits at their highest: accepted settings work.
#[test]
fn settings_at_their_limits_work_on_real_sockets() {
    let most = Duration::MAX;
    let extreme = Config::new()
        .heartbeat(most.checked_sub(Duration::from_nanos(1)).unwrap())
        .idle_timeout(most)
        .reconnect(Reconnect::fixed(most).after_loss(most).healthy_after(most).longest_hint(most))
        .connect_timeout(most)
        .resolve_timeout(most)
        .hello_timeout(most)
        .frame_timeout(most)
        .frame_rate(1)
        .max_body(u32::MAX as usize)
        .watermarks(0, usize::MAX)
        .hard_limit(usize::MAX)
        .write_timeout(most)
        .max_calls(usize::MAX)
        .max_requests(u32::MAX as usize)
        .offline_queue(usize::MAX, most)
        .close_timeout(most)
        .linger(most)
        .max_connections(usize::MAX)
        .max_connections_per_peer(usize::MAX)
        .backlog(u32::MAX)
        .tcp_keepalive(Keepalive {
            idle: Duration::from_secs(32_767),
            interval: Duration::from_secs(32_767),
            probes: 127,
        })
        .tcp_user_timeout(most)
        .socket_buffers(usize::MAX, usize::MAX);
    let least = Config::new()
        .heartbeat(None)
        .idle_timeout(None)
        .max_body(1)
        .watermarks(0, 1)
        .hard_limit(1)
        .max_calls(1)
        .max_requests(1)
        .offline_queue(0, ZERO)
        .close_timeout(SECOND)
        .linger(ZERO)
        .backlog(1)
        .socket_buffers(1, 1)
        .tcp_user_timeout(Duration::from_nanos(1));
    for server in [&extreme, &least] {
        for client in [&extreme, &least] {
            assert_eq!((server.validate(), client.validate()), (Ok(()), Ok(())));
            let (told, done) = channel();
            let (server, config) = (server.clone(), client.clone());
            std::thread::spawn(move || {
                let builder = ReactorBuilder::new(Native).config(server);
                let server = Server::bind_with("127.0.0.1:0", builder, Echo).unwrap();
                let client =
                    ClientBuilder::new(Native).config(config).connect(server.addr()).unwrap();
                // A mark of one byte is crossed while the hello waits to be written.
                let reply = loop {
                    match client.call("x", Duration::MAX) {
                        Err(CallError::QueueFull) => std::thread::yield_now(),
                        result => break result.unwrap(),
                    }
                };
                client.stop().unwrap();
                server.stop().unwrap();
                told.send(reply).unwrap();
            });
            assert_eq!(done.recv_timeout(PATIENCE).unwrap(), "x");
        }
    }
}

#[test]
fn worst_case_of_detection_never_overflows_and_none_is_never() {
    let most = Duration::MAX;
    let config = Config::new()
        .heartbeat(most.checked_sub(SECOND).unwrap())
        .idle_timeout(most)
        .tcp_user_timeout(most);
    assert!(config.worst_case_detection(&Native) > Some(SECOND));
    let config = Config::new().heartbeat(None).idle_timeout(None).tcp_keepalive(None);
    assert_eq!(config.worst_case_detection(&Native), None);
    let config = Config::new().heartbeat(None).idle_timeout(SECOND).tcp_keepalive(None);
    assert_eq!(config.worst_case_detection(&Native), Some(SECOND));
    let config =
        Config::new().tcp_keepalive(Keepalive { idle: SECOND, interval: SECOND, probes: 1 });
    let config = config.heartbeat(None).idle_timeout(None).tcp_user_timeout(None);
    assert_eq!(config.worst_case_detection(&Native), Some(2 * SECOND));
}

/// "heartbeat … Default: 20 s, or two thirds of a shorter idle timeout": so it is always the shorter.
#[test]
fn default_heartbeat_of_a_short_idle_timeout_keeps_a_connection_up() {
    let config = Config::new().idle_timeout(Duration::from_millis(1500));
    let builder = ReactorBuilder::new(Native).config(config.clone());
    let server = Server::bind_with("127.0.0.1:0", builder, Echo).unwrap();
    let client = ClientBuilder::new(Native).config(config).connect(server.addr()).unwrap();
    // Longer than the idle timeout, in which nobody sends anything.
    let (_silent, nothing) = channel::<()>();
    assert!(nothing.recv_timeout(4 * SECOND).is_err());
    let stats = client.call("x", PATIENCE);
    assert_eq!(stats.unwrap(), "x");
    client.stop().unwrap();
    server.stop().unwrap();
}
