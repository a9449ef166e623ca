//! The snapshot as metrics: names and descriptions of everything that the agent counts. What is measured as it happens is in
//! `observe`.

use super::snapshot::{Snapshot, whole};
use super::workers::WORKERS;
use crate::domain::error_policy::ErrorKind;
use crate::domain::schedule::{DistributionStatus, Stall, Status};
use crate::domain::time::Mono;
use crate::domain::transport::Transport;
use crate::observe::MetricValue::{Counter, FloatGauge, Gauge};
use crate::observe::{MetricFamily, SelectedDistributions};

/// All metrics of the agent, and those of the selected distributions that it owns.
pub fn families(
    snapshot: &Snapshot,
    now: Mono,
    connections: usize,
    selected: &SelectedDistributions,
) -> Vec<MetricFamily> {
    [
        visits(snapshot),
        reads(snapshot),
        realtime(snapshot),
        state(snapshot, now, connections),
        of_distributions(snapshot, selected),
    ]
    .concat()
}

fn visits(snapshot: &Snapshot) -> Vec<MetricFamily> {
    let c = &snapshot.counters.writes;
    let outcomes = [
        ("stored", Counter(c.batches)),
        ("failed", Counter(c.failed)),
        ("unknown", Counter(c.unknown)),
        ("unsent", Counter(c.unsent)),
    ];
    let skipped = [
        ("locked", Counter(c.refused.locked)),
        ("changed", Counter(c.refused.changed)),
        ("paused", Counter(c.refused.paused)),
        ("conflict", Counter(c.refused.moved)),
        ("deleted", Counter(c.refused.deleted)),
    ];
    let retries = ErrorKind::ALL.map(|kind| {
        let retries = snapshot.error_kinds.get(&kind).copied();
        (kind.as_str(), Counter(retries.unwrap_or(0)))
    });
    let written_back = Counter(snapshot.counters.written_back);
    vec![
        MetricFamily::new(
            "visits_stored",
            "Visits stored by this agent",
            Counter(c.visits),
        ),
        MetricFamily::labelled("batches", "Batches by outcome", "outcome", outcomes),
        MetricFamily::labelled(
            "distributions_skipped",
            "Distributions that a batch left out, by reason",
            "reason",
            skipped,
        ),
        MetricFamily::labelled(
            "retries",
            "Retries after an error of the database or of Realtime, by kind of error",
            "kind",
            retries,
        ),
        MetricFamily::new(
            "write_backs",
            "Write-backs of total_distributed",
            written_back,
        ),
    ]
}

fn reads(snapshot: &Snapshot) -> Vec<MetricFamily> {
    let c = &snapshot.counters.reads;
    let statuses = Status::ALL.map(|status| {
        let count = whole(snapshot.rows_that_are(status));
        (status.as_str(), Gauge(count))
    });
    let stalls = Stall::ALL.map(|stall| {
        let count = snapshot.status_summary.stalled.get(&stall).copied();
        (stall.as_str(), Gauge(whole(count.unwrap_or(0))))
    });
    vec![
        MetricFamily::new(
            "distributions_scheduled",
            "Distributions in the schedule, those of other agents included",
            Gauge(whole(snapshot.rows)),
        ),
        MetricFamily::new(
            "distributions_owned",
            "Distributions that this agent owns",
            Gauge(whole(snapshot.rows_owned)),
        ),
        MetricFamily::labelled(
            "distributions",
            "Distributions that this agent owns, by status",
            "status",
            statuses,
        ),
        MetricFamily::labelled(
            "distributions_stalled",
            "Distributions of this agent that are behind or draining, by reason",
            "reason",
            stalls,
        ),
        MetricFamily::new(
            "backlog_visits",
            "Visits that are due and not stored, of this agent's distributions",
            Gauge(snapshot.status_summary.backlog),
        ),
        MetricFamily::new("syncs", "Syncs, incremental and full", Counter(c.syncs)),
        MetricFamily::new(
            "full_syncs",
            "Syncs that read every row",
            Counter(c.full_syncs),
        ),
        MetricFamily::new(
            "distributions_read",
            "Distributions read by id",
            Counter(c.rows_read),
        ),
        MetricFamily::new(
            "sync_repairs",
            "Changes that Realtime did not deliver and a sync found",
            Counter(c.repaired),
        ),
    ]
}

