//! What happened, in words: once, where it is handled, with what to do about it; and what is said too often, once a minute.
//!
//! Invariant: every warning says what to do. One kind of warning is told [`MOST_A_MINUTE`] times at the most, and then how
//! often it would have been.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::{Level, debug, error, info, warn};
use uuid::Uuid;

use crate::domain::agent::{Notice, Published};
use crate::domain::echo_check::Reconnect;
use crate::domain::time::{DbTime, Mono};
use crate::observe::recent::{Note, Recent};

/// Warnings of one kind in a minute; ten thousand bad rows must not fill a log.
const MOST_A_MINUTE: u32 = 10;
const MINUTE: Duration = Duration::from_secs(60);

/// One thing to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Said {
    /// Which kind it is of, in a word or two.
    pub kind: &'static str,
    /// How bad.
    pub level: Level,
    /// What happened and, from a warning on, what to do.
    pub text: String,
    /// The row.
    pub id: Option<Uuid>,
    /// In the words of whoever reports it.
    pub reason: Option<String>,
    /// It is a repair, which is shown beside the warnings.
    pub repairs: bool,
}

impl Said {
    fn at(level: Level, kind: &'static str, text: impl Into<String>) -> Self {
        Self {
            kind,
            level,
            text: text.into(),
            id: None,
            reason: None,
            repairs: false,
        }
    }

    /// Something to be mended.
    pub fn warning(kind: &'static str, text: impl Into<String>) -> Self {
        Self::at(Level::WARN, kind, text)
    }

    fn news(kind: &'static str, text: impl Into<String>) -> Self {
        Self::at(Level::INFO, kind, text)
    }

    fn of(self, id: Uuid) -> Self {
        Self {
            id: Some(id),
            ..self
        }
    }

    /// With the words of whoever reports it.
    #[must_use]
    pub fn because(self, reason: &impl ToString) -> Self {
        Self {
            reason: Some(reason.to_string()),
            ..self
        }
    }

    fn repair(self) -> Self {
        Self {
            repairs: true,
            ..self
        }
    }

    fn log(&self) {
        let distribution = self.id.map(tracing::field::display);
        let reason = self.reason.as_deref().map(tracing::field::display);
        let text = &self.text;
        match self.level {
            Level::ERROR => error!(distribution, reason, "{text}"),
            Level::WARN => warn!(distribution, reason, "{text}"),
            Level::INFO => info!(distribution, reason, "{text}"),
            Level::DEBUG | Level::TRACE => debug!(distribution, reason, "{text}"),
        }
    }

    fn note(self, at: Option<DbTime>) -> Note {
        let text = match self.reason {
            Some(reason) => format!("{}: {reason}", self.text),
            None => self.text,
        };
        Note {
            at,
            level: self.level,
            text,
            id: self.id,
        }
    }
}

/// Says things to the log, and keeps them for those who look.
#[derive(Debug, Default)]
pub struct Voice {
    recent: Recent,
    told: BTreeMap<&'static str, u32>,
    minute_began: Option<Mono>,
}

impl Voice {
    /// One that keeps what matters there.
    pub fn new(recent: Recent) -> Self {
        Self {
            recent,
            ..Self::default()
        }
    }

    /// Where it keeps what matters.
    pub fn recent(&self) -> &Recent {
        &self.recent
    }

    /// Says it, unless it was said too often in this minute.
    pub fn say(&mut self, said: Said, db_now: Option<DbTime>, now: Mono) {
        if said.level <= Level::WARN {
            self.turn_the_minute(now);
            let told = self.told.entry(said.kind).or_insert(0);
            *told = told.saturating_add(1);
            if *told > MOST_A_MINUTE {
                return;
            }
        }
        said.log();
        if said.level <= Level::WARN || said.repairs {
            self.recent.note(said.note(db_now));
        }
    }

