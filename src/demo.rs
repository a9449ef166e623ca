//! The embedded stack: a real PostgreSQL that this program starts itself, and beside it a Realtime server of our own over
//! its logical decoding. For the demo and for tests; it is a stand-in for development, not Supabase.

#![allow(
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    reason = "it plays a server, which has a wall clock and reads what it does not know"
)]

pub mod download;
pub mod jwt;
pub mod pgoutput;
pub mod realtime_server;
pub mod server;
pub mod stack;
