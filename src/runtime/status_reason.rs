//! The sentence of a reason on the dashboard: why a distribution makes no progress, and what to do.

use crate::domain::partner::PartnerId;
use crate::domain::schedule::{DistributionStatus, Stall, Status};

const LOCKED: &str = "Another transaction has locked this row or its partner. Visits are stored after it ends. To find it: select pid, usename, state, query from pg_stat_activity where xact_start < now() - interval '5 s'.";
const BUCKET: &str = "Catching up at catch_up times the rate (default 2). No action needed; a higher catch_up is faster.";
const BOUND: &str = "All distributions together need more than --max-visits-per-second, so they share it. Raise the limit, or \
                     start another agent.";
const DATABASE: &str = "The database is unavailable. The backlog drains once it is back; see Health for the last error.";
const RATE_0: &str =
    "The rate is 0: no visits are stored, and the backlog does not drain. Set a rate.";
const STOPPED: &str = "Everything is paused. Resume everything to continue.";
const PAUSED: &str = "Paused (is_active is false). The paused time is not backfilled.";
const COMPLETED: &str = "All visits of total_visits are stored.";
const BEHIND: &str = "More than one second's worth behind; the next batches store it.";

/// `None` if there is nothing to say.
pub fn reason(status: &DistributionStatus, everything_paused: bool) -> Option<String> {
    let window_open = matches!(
        status.status,
        Status::Active | Status::Behind | Status::Draining | Status::Scheduled
    );
    if everything_paused && window_open {
        return Some(STOPPED.to_owned());
    }
    let terms = status.pace.as_ref();
    let backlog = status.due.saturating_sub(status.distributed).max(0);
    match status.status {
        Status::Active if terms.is_some_and(|terms| terms.slope == 0) => Some(RATE_0.to_owned()),
        Status::Active => None,
        Status::Behind if terms.is_some_and(|terms| terms.slope == 0) => Some(RATE_0.to_owned()),
        Status::Behind => Some(status.stall.map_or(BEHIND, stalled).to_owned()),
        Status::Draining => Some(format!(
            "The window is over; {backlog} due visits are still being stored. {}",
            status.stall.map_or("", stalled)
        )),
        Status::Paused => Some(PAUSED.to_owned()),
        Status::Scheduled if terms.is_some_and(|terms| terms.start.is_some()) => {
            Some("Starts at start_time.".to_owned())
        }
        Status::Scheduled if terms.is_some() => {
            Some("Never starts: start_time is null. Set start_time.".to_owned())
        }
        Status::Scheduled => Some("Waiting for the next sync.".to_owned()),
        Status::Completed => Some(COMPLETED.to_owned()),
        Status::Ended if backlog > 0 => Some(format!(
            "Ended; {backlog} due visits were not stored within give_up_after. Change end_time to continue."
        )),
        Status::Ended => Some(
            "Ended below the total: the rate was too low for the window. Change end_time or the rate to continue."
                .to_owned(),
        ),
        Status::Invalid => Some(quarantine(
            status.reason.as_deref().unwrap_or("a value is not valid"),
        )),
    }
}

/// … of a distribution whose partner was deleted.
pub fn no_partner(partner: &PartnerId) -> String {
    format!(
        "The partner {partner} does not exist in partners, so no visits can be stored. Restore it, or change partner_id."
    )
}

/// … of another agent's distribution, from the status, the reason code and the reason in the view.
pub fn of_view(status: &str, code: Option<&str>, reason: Option<&str>) -> Option<String> {
    let known = match (status, code) {
        (_, Some("all_paused")) => STOPPED,
        (_, Some("token_bucket")) => BUCKET,
        ("paused", None) => PAUSED,
        ("completed", None) => COMPLETED,
        ("behind", None) => BEHIND,
        ("invalid", Some(_)) => return reason.map(quarantine),
        (_, Some(_)) => return reason.map(str::to_owned),
        (_, None) => return None,
    };
    Some(known.to_owned())
}

fn quarantine(why: &str) -> String {
    format!("{why}. The agent continues as soon as the row is corrected.")
}

fn stalled(stall: Stall) -> &'static str {
    match stall {
        Stall::Locked => LOCKED,
        Stall::Bucket => BUCKET,
        Stall::AgentBound => BOUND,
        Stall::Database => DATABASE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_agents_distribution_has_the_same_reason_as_an_own_one() {
        let of_code = |status, code| of_view(status, code, Some("a sentence"));
        let sentence = |status, code| of_code(status, code).unwrap_or_default();
        assert_eq!(sentence("behind", Some("all_paused")), STOPPED);
        assert_eq!(sentence("draining", Some("token_bucket")), BUCKET);
        assert_eq!(sentence("behind", Some("no_agent")), "a sentence");
        assert_eq!(sentence("paused", None), PAUSED);
        assert_eq!(of_code("active", None), None);
        let why = Some("total_visits is null; use a number");
        let invalid = of_view("invalid", Some("invalid_value"), why);
        assert!(
            invalid.is_some_and(|words| words.contains("total_visits is null")
                && words.contains("as soon as the row is corrected"))
        );
    }
}
