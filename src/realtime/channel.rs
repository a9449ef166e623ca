//! The channel of one transport: its state, its back-off and the payload of its join.
//!
//! Invariant: it outlives its socket; without one it is idle.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::change::FollowedTable;
use crate::domain::error_policy::{ErrorKind, REALTIME, REALTIME_SLOW};
use crate::domain::retry::Retry;
use crate::domain::transport::Transport;

/// The topic of `postgres_changes`. Any name after `realtime:` works; this one identifies the client.
pub const TOPIC: &str = "realtime:visit-pacer";
/// The private topic of broadcasts from the database, named as in `deploy/supabase/broadcast.sql`.
pub const BROADCAST_TOPIC: &str = "realtime:visit_pacer";
/// Broadcasts that a join asks to replay; the limit of the server.
const REPLAYED: u32 = 25;

/// See the module.
pub(super) struct Channel {
    pub(super) transport: Transport,
    pub(super) state: ChannelState,
    /// Joins that failed in a row on this socket.
    pub(super) failed_joins: u32,
    ordinary: Retry,
    slow: Retry,
}

pub(super) enum ChannelState {
    /// To be joined at this time, or as soon as there is a socket.
    Idle {
        join_at: Option<Instant>,
    },
    Joining {
        join_ref: String,
        deadline: Instant,
    },
    /// The join was accepted, the subscription is not confirmed.
    Joined {
        join_ref: String,
        deadline: Instant,
    },
    Live {
        join_ref: String,
    },
}

impl Channel {
    pub(super) fn new(transport: Transport) -> Self {
        Self {
            transport,
            state: ChannelState::Idle { join_at: None },
            failed_joins: 0,
            ordinary: Retry::new(REALTIME.from, REALTIME.to),
            slow: Retry::new(REALTIME_SLOW.from, REALTIME_SLOW.to),
        }
    }

    pub(super) fn topic(&self) -> &'static str {
        match self.transport {
            Transport::Changes => TOPIC,
            Transport::Broadcast => BROADCAST_TOPIC,
        }
    }

    /// The ref of its present join.
    pub(super) fn join_ref(&self) -> Option<&str> {
        match &self.state {
            ChannelState::Idle { .. } => None,
            ChannelState::Joining { join_ref, .. }
            | ChannelState::Joined { join_ref, .. }
            | ChannelState::Live { join_ref } => Some(join_ref),
        }
    }

    pub(super) fn is_joining(&self) -> bool {
        matches!(self.state, ChannelState::Joining { .. })
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.state, ChannelState::Live { .. })
    }

    /// Whether its join may be sent.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        matches!(self.state, ChannelState::Idle { join_at } if join_at.is_none_or(|at| at <= now))
    }

    /// When a deferred join is due; `None` if there is none, or it is due at once.
    pub(super) fn join_at(&self) -> Option<Instant> {
        match self.state {
            ChannelState::Idle { join_at } => join_at,
            ChannelState::Joining { .. }
            | ChannelState::Joined { .. }
            | ChannelState::Live { .. } => None,
        }
    }

    pub(super) fn deadline(&self) -> Option<(Instant, &'static str)> {
        match &self.state {
            ChannelState::Idle { join_at } => join_at.map(|at| (at, "join again")),
            ChannelState::Joining { deadline, .. } => Some((*deadline, "join timeout")),
            ChannelState::Joined { deadline, .. } => Some((*deadline, "subscription timeout")),
            ChannelState::Live { .. } => None,
        }
    }

    /// What did not happen before its deadline.
    pub(super) fn timed_out(&self, now: Instant) -> Option<&'static str> {
        match &self.state {
            ChannelState::Joining { deadline, .. } if *deadline <= now => {
                Some("no answer to the join within 30 s")
            }
            ChannelState::Joined { deadline, .. } if *deadline <= now => {
                Some("subscription not confirmed within 30 s")
            }
            ChannelState::Idle { .. }
            | ChannelState::Joining { .. }
            | ChannelState::Joined { .. }
            | ChannelState::Live { .. } => None,
        }
    }

    pub(super) fn set_live(&mut self, join_ref: String) {
        self.state = ChannelState::Live { join_ref };
        self.failed_joins = 0;
        self.ordinary.reset();
        self.slow.reset();
    }

    /// Its socket is closed. A deferred join stays deferred.
    pub(super) fn socket_closed(&mut self) {
        self.failed_joins = 0;
        if !matches!(self.state, ChannelState::Idle { .. }) {
            self.state = ChannelState::Idle { join_at: None };
        }
    }

    /// The delay after a failure; it grows until the channel is live again.
    pub(super) fn retry_delay(&mut self, kind: ErrorKind, draw: u32) -> Duration {
        if kind.is_slow() {
            self.slow.next(draw)
        } else {
            self.ordinary.next(draw)
        }
    }

    /// The `config` of its join; broadcasts after `since`, in milliseconds of the Unix epoch, are replayed.
    pub(super) fn config(&self, tables: &[FollowedTable], since: Option<i64>) -> Value {
        let changes: Vec<Value> = match self.transport {
            Transport::Changes => tables
                .iter()
                .map(|table| json!({ "event": "*", "schema": table.schema, "table": table.name }))
                .collect(),
            Transport::Broadcast => Vec::new(),
        };
        let broadcast = match (self.transport, since) {
            (Transport::Broadcast, Some(since)) => {
                let replay = json!({ "since": since, "limit": REPLAYED });
                json!({ "ack": false, "self": false, "replay": replay })
            }
            (Transport::Broadcast, None) | (Transport::Changes, _) => {
                json!({ "ack": false, "self": false })
            }
        };
        json!({
            "broadcast": broadcast,
            "presence": { "key": "", "enabled": false },
            "postgres_changes": changes,
            "private": self.transport == Transport::Broadcast,
        })
    }
}
