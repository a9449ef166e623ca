//! `visit-pacer bench`: how much, how exactly, how soon, how many and at what price, each beside what a user would pick instead,
//! in one run on one machine.
//!
//! It owns its databases and removes them; it measures the program as it is: its own processes, or the writer's own calls.
//! Nothing here is used by the agent, and no test depends on a figure.

mod copy;
pub mod figures;
pub mod footprint;
pub mod ground;
mod growth;
mod peers;
pub mod plot;
pub mod precision;
pub mod program;
pub mod reaction;
pub mod scale;
pub mod throughput;
