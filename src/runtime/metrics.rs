//! The snapshot as metrics: every name and description of what the agent counts is in this file; what it measures as it
//! happens is in `observe`.

use super::snapshot::{Snapshot, whole};
use super::workers::WORKERS;
use crate::domain::error_policy::ErrorKind;
use crate::domain::schedule::{DistributionStatus, Stall, Status};
use crate::domain::time::Mono;
use crate::domain::transport::{PerTransport, Transport};
use crate::observe::{Family, RowsAsked, Value};

/// All of it; of single rows those that were asked for and are this agent's.
pub fn readings(
    snapshot: &Snapshot,
    now: Mono,
    connections: usize,
    rows: &RowsAsked,
) -> Vec<Family> {
    [
        build(),
        visits(snapshot),
        table(snapshot),
        realtime(snapshot),
        state(snapshot, now),
        shared(snapshot, connections),
        rows_of(snapshot, rows),
    ]
    .concat()
}

fn build() -> Vec<Family> {
    vec![Family::by(
        "build_info",
        "1, with the version of the program",
        "version",
        [(env!("CARGO_PKG_VERSION"), Value::Level(1))],
    )]
}

fn visits(snapshot: &Snapshot) -> Vec<Family> {
    let c = &snapshot.counters.writes;
    let outcomes = [
        ("stored", c.batches),
        ("failed", c.failed),
        ("unknown", c.unknown),
        ("unsent", c.unsent),
    ];
    let reasons = [
        ("locked", c.refused.locked),
        ("changed", c.refused.changed),
        ("paused", c.refused.paused),
        ("moved", c.refused.moved),
        ("deleted", c.refused.deleted),
    ];
    let error_kinds =
        ErrorKind::ALL.map(|kind| (kind.as_str(), snapshot.error_kinds.get(&kind).copied()));
    vec![
        count("visits_stored", "Visits stored by this agent", c.visits),
        Family::by(
            "batches",
            "Batches: stored, refused by the database, sent without an answer, or not sent for want of a connection",
            "outcome",
            outcomes.map(counted),
        ),
        Family::by(
            "rows_refused",
            "Rows left out of a batch: locked, changed or paused by somebody, stored by somebody else, or deleted",
            "reason",
            reasons.map(counted),
        ),
        Family::by(
            "retries",
            "Faults of the database and of Realtime after which something is tried again",
            "class",
            error_kinds.map(|(class, met)| counted((class, met.unwrap_or(0)))),
        ),
    ]
}

fn table(snapshot: &Snapshot) -> Vec<Family> {
    let c = &snapshot.counters.reads;
    let by_status = Status::ALL.map(|status| {
        (
            status.as_str(),
            Value::Level(whole(snapshot.rows_that_are(status))),
        )
    });
    let stalled = Stall::ALL.map(|stall| {
        let rows = snapshot
            .status_summary
            .stalled
            .get(&stall)
            .copied()
            .unwrap_or(0);
        (stall.as_str(), Value::Level(whole(rows)))
    });
    vec![
        level("rows", "Rows in the schedule", whole(snapshot.rows)),
        level(
            "rows_owned",
            "Rows that are this agent's to store",
            whole(snapshot.rows_owned),
        ),
        Family::by(
            "distributions",
            "Rows of this agent by status",
            "status",
            by_status,
        ),
        Family::by(
            "distributions_stalled",
            "Rows of this agent that are behind or draining, by what keeps them",
            "reason",
            stalled,
        ),
        level(
            "backlog_visits",
            "Visits due and not stored, all rows of this agent together",
            snapshot.status_summary.backlog,
        ),
        count(
            "syncs",
            "Syncs with visit_distribution: what had changed was read, or every row",
            c.syncs,
        ),
        count("full_syncs", "Syncs that read every row", c.full_syncs),
        count("rows_read", "Rows read by id", c.rows_read),
        count(
            "repaired_by_sync",
            "Edits of which Realtime had not told",
            c.repaired,
        ),
        count(
            "write_backs",
            "Rows whose total_distributed was written back",
            snapshot.counters.written_back,
        ),
    ]
}

