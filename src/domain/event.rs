//! What happened: one type for the log, the dashboard and the metrics.
//!
//! Every message of the running agent stands in the table of this file. Invariants: an event always has the same message,
//! and whatever varies is a field; a warning says what to do.

use std::time::Duration;

use uuid::Uuid;

use super::error_policy::Failure;
use super::time::DbTime;
use super::transport::Transport;

/// How important an event is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// For developers.
    Debug,
    /// Part of normal work.
    Info,
    /// It ends or corrects something, so the dashboard lists it.
    Notice,
    /// Somebody may have to act.
    Warn,
}

/// Something that happened, with what is known of it. Each event begins as one of the constants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// See [`Level`].
    pub level: Level,
    /// What happened and, from a warning on, what to do.
    pub message: &'static str,
    /// When, by the database's clock; set when it is logged.
    pub at: Option<DbTime>,
    /// The distribution.
    pub distribution_id: Option<Uuid>,
    /// Its version.
    pub config_version: Option<i64>,
    /// The transport.
    pub transport: Option<Transport>,
    /// The worker whose job failed.
    pub worker: Option<&'static str>,
    /// How many jobs of that worker have failed in a row.
    pub attempt: Option<u32>,
    /// How long until the next attempt.
    pub retry_in: Option<Duration>,
    /// How long it took.
    pub elapsed: Option<Duration>,
    /// How many.
    pub count: Option<usize>,
    /// What failed.
    pub failure: Option<Failure>,
    /// Why, where no failure says it.
    pub reason: Option<String>,
}

