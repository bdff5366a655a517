//! Callbacks that do what nobody does, in each callback that there is.

use std::{
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    fleet::Fleet,
    script::{Log, SERVER},
};
use crate::{
    Audience, CloseReport, Config, Conn, ConnId, Context, Handler, Incident, Message,
    ReactorBuilder, Reconnect, api::handler::Timer, net::sim::SimWorld, protocol::Native,
};

const SECOND: Duration = Duration::from_secs(1);

type Deed = Rc<dyn Fn(&mut Context<'_, Native>, Option<ConnId>)>;

/// Does one thing in the callback of one name, once or always, and notes what it was told.
struct Reckless {
    log: Log,
    place: &'static str,
    times: usize,
    deed: Deed,
}

impl Reckless {
    fn come_to(&mut self, place: &str, cx: &mut Context<'_, Native>, conn: Option<ConnId>) {
        self.log.note(match conn {
            Some(conn) => format!("{place} {conn}"),
            None => place.to_owned(),
        });
        if place == self.place && self.times > 0 {
            self.times -= 1;
            let deed = self.deed.clone();
            deed(cx, conn);
        }
    }
}

impl Handler for Reckless {
    type Protocol = Native;

    fn on_start(&mut self, cx: &mut Context<'_, Native>) {
        self.come_to("on_start", cx, None);
    }

    fn on_stop(&mut self, cx: &mut Context<'_, Native>) {
        self.come_to("on_stop", cx, None);
    }

    fn on_connect(&mut self, conn: &mut Conn<'_, Native>) {
        let id = conn.id();
        conn.set_timer(SECOND, 1);
        for _ in 0..3 {
            let _ = conn.call::<Self>("request", 10 * SECOND, move |handler, conn, result| {
                handler.log.note(format!("ended {}", result.is_ok()));
                handler.come_to("callback", conn.cx(), Some(id));
            });
        }
        self.log.note(format!("started {}", conn.stats().calls_in_flight));
        self.come_to("on_connect", conn.cx(), Some(id));
        let _ = conn.send("news");
    }

    fn on_message(&mut self, conn: &mut Conn<'_, Native>, msg: Message<'_, Native>) {
        let id = conn.id();
        self.come_to("on_message", conn.cx(), Some(id));
        if msg.is_request() {
            let _ = conn.reply(&msg, vec![b'r'; 60_000]);
        }
    }

    fn on_disconnect(&mut self, conn: &mut Conn<'_, Native>, _: &CloseReport) {
        let id = conn.id();
        self.come_to("on_disconnect", conn.cx(), Some(id));
    }

    fn on_writable(&mut self, conn: &mut Conn<'_, Native>) {
        let id = conn.id();
        self.come_to("on_writable", conn.cx(), Some(id));
    }

    fn on_timer(&mut self, cx: &mut Context<'_, Native>, timer: Timer) {
        self.come_to("on_timer", cx, timer.conn);
    }

    fn on_cancel(&mut self, conn: &mut Conn<'_, Native>, _: u64) {
        let id = conn.id();
        self.come_to("on_cancel", conn.cx(), Some(id));
    }

    fn on_error(&mut self, cx: &mut Context<'_, Native>, _: &Incident) {
        self.come_to("on_error", cx, None);
    }
}

const PLACES: [&str; 9] = [
    "on_start",
    "on_stop",
    "on_connect",
    "on_message",
    "on_disconnect",
    "on_writable",
    "on_timer",
    "on_error",
    "callback",
];

/// As [`run_lives`], for what panics: what follows a panic in `on_stop` is a test of its own.
fn run_lives_but_in_on_stop(deed: impl Fn(&mut Context<'_, Native>, Option<ConnId>) + 'static) {
    let deed: Deed = Rc::new(deed);
    for place in PLACES.into_iter().filter(|place| *place != "on_stop") {
        for reckless in 0..2 {
            run_life(&SimWorld::new(1), place, 2, reckless, &deed);
        }
    }
}

/// Runs a life of two connections, in which one callback of either side does something, and then looks at
/// what must hold whatever it was.
fn run_lives(deed: impl Fn(&mut Context<'_, Native>, Option<ConnId>) + 'static) {
    let deed: Deed = Rc::new(deed);
    for place in PLACES {
        for times in [1, 5] {
            for reckless in 0..2 {
                run_life(&SimWorld::new(1), place, times, reckless, &deed);
            }
        }
    }
}

fn run_life(world: &SimWorld, place: &'static str, times: usize, reckless: usize, deed: &Deed) {
    let mut fleet = Fleet::new(world.clone());
    fleet.may_panic = true;
    let config = Config::new()
        .watermarks(10_000, 50_000)
        .socket_buffers(8192, 8192)
        .reconnect(Reconnect::fixed(2 * SECOND).max_attempts(3));
    let logs = [Log::default(), Log::default()];
    for (index, number) in (0..2).zip(1..) {
        let handler = Reckless {
            log: logs[index].clone(),
            place: if index == reckless { place } else { "nowhere" },
            times,
            deed: deed.clone(),
        };
        let builder = ReactorBuilder::new(Native).config(config.clone());
        fleet.add(number, builder.seed(number.into()), handler);
    }
    // Faults may prevent it.
    let _ = fleet.nodes[0].engine.context().listen(SERVER);
    for target in [SERVER, SERVER, "10.0.0.1:9"] {
        fleet.nodes[1].engine.context().connect(target).unwrap();
    }
    fleet.run_for(3 * SECOND);
    for connection in world.connections() {
        world.reset(connection);
    }
    fleet.run_for(5 * SECOND);
    let what = format!("{place}, {times} times, at {reckless}");
    world.calm();
    assert!(fleet.stop(), "{what}: it does not stop");
    for (log, node) in logs.iter().zip(&fleet.nodes) {
        let all = log.take();
        let count = |start: &str| all.iter().filter(|line| line.starts_with(start)).count();
        assert_eq!(count("on_stop"), 1, "{what}: {all:?}");
        assert_eq!(all.last().map(String::as_str), Some("on_stop"), "{what}: {all:?}");
        assert_eq!(count("on_connect"), count("on_disconnect"), "{what}: {all:?}");
        let started: usize = all
            .iter()
            .filter_map(|line| line.strip_prefix("started ")?.parse::<usize>().ok())
            .sum();
        assert_eq!(count("ended"), started, "{what}: {all:?}");
        assert_eq!(node.engine.state.stats.calls_in_flight, 0, "{what}");
    }
    fleet.assert_empty();
}

#[test]
fn connection_may_end_itself_in_any_callback() {
    fn ending(end: impl Fn(&mut Conn<'_, Native>) + 'static) {
        run_lives(move |cx, id| {
            if let Some(mut conn) = id.and_then(|id| cx.conn(id)) {
                end(&mut conn);
            }
        });
    }
    ending(|conn| {
        conn.close();
    });
    ending(|conn| {
        conn.abort();
    });
    ending(|conn| {
        conn.drain();
    });
}

#[test]
fn any_callback_may_end_every_connection_in_every_way() {
    run_lives(|cx, _| {
        let ids: Vec<_> = cx.connections().collect();
        for (index, id) in ids.into_iter().enumerate() {
            let Some(mut conn) = cx.conn(id) else { continue };
            match index % 3 {
                0 => conn.abort(),
                1 => conn.drain(),
                _ => conn.close(),
            }
            conn.close();
            conn.abort();
            let _ = conn.send("too late");
        }
    });
}

#[test]
fn any_callback_may_stop_the_reactor_and_again() {
    run_lives(|cx, _| {
        cx.stop();
        cx.stop();
        cx.handle().stop_within(Duration::ZERO);
        let _ = cx.connect(SERVER);
        let _ = cx.listen("10.0.0.1:7003");
    });
    run_lives(|cx, _| cx.stop());
}

#[test]
fn any_callback_may_dial_and_drop_what_it_dialled() {
    run_lives(|cx, _| {
        let _ = cx.connect(SERVER);
        if let Ok(id) = cx.connect(SERVER) {
            let _ = cx.conn(id).map(|mut conn| conn.send("kept"));
            if let Some(mut conn) = cx.conn(id) {
                conn.abort();
            }
        }
        let _ = cx.connect("10.0.0.1:9");
        let _ = cx.connect("nobody:9");
    });
}

#[test]
fn any_callback_may_call_and_send_to_every_connection() {
    let counts = [Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0))];
    let [started, ended] = counts.clone();
    run_lives(move |cx, _| {
        let ids: Vec<_> = cx.connections().collect();
        for id in ids {
            let Some(mut conn) = cx.conn(id) else { continue };
            let end = ended.clone();
            let call = conn.call::<Reckless>("x", SECOND, move |_, _, _| {
                end.fetch_add(1, Ordering::Relaxed);
            });
            if let Ok(call) = call {
                started.fetch_add(1, Ordering::Relaxed);
                if call.as_u64() % 2 == 0 {
                    conn.cancel_call(call);
                }
            }
            let _ = conn.send(vec![b'x'; 100_000]);
            let _ = conn.cx().handle().send(id, "from outside");
        }
        cx.broadcast(Audience::All, vec![b'y'; 20_000]);
        cx.broadcast(Audience::filter(|_| true), "z");
    });
    let [started, ended] = counts.map(|count| count.load(Ordering::Relaxed));
    assert!(started > 0);
    assert_eq!(started, ended);
}

#[test]
fn any_callback_may_open_close_and_drain_listeners() {
    run_lives(|cx, _| {
        for port in 7100..7104 {
            if let Ok((listener, _)) = cx.listen(format!("10.0.0.1:{port}").as_str()) {
                match port % 3 {
                    0 => _ = cx.close_listener(listener),
                    1 => _ = cx.drain_listener(listener),
                    _ => {}
                }
            }
        }
    });
}

#[test]
fn any_callback_may_panic() {
    run_lives_but_in_on_stop(|_, _| panic!("as planned"));
}

#[test]
fn any_callback_may_panic_after_it_has_done_everything() {
    run_lives_but_in_on_stop(|cx, id| {
        let _ = cx.connect(SERVER);
        if let Some(mut conn) = id.and_then(|id| cx.conn(id)) {
            conn.set_timer(Duration::ZERO, 9);
            conn.join("group");
            let _ = conn.send(vec![b'x'; 100_000]);
            conn.drain();
        }
        cx.broadcast(Audience::All, "news");
        cx.stop();
        panic!("as planned");
    });
}

#[test]
fn any_callback_may_pause_and_resume_whatever_is_there() {
    run_lives(|cx, _| {
        let ids: Vec<_> = cx.connections().collect();
        for (index, id) in ids.into_iter().enumerate() {
            let Some(mut conn) = cx.conn(id) else { continue };
            conn.pause();
            if index % 2 == 0 {
                conn.resume();
            }
        }
    });
}

#[test]
fn no_fault_of_the_network_makes_a_reckless_callback_leave_anything() {
    let deeds: [Deed; 4] = [
        Rc::new(|cx, id| {
            if let Some(mut conn) = id.and_then(|id| cx.conn(id)) {
                conn.drain();
            }
            let _ = cx.connect(SERVER);
        }),
        Rc::new(|cx, id| {
            if let Some(mut conn) = id.and_then(|id| cx.conn(id)) {
                let _ = conn.send(vec![b'x'; 200_000]);
                conn.close();
            }
        }),
        Rc::new(|cx, _| {
            let ids: Vec<_> = cx.connections().collect();
            for id in ids {
                if let Some(mut conn) = cx.conn(id) {
                    conn.abort();
                }
            }
        }),
        Rc::new(|cx, _| {
            cx.broadcast(Audience::All, vec![b'y'; 20_000]);
        }),
    ];
    for seed in 0..8 {
        for (index, deed) in deeds.iter().enumerate() {
            for place in ["on_connect", "on_message", "on_disconnect", "on_error", "callback"] {
                run_life(&SimWorld::with_faults(seed), place, 3, index % 2, deed);
            }
        }
    }
}

/// The promise: `on_stop` is the last callback.
#[test]
fn nothing_is_called_after_on_stop_also_where_that_panics() {
    let deed: Deed = Rc::new(|_, _| panic!("as planned"));
    run_life(&SimWorld::new(1), "on_stop", 1, 0, &deed);
}
