//! The echo is the proof of life. A joined channel can be dead while its heartbeats are answered, so each of our own
//! write-backs must come back as an event; so must our canary when nothing is written back; and a change that a sync had
//! to find must still be told, or Realtime has missed it.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::limits::{CANARY_EVERY, ECHO_WITHIN, ECHOES_AWAITED, REJOIN_EVERY};
use super::time::Mono;

/// The name under which the canary's echo is awaited.
pub const CANARY: Uuid = Uuid::nil();

/// What to do about a channel that keeps silent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Join again on the same socket.
    Rejoin,
    /// The rejoin did not help: a new socket.
    Reopen,
}

/// The echoes that are waited for.
#[derive(Debug, Default)]
pub struct Proof {
    live: bool,
    written: BTreeMap<Uuid, Mono>,
    repaired: BTreeMap<Uuid, Mono>,
    last_proof: Option<Mono>,
    last_verdict: Option<Mono>,
    unproved_verdicts: u32,
}

impl Proof {
    /// The subscription is live from now on.
    pub fn live(&mut self, now: Mono) {
        self.live = true;
        self.last_proof = Some(now);
        self.written.clear();
        self.repaired.clear();
    }

    /// It is not: nothing can be heard.
    pub fn down(&mut self) {
        self.live = false;
        self.written.clear();
        self.repaired.clear();
    }

    /// We wrote to this row ourselves, and it is committed.
    pub fn wrote(&mut self, id: Uuid, now: Mono) {
        Self::expect(&mut self.written, self.live, id, now);
    }

    /// A sync found a change of this row of which we had not been told.
    pub fn repaired(&mut self, id: Uuid, now: Mono) {
        Self::expect(&mut self.repaired, self.live, id, now);
    }

    /// An event of this row arrived. One echo proves the channel, so none of the others is waited for any longer.
    pub fn heard(&mut self, id: Uuid, now: Mono) {
        self.repaired.remove(&id);
        if self.written.contains_key(&id) {
            self.written.clear();
            self.last_proof = Some(now);
            self.unproved_verdicts = 0;
        }
    }

    /// Whether the canary is to be touched: nothing has proved the channel for a while, and nothing is under way that will.
    pub fn wants_canary(&self, now: Mono) -> bool {
        self.live
            && self.written.is_empty()
            && self
                .last_proof
                .is_none_or(|proof| now.since(proof) >= CANARY_EVERY)
    }

    /// The verdict on a channel that has kept silent for too long; the caller acts on it. At most one a minute.
    pub fn verdict(&mut self, now: Mono) -> Option<Verdict> {
        let overdue = |awaited: &BTreeMap<Uuid, Mono>| awaited.values().any(|by| *by <= now);
        if !self.live || !(overdue(&self.written) || overdue(&self.repaired)) {
            return None;
        }
        if self
            .last_verdict
            .is_some_and(|last| now.since(last) < REJOIN_EVERY)
        {
            return None;
        }
        self.last_verdict = Some(now);
        self.unproved_verdicts += 1;
        self.down();
        Some(if self.unproved_verdicts > 1 {
            Verdict::Reopen
        } else {
            Verdict::Rejoin
        })
    }

    /// When to look again: the next echo's deadline or the next canary.
    pub fn next_deadline(&self) -> Option<Mono> {
        if !self.live {
            return None;
        }
        let not_before = self.last_verdict.map(|last| last.plus(REJOIN_EVERY));
        let awaited = self
            .written
            .values()
            .chain(self.repaired.values())
            .min()
            .copied();
        let canary = self.last_proof.map(|proof| proof.plus(CANARY_EVERY));
        match awaited {
            Some(by) => Some(not_before.map_or(by, |earliest| earliest.max(by))),
            None => canary,
        }
    }

    fn expect(awaited: &mut BTreeMap<Uuid, Mono>, live: bool, id: Uuid, now: Mono) {
        if live && awaited.len() < ECHOES_AWAITED {
            awaited.entry(id).or_insert_with(|| now.plus(ECHO_WITHIN));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: i64) -> Mono {
        Mono::from_micros(seconds * 1_000_000)
    }

    const ROW: Uuid = Uuid::from_u128(5);

    #[test]
    fn a_write_back_that_is_not_heard_of_in_ten_seconds_leads_to_a_rejoin_then_to_a_new_socket() {
        let mut proof = Proof::default();
        proof.live(s(0));
        proof.wrote(ROW, s(1));
        assert_eq!(proof.next_deadline(), Some(s(11)));
        assert_eq!(proof.verdict(s(10)), None);
        assert_eq!(proof.verdict(s(11)), Some(Verdict::Rejoin));
        proof.live(s(12));
        proof.wrote(ROW, s(13));
        assert_eq!(proof.verdict(s(24)), None, "at most once a minute");
        assert_eq!(proof.verdict(s(71)), Some(Verdict::Reopen));
    }

    #[test]
    fn one_echo_proves_the_channel_for_all() {
        let mut proof = Proof::default();
        proof.live(s(0));
        proof.wrote(ROW, s(1));
        proof.wrote(Uuid::from_u128(6), s(1));
        proof.heard(ROW, s(2));
        assert_eq!(proof.verdict(s(60)), None);
    }

    #[test]
    fn the_canary_is_touched_only_when_nothing_else_is_heard_for_a_minute() {
        let mut proof = Proof::default();
        assert!(!proof.wants_canary(s(100)), "not while down");
        proof.live(s(0));
        assert!(!proof.wants_canary(s(59)));
        assert!(proof.wants_canary(s(60)));
        proof.wrote(CANARY, s(60));
        assert!(!proof.wants_canary(s(61)));
        proof.heard(CANARY, s(61));
        assert!(!proof.wants_canary(s(120)));
        assert!(proof.wants_canary(s(121)));
    }

    #[test]
    fn a_repair_is_forgiven_when_its_own_event_still_comes() {
        let mut proof = Proof::default();
        proof.live(s(0));
        proof.repaired(ROW, s(1));
        proof.heard(ROW, s(3));
        assert_eq!(proof.verdict(s(30)), None);
        proof.repaired(ROW, s(31));
        proof.heard(Uuid::from_u128(9), s(32));
        assert_eq!(proof.verdict(s(41)), Some(Verdict::Rejoin));
    }
}