    /// Sums up, when a minute is over, what was not said in it.
    pub fn turn_the_minute(&mut self, now: Mono) {
        let began = *self.minute_began.get_or_insert(now);
        if now.since(began) < MINUTE {
            return;
        }
        self.minute_began = Some(now);
        for (kind, times) in std::mem::take(&mut self.told) {
            let unsaid = times.saturating_sub(MOST_A_MINUTE);
            if unsaid > 0 {
                warn!(
                    unsaid,
                    "{kind}: {unsaid} more such warnings in the last minute; see those above, /metrics, or visit-pacer status"
                );
            }
        }
    }
}

const SET_ASIDE: &str = "row set aside; correct it and it goes on at once (a failing insert is tried again every minute as well)";
const CLOCK_STEPPED: &str = "the database's clock stepped; pacing follows it; if it steps again, mend the time service of its host";
const AWAY: &str = "the database does not take our statements; the schedule is kept, trying again; see that it runs and lets us in";
const HINDERED: &str =
    "a statement failed; trying again; if it lasts, visit-pacer doctor looks for the cause";
const PUT_OFF: &str = "the database refuses to update the row; its visits go on, and this is tried again later; mend what refuses it, such as a trigger of its table";
const PAUSED: &str =
    "everything is paused by visit_pacer_control; `visit-pacer resume --all` goes on";
const RESUMED: &str = "visit_pacer_control lets visits through again";
const ONE_WAY: &str = "edits are broadcast no more; listening to postgres_changes alone";
const NOTHING_BROADCASTS: &str = "edits are not broadcast, so they are seen by the periodic sync alone; run deploy/supabase/broadcast.sql";

/// What the core tells, in words.
pub fn said(notice: &Notice) -> Vec<Said> {
    let one = match notice {
        Notice::Quarantined(id, why) => Said::warning("row set aside", SET_ASIDE)
            .of(*id)
            .because(why),
        Notice::Mended(id) => Said::news("mended", "row is paced again").of(*id).repair(),
        // No warning yet: the event may still be on its way. One that does not come is told as silence.
        Notice::Repaired(rows) => Said::news("repaired", repaired(*rows)).repair(),
        Notice::Silent(transport, reconnect) => silent(transport.as_str(), *reconnect),
        Notice::Followed(id, version) => {
            let version =
                version.map_or_else(String::new, |version| format!(", version {version}"));
            Said::at(
                Level::DEBUG,
                "followed",
                format!("the schedule follows the row{version}"),
            )
            .of(*id)
        }
        Notice::Echoed(transport, after) => Said::at(
            Level::DEBUG,
            "echo",
            format!(
                "{} told of our own write after {after:?}",
                transport.as_str()
            ),
        ),
        Notice::ClockStepped => Said::warning("clock", CLOCK_STEPPED),
        Notice::DatabaseAway(failure) => Said::warning("database away", AWAY).because(failure),
        Notice::Hindered(failure) => Said::warning("statement failed", HINDERED).because(failure),
        Notice::Deferred(id, failure) => Said::warning("row put off", PUT_OFF)
            .of(*id)
            .because(failure),
        Notice::DatabaseBack(after) => Said::news("database back", back(*after)).repair(),
        Notice::Synced(rows) => Said::news(
            "synced",
            format!("schedule read from the table: {rows} rows"),
        ),
        Notice::Shared(agents) => Said::news("shared", shared(*agents)),
        Notice::Paused(true) => Said::warning("paused", PAUSED),
        Notice::Paused(false) => Said::news("resumed", RESUMED).repair(),
        Notice::CountsDiffer(found) if found.missing > 0 => {
            Said::warning("visits missing", &found.message).of(found.id)
        }
        Notice::CountsDiffer(found) => Said::news("counted", &found.message).of(found.id).repair(),
        Notice::Broadcasts(true) => {
            Said::news("both ways", "edits are broadcast; listening both ways")
        }
        Notice::Broadcasts(false) => Said::news("one way", ONE_WAY),
        Notice::NothingBroadcasts => Said::warning("nothing broadcasts", NOTHING_BROADCASTS),
        Notice::Published(tables) => return published(*tables),
        Notice::Initialised(rows) => Said::news("anchored", anchored(*rows)),
    };
    vec![one]
}

fn repaired(rows: usize) -> String {
    format!("the periodic sync read {rows} edits before Realtime told of them")
}

