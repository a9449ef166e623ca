//! Why a row is not on its curve, or stands still, for people who see the dashboard and nothing else: what keeps it, and what
//! to do about it.

use uuid::Uuid;

use crate::domain::schedule::{DistributionStatus, Stall, Status};

const LOCKED: &str = "Another transaction holds this row or its partner, so its visits wait; they come when it commits or rolls \
                      back. To find it: select pid, usename, state, query from pg_stat_activity where xact_start < now() - interval '5 s'.";
const BUCKET: &str = "Catching up: what fell due in an interruption is stored at catch_up times the pace (2 unless set), not in \
                      one burst. Nothing to do; a greater catch_up in the row is quicker.";
const BOUND: &str = "All rows together ask for more than this agent may store a second, so they share what there is. Start the \
                     agent with a greater --max-visits-per-second, or run another agent.";
const DATABASE: &str = "The database does not take the agent's statements. The schedule is kept, and what is owed drains when it \
                        is back; the notes have its last error.";
const RATE_0: &str =
    "The rate is 0, so that nothing more is stored, nor what is still owed. Set a rate.";
const STOPPED: &str = "Everything is paused. Resume everything to go on.";
const PAUSED: &str = "is_active is false. Resume it to go on; the time until then is not made up.";
const COMPLETED: &str = "Every visit of total_visits is stored.";
const BEHIND: &str = "More than a second's worth is owed; the next batches bring it.";

/// In words; `None` for a row on which there is nothing to say.
pub fn reason(look: &DistributionStatus, everything_paused: bool) -> Option<String> {
    let window_open = matches!(
        look.status,
        Status::Active | Status::Behind | Status::Draining | Status::Scheduled
    );
    if everything_paused && window_open {
        return Some(STOPPED.to_owned());
    }
    let pace = look.pace.as_ref();
    let owed = look.due.saturating_sub(look.distributed).max(0);
    match look.status {
        Status::Active if pace.is_some_and(|pace| pace.slope == 0) => Some(RATE_0.to_owned()),
        Status::Active => None,
        Status::Behind if pace.is_some_and(|pace| pace.slope == 0) => Some(RATE_0.to_owned()),
        Status::Behind => Some(look.stall.map_or(BEHIND, stalled).to_owned()),
        Status::Draining => Some(format!(
            "The window is over; {owed} visits that were due in it are still being stored. {}",
            look.stall.map_or("", stalled)
        )),
        Status::Paused => Some(PAUSED.to_owned()),
        Status::Scheduled if pace.is_some_and(|pace| pace.start.is_some()) => {
            Some("It has not begun: start_time is yet to come.".to_owned())
        }
        Status::Scheduled if pace.is_some() => {
            Some("start_time is null, so it never begins. Set start_time.".to_owned())
        }
        Status::Scheduled => Some("The next sync takes it in.".to_owned()),
        Status::Completed => Some(COMPLETED.to_owned()),
        Status::Ended if owed > 0 => Some(format!(
            "The window is over, and so is the time to catch up: {owed} visits were due and not stored. Move end_time to go on."
        )),
        Status::Ended => Some(
            "The window is over before the total was reached: the rate is too low for the window. Move end_time or raise the \
             rate to go on."
                .to_owned(),
        ),
        Status::Invalid => Some(quarantine(
            look.reason.as_deref().unwrap_or("it cannot be paced"),
        )),
    }
}

/// … of a row that the database cannot take a visit of, since its partner is gone.
pub fn no_partner(partner: Uuid) -> String {
    format!(
        "Its partner {partner} does not exist in partners, so nothing can be stored. Restore the partner, or set partner_id."
    )
}

/// … of a row that another agent stores, by the status and the reason that the view of it has.
pub fn of_view(status: &str, reason: Option<&str>) -> Option<String> {
    let known = match (status, reason) {
        (_, Some("stopped")) => STOPPED,
        (_, Some("bucket")) => BUCKET,
        ("paused", None) => PAUSED,
        ("completed", None) => COMPLETED,
        ("behind", None) => BEHIND,
        ("invalid", Some(why)) => return Some(quarantine(why)),
        (_, Some(other)) => other,
        (_, None) => return None,
    };
    Some(known.to_owned())
}

fn quarantine(why: &str) -> String {
    format!("Set aside: {why}. Correct the row, and it goes on at once.")
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
    fn a_row_of_another_agent_has_the_same_words_as_one_of_ours() {
        assert_eq!(of_view("behind", Some("stopped")).as_deref(), Some(STOPPED));
        assert_eq!(of_view("draining", Some("bucket")).as_deref(), Some(BUCKET));
        assert_eq!(of_view("paused", None).as_deref(), Some(PAUSED));
        assert_eq!(of_view("active", None), None);
        let invalid = of_view("invalid", Some("total_visits is null; use a number"));
        assert!(invalid.is_some_and(
            |words| words.contains("total_visits is null") && words.contains("Correct the row")
        ));
    }
}
