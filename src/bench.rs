//! `visit-pacer bench`: throughput, precision, reaction times, scale and cost, each beside the alternatives that a user might
//! choose, in one run on one machine.
//!
//! It owns its databases and removes them. It measures the program itself: its own processes, or calls of its writer. The agent
//! uses nothing of this module, and no test depends on a figure.

mod copy;
pub mod environment;
pub mod figures;
pub mod footprint;
mod growth;
mod peers;
pub mod plot;
pub mod precision;
pub mod program;
pub mod reaction;
pub mod scale;
pub mod throughput;
