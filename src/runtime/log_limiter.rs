//! Writes events to the log, and keeps those that the dashboard lists.
//!
//! Invariant: the log has at most [`MOST_A_MINUTE`] warnings of one kind in a minute, and then how many more there were.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::warn;

use crate::domain::event::{Event, Level};
use crate::domain::time::{DbTime, Mono};
use crate::observe::recent::Recent;

/// Ten thousand invalid distributions must not fill a log.
const MOST_A_MINUTE: u32 = 10;
const MINUTE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug, Default)]
pub struct LogLimiter {
    recent: Recent,
    logged: BTreeMap<&'static str, u32>,
    minute_began: Option<Mono>,
}

impl LogLimiter {
    /// One that keeps listed events there.
    pub fn new(recent: Recent) -> Self {
        Self {
            recent,
            ..Self::default()
        }
    }

    /// Where listed events are kept.
    pub fn recent(&self) -> &Recent {
        &self.recent
    }

    /// Logs an event, unless it is a warning that was logged too often in this minute.
    pub fn log(&mut self, mut event: Event, db_now: Option<DbTime>, now: Mono) {
        if event.level == Level::Warn {
            self.end_minute(now);
            let logged = self.logged.entry(event.message).or_insert(0);
            *logged = logged.saturating_add(1);
            if *logged > MOST_A_MINUTE {
                return;
            }
        }
        write(&event);
        if event.level >= Level::Notice {
            event.at = db_now;
            self.recent.event(event);
        }
    }

    /// Sums up, when a minute is over, what was not logged in it.
    pub fn end_minute(&mut self, now: Mono) {
        let began = *self.minute_began.get_or_insert(now);
        if now.since(began) < MINUTE {
            return;
        }
        self.minute_began = Some(now);
        for (event, times) in std::mem::take(&mut self.logged) {
            let suppressed = times.saturating_sub(MOST_A_MINUTE);
            if suppressed > 0 {
                warn!(
                    suppressed,
                    event,
                    "Suppressed repeated warnings in the last minute; see those above, /metrics, or visit-pacer status"
                );
            }
        }
    }
}

fn write(event: &Event) {
    macro_rules! log {
        ($level:ident) => {
            tracing::$level!(
                distribution_id = event.distribution_id.map(display),
                config_version = event.config_version,
                transport = event.transport.map(|transport| transport.as_str()),
                count = event.count,
                worker = event.worker,
                attempt = event.attempt,
                retry_in_ms = event.retry_in.map(milliseconds),
                elapsed_ms = event.elapsed.map(milliseconds),
                sqlstate = event
                    .failure
                    .as_ref()
                    .and_then(|failure| failure.sqlstate()),
                reason = event.why().map(display),
                "{}",
                event.message
            )
        };
    }
    match event.level {
        Level::Debug => log!(debug),
        Level::Info | Level::Notice => log!(info),
        Level::Warn => log!(warn),
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Mono {
        Mono::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn a_warning_that_repeats_is_logged_ten_times_a_minute_and_again_in_the_next() {
        let mut log = LogLimiter::default();
        for second in 0..60 {
            for _ in 0..5 {
                log.log(Event::QUARANTINED, None, at(second));
            }
        }
        assert_eq!(log.recent().events().len(), 10);
        log.log(Event::CLOCK_STEPPED, None, at(59));
        assert_eq!(log.recent().events().len(), 11, "another kind is logged");
        log.log(Event::QUARANTINED, None, at(60));
        assert_eq!(log.recent().events().len(), 12);
    }

    #[test]
    fn the_dashboard_lists_warnings_and_notices() {
        let mut log = LogLimiter::default();
        let events = [
            Event::EDITS_FOUND_BY_SYNC.count(3),
            Event::SCHEDULE_LOADED.count(3),
            Event::CLOCK_STEPPED,
        ];
        for event in events {
            log.log(event, None, at(0));
        }
        let listed: Vec<Level> = log
            .recent()
            .events()
            .iter()
            .map(|event| event.level)
            .collect();
        assert_eq!(listed, [Level::Warn, Level::Notice]);
    }
}
