//! How connections come to be and end, and names.

use super::*;

#[test]
fn connect_is_refused_where_nobody_listens() {
    let world = SimWorld::new(0);
    let _server = world.host(SERVER);
    let mut client = world.host(CLIENT);
    let stream = client.connect(server_addr(), &STREAM, CONNECTED).unwrap();
    assert_eq!(client.connected(&stream).unwrap(), None);
    world.advance(Duration::from_secs(1));
    let mut events = Vec::new();
    client.poll(&mut events, None).unwrap();
    assert!(events[0].readable && events[0].writable && events[0].read_closed);
    assert_eq!(client.connected(&stream).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    client.close(stream);
}

#[test]
fn connect_into_a_black_hole_is_never_decided() {
    let world = SimWorld::new(0);
    world.black_hole(SERVER);
    let mut client = world.host(CLIENT);
    let stream = client.connect(server_addr(), &STREAM, CONNECTED).unwrap();
    let mut events = Vec::new();
    client.poll(&mut events, None).unwrap();
    assert_eq!(world.next_event(), None);
    world.advance(Duration::from_secs(1_000_000));
    client.poll(&mut events, None).unwrap();
    assert_eq!(events, []);
    assert_eq!(client.connected(&stream).unwrap(), None);
    client.close(stream);
}

/// A listening server and a client that connects under these faults, an hour later.
fn connect_under(faults: Faults) -> (SimWorld, SimNet, SimListener, SimNet, SimStream) {
    let world = SimWorld::new(0);
    let mut server = world.host(SERVER);
    let mut client = world.host(CLIENT);
    let (listener, _) = server.listen(server_addr(), &LISTEN, LISTENER).unwrap();
    world.set_faults(faults);
    let stream = client.connect(server_addr(), &STREAM, CONNECTED).unwrap();
    world.advance(Duration::from_hours(1));
    (world, server, listener, client, stream)
}

#[test]
fn started_connect_fails_as_the_fault_says() {
    let none = Faults::none();
    for (faults, kind) in [
        (Faults { connect_refused: 1.0, ..none.clone() }, ErrorKind::ConnectionRefused),
        (Faults { connect_unreachable: 1.0, ..none.clone() }, ErrorKind::HostUnreachable),
        (Faults { connect_timeout: 1.0, ..none.clone() }, ErrorKind::TimedOut),
        (Faults { connect_reset: 1.0, ..none }, ErrorKind::ConnectionReset),
    ] {
        let (_world, mut server, listener, mut client, stream) = connect_under(faults);
        let error = client.connected(&stream).unwrap_err();
        assert_eq!(error.kind(), kind);
        let was_made = kind == ErrorKind::ConnectionReset;
        assert_eq!(server.accept(&listener).is_ok(), was_made, "{kind:?}");
    }
    let black_hole = Faults { black_hole: 1.0, ..Faults::none() };
    let (_world, _server, _listener, mut client, stream) = connect_under(black_hole);
    assert_eq!(client.connected(&stream).unwrap(), None);
}

#[test]
fn aborted_accept_takes_the_connection_out_of_the_backlog() {
    let faults = Faults { accept_aborted: 1.0, ..Faults::none() };
    let (world, mut server, listener, mut client, mut stream) = connect_under(faults);
    assert_eq!(server.accept(&listener).err().unwrap().kind(), ErrorKind::ConnectionAborted);
    assert_eq!(server.accept(&listener).err().unwrap().kind(), ErrorKind::WouldBlock);
    world.advance(Duration::from_secs(1));
    let error = client.read(&mut stream, &mut [0; 9]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn events_of_different_sockets_come_in_any_order() {
    let world = SimWorld::new(0);
    world.set_faults(Faults { reorder_events: 1.0, ..Faults::none() });
    let mut server = world.host(SERVER);
    let mut client = world.host(CLIENT);
    let _listener = server.listen(server_addr(), &LISTEN, LISTENER).unwrap();
    let connect = |token| client.connect(server_addr(), &STREAM, Token(token)).unwrap();
    let _streams: Vec<_> = (10..20).map(connect).collect();
    world.advance(Duration::from_secs(1));
    let mut events = Vec::new();
    client.poll(&mut events, None).unwrap();
    assert_eq!(events.len(), 10);
    assert!(!events.is_sorted_by_key(|event| event.token));
}

#[test]
fn spurious_events_come_for_sockets_that_have_nothing() {
    let mut pair = Pair::calm(0);
    pair.server.poll();
    assert_eq!(pair.server.poll(), []);
    pair.world.set_faults(Faults { spurious_event: 1.0, ..Faults::none() });
    let spurious = (0..20).flat_map(|_| pair.server.poll()).collect::<Vec<_>>();
    assert!(spurious.iter().any(|event| event.readable), "{spurious:?}");
    assert_eq!(pair.server.read(&mut [0; 9]), Err(ErrorKind::WouldBlock));
}

#[test]
fn connect_to_no_machine_finds_no_way() {
    let world = SimWorld::new(0);
    let mut client = world.host(CLIENT);
    let stream = client.connect(server_addr(), &STREAM, CONNECTED).unwrap();
    world.advance(Duration::from_secs(1));
    assert_eq!(client.connected(&stream).unwrap_err().kind(), ErrorKind::HostUnreachable);
    client.close(stream);
    let v6 = "[fd00::1]:700".parse().unwrap();
    let error = client.connect(v6, &STREAM, CONNECTED).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NetworkUnreachable);
}

#[test]
fn connect_to_itself_fails() {
    let world = SimWorld::new(0);
    world.set_faults(Faults { self_connect: 1.0, ..Faults::none() });
    let mut net = world.host(CLIENT);
    let stream = net.connect((CLIENT, 40_000).into(), &STREAM, CONNECTED).unwrap();
    world.advance(Duration::from_secs(1));
    let mut events = Vec::new();
    net.poll(&mut events, None).unwrap();
    assert!(events[0].writable);
    assert_eq!(net.connected(&stream).unwrap_err().to_string(), "connected to itself");
    net.close(stream);
}

#[test]
fn backlog_is_bounded() {
    let world = SimWorld::new(0);
    let mut server = world.host(SERVER);
    let mut client = world.host(CLIENT);
    let options = ListenOptions { backlog: 2, ..LISTEN };
    let (listener, addr) = server.listen(([0; 4], 0).into(), &options, LISTENER).unwrap();
    let addr = (SERVER, addr.port()).into();
    let streams: Vec<_> =
        (10..13).map(|token| client.connect(addr, &STREAM, Token(token)).unwrap()).collect();
    world.advance(Duration::from_millis(10));
    let mut states = || -> Vec<_> {
        streams.iter().map(|stream| client.connected(stream).unwrap().is_some()).collect()
    };
    assert_eq!(states(), [true, true, false]);
    let _accepted = server.accept(&listener).unwrap();
    // The third is tried again after a second.
    world.advance(Duration::from_secs(2));
    assert_eq!(states(), [true, true, true]);
}

#[test]
fn closing_a_listener_resets_what_waits() {
    let world = SimWorld::new(0);
    let mut server = world.host(SERVER);
    let mut client = world.host(CLIENT);
    let (listener, _) = server.listen(server_addr(), &LISTEN, LISTENER).unwrap();
    let mut stream = client.connect(server_addr(), &STREAM, CONNECTED).unwrap();
    world.advance(Duration::from_secs(1));
    server.close_listener(listener);
    world.advance(Duration::from_secs(1));
    let error = client.read(&mut stream, &mut [0; 9]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(world.open_descriptors(), 1);
}

#[test]
fn close_sends_fin_behind_the_data() {
    let mut pair = Pair::calm(0);
    pair.client.write(b"bye").unwrap();
    pair.client.close();
    pair.settle();
    assert_eq!(pair.server.read(&mut [0; 9]), Ok(3));
    assert_eq!(pair.server.read(&mut [0; 9]), Ok(0));
    // What is written now nobody reads: it is answered with a reset.
    assert_eq!(pair.server.write(b"?"), Ok(1));
    pair.settle();
    assert_eq!(pair.server.write(b"?"), Err(ErrorKind::BrokenPipe));
}

#[test]
fn close_with_unread_input_resets() {
    let mut pair = Pair::calm(0);
    pair.server.write(b"unread").unwrap();
    pair.settle();
    pair.client.close();
    pair.settle();
    assert_eq!(pair.server.read(&mut [0; 9]), Err(ErrorKind::ConnectionReset));
    assert_eq!(pair.server.read(&mut [0; 9]), Ok(0));
}

#[test]
fn reset_is_seen_by_both_ends() {
    let mut pair = Pair::calm(0);
    pair.client.write(b"lost").unwrap();
    pair.world.reset(pair.connection());
    for peer in [&mut pair.client, &mut pair.server] {
        let event = peer.poll()[0];
        assert!(event.readable && event.writable && event.read_closed);
        assert_eq!(peer.read(&mut [0; 9]), Err(ErrorKind::ConnectionReset));
        assert_eq!(peer.write(b"?"), Err(ErrorKind::BrokenPipe));
    }
    let flow = pair.world.connection(pair.connection()).to_server;
    assert_eq!((flow.written, flow.arrived, flow.read), (4, 0, 0));
}

#[test]
fn reset_loses_unread_bytes_or_leaves_them_to_be_read() {
    for (loses, expected) in [(0.0, Ok(4)), (1.0, Err(ErrorKind::ConnectionReset))] {
        let mut pair = Pair::calm(0);
        pair.client.write(b"here").unwrap();
        pair.settle();
        pair.world.set_faults(Faults { reset_loses_unread: loses, ..Faults::none() });
        pair.world.reset(pair.connection());
        assert_eq!(pair.server.read(&mut [0; 9]), expected);
    }
}

#[test]
fn closed_stream_has_no_more_events() {
    let mut pair = Pair::calm(0);
    pair.client.write(b"here").unwrap();
    pair.settle();
    // The event waits to be polled.
    pair.server.close();
    assert_eq!(pair.server.poll(), []);
    pair.settle();
    assert_eq!(pair.server.poll(), []);
}

#[test]
fn descriptors_are_counted_until_closed() {
    let mut pair = Pair::calm(0);
    assert_eq!(pair.world.open_descriptors(), 3);
    assert_eq!(pair.world.open_descriptors_of(pair.client.net.id()), 1);
    pair.client.close();
    pair.server.close();
    pair.server.net.close_listener(pair.listener);
    assert_eq!((pair.world.open_descriptors(), pair.world.leaks()), (0, 0));
}

#[test]
fn dropped_stream_is_a_leak_while_its_process_lives() {
    let mut pair = Pair::calm(0);
    pair.client.stream = None;
    assert_eq!((pair.world.open_descriptors(), pair.world.leaks()), (2, 1));
    pair.client.poll();
    drop(pair.client);
    assert_eq!(pair.world.leaks(), 1);
}

#[test]
fn ending_a_whole_process_leaks_nothing_and_tells_the_peer() {
    let mut pair = Pair::calm(0);
    let world = pair.world.clone();
    let Peer { net, stream, .. } = pair.client;
    drop(stream);
    drop(net);
    assert_eq!((world.open_descriptors(), world.leaks()), (2, 0));
    world.advance(Duration::from_secs(1));
    assert_eq!(pair.server.read(&mut [0; 9]), Ok(0));
}

#[test]
fn descriptor_limit_makes_connect_fail() {
    let mut pair = Pair::calm(0);
    pair.world.limit_descriptors(pair.client.net.id(), Some(1));
    assert!(pair.client.net.connect(server_addr(), &STREAM, Token(9)).is_err());
    pair.world.limit_descriptors(pair.client.net.id(), Some(2));
    assert!(pair.client.net.connect(server_addr(), &STREAM, Token(9)).is_ok());
}

const TICKET: Ticket = Ticket { conn: ConnId::new(0, 0, 1), round: 7 };

#[test]
fn name_is_resolved_after_its_delay() {
    let world = SimWorld::new(0);
    let delay = Duration::from_secs(3);
    world.set_faults(Faults { resolve_time: delay..=delay, ..Faults::none() });
    let ips: Vec<IpAddr> = vec![Ipv4Addr::from(SERVER).into(), "::1".parse().unwrap()];
    world.add_name("server", ips.clone());
    let mut net = world.host(CLIENT);
    net.resolve(TICKET, "server", 700);
    world.advance(Duration::from_millis(2999));
    assert!(!net.has_resolved() && !net.is_woken());
    assert_eq!(world.next_event(), Some(world.now() + Duration::from_millis(1)));
    world.advance(Duration::from_millis(1));
    assert!(net.has_resolved() && net.is_woken());
    assert_eq!(world.next_event(), Some(world.now()));
    net.poll(&mut Vec::new(), None).unwrap();
    assert!(!net.is_woken());
    let expected: Vec<_> = ips.into_iter().map(|ip| SocketAddr::new(ip, 700)).collect();
    assert!(matches!(net.resolved(), Some((TICKET, Ok(addrs))) if addrs == expected));
    assert!(net.resolved().is_none());
}

#[test]
fn unknown_name_is_an_error() {
    let world = SimWorld::new(0);
    let mut net = world.host(CLIENT);
    net.resolve(TICKET, "nobody", 1);
    world.advance(Duration::from_secs(1));
    assert!(matches!(net.resolved(), Some((TICKET, Err(_)))));
}

#[test]
fn lost_lookup_is_answered_once_the_world_is_calm() {
    let world = SimWorld::new(0);
    world.set_faults(Faults { resolve_never: 1.0, ..Faults::none() });
    let mut net = world.host(CLIENT);
    net.resolve(TICKET, "10.0.0.1", 1);
    world.advance(Duration::from_secs(1_000_000));
    assert!(!net.has_resolved());
    world.calm();
    world.advance(Duration::ZERO);
    assert!(matches!(net.resolved(), Some((TICKET, Ok(_)))));
}
