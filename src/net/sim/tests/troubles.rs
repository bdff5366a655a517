//! Cuts, silence, lost power.

use super::*;
use crate::Keepalive;

#[test]
fn cut_delivers_nothing_until_it_heals() {
    let mut pair = Pair::calm(0);
    let (server, client) = pair.hosts();
    pair.world.cut(server, client);
    pair.client.write(b"held").unwrap();
    pair.world.advance(Duration::from_mins(10));
    assert_eq!(pair.server.read(&mut [0; 9]), Err(ErrorKind::WouldBlock));
    pair.world.heal(server, client);
    pair.settle();
    assert_eq!(pair.server.read(&mut [0; 9]), Ok(4));
}

#[test]
fn unacknowledged_bytes_time_out_in_a_cut() {
    let mut pair = Pair::calm(0);
    let (server, client) = pair.hosts();
    pair.world.cut(server, client);
    pair.client.write(b"held").unwrap();
    pair.world.advance(Duration::from_secs(1000));
    assert_eq!(pair.client.read(&mut [0; 9]), Err(ErrorKind::TimedOut));
    // The other end knows nothing until it speaks.
    pair.world.heal(server, client);
    pair.settle();
    assert_eq!(pair.server.read(&mut [0; 9]), Err(ErrorKind::WouldBlock));
    pair.server.write(b"?").unwrap();
    pair.settle();
    assert_eq!(pair.server.read(&mut [0; 9]), Err(ErrorKind::ConnectionReset));
}

/// A pair whose client has a keepalive of 6 s, then 2 s, six times, and perhaps a user timeout. It has
/// been idle for 15 s, so that two probes were answered, the last 3 s ago.
fn kept_alive(user_timeout: Option<Duration>) -> Pair {
    let mut pair = Pair::calm(0);
    let keepalive = Some(Keepalive {
        idle: Duration::from_secs(6),
        interval: Duration::from_secs(2),
        probes: 6,
    });
    let options = StreamOptions { keepalive, user_timeout, ..STREAM };
    let end = pair.client.stream.as_ref().unwrap().end;
    let mut state = pair.world.state.borrow_mut();
    state.adopt_stream(end, &options).unwrap();
    let now = state.now;
    state.end(end).hear(now);
    drop(state);
    pair.world.advance(Duration::from_secs(15));
    pair.server.poll();
    pair.client.poll();
    assert_eq!(pair.world.next_event(), None, "probes that are answered cost nothing");
    pair
}

/// For how many seconds from now on the client's connection lives.
fn seconds_to_live(pair: &mut Pair) -> Option<u64> {
    (0..1000).find(|_| {
        let result = pair.client.read(&mut [0; 9]);
        pair.world.advance(Duration::from_secs(1));
        result == Err(ErrorKind::TimedOut)
    })
}

#[test]
fn keepalive_gives_a_silent_peer_up_after_all_its_probes() {
    let mut pair = kept_alive(None);
    let (server, client) = pair.hosts();
    pair.world.cut(server, client);
    // The first probe 3 s from now, five more, and the end when a seventh would be due.
    assert_eq!(seconds_to_live(&mut pair), Some(3 + 6 * 2));
    pair.world.heal(server, client);
    pair.settle();
    assert_eq!(pair.server.read(&mut [0; 9]), Err(ErrorKind::WouldBlock), "its reset was lost");
}

#[test]
fn user_timeout_takes_the_place_of_the_count_of_probes() {
    for (user_timeout, expected) in [(3, 3 + 2), (9, 3 + 2 * 2), (100, 3 + 2 * 47)] {
        let mut pair = kept_alive(Some(Duration::from_secs(user_timeout)));
        let (server, client) = pair.hosts();
        pair.world.cut(server, client);
        assert_eq!(seconds_to_live(&mut pair), Some(expected), "{user_timeout}");
    }
}

#[test]
fn probes_one_way_only_are_as_none_and_the_reset_behind_them_arrives() {
    let mut pair = kept_alive(None);
    let (server, client) = pair.hosts();
    pair.world.cut_one_way(server, client);
    assert_eq!(seconds_to_live(&mut pair), Some(15));
    pair.settle();
    assert_eq!(pair.server.read(&mut [0; 9]), Err(ErrorKind::ConnectionReset));
}

#[test]
fn probe_that_is_answered_after_a_cut_keeps_the_connection_and_counts_anew() {
    let mut pair = kept_alive(None);
    let (server, client) = pair.hosts();
    for _ in 0..3 {
        pair.world.cut(server, client);
        pair.world.advance(Duration::from_secs(10));
        pair.world.heal(server, client);
        pair.world.advance(Duration::from_secs(3));
    }
    pair.world.cut(server, client);
    assert!(seconds_to_live(&mut pair) > Some(12));
}

#[test]
fn keepalive_leaves_what_is_under_way_to_the_user_timeout() {
    let mut pair = kept_alive(Some(Duration::from_secs(50)));
    let (server, client) = pair.hosts();
    pair.world.cut(server, client);
    pair.client.write(b"held").unwrap();
    assert_eq!(seconds_to_live(&mut pair), Some(51));
}

#[test]
fn peer_that_lost_its_power_answers_a_probe_with_a_reset_once_it_has_it_back() {
    let mut pair = kept_alive(None);
    let id = pair.server.net.id();
    pair.world.power_off(id);
    pair.world.advance(Duration::from_secs(8));
    pair.world.power_on(id);
    assert_eq!(pair.client.read(&mut [0; 9]), Err(ErrorKind::WouldBlock));
    pair.world.advance(Duration::from_secs(2));
    assert_eq!(pair.client.read(&mut [0; 9]), Err(ErrorKind::ConnectionReset));
}

