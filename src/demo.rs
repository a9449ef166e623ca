//! The embedded stack: a PostgreSQL server that this program starts, and a stand-in for Supabase Realtime over its logical
//! decoding. For the demo, the benchmarks and tests; not for production.

#![allow(
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    reason = "a server has a wall clock and receives unknown input"
)]

pub mod download;
pub mod jwt;
pub mod pgoutput;
pub mod private_file;
pub mod realtime_server;
pub mod server;
pub mod stack;
