//! What the echo servers of this package share, and what measures them.
//!
//! `wire` and `serve` are the servers'; `load`, `calls` and `system` measure; `workload` and `peer`
//! are the tables of what is measured; `compare` is built of `measure`, `build`, `report` and
//! `chart`.

pub mod build;
pub mod calls;
pub mod chart;
pub mod load;
pub mod measure;
pub mod peer;
pub mod report;
pub mod serve;
pub mod system;
pub mod wire;
pub mod workload;
