//! The echo is the proof of life. A joined channel can be dead while its heartbeats are answered, so each of our own
//! write-backs must come back as an event; so must our canary when nothing is written back; and a change that a sync had
//! to find must still be told, or Realtime has missed it. Each way to listen has a proof of its own; write-backs do
//! not come back as broadcasts, so there the canary alone proves the way.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use super::limits::{CANARY_EVERY, ECHO_WITHIN, ECHOES_AWAITED, REJOIN_EVERY};
use super::time::Mono;

/// The name under which the canary's echo is awaited.
pub const CANARY: Uuid = Uuid::nil();

/// What to do about a channel that keeps silent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reconnect {
    /// Join again on the same socket.
    Rejoin,
    /// The rejoin did not help: a new socket.
    Reopen,
}

/// An echo that is waited for.
#[derive(Debug)]
struct AwaitedEcho {
    /// Since our write was handed out.
    since: Mono,
    /// By when; `None` while the write is not answered yet.
    by: Option<Mono>,
}

/// The echoes that are waited for.
#[derive(Debug, Default)]
pub struct EchoCheck {
    live: bool,
    written: BTreeMap<Uuid, AwaitedEcho>,
    repaired: BTreeMap<Uuid, Mono>,
    proved_at: Option<Mono>,
    judged_at: Option<Mono>,
    unproved_verdicts: u32,
}

impl EchoCheck {
    /// The subscription is live from now on.
    pub fn live(&mut self, now: Mono) {
        self.live = true;
        self.proved_at = Some(now);
        self.written.clear();
        self.repaired.clear();
    }

    /// Whether it is, and has not been given up since.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// It is not: nothing can be heard.
    pub fn down(&mut self) {
        self.live = false;
        self.written.clear();
        self.repaired.clear();
    }

    /// We are about to write to this row ourselves. Its event may well be heard before the answer to our write is.
    pub fn writing(&mut self, id: Uuid, now: Mono) {
        if self.live && self.written.len() < ECHOES_AWAITED {
            let awaited = AwaitedEcho {
                since: now,
                by: None,
            };
            self.written.entry(id).or_insert(awaited);
        }
    }

    /// We wrote to it, and it is committed.
    pub fn wrote(&mut self, id: Uuid, now: Mono) {
        if let Some(awaited) = self.written.get_mut(&id) {
            awaited.by.get_or_insert_with(|| now.plus(ECHO_WITHIN));
        }
    }

    /// Nothing was written to it after all, or nobody knows.
    pub fn did_not_write(&mut self, id: Uuid) {
        if self
            .written
            .get(&id)
            .is_some_and(|awaited| awaited.by.is_none())
        {
            self.written.remove(&id);
        }
    }

    /// It cannot be written to: the next attempt is a period later.
    pub fn cannot_write(&mut self, id: Uuid, now: Mono) {
        self.did_not_write(id);
        self.proved_at = self.proved_at.map(|_| now);
    }

    /// A sync found a change of this row of which we had not been told.
    pub fn repaired(&mut self, id: Uuid, now: Mono) {
        if self.live && self.repaired.len() < ECHOES_AWAITED {
            let by = now.plus(ECHO_WITHIN);
            self.repaired.entry(id).or_insert(by);
        }
    }

    /// An event of this row arrived. One echo proves the channel, so none of the others is waited for any longer. Says how
    /// long after our write it came, where it is an echo.
    pub fn heard(&mut self, id: Uuid, now: Mono) -> Option<Duration> {
        self.repaired.remove(&id);
        let echo = self.written.remove(&id)?;
        self.written.clear();
        self.proved_at = Some(now);
        self.unproved_verdicts = 0;
        Some(now.since(echo.since))
    }

    /// When the canary is to be touched, if nothing proves the channel before; `None` while something is under way that
    /// will, or while the channel is down.
    pub fn canary_at(&self) -> Option<Mono> {
        (self.live && self.written.is_empty())
            .then_some(self.proved_at)
            .flatten()
            .map(|echo_check| echo_check.plus(CANARY_EVERY))
    }

    /// The verdict on a channel that has kept silent for too long; the caller acts on it. At most one a minute.
    pub fn reconnect(&mut self, now: Mono) -> Option<Reconnect> {
        if self.next_deadline().is_none_or(|at| at > now) {
            return None;
        }
        self.judged_at = Some(now);
        self.unproved_verdicts += 1;
        self.down();
        Some(if self.unproved_verdicts > 1 {
            Reconnect::Reopen
        } else {
            Reconnect::Rejoin
        })
    }

