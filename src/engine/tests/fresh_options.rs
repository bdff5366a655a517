//! Settings as they reach the system.

use std::{net::TcpListener, time::Duration};

use socket2::SockRef;

use crate::{
    Config, Keepalive,
    net::{Net, Token, system::System},
    table::dial::stream_options,
};

fn user_timeout(config: &Config) -> Option<Duration> {
    assert_eq!(config.validate(), Ok(()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut system = System::new().unwrap();
    let addr = listener.local_addr().unwrap();
    let stream = system.connect(addr, &stream_options(config), Token(7)).unwrap();
    SockRef::from(&stream).tcp_user_timeout().unwrap()
}

/// "`None`: the system's own, about 15 minutes. Zero is refused": so what is accepted is a time.
#[cfg(target_os = "linux")]
#[test]
fn user_timeout_of_less_than_a_millisecond_is_not_the_systems_own() {
    let config = Config::new().tcp_keepalive(None).tcp_user_timeout(Duration::from_micros(500));
    assert!(user_timeout(&config).is_some(), "the socket has none");
}

#[cfg(target_os = "linux")]
#[test]
fn user_timeout_without_end_is_the_longest_that_the_system_takes() {
    let config = Config::new().tcp_user_timeout(Duration::MAX);
    assert!(user_timeout(&config) > Some(Duration::from_hours(24)));
}

#[cfg(target_os = "linux")]
#[test]
fn no_user_timeout_is_none_on_the_socket() {
    assert_eq!(user_timeout(&Config::new().tcp_user_timeout(None)), None);
    let all_probes = Some(Duration::from_secs(1 + 2 * 3));
    let keepalive =
        Keepalive { idle: Duration::from_secs(1), interval: Duration::from_secs(2), probes: 3 };
    let config = Config::new().tcp_keepalive(keepalive).tcp_user_timeout(Duration::from_secs(1));
    assert_eq!(user_timeout(&config), all_probes);
}
