//! What happened, in the log: once, where it is handled, with what to do about it.

use tracing::{info, warn};

use crate::domain::agent::{Notice, Published};
use crate::domain::proof::Verdict;

/// Says it.
pub fn tell(notice: &Notice) {
    match notice {
        Notice::Synced(rows) => info!(rows, "schedule read from the table"),
        Notice::SetAside(id, why) => warn!(
            distribution = %id, reason = %why,
            "row set aside; correct it and it goes on at once (a failing insert is tried again every minute as well)"
        ),
        Notice::Mended(id) => info!(distribution = %id, "row is paced again"),
        // No warning yet: the event may still be on its way. One that does not come is told as silence.
        Notice::Repaired(rows) => info!(
            rows,
            "the periodic sync read edits before Realtime told of them"
        ),
        Notice::Silent(way, Verdict::Rejoin) => warn!(
            way = way.as_str(),
            "Realtime keeps silent though joined; joining again"
        ),
        Notice::Silent(way, Verdict::Reopen) => warn!(
            way = way.as_str(),
            "Realtime still keeps silent; opening a new socket"
        ),
        Notice::ClockStepped => warn!("the database's clock stepped; pacing follows it"),
        Notice::DatabaseAway(fault) => {
            warn!(reason = %fault, "the database does not take our statements; the schedule is kept, trying again");
        }
        Notice::Hindered(fault) => warn!(reason = %fault, "a statement failed; trying again"),
        Notice::PutOff(id, fault) => warn!(
            distribution = %id, reason = %fault,
            "the database refuses to update the row; its visits go on, and this is tried again later"
        ),
        Notice::DatabaseBack(after) => {
            info!(
                after_seconds = after.as_secs(),
                "the database takes our statements again"
            );
        }
        Notice::Shared(1) => info!("the only agent: every row is its own"),
        Notice::Shared(agents) => info!(agents, "the rows are shared among the agents"),
        Notice::Paused(true) => {
            warn!(
                "everything is paused by visit_pacer_control; `visit-pacer resume --all` goes on"
            );
        }
        Notice::Paused(false) => info!("visit_pacer_control lets visits through again"),
        Notice::Found(finding) => warn!(
            distribution = %finding.id, missing = finding.missing, "{}", finding.message
        ),
        Notice::Broadcasts(true) => info!("edits are broadcast; listening both ways"),
        Notice::Broadcasts(false) => {
            info!("edits are broadcast no more; listening to postgres_changes alone");
        }
        Notice::NothingBroadcasts => warn!(
            "edits are not broadcast, so they are seen by the periodic sync alone; run deploy/supabase/broadcast.sql"
        ),
        Notice::Published(tables) => published(*tables),
        Notice::Initialised(rows) => info!(
            rows,
            "rows that were written without our trigger are anchored from now on"
        ),
    }
}

fn published(tables: Published) {
    if !tables.distributions {
        warn!(
            "visit_distribution is not published, so edits are seen by the periodic sync alone; run `visit-pacer migrate`, or: alter publication supabase_realtime add table public.visit_distribution"
        );
    }
    if !tables.canary {
        warn!(
            "visit_pacer_canary is not published, so a dead channel is noticed later; run: alter publication supabase_realtime add table public.visit_pacer_canary"
        );
    }
    if tables.visits {
        warn!(
            "store_visits is published, so that each visit is a Realtime event; run: alter publication supabase_realtime drop table public.store_visits"
        );
    }
}
