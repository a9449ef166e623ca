//! Whether the agent gets on with its work: what the watchdog of systemd and `/healthz` go by.
//!
//! A loop that turns is not enough. Every call to the database has a deadline, so every lane answers every job within
//! [`ANSWERED_WITHIN`], also where the database is away: a lane that does not hangs. And what is due is handed out at once,
//! so a deadline that stays in the past hangs too. What the database *answers* is no question here: a new process would
//! be told the same, so one that is down, full or locked never costs a restart.
//!
//! Pure: times arrive as parameters.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::domain::agent::{Action, Input};
use crate::domain::time::Mono;
use crate::postgres::reconnect::{CALL_TIMEOUT, CONNECT_TIMEOUT};

/// The longest job, with room: the writer may connect twice, read the catalogue and store.
const ANSWERED_WITHIN: Duration = Duration::from_secs(90);
/// A deadline of the core is met at the next turn; so long past, it is never met.
const HANDED_OUT_WITHIN: Duration = Duration::from_secs(30);

/// Who was not there for so long cannot blame others for it.
const ATTENDS: Duration = Duration::from_secs(10);

const _: () = assert!(
    ANSWERED_WITHIN.as_secs() > 2 * (2 * CONNECT_TIMEOUT.as_secs() + 2 * CALL_TIMEOUT.as_secs())
);

/// Who works for the loop, one job at a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lane {
    /// Stores batches.
    Writer,
    /// Reads rows.
    Reader,
    /// Does the chores.
    Keeper,
}

impl Lane {
    /// Whose job an action is.
    pub fn doing(action: &Action) -> Option<Self> {
        match action {
            Action::Store(_) => Some(Self::Writer),
            Action::Read(_) => Some(Self::Reader),
            Action::Keep(_) => Some(Self::Keeper),
            Action::Revive(..) | Action::Follow(_) | Action::Tell(_) => None,
        }
    }

    /// Whose answer an input is.
    pub fn answering(input: &Input) -> Option<Self> {
        match input {
            Input::Stored(..) => Some(Self::Writer),
            Input::Read(_) => Some(Self::Reader),
            Input::TaskOutcome(_) => Some(Self::Keeper),
            Input::Tick | Input::RealtimeEvent(_) | Input::Stop => None,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Writer => "writer",
            Self::Reader => "reader",
            Self::Keeper => "keeper",
        }
    }
}

/// What hangs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Hang {
    /// A lane keeps its job to itself.
    #[error("the {} has not answered for {} s", .0.as_str(), .1.as_secs())]
    Lane(Lane, Duration),
    /// What is due is not handed out.
    #[error("{} should have happened {} s ago", .0, .1.as_secs())]
    Deadline(&'static str, Duration),
}

/// The jobs in hand, and when there was progress.
#[derive(Debug)]
pub struct Progress {
    in_hand: BTreeMap<Lane, Mono>,
    looked_at: Mono,
    made_at: Mono,
}

impl Progress {
    /// Of an agent that starts now.
    pub fn new(now: Mono) -> Self {
        Self {
            in_hand: BTreeMap::new(),
            looked_at: now,
            made_at: now,
        }
    }

    /// When there was progress, as of the last look.
    pub fn made_at(&self) -> Mono {
        self.made_at
    }

    /// A lane was given a job.
    pub fn given(&mut self, lane: Lane, now: Mono) {
        self.in_hand.insert(lane, now);
    }

    /// It has answered.
    pub fn answered(&mut self, lane: Lane) {
        self.in_hand.remove(&lane);
    }

    /// Takes stock, given the next deadline of the core and what it is for. Gives what hangs, once.
    pub fn look(&mut self, deadline: Option<(Mono, &'static str)>, now: Mono) -> Option<Hang> {
        let attended = now.since(self.looked_at) <= ATTENDS;
        let hung_before = self.made_at < self.looked_at;
        self.looked_at = now;
        match self.hang(deadline, now) {
            Some(hang) if attended => (!hung_before).then_some(hang),
            Some(_) | None => {
                self.made_at = now;
                None
            }
        }
    }

    fn hang(&self, deadline: Option<(Mono, &'static str)>, now: Mono) -> Option<Hang> {
        let lane = self.in_hand.iter().find_map(|(lane, since)| {
            let kept = now.since(*since);
            (kept > ANSWERED_WITHIN).then_some(Hang::Lane(*lane, kept))
        });
        lane.or_else(|| {
            let (at, what) = deadline?;
            let past = now.since(at);
            (past > HANDED_OUT_WITHIN).then_some(Hang::Deadline(what, past))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Mono {
        Mono::from_micros(seconds * 1_000_000)
    }

    /// Looks each second until then; what it was told, and when.
    fn until(progress: &mut Progress, deadline: Option<Mono>, end: i64) -> Vec<(i64, String)> {
        let due = deadline.map(|at| (at, "a row fires"));
        let begin = progress.looked_at.as_micros() / 1_000_000 + 1;
        (begin..=end)
            .filter_map(|now| Some((now, progress.look(due, at(now))?.to_string())))
            .collect()
    }

    #[test]
    fn a_lane_that_keeps_its_job_beyond_every_deadline_hangs_and_one_that_answers_does_not() {
        let mut progress = Progress::new(at(0));
        progress.given(Lane::Reader, at(0));
        progress.given(Lane::Writer, at(60));
        assert_eq!(
            until(&mut progress, None, 120),
            [(91, "the reader has not answered for 91 s".to_owned())]
        );
        assert_eq!(progress.made_at(), at(90));
        progress.answered(Lane::Reader);
        assert_eq!(
            until(&mut progress, None, 200),
            [(151, "the writer has not answered for 91 s".to_owned())]
        );
        assert_eq!(progress.made_at(), at(150));
    }

    #[test]
    fn a_deadline_that_stays_in_the_past_hangs() {
        let mut progress = Progress::new(at(0));
        assert_eq!(
            until(&mut progress, Some(at(10)), 100),
            [(41, "a row fires should have happened 31 s ago".to_owned())]
        );
        assert_eq!(progress.made_at(), at(40));
        assert_eq!(until(&mut progress, Some(at(101)), 110), []);
        assert_eq!(progress.made_at(), at(110));
    }

    #[test]
    fn a_process_that_was_frozen_itself_blames_nobody() {
        let mut progress = Progress::new(at(0));
        progress.given(Lane::Keeper, at(0));
        assert_eq!(progress.look(Some((at(1), "beat")), at(500)), None);
        assert_eq!(progress.made_at(), at(500));
    }
}