/// Declares the constants, and the list of them for the tests.
macro_rules! events {
    ($($(#[$doc:meta])* $name:ident = $level:ident $message:literal;)*) => {
        impl Event {
            $($(#[$doc])* pub const $name: Self = Self::new(Level::$level, $message);)*

            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

events! {
    /// The first full sync is done: `count` distributions.
    SCHEDULE_LOADED = Info "Schedule loaded";
    /// The schedule follows this version of a distribution.
    SCHEDULE_UPDATED = Debug "Schedule updated";
    /// A distribution is invalid, or its insert fails.
    QUARANTINED = Warn "Distribution quarantined; correct it, and it continues at once (a failing insert is also retried every minute)";
    /// A quarantined distribution is valid again.
    RELEASED = Notice "Distribution no longer quarantined";
    /// No warning yet: an event may still be on its way. One that does not arrive is reported as a silent channel.
    EDITS_FOUND_BY_SYNC = Notice "Periodic sync read edits before their Realtime events arrived";
    /// `count` distributions got an anchor.
    ANCHORED = Info "Anchored distributions that were written without the trigger";
    /// `count` agents are live.
    AGENTS_CHANGED = Info "Distributions are shared among the live agents";
    /// The control row stopped everything.
    PAUSED = Warn "Everything is paused by visit_pacer_control; run visit-pacer resume --all to continue";
    /// It stops nothing any more.
    RESUMED = Notice "Pause by visit_pacer_control ended";
    /// The database's clock stepped.
    CLOCK_STEPPED = Warn "Database clock stepped, and the schedule follows it; if it happens again, check the time service of the database host";
    /// Fewer visits are stored than were counted.
    VISITS_MISSING = Warn "Stored visits are missing; if nobody deleted them on purpose, run the statement that the reason names";
    /// A reconciliation changed a count.
    COUNT_CORRECTED = Notice "Count corrected to the stored visits";
    /// No statement gets through, or all are refused.
    DATABASE_UNAVAILABLE = Warn "Database unavailable, retrying; check that it is running and accepts connections";
    /// The end of that.
    DATABASE_AVAILABLE = Notice "Database available again";
    /// A statement failed while the database is available.
    STATEMENT_FAILED = Warn "Statement failed, retrying; if it lasts, run visit-pacer doctor to find the cause";
    /// A task of maintenance is refused for one distribution.
    TASK_DEFERRED = Warn "Database refuses to update the distribution, retrying later while its visits continue; fix what refuses it, such as a trigger of its table";
    /// A write of the agent came back as an event.
    ECHO_RECEIVED = Debug "Realtime delivered the event of the agent's own write";
    /// A joined channel delivers nothing.
    CHANNEL_SILENT = Warn "Realtime channel is silent though joined, rejoining; no action needed unless this repeats every minute";
    /// It still does not after a rejoin.
    CHANNEL_STILL_SILENT = Warn "Realtime channel is still silent, opening a new socket; if this does not help, restart Realtime in the project settings";
    /// A transport is live.
    REALTIME_LIVE = Info "Realtime is live";
    /// It is not.
    REALTIME_DOWN = Warn "Realtime is not live, retrying; no action needed unless this lasts: visits continue, and the periodic sync reads edits";
    /// What has changed is unknown.
    REALTIME_EVENT_UNCLEAR = Info "Realtime event could not be decoded, reading the table";
    /// With `auto`, both transports are used from now on.
    BROADCASTS_STARTED = Info "Edits are broadcast; listening to postgres_changes and broadcast";
    /// With `auto`, one transport is left.
    BROADCASTS_STOPPED = Info "Edits are not broadcast any more; listening to postgres_changes only";
    /// Only broadcasts are listened to, and nothing sends them.
    BROADCASTS_MISSING = Warn "Edits are not broadcast, so only the periodic sync reads them; run deploy/supabase/broadcast.sql";
    /// The publication lacks a table.
    DISTRIBUTIONS_UNPUBLISHED = Warn "visit_distribution is not published, so only the periodic sync reads edits; run visit-pacer migrate, or: alter publication supabase_realtime add table public.visit_distribution";
    /// The publication lacks a table.
    CANARY_UNPUBLISHED = Warn "visit_pacer_canary is not published, so a silent channel is noticed later; run: alter publication supabase_realtime add table public.visit_pacer_canary";
    /// The publication has a table too many.
    VISITS_PUBLISHED = Warn "store_visits is published, so each visit is a Realtime event; run: alter publication supabase_realtime drop table public.store_visits";
    /// Nobody verifies which server answers; the reason is its address.
    CONNECTION_UNVERIFIED = Warn "Database server is not verified, so anyone on the network path can read the password; add ?sslmode=verify-full (and sslrootcert=FILE for a private authority) to DATABASE_URL";
    /// The reason is the session pooler's URL.
    TRANSACTION_POOLER = Warn "DATABASE_URL is a transaction pooler, so each call takes four round trips instead of one; use the session pooler";
    /// A worker does not answer, or a deadline is not met.
    STUCK = Warn "Agent is stuck, a defect of visit-pacer; restart it (systemd's watchdog and a liveness probe of /healthz do) and report it";
    /// Tasks did not end in time at shutdown.
    SHUTDOWN_TIMED_OUT = Warn "Shutdown timed out, aborting the remaining tasks; no action needed: other agents take over";
    /// systemd does not take a message.
    SYSTEMD_UNREACHABLE = Warn "Cannot notify systemd; check that NOTIFY_SOCKET names a socket that this user may write to";
}

impl Event {
    const fn new(level: Level, message: &'static str) -> Self {
        Self {
            level,
            message,
            at: None,
            distribution_id: None,
            config_version: None,
            transport: None,
            worker: None,
            attempt: None,
            retry_in: None,
            elapsed: None,
            count: None,
            failure: None,
            reason: None,
        }
    }

    /// Whether it is the same event as `other`, whatever the fields.
    pub fn is(&self, other: &Self) -> bool {
        self.message == other.message
    }

    /// … of this distribution.
    #[must_use]
    pub fn of(mut self, distribution_id: Uuid) -> Self {
        self.distribution_id = Some(distribution_id);
        self
    }

    /// … by this transport.
    #[must_use]
    pub fn by(mut self, transport: Transport) -> Self {
        self.transport = Some(transport);
        self
    }

    /// … after this time.
    #[must_use]
    pub fn after(mut self, elapsed: Duration) -> Self {
        self.elapsed = Some(elapsed);
        self
    }

    /// … of so many.
    #[must_use]
    pub fn count(mut self, count: usize) -> Self {
        self.count = Some(count);
        self
    }

    /// … for this reason.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// … since this failed.
    #[must_use]
    pub fn failure(mut self, failure: &Failure) -> Self {
        self.failure = Some(failure.clone());
        self
    }

    /// Why it happened: the reason, or the failure in words.
    pub fn why(&self) -> Option<String> {
        let failure = self.failure.as_ref().map(ToString::to_string);
        self.reason.clone().or(failure)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_warning_says_what_to_do() {
        let to_do = [
            "correct",
            "check",
            "fix",
            "restart",
            "run",
            "use",
            "add",
            "no action needed",
        ];
        for event in Event::ALL.iter().filter(|event| event.level == Level::Warn) {
            let (_, advice) = event.message.split_once("; ").unwrap_or_default();
            assert!(
                to_do.iter().any(|words| advice.contains(words)),
                "{}",
                event.message
            );
        }
    }

    #[test]
    fn no_two_events_have_one_message_and_none_ends_with_a_full_stop() {
        let messages: BTreeSet<&str> = Event::ALL.iter().map(|event| event.message).collect();
        assert_eq!(messages.len(), Event::ALL.len());
        assert!(messages.iter().all(|message| !message.ends_with('.')));
    }
}
