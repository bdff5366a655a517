//! Many clients and one server that goes and comes back.

use std::{cell::Cell, rc::Rc, time::Duration};

use super::fleet::Fleet;
use crate::{
    CloseReport, Config, Conn, Handler, Message, ReactorBuilder, net::sim::SimWorld,
    protocol::Native,
};

const SERVER: &str = "10.0.0.1:7001";

/// Counts the connections that are up, and how often one came up.
#[derive(Clone, Default)]
struct Counting {
    up: Rc<Cell<usize>>,
    connects: Rc<Cell<usize>>,
    lost: Rc<Cell<usize>>,
}

impl Handler for Counting {
    type Protocol = Native;

    fn on_connect(&mut self, _: &mut Conn<'_, Native>) {
        self.up.set(self.up.get() + 1);
        self.connects.set(self.connects.get() + 1);
    }

    fn on_message(&mut self, _: &mut Conn<'_, Native>, _: Message<'_, Native>) {}

    fn on_disconnect(&mut self, _: &mut Conn<'_, Native>, _: &CloseReport) {
        self.up.set(self.up.get() - 1);
        self.lost.set(self.lost.get() + 1);
    }

    fn on_error(&mut self, _: &mut crate::Context<'_, Native>, _: &crate::Incident) {}
}

/// A server, the first of the nodes, and hosts of clients that dial it.
struct Town {
    fleet: Fleet<Counting>,
    config: Config,
    clients: Counting,
    size: usize,
}

impl Town {
    fn new(hosts: u8, clients_each: usize, config: Config) -> Self {
        let mut fleet = Fleet::new(SimWorld::new(7));
        fleet.is_checked = false;
        let size = usize::from(hosts) * clients_each;
        let mut town = Self { fleet, config, clients: Counting::default(), size };
        town.start_server();
        for host in 2..hosts + 2 {
            let builder = ReactorBuilder::new(Native).config(town.config.clone());
            let node = town.fleet.add(host, builder.seed(host.into()), town.clients.clone());
            for _ in 0..clients_each {
                town.fleet.nodes[node].engine.context().connect(SERVER).unwrap();
            }
        }
        town
    }

    fn start_server(&mut self) {
        let builder = ReactorBuilder::new(Native).config(self.config.clone()).seed(1);
        let node = self.fleet.add(1, builder, Counting::default());
        self.fleet.nodes[node].engine.context().listen(SERVER).unwrap();
        self.fleet.nodes[..=node].rotate_right(1);
    }

    /// The server's process ends, and another one starts after this time.
    fn outage(&mut self, time: Duration) {
        drop(self.fleet.nodes.remove(0));
        self.fleet.run_for(time);
        self.start_server();
    }

    /// Clients that come back in each second until all are back, within a minute.
    fn comers(&mut self) -> Vec<usize> {
        let mut comers = Vec::new();
        while self.clients.up.get() < self.size {
            let before = self.clients.connects.get();
            self.fleet.run_for(Duration::from_secs(1));
            comers.push(self.clients.connects.get() - before);
            assert!(comers.len() <= 60, "not all are back within a minute: {comers:?}");
        }
        comers
    }
}

#[test]
fn ten_thousand_clients_come_back_after_each_outage_of_a_day_spread_over_time() {
    // The day is about outages: 43 million pings would prove nothing more.
    let config = Config::new().heartbeat(None).idle_timeout(None);
    let mut town = Town::new(10, 1000, config);
    town.comers();
    for seconds in [1, 10, 60, 600] {
        town.fleet.run_for(Duration::from_hours(6));
        assert_eq!(town.clients.up.get(), town.size);
        town.outage(Duration::from_secs(seconds));
        let comers = town.comers();
        if seconds < 60 {
            // So short that the first delays, of less than a second each, have bridged it.
            continue;
        }
        let mean = town.size.div_ceil(comers.len());
        let busiest = comers.iter().max().copied().unwrap_or(0);
        assert!(
            busiest <= 3 * mean,
            "after {seconds} s: {busiest} in the busiest second, {mean} on average: {comers:?}"
        );
    }
    assert_eq!(town.clients.lost.get(), 4 * town.size);
}

/// Only the process stands still, then all of the machine.
#[test]
fn process_that_was_away_for_a_minute_closes_none_of_a_thousand_healthy_peers() {
    // Clients that are more patient than the server was away.
    let config =
        Config::new().heartbeat(Duration::from_secs(20)).idle_timeout(Duration::from_secs(30));
    let mut town = Town::new(1, 1000, config);
    let clients = &mut town.fleet.nodes[1].engine;
    let ids: Vec<_> = clients.state.slots.ids();
    assert_eq!(ids.len(), 1000);
    town.comers();
    town.fleet.run_for(Duration::from_secs(45));
    for _ in 0..3 {
        town.fleet.world.advance(Duration::from_mins(1));
        town.fleet.run_for(Duration::from_mins(2));
    }
    assert_eq!((town.clients.lost.get(), town.clients.up.get()), (0, 1000));
}