    /// When the next verdict is due, unless an echo comes before.
    pub fn next_deadline(&self) -> Option<Mono> {
        let written = self.written.values().filter_map(|awaited| awaited.by);
        let by = written.chain(self.repaired.values().copied()).min()?;
        let earliest = self.judged_at.map_or(by, |last| last.plus(REJOIN_EVERY));
        self.live.then_some(by.max(earliest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: i64) -> Mono {
        Mono::from_micros(seconds * 1_000_000)
    }

    const ROW: Uuid = Uuid::from_u128(5);

    fn write(echo_check: &mut EchoCheck, id: Uuid, now: Mono) {
        echo_check.writing(id, now);
        echo_check.wrote(id, now);
    }

    #[test]
    fn a_write_back_that_is_not_heard_of_in_ten_seconds_leads_to_a_rejoin_then_to_a_new_socket() {
        let mut echo_check = EchoCheck::default();
        echo_check.live(s(0));
        write(&mut echo_check, ROW, s(1));
        assert_eq!(echo_check.next_deadline(), Some(s(11)));
        assert_eq!(echo_check.reconnect(s(10)), None);
        assert_eq!(echo_check.reconnect(s(11)), Some(Reconnect::Rejoin));
        echo_check.live(s(12));
        write(&mut echo_check, ROW, s(13));
        assert_eq!(echo_check.reconnect(s(24)), None, "at most once a minute");
        assert_eq!(echo_check.reconnect(s(71)), Some(Reconnect::Reopen));
    }

    #[test]
    fn a_dead_channel_is_found_within_20_seconds_while_visits_are_stored_and_75_when_idle() {
        let died_at = s(30);
        let mut busy = EchoCheck::default();
        busy.live(s(0));
        let found = (1..=60).map(s).find(|now| {
            if now.as_micros() % s(5).as_micros() == 0 {
                write(&mut busy, ROW, *now);
                if *now < died_at {
                    busy.heard(ROW, *now);
                }
            }
            busy.reconnect(*now).is_some()
        });
        assert_eq!(found, Some(s(40)), "a write-back every 5 s");

        let mut idle = EchoCheck::default();
        idle.live(s(0));
        let found = (1..=90).map(s).find(|now| {
            if idle.canary_at().is_some_and(|at| at <= *now) {
                write(&mut idle, CANARY, *now);
            }
            idle.reconnect(*now).is_some()
        });
        assert_eq!(found, Some(s(70)), "the canary each minute");
    }

    #[test]
    fn one_echo_proves_the_channel_for_all() {
        let mut echo_check = EchoCheck::default();
        echo_check.live(s(0));
        write(&mut echo_check, ROW, s(1));
        write(&mut echo_check, Uuid::from_u128(6), s(1));
        echo_check.heard(ROW, s(2));
        assert_eq!(echo_check.reconnect(s(60)), None);
    }

    #[test]
    fn an_echo_that_is_quicker_than_the_answer_to_our_write_counts() {
        let mut echo_check = EchoCheck::default();
        echo_check.live(s(0));
        echo_check.writing(ROW, s(0));
        assert_eq!(echo_check.heard(ROW, s(1)), Some(Duration::from_secs(1)));
        echo_check.wrote(ROW, s(1));
        assert_eq!(echo_check.next_deadline(), None);
        assert_eq!(echo_check.canary_at(), Some(s(61)));
    }

    #[test]
    fn a_write_that_changed_nothing_is_not_waited_for() {
        let mut echo_check = EchoCheck::default();
        echo_check.live(s(0));
        echo_check.writing(ROW, s(0));
        echo_check.did_not_write(ROW);
        assert_eq!(echo_check.reconnect(s(100)), None);
    }

    #[test]
    fn the_canary_is_touched_only_when_nothing_else_is_heard_for_a_minute() {
        let mut echo_check = EchoCheck::default();
        assert_eq!(echo_check.canary_at(), None, "not while down");
        echo_check.live(s(0));
        assert_eq!(echo_check.canary_at(), Some(s(60)));
        write(&mut echo_check, CANARY, s(60));
        assert_eq!(echo_check.canary_at(), None, "its echo is awaited");
        echo_check.heard(CANARY, s(61));
        assert_eq!(echo_check.canary_at(), Some(s(121)));
    }

    #[test]
    fn what_a_sync_finds_while_realtime_is_down_is_held_against_nobody() {
        let mut echo_check = EchoCheck::default();
        echo_check.repaired(ROW, s(0));
        assert_eq!(echo_check.next_deadline(), None);
        echo_check.live(s(1));
        assert_eq!(echo_check.reconnect(s(60)), None);
    }

    #[test]
    fn a_repair_is_forgiven_when_its_own_event_still_comes() {
        let mut echo_check = EchoCheck::default();
        echo_check.live(s(0));
        echo_check.repaired(ROW, s(1));
        echo_check.heard(ROW, s(3));
        assert_eq!(echo_check.reconnect(s(30)), None);
        echo_check.repaired(ROW, s(31));
        echo_check.heard(Uuid::from_u128(9), s(32));
        assert_eq!(echo_check.reconnect(s(41)), Some(Reconnect::Rejoin));
    }
}