fn back(after: Duration) -> String {
    let seconds = after.as_secs();
    format!("the database takes our statements again, after {seconds} s")
}

fn shared(agents: usize) -> String {
    match agents {
        1 => "the only agent: every row is its own".to_owned(),
        agents => format!("the rows are shared among {agents} agents"),
    }
}

fn anchored(rows: u64) -> String {
    format!("{rows} rows that were written without our trigger are anchored from now on")
}

fn silent(transport: &str, reconnect: Reconnect) -> Said {
    match reconnect {
        Reconnect::Rejoin => Said::warning(
            "silent",
            format!(
                "Realtime keeps silent though joined, by {transport}; joining again; nothing to do unless it comes back each minute"
            ),
        ),
        Reconnect::Reopen => Said::warning(
            "silent",
            format!(
                "Realtime still keeps silent, by {transport}; opening a new socket; if that does not help, restart Realtime in the project's settings"
            ),
        ),
    }
}

fn published(tables: Published) -> Vec<Said> {
    let mut said = Vec::new();
    let mut warn = |text: &str| said.push(Said::warning("publication", text));
    if !tables.distributions {
        warn(
            "visit_distribution is not published, so edits are seen by the periodic sync alone; run `visit-pacer migrate`, or: alter publication supabase_realtime add table public.visit_distribution",
        );
    }
    if !tables.canary {
        warn(
            "visit_pacer_canary is not published, so a dead channel is noticed later; run: alter publication supabase_realtime add table public.visit_pacer_canary",
        );
    }
    if tables.visits {
        warn(
            "store_visits is published, so that each visit is a Realtime event; run: alter publication supabase_realtime drop table public.store_visits",
        );
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::error_policy::{ErrorKind, Failure};
    use crate::domain::transport::Transport;

    fn at(seconds: i64) -> Mono {
        Mono::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn every_warning_says_what_to_do() {
        let failure = || Failure::new(ErrorKind::Lost, "no answer");
        let id = Uuid::from_u128(1);
        let notices = [
            Notice::Quarantined(id, "why".to_owned()),
            Notice::Silent(Transport::Changes, Reconnect::Rejoin),
            Notice::Silent(Transport::Broadcast, Reconnect::Reopen),
            Notice::ClockStepped,
            Notice::DatabaseAway(failure()),
            Notice::Hindered(failure()),
            Notice::Deferred(id, failure()),
            Notice::Paused(true),
            Notice::NothingBroadcasts,
            Notice::Published(Published {
                visits: true,
                ..Published::default()
            }),
        ];
        let to_do = [
            "correct",
            "nothing to do",
            "restart",
            "mend",
            "see that",
            "visit-pacer",
            "run",
        ];
        for said in notices.iter().flat_map(said) {
            assert_eq!(said.level, Level::WARN, "{said:?}");
            assert!(
                to_do.iter().any(|words| said.text.contains(words)),
                "{said:?}"
            );
        }
    }

    #[test]
    fn a_warning_that_repeats_is_told_ten_times_a_minute_and_again_in_the_next() {
        let mut voice = Voice::default();
        for second in 0..60 {
            for _ in 0..5 {
                voice.say(Said::warning("row set aside", SET_ASIDE), None, at(second));
            }
        }
        assert_eq!(voice.recent().notes().len(), 10);
        voice.say(Said::warning("clock", CLOCK_STEPPED), None, at(59));
        assert_eq!(voice.recent().notes().len(), 11, "another kind is told");
        voice.say(Said::warning("row set aside", SET_ASIDE), None, at(60));
        assert_eq!(voice.recent().notes().len(), 12);
    }

    #[test]
    fn repairs_are_noted_beside_warnings_and_other_news_is_not() {
        let mut voice = Voice::default();
        for notice in [Notice::Repaired(3), Notice::Synced(3), Notice::ClockStepped] {
            for said in said(&notice) {
                voice.say(said, None, at(0));
            }
        }
        let levels: Vec<Level> = voice
            .recent()
            .notes()
            .iter()
            .map(|note| note.level)
            .collect();
        assert_eq!(levels, [Level::INFO, Level::WARN]);
    }
}