fn realtime(snapshot: &Snapshot) -> Vec<MetricFamily> {
    let c = &snapshot.counters.realtime;
    let live = Transport::ALL.into_iter().filter_map(|transport| {
        let state = snapshot.transports.of(transport).as_ref()?;
        Some((transport.as_str(), Gauge(i64::from(state.is_live()))))
    });
    let events =
        Transport::ALL.map(|transport| (transport.as_str(), Counter(*c.events.of(transport))));
    let timeouts =
        Transport::ALL.map(|transport| (transport.as_str(), Counter(*c.silent.of(transport))));
    vec![
        MetricFamily::new(
            "realtime_live",
            "1 while at least one transport delivers changes",
            Gauge(i64::from(snapshot.health.live_since.is_some())),
        ),
        MetricFamily::labelled(
            "realtime_transport_live",
            "1 while the transport delivers changes; no series for a transport that is not used",
            "transport",
            live,
        ),
        MetricFamily::labelled(
            "realtime_events",
            "Events about distributions, by transport",
            "transport",
            events,
        ),
        MetricFamily::new(
            "realtime_events_skipped",
            "Events with a version that was in the schedule already",
            Counter(c.events_known),
        ),
        MetricFamily::labelled(
            "realtime_echo_timeouts",
            "Echo checks that timed out, by transport",
            "transport",
            timeouts,
        ),
        MetricFamily::new(
            "realtime_rejoins",
            "Rejoins after an echo timeout",
            Counter(c.rejoins),
        ),
        MetricFamily::new(
            "realtime_reconnects",
            "New sockets after an echo timeout",
            Counter(c.reopens),
        ),
    ]
}

fn state(snapshot: &Snapshot, now: Mono, connections: usize) -> Vec<MetricFamily> {
    let health = &snapshot.health;
    let has_begun = snapshot.at.is_some();
    let is_up = has_begun && health.database_away_since.is_none();
    let is_ready = has_begun && snapshot.unready(now).is_empty();
    let flag = |name, help, is_set| MetricFamily::new(name, help, Gauge(i64::from(is_set)));
    let mut families = vec![
        MetricFamily::labelled(
            "build_info",
            "1, with the version of the program",
            "version",
            [(env!("CARGO_PKG_VERSION"), Gauge(1))],
        ),
        flag("ready", "1 while the agent is ready", is_ready),
        flag(
            "database_up",
            "1 while the database accepts statements",
            is_up,
        ),
        flag("paused", "1 while everything is paused", snapshot.paused),
        MetricFamily::new(
            "agents",
            "Live agents, this one included",
            Gauge(whole(snapshot.agents)),
        ),
        MetricFamily::new(
            "database_connections",
            "Open connections to the database",
            Gauge(whole(connections)),
        ),
        MetricFamily::new(
            "database_connections_expected",
            "Connections to the database that a working agent has",
            Gauge(whole(WORKERS)),
        ),
    ];
    families.extend(health.synced_at.map(|at| {
        MetricFamily::new(
            "sync_age_seconds",
            "Time since the last successful sync; no series before the first",
            FloatGauge(now.since(at).as_secs_f64()),
        )
    }));
    families
}

fn of_distributions(snapshot: &Snapshot, selected: &SelectedDistributions) -> Vec<MetricFamily> {
    let known = &snapshot.status_summary.looks;
    let found = selected.0.iter().filter_map(|id| {
        let at = known.binary_search_by_key(id, |status| status.id).ok()?;
        known.get(at)
    });
    let found: Vec<&DistributionStatus> = found.collect();
    let family = |name, help, value: fn(&DistributionStatus) -> i64| {
        let values = found
            .iter()
            .map(|status| (status.id.to_string(), Gauge(value(status))));
        MetricFamily::labelled(name, help, "distribution_id", values)
    };
    vec![
        family(
            "distribution_due_visits",
            "Visits that are due by the curve of a selected distribution",
            |status| status.due,
        ),
        family(
            "distribution_distributed_visits",
            "Visits distributed of a selected distribution",
            |status| status.distributed,
        ),
        family(
            "distribution_backlog_visits",
            "Visits due and not distributed of a selected distribution",
            DistributionStatus::backlog,
        ),
    ]
}
