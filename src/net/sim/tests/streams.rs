//! Bytes and events of a connection.

use super::*;

#[test]
fn bytes_arrive_whole_and_in_order_under_every_fault_but_reset() {
    for seed in 0..200 {
        let pair = exchange(seed, Faults::lossless);
        for (from, to) in [(&pair.client, &pair.server), (&pair.server, &pair.client)] {
            assert_eq!((to.ended, to.error), (true, None), "seed {seed}");
            assert!(from.outgoing == to.incoming, "seed {seed}");
        }
        let info = pair.world.connection(pair.connection());
        assert_eq!(info.to_server.read, pair.client.outgoing.len() as u64, "seed {seed}");
    }
}

#[test]
fn what_is_read_is_a_first_part_of_what_was_written_under_every_fault() {
    let mut losses = 0;
    for seed in 0..200 {
        let mut pair = exchange(seed, |faults| Faults { reset: 0.02, ..faults });
        for (from, to) in [(&pair.client, &pair.server), (&pair.server, &pair.client)] {
            assert!(from.outgoing.starts_with(&to.incoming), "seed {seed}");
            losses += usize::from(to.incoming.len() < from.outgoing.len());
        }
        pair.server.close();
        pair.client.close();
        assert_eq!((pair.world.open_descriptors(), pair.world.leaks()), (1, 0), "seed {seed}");
    }
    assert!(losses > 50, "{losses}");
}

#[test]
fn same_seed_gives_the_same_trace() {
    for seed in 0..20 {
        let hash = || exchange(seed, |faults| faults).world.trace_hash();
        assert_eq!(hash(), hash(), "seed {seed}");
    }
}

#[test]
fn different_seeds_give_different_traces() {
    let hash = |seed| exchange(seed, |faults| faults).world.trace_hash();
    assert_ne!(hash(1), hash(2));
}

#[test]
fn kept_trace_has_a_line_for_each_action() {
    let world = SimWorld::new(0);
    world.keep_trace(true);
    let pair = Pair::new(world);
    let lines = pair.world.trace();
    assert!(lines[0].ends_with("host 0 Listen 1 700"), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("host 0 Accept 1")), "{lines:?}");
}

#[test]
fn full_send_buffer_would_block_and_room_gives_an_event() {
    let mut pair = Pair::calm(0);
    let mut written = 0;
    while let Ok(len) = pair.client.write(&[7; 10_000]) {
        written += len;
    }
    assert_eq!(written, 262_144);
    assert_eq!(pair.client.write(&[7]), Err(ErrorKind::WouldBlock));
    pair.client.poll();
    assert_eq!(pair.client.poll(), []);

    // The receive buffer takes as much again.
    pair.settle();
    assert!(pair.client.poll()[0].writable);
    while let Ok(len) = pair.client.write(&[7; 10_000]) {
        written += len;
    }
    assert_eq!(written, 2 * 262_144);
    pair.settle();
    assert_eq!(pair.client.poll(), []);

    pair.server.turn();
    pair.settle();
    assert!(pair.client.poll()[0].writable);
}

#[test]
fn fin_comes_behind_the_data() {
    let mut pair = Pair::calm(0);
    pair.server.poll();
    assert_eq!(pair.client.write(b"last words"), Ok(10));
    pair.client.net.shutdown(pair.client.stream.as_mut().unwrap()).unwrap();
    assert_eq!(pair.client.write(b"more"), Err(ErrorKind::BrokenPipe));
    assert_eq!(pair.server.read(&mut [0; 20]), Err(ErrorKind::WouldBlock));
    pair.settle();
    let events = pair.server.poll();
    assert!(events[0].readable && events[0].read_closed, "{events:?}");
    assert_eq!(pair.server.read(&mut [0; 20]), Ok(10));
    assert_eq!(pair.server.read(&mut [0; 20]), Ok(0));
    assert_eq!(pair.server.read(&mut [0; 20]), Ok(0));
    // The other direction is still open.
    assert_eq!(pair.server.write(b"answer"), Ok(6));
    pair.settle();
    assert_eq!(pair.client.read(&mut [0; 20]), Ok(6));
}

#[test]
fn missing_hint_is_followed_by_a_plain_readable_event() {
    let mut pair = Pair::calm(0);
    pair.server.poll();
    pair.world.set_faults(Faults { missing_hint: 1.0, ..Faults::none() });
    assert_eq!(pair.client.write(b"last words"), Ok(10));
    pair.client.shutdown().unwrap();
    pair.settle();
    let first = pair.server.poll();
    assert_eq!((first.len(), first[0].readable, first[0].read_closed), (1, true, false));
    assert_eq!(pair.server.read(&mut [0; 20]), Ok(10));
    pair.settle();
    let second = pair.server.poll();
    assert_eq!((second.len(), second[0].readable, second[0].read_closed), (1, true, false));
    assert_eq!(pair.server.read(&mut [0; 20]), Ok(0));
}

#[test]
fn short_receive_buffer_takes_time_to_be_filled_again() {
    let mut faults = Faults::none();
    faults.receive_buffer = 2..=2;
    let world = SimWorld::new(0);
    world.set_faults(faults);
    let mut pair = Pair::new(world);
    pair.client.write(&[7; 100]).unwrap();
    pair.settle();
    for _ in 0..10 {
        let before = pair.world.now();
        assert_eq!(pair.server.read(&mut [0; 20]), Ok(2));
        assert_eq!(pair.server.read(&mut [0; 20]), Err(ErrorKind::WouldBlock));
        pair.server.poll();
        pair.client.poll();
        let next = pair.world.next_event().unwrap();
        assert!(next > before, "the rest comes in the same moment");
        pair.world.advance_to(next);
    }
}

#[test]
fn short_read_is_followed_by_an_event() {
    let mut pair = Pair::calm(3);
    pair.server.poll();
    pair.client.write(&[7; 1000]).unwrap();
    pair.settle();
    assert!(pair.server.poll()[0].readable);
    pair.world.set_faults(Faults { short_read: 1.0, ..Faults::none() });
    assert!(pair.server.read(&mut [0; 5000]).unwrap() < 1000);
    assert_eq!(pair.world.next_event(), Some(pair.world.now()));
    assert!(pair.server.poll()[0].readable);
}

#[test]
fn accept_error_leaves_the_connection_waiting_and_gives_no_further_event() {
    let world = SimWorld::new(0);
    let mut server = world.host(SERVER);
    let mut client = world.host(CLIENT);
    let (listener, _) = server.listen(server_addr(), &LISTEN, LISTENER).unwrap();
    let _stream = client.connect(server_addr(), &STREAM, CONNECTED).unwrap();
    world.advance(Duration::from_secs(1));
    world.exhaust_descriptors(server.id(), Duration::from_secs(5));

    let mut events = Vec::new();
    server.poll(&mut events, None).unwrap();
    assert_eq!((events.len(), events[0].token), (1, LISTENER));
    let error = server.accept(&listener).err().unwrap();
    assert_eq!(error.raw_os_error(), Some(if cfg!(windows) { 10_024 } else { 24 }));

    events.clear();
    world.advance(Duration::from_hours(1));
    server.poll(&mut events, None).unwrap();
    assert_eq!(events, []);
    assert!(server.accept(&listener).is_ok());
    assert_eq!(server.accept(&listener).err().unwrap().kind(), ErrorKind::WouldBlock);
}
