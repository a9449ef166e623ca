//! The Supabase Realtime client: says that rows of a table changed, and whether it would know.
//!
//! [`feed::run`] is the one task. Its [`socket`] to an [`endpoint`] moves frames, its codec
//! ([`frame`]) reads and writes them, its protocol machine ([`session`]) decides; [`change`],
//! [`broadcast`] and [`fault`] are the machine's reading of news and of trouble; [`key`] reads keys,
//! [`token`] makes them. Only `feed` reads a clock, draws
//! random numbers or decides to wait; `frame`, `session`, `change` and `fault` are functions of
//! what they are given.
//!
//! Invariants: an event is a hint that a row changed, never its content; the feed is live only
//! after the server has confirmed the Postgres subscription, and each confirmation (also a second
//! one) asks for a full sync; whatever ends begins again, for ever, until the feed is shut down.

pub mod broadcast;
pub mod change;
mod channel;
pub mod endpoint;
pub mod failure;
pub mod feed;
pub mod frame;
pub mod key;
pub mod session;
pub mod socket;
pub mod token;

pub use broadcast::Broadcast;
pub use change::{Change, ChangeKind, Table};
pub use endpoint::{Endpoint, EndpointError, websocket_url};
pub use failure::Down;
pub use feed::FeedConfig;
pub use key::Key;
pub use session::{FeedCommand, FeedEvent};
pub use socket::ConnectError;
pub use token::Minter;
