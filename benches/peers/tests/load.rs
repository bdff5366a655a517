//! The load measures what comes back, and refuses what is not what was sent.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use peers::load::{self, Format, Plan};

/// Echoes on any number of connections; `spoil` may change what goes back, by its place.
fn server(spoil: fn(usize, &mut [u8])) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || {
                let mut stream = stream.unwrap();
                let (mut buf, mut place) = ([0; 4096], 0);
                while let Ok(n @ 1..) = stream.read(&mut buf) {
                    spoil(place, &mut buf[..n]);
                    place += n;
                    if stream.write_all(&buf[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    addr
}

fn plan(addr: SocketAddr, size: usize, depth: usize) -> Plan {
    Plan {
        addr,
        format: Format::Tcpstream,
        connections: 3,
        depth,
        size,
        warm_up: Duration::from_millis(10),
        window: Duration::from_millis(200),
    }
}

#[allow(clippy::unnecessary_wraps, reason = "as the load wants it")]
fn no_clock() -> anyhow::Result<Duration> {
    Ok(Duration::ZERO)
}

#[test]
fn every_message_has_a_latency() {
    for (size, depth) in [(0, 1), (64, 1), (64, 300), (100_000, 3), (1_000_000, 2)] {
        let plan = plan(server(|_, _| ()), size, depth);
        let outcome = load::echo(&plan, &mut no_clock).unwrap();
        assert!(outcome.messages > 0);
        assert_eq!(outcome.messages, outcome.latency.len());
        assert!(outcome.elapsed >= plan.window);
        // So many were under way all the time, so that is how long each took.
        let under_way = (plan.connections * plan.depth) as f64;
        let mean = outcome.elapsed.as_nanos() as f64 * under_way / outcome.messages as f64;
        let ratio = outcome.latency.mean() / mean;
        assert!((0.1..10.0).contains(&ratio), "{size} × {depth}: {ratio} of the mean latency");
    }
}

#[test]
fn a_spoilt_byte_is_an_error() {
    fn late(place: usize, bytes: &mut [u8]) {
        if (place..place + bytes.len()).contains(&100_000) {
            bytes[100_000 - place] ^= 1;
        }
    }
    let error = load::echo(&plan(server(late), 64, 16), &mut no_clock).unwrap_err();
    assert!(error.to_string().contains("is not what was sent"), "{error}");
}

#[test]
fn a_wrong_number_is_an_error() {
    fn number(place: usize, bytes: &mut [u8]) {
        if place == 0 {
            bytes[13] ^= 2; // the last byte of the sequence number
        }
    }
    let error = load::echo(&plan(server(number), 64, 1), &mut no_clock).unwrap_err();
    assert!(error.to_string().contains("is not what was sent"), "{error}");
}

#[test]
fn a_broadcast_counts_every_delivery() {
    let child = std::process::Command::new(env!("CARGO_BIN_EXE_floor"))
        .arg("--broadcast")
        .stdout(std::process::Stdio::piped())
        .spawn();
    let mut child = child.unwrap();
    let mut line = String::new();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    let addr = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
    let outcome = load::broadcast(&plan(addr, 64, 1), &mut no_clock);
    child.kill().unwrap();
    child.wait().unwrap();
    let outcome = outcome.unwrap();
    assert_eq!(outcome.messages, 3 * outcome.latency.len());
}
