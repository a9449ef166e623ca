//! One channel of the socket: where it stands, when it is due, and what its join asks for.
//!
//! Owns the state and the back-off of one way to listen; sends nothing and counts no refs. It outlives its socket: without
//! one it is idle.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::change::Table;
use crate::domain::error_policy::{ErrorKind, REALTIME, REALTIME_SLOW};
use crate::domain::retry::Retry;
use crate::domain::transport::Transport;

/// The topic of `postgres_changes`. Any name behind `realtime:` would do; this one tells who is there.
pub const TOPIC: &str = "realtime:visit-pacer";
/// The private topic of broadcasts from the database, named as in `deploy/supabase/broadcast.sql`.
pub const BROADCAST_TOPIC: &str = "realtime:visit_pacer";
/// Broadcasts that a join has told again at the most; the server gives no more than these.
const REPLAYED: u32 = 25;

/// See the module.
pub(super) struct Channel {
    pub(super) transport: Transport,
    pub(super) state: State,
    /// Joins that failed in a row on this socket.
    pub(super) failed_joins: u32,
    ordinary: Retry,
    slow: Retry,
}

/// Where a channel stands.
pub(super) enum State {
    /// To be joined then, or as soon as there is a socket.
    Idle {
        join_at: Option<Instant>,
    },
    Joining {
        join_ref: String,
        deadline: Instant,
    },
    /// The join was granted, the subscription not confirmed.
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
            state: State::Idle { join_at: None },
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

    /// The ref of its join; none while there is no join.
    pub(super) fn join_ref(&self) -> Option<&str> {
        match &self.state {
            State::Idle { .. } => None,
            State::Joining { join_ref, .. }
            | State::Joined { join_ref, .. }
            | State::Live { join_ref } => Some(join_ref),
        }
    }

    pub(super) fn is_joining(&self) -> bool {
        matches!(self.state, State::Joining { .. })
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.state, State::Live { .. })
    }

    /// Whether its join may be sent, as soon as no other is in flight.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        matches!(self.state, State::Idle { join_at } if join_at.is_none_or(|at| at <= now))
    }

    /// When a join that was put off is due; `None` where there is none, or it is due at once.
    pub(super) fn join_at(&self) -> Option<Instant> {
        match self.state {
            State::Idle { join_at } => join_at,
            State::Joining { .. } | State::Joined { .. } | State::Live { .. } => None,
        }
    }

    pub(super) fn deadline(&self) -> Option<(Instant, &'static str)> {
        match &self.state {
            State::Idle { join_at } => join_at.map(|at| (at, "join again")),
            State::Joining { deadline, .. } => Some((*deadline, "join unanswered")),
            State::Joined { deadline, .. } => Some((*deadline, "subscription unconfirmed")),
            State::Live { .. } => None,
        }
    }

    /// What is wrong with it, once its deadline has passed.
    pub(super) fn overdue(&self, now: Instant) -> Option<&'static str> {
        match &self.state {
            State::Joining { deadline, .. } if *deadline <= now => {
                Some("the server did not answer the join within 30 s")
            }
            State::Joined { deadline, .. } if *deadline <= now => {
                Some("the server did not confirm the subscription within 30 s")
            }
            State::Idle { .. }
            | State::Joining { .. }
            | State::Joined { .. }
            | State::Live { .. } => None,
        }
    }

    /// It works from now on under this join.
    pub(super) fn goes_live(&mut self, join_ref: String) {
        self.state = State::Live { join_ref };
        self.failed_joins = 0;
        self.ordinary.reset();
        self.slow.reset();
    }

    /// Its socket is gone. A join that was put off stays put off.
    pub(super) fn loses_socket(&mut self) {
        self.failed_joins = 0;
        if !matches!(self.state, State::Idle { .. }) {
            self.state = State::Idle { join_at: None };
        }
    }

    /// The wait after a failure, which grows until it is live again.
    pub(super) fn back_off(&mut self, kind: ErrorKind, draw: u32) -> Duration {
        if kind.is_slow() {
            self.slow.next(draw)
        } else {
            self.ordinary.next(draw)
        }
    }

    /// The `config` of its join. `since`, in milliseconds of the Unix epoch, has later broadcasts told again.
    pub(super) fn config(&self, tables: &[Table], since: Option<i64>) -> Value {
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
