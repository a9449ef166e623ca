//! The embedded stack: a real PostgreSQL that this program starts itself, and beside it a Realtime server of our own over
//! its logical decoding. For the demo and for tests; it is a stand-in for development, not Supabase.

pub mod download;
pub mod jwt;
pub mod pgoutput;
pub mod realtime_server;
pub mod server;
pub mod stack;
