//! The reactor on the simulated network: the same code as on real sockets, under seeded faults.
//!
//! `LONGHAUL_SEEDS=100000` runs more seeds, `LONGHAUL_SEED=7` replays one and prints its trace.

mod bent;
mod conversation;
mod deadlines;
mod decoding;
mod dialling;
mod edges;
mod ends;
mod fanout;
mod fleet;
mod fresh_options;
mod hostile;
mod ids;
mod in_order;
mod layer_ends;
mod layer_loads;
mod layers;
mod ledger;
mod odd;
mod outages;
mod panics;
mod plants;
mod queues;
mod reckless;
mod rules;
mod script;
mod spin;
mod stops;
mod strangers;
mod talker;
mod threads;
mod unsent;
mod verdicts;
