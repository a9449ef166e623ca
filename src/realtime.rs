//! The Supabase Realtime client: reports which rows changed, and whether it would notice.
//!
//! [`feed::run`] is the only task. [`socket`] moves frames to and from an [`endpoint`], [`frame`] encodes and decodes them,
//! [`session`] is the protocol's state machine; [`change`], [`broadcast`] and [`failure`] read payloads for it. Only `feed`
//! reads a clock or draws random numbers.
//!
//! Invariants: an event is a hint that a row changed, never its content; a feed is live only after the server has confirmed
//! the subscription, and each confirmation asks for a full sync; after any end it connects again, until it is shut down.

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
pub use change::{Change, FollowedTable};
pub use endpoint::{Endpoint, websocket_url};
pub use failure::Down;
pub use feed::FeedConfig;
pub use key::ApiKey;
pub use session::{FeedCommand, FeedEvent};
pub use token::Minter;