fn realtime(snapshot: &Snapshot) -> Vec<Family> {
    let c = &snapshot.counters.realtime;
    let followed = Transport::ALL.into_iter().filter_map(|transport| {
        let state = snapshot.transports.of(transport).as_ref()?;
        Some((transport.as_str(), Value::Level(i64::from(state.is_live()))))
    });
    vec![
        level(
            "realtime_live",
            "1 while edits are heard of by at least one way",
            i64::from(snapshot.health.live_since.is_some()),
        ),
        Family::by(
            "realtime_way_live",
            "1 while this way is live; a way that is not followed has no series",
            "way",
            followed,
        ),
        by_way(
            "realtime_events",
            "Events of rows, by the way they came",
            &c.events,
        ),
        count(
            "realtime_events_known",
            "Events that told nothing new",
            c.events_known,
        ),
        by_way(
            "realtime_silent",
            "Times that a joined channel was found to keep silent",
            &c.silent,
        ),
        count(
            "realtime_rejoins",
            "Times that a silent channel was joined again",
            c.rejoins,
        ),
        count(
            "realtime_reopens",
            "Times that a channel which stayed silent was given a new socket",
            c.reopens,
        ),
    ]
}

fn state(snapshot: &Snapshot, now: Mono) -> Vec<Family> {
    let health = &snapshot.health;
    let begun = snapshot.at.is_some();
    let up = begun && health.database_away_since.is_none();
    let ready = begun && snapshot.unready(now).is_empty();
    let mut families = vec![
        level("ready", "1 while the agent is ready", i64::from(ready)),
        level(
            "database_up",
            "1 while the database takes statements",
            i64::from(up),
        ),
        level(
            "paused",
            "1 while visit_pacer_control stops everything",
            i64::from(snapshot.paused),
        ),
    ];
    families.extend(health.synced_at.map(|at| {
        Family::one(
            "sync_age_seconds",
            "Since the last sync with visit_distribution; none before the first",
            Value::Real(now.since(at).as_secs_f64()),
        )
    }));
    families
}

fn shared(snapshot: &Snapshot, connections: usize) -> Vec<Family> {
    vec![
        level(
            "agents",
            "Agents that share the rows, this one among them",
            whole(snapshot.agents),
        ),
        level(
            "connections",
            "Connections to the database that are open",
            whole(connections),
        ),
        level(
            "connections_wanted",
            "Connections to the database that an agent at work has",
            whole(WORKERS),
        ),
    ]
}

fn rows_of(snapshot: &Snapshot, asked: &RowsAsked) -> Vec<Family> {
    let looks: Vec<_> = asked
        .0
        .iter()
        .filter_map(|id| {
            let at = snapshot
                .status_summary
                .looks
                .binary_search_by_key(id, |look| look.id);
            snapshot.status_summary.looks.get(at.ok()?)
        })
        .collect();
    let by_row = |name, help, value: fn(&DistributionStatus) -> i64| {
        let values = looks
            .iter()
            .map(|look| (look.id.to_string(), Value::Level(value(look))));
        Family::by(name, help, "distribution", values)
    };
    vec![
        by_row(
            "distribution_due_visits",
            "Visits that the curve of a row that was asked for owes by now",
            |look| look.due,
        ),
        by_row(
            "distribution_distributed_visits",
            "Visits distributed for a row that was asked for",
            |look| look.distributed,
        ),
        by_row(
            "distribution_backlog_visits",
            "Visits due and not distributed of a row that was asked for",
            DistributionStatus::backlog,
        ),
    ]
}

fn count(name: &'static str, help: &'static str, counted: u64) -> Family {
    Family::one(name, help, Value::Count(counted))
}

fn level(name: &'static str, help: &'static str, level: i64) -> Family {
    Family::one(name, help, Value::Level(level))
}

fn by_way(name: &'static str, help: &'static str, counts: &PerTransport<u64>) -> Family {
    let values =
        Transport::ALL.map(|transport| counted((transport.as_str(), *counts.of(transport))));
    Family::by(name, help, "way", values)
}

fn counted((of, count): (&'static str, u64)) -> (&'static str, Value) {
    (of, Value::Count(count))
}