#[test]
fn stream_and_listener_that_the_application_made_are_adopted() {
    let world = SimWorld::new(0);
    let (mut server, mut client) = (world.host(SERVER), world.host(CLIENT));
    let listener = server.bind(server_addr(), &LISTEN).unwrap();
    let stream = client.dial(server_addr(), &STREAM).unwrap();
    assert_eq!(stream.is_up(), None);
    world.advance(Duration::from_secs(1));
    assert_eq!(stream.is_up(), Some(true));
    let (mut events, none) = (Vec::new(), Some(Duration::ZERO));
    server.poll(&mut events, none).unwrap();
    client.poll(&mut events, none).unwrap();
    assert_eq!(events, [], "neither is registered");
    let (listener, addr) =
        server.adopt_listener(BroughtListener::Simulated(listener), &LISTEN, LISTENER).unwrap();
    let (mut stream, peer) =
        client.adopt_stream(BroughtStream::Simulated(stream), &STREAM).unwrap();
    assert_eq!((addr, peer), (server_addr(), server_addr()));
    client.register(&mut stream, CONNECTED).unwrap();
    server.poll(&mut events, none).unwrap();
    client.poll(&mut events, none).unwrap();
    assert_eq!(events.iter().map(|event| event.token).collect::<Vec<_>>(), [LISTENER, CONNECTED]);
    let (accepted, _) = server.accept(&listener).unwrap();
    server.close(accepted);
    client.close(stream);
    server.close_listener(listener);
    assert_eq!((world.open_descriptors(), world.leaks()), (0, 0));
}

#[test]
fn connect_to_where_no_way_leads_fails_at_once() {
    let world = SimWorld::new(0);
    let mut client = world.host(CLIENT);
    world.unroute(SERVER);
    let failed = client.connect(server_addr(), &STREAM, CONNECTED).map(|_| ()).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::NetworkUnreachable);
    assert_eq!(world.open_descriptors(), 0);
}

#[test]
fn connect_hangs_in_a_cut() {
    let mut pair = Pair::calm(0);
    let (server, client) = pair.hosts();
    pair.world.cut(server, client);
    let stream = pair.client.net.connect(server_addr(), &STREAM, Token(9)).unwrap();
    pair.world.advance(Duration::from_secs(20));
    assert_eq!(pair.client.net.connected(&stream).unwrap(), None);
    pair.world.heal(server, client);
    pair.world.advance(Duration::from_secs(20));
    assert_eq!(pair.client.net.connected(&stream).unwrap(), Some(server_addr()));
    pair.client.net.close(stream);
}

#[test]
fn killed_process_is_noticed_by_its_peer() {
    let mut pair = Pair::calm(0);
    pair.world.kill_host(pair.server.net.id());
    pair.settle();
    assert_eq!(pair.client.read(&mut [0; 9]), Ok(0));
    assert_eq!((pair.world.open_descriptors(), pair.world.leaks()), (1, 0));
    // Its successor on the same machine has the port.
    let mut net = pair.world.host(SERVER);
    assert!(net.listen(server_addr(), &LISTEN, LISTENER).is_ok());
}

#[test]
fn machine_without_power_is_noticed_by_nobody_until_it_runs_again() {
    let mut pair = Pair::calm(0);
    let id = pair.server.net.id();
    pair.world.power_off(id);
    pair.client.write(b"?").unwrap();
    pair.world.advance(Duration::from_mins(10));
    assert_eq!(pair.client.read(&mut [0; 9]), Err(ErrorKind::WouldBlock));
    pair.world.power_on(id);
    pair.settle();
    assert_eq!(pair.client.read(&mut [0; 9]), Err(ErrorKind::ConnectionReset));
}

#[test]
fn stalled_direction_delivers_nothing_until_the_world_is_calm() {
    let mut pair = Pair::calm(0);
    let from = pair.client.net.local_addr(pair.client.stream.as_ref().unwrap()).unwrap();
    pair.world.stall(from, server_addr(), Duration::from_secs(100));
    pair.client.write(b"held").unwrap();
    pair.server.write(b"free").unwrap();
    pair.settle();
    assert_eq!(pair.server.read(&mut [0; 9]), Err(ErrorKind::WouldBlock));
    assert_eq!(pair.client.read(&mut [0; 9]), Ok(4));
    pair.world.calm();
    pair.settle();
    assert_eq!(pair.server.read(&mut [0; 9]), Ok(4));
    let flow = pair.world.flow(from, server_addr()).unwrap();
    assert_eq!((flow.written, flow.arrived, flow.read), (4, 4, 4));
}

#[test]
fn nothing_arrives_behind_what_a_full_window_lost_but_the_reset() {
    let contents = [Content::Bytes(6), Content::Bytes(3), Content::Fin, Content::Reset];
    let mut pipe = Pipe {
        bytes: (0..9).collect(),
        segments: contents.map(|content| Segment { due: 0, content }).into(),
        receive_limit: 4,
        has_reset: true,
        ..Pipe::default()
    };
    assert!(pipe.accept_segment(6), "as far as there is room");
    assert!(pipe.accept_segment(2), "there is none");
    pipe.check();
    pipe.take(&mut [0; 4]);
    let left: Vec<_> = pipe.segments.iter().map(|segment| segment.content).collect();
    assert!(matches!(left[..], [Content::Reset]), "{left:?}");
    assert!(pipe.bytes.is_empty());
}
