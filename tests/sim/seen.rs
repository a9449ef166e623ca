//! What must happen at least once: a simulation without faults proves nothing.
//!
//! Owns the list of faults and reactions, and how often each was seen.

use std::collections::BTreeMap;

/// Each is seen at least once over the seeds of one run of the tests.
pub const SOMETIMES: &[&str] = &[
    // Faults: agents and their statements.
    "an agent is killed",
    "an agent is stopped, and goes on",
    "an agent is stopped, and dies",
    "an agent ends cleanly",
    "a statement is lost before it is carried out",
    "a statement is carried out, and its answer lost",
    "a statement is carried out after its agent has given it up",
    "a statement of an agent that is no more is carried out",
    "a statement is refused for a passing reason",
    "an insert fails",
    "the database goes away",
    "the database refuses every write",
    "the clock steps back",
    "the clock steps forward",
    "everything is paused",
    "visits are deleted",
    "visits are restored",
    "visits are added by hand",
    "the table is truncated",
    "a row is inserted that no trigger sees",
    "a row is deleted, and its id inserted again",
    // Faults: Realtime.
    "a socket is refused",
    "a socket is closed",
    "a socket is half open",
    "the Realtime server restarts",
    "a join is refused",
    "a join is not answered",
    "a subscription is not confirmed",
    "a subscription is confirmed again in mid-life",
    "a subscription ends with an error",
    "a channel is closed",
    "a table cannot be followed",
    "a channel is dead while heartbeats pass",
    "a channel stays dead until there is a new socket",
    "an event is dropped",
    "an event is sent twice",
    "an event overtakes another",
    "an event is cut short",
    "an event lacks its id",
    "a message is broken",
    "broadcast.sql is run",
    "broadcast.sql is taken back",
    "a broadcast channel is dead while heartbeats pass",
    "a broadcast is dropped",
    "a broadcast is sent twice",
    "a broadcast overtakes another",
    "a broadcast does not name its row",
    "a binary message is broken",
    "broadcasts are told again",
    // What the database refuses.
    "refused: the row was deleted",
    "refused: everything is paused, or the control row held",
    "refused: the row is held",
    "refused: the row was paused while the batch was under way",
    "refused: the row is of another version",
    "refused: for an instant yet to come",
    "refused: the partner is held",
    "refused: the progress has moved",
    // How agents react.
    "an unknown outcome: it was committed",
    "an unknown outcome: it was not committed",
    "a row that was held is tried again, and stored",
    "a row taken over by another agent",
    "agents share the rows",
    "a row is quarantined",
    "a row is no longer quarantined",
    "an incremental sync",
    "an incremental sync finds too much",
    "a full sync in parts",
    "a sync finds edits of which Realtime did not tell",
    "a silent channel is joined again",
    "a silent channel gets a new socket",
    "a silent broadcast channel is joined again",
    "a silent broadcast channel gets a new socket",
    "broadcasts are listened to as well",
    "broadcasts are listened to no more",
    "a silent socket is found by its heartbeat",
    "a step of the clock is noticed",
    "the database is found unavailable",
    "the database is found available again",
    "a row is anchored by the agent",
    "a counter that was too low is raised",
    "a counter is lowered",
    "missing visits are found",
    "a backlog drains by the bucket",
    "the agent's own bound binds",
    "an event is known already",
    "the canary is not published, and not followed",
];

/// How often.
#[derive(Default, Debug)]
pub struct Seen(BTreeMap<&'static str, u64>);

impl Seen {
    pub fn saw(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    pub fn add(&mut self, other: &Self) {
        for (what, times) in &other.0 {
            *self.0.entry(what).or_default() += times;
        }
    }

    pub fn times(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// Names that were counted but are not listed.
    pub fn unlisted(&self) -> Vec<&'static str> {
        self.0
            .keys()
            .filter(|what| !SOMETIMES.contains(what))
            .copied()
            .collect()
    }

    pub fn never(&self) -> Vec<&'static str> {
        SOMETIMES
            .iter()
            .filter(|what| self.times(what) == 0)
            .copied()
            .collect()
    }
}
