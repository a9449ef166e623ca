//! Reaction times: from the COMMIT of an edit to the updated schedule, and to the first visit after a resume.
//!
//! The first is read from the agent's log, at level debug; so both clocks must be the same machine's, and only the embedded
//! server is measured. Edits come one at a time, at moments that are independent of the agent's timers.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use sqlx::Row as _;
use uuid::Uuid;

use super::environment::{BenchDatabase, BenchEnvironment, Workload};
use super::figures::{Cell, ReportTable, Samples};
use super::program::{AgentOptions, Program};
use crate::domain::time::DbTime;

const ROWS: u32 = 100;
const RATES: &[(&str, &str)] = &[("minute", "60")];
/// The pause between edits, to which a varying time is added, so that they are spread over a second.
const EDIT_PAUSE: Duration = Duration::from_millis(80);
const EXTRA_PAUSE_MS: u64 = 37;
/// How long the agent has to follow the last edit.
const LAST_EDIT: Duration = Duration::from_secs(3);
/// At this rate the first visit is due within a millisecond of a resume.
const FAST: &[(&str, &str)] = &[("second", "1000")];
const RESUMES: u32 = 20;
/// How long the distribution is paused, and how long it runs.
const PHASE: Duration = Duration::from_millis(1_337);
const OPTIONS: AgentOptions = AgentOptions {
    max_visits_per_second: 20_000,
    log: Some("visit_pacer=debug"),
};

/// A line of the log about a new version of a distribution in the schedule.
#[derive(Deserialize)]
struct LogLine {
    timestamp: String,
    distribution_id: Option<Uuid>,
    config_version: Option<i64>,
}

/// Measures with `seconds` of edits.
pub async fn measure(
    environment: &mut BenchEnvironment,
    seconds: u32,
) -> anyhow::Result<(ReportTable, Vec<(String, Samples)>)> {
    let mut table = ReportTable::new(
        "Reaction, from the COMMIT of an edit",
        "until | edits | p50, ms | p99, ms | max, ms",
    );
    if environment.server_pid().is_none() {
        table.note("Not measured: the server may have another clock than this machine.");
        return Ok((table, Vec::new()));
    }
    let edits = edits(environment, seconds).await?;
    let resumes = resumes(environment).await?;
    for (until, samples) in [
        ("the schedule is updated", &edits),
        ("the first visit after a resume", &resumes),
    ] {
        let [p50, p99, max] = samples.cells();
        table.rows.push(vec![
            Cell::word(until),
            Cell::whole(u32::try_from(samples.len())?),
            p50,
            p99,
            max,
        ]);
    }
    table.at_most(
        "p99 until the schedule is updated, ms, under 100",
        edits.percentile(99),
        100.0,
    );
    table.note("A distribution fires once a second, so a first visit waits half a second on average, however soon the edit is known.");
    Ok((table, vec![("edit to schedule".to_owned(), edits)]))
}

/// A database with distributions, and an agent that is ready.
async fn start(
    environment: &mut BenchEnvironment,
    workload: Workload<'_>,
) -> anyhow::Result<(BenchDatabase, Program)> {
    let mut database = environment.database().await?;
    database.start_realtime().await?;
    database.insert(workload).await?;
    let mut agent = Program::agent(&database, OPTIONS)?;
    agent.ready().await?;
    Ok((database, agent))
}

async fn edits(environment: &mut BenchEnvironment, seconds: u32) -> anyhow::Result<Samples> {
    let workload = Workload::running(ROWS, RATES);
    let (mut database, agent) = start(environment, workload).await?;
    let ids: Vec<Uuid> = sqlx::query_scalar("select id from public.visit_distribution order by id")
        .fetch_all(&mut database.connection)
        .await?;
    let mut commits: BTreeMap<(Uuid, i64), DbTime> = BTreeMap::new();
    let began = tokio::time::Instant::now();
    for (turn, id) in (0_u64..).zip(ids.iter().cycle()) {
        if began.elapsed() > Duration::from_secs(seconds.into()) {
            break;
        }
        let edited = sqlx::query(
            "update public.visit_distribution set visits_per_unit = visits_per_unit + 1 where id = $1 returning config_version",
        );
        let version: i64 = edited
            .bind(id)
            .fetch_one(&mut database.connection)
            .await?
            .try_get(0)?;
        commits.insert((*id, version), committed(&mut database, *id).await?);
        tokio::time::sleep(EDIT_PAUSE + Duration::from_millis(turn * 7 % EXTRA_PAUSE_MS)).await;
    }
    tokio::time::sleep(LAST_EDIT).await;
    let log = agent.stop_and_read_log().await?;
    environment.remove(database).await?;
    let mut samples = Vec::new();
    let lines = log.lines();
    for line in lines.filter_map(|line| serde_json::from_str::<LogLine>(line).ok()) {
        if let (Some(id), Some(version)) = (line.distribution_id, line.config_version)
            && let Some(at) = commits.remove(&(id, version))
        {
            let logged: DateTime<Utc> = line.timestamp.parse().context("the log's timestamp")?;
            samples.push(DbTime::from(logged).micros_since(at));
        }
    }
    anyhow::ensure!(
        commits.is_empty(),
        "{} edits did not reach the schedule",
        commits.len()
    );
    Ok(Samples::of(samples))
}

/// The commit time of the distribution's row.
async fn committed(database: &mut BenchDatabase, id: Uuid) -> anyhow::Result<DbTime> {
    let at = sqlx::query_scalar(
        "select (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint from public.visit_distribution where id = $1",
    );
    Ok(DbTime::from_micros(
        at.bind(id).fetch_one(&mut database.connection).await?,
    ))
}

async fn resumes(environment: &mut BenchEnvironment) -> anyhow::Result<Samples> {
    let workload = Workload {
        active: false,
        ..Workload::running(1, FAST)
    };
    let (mut database, agent) = start(environment, workload).await?;
    let id: Uuid = sqlx::query_scalar("select id from public.visit_distribution")
        .fetch_one(&mut database.connection)
        .await?;
    let mut resumes = Vec::new();
    for _ in 0..RESUMES {
        for active in [true, false] {
            let edited = sqlx::query("update public.visit_distribution set is_active = $1");
            edited
                .bind(active)
                .execute(&mut database.connection)
                .await?;
            if active {
                resumes.push(committed(&mut database, id).await?);
            }
            tokio::time::sleep(PHASE).await;
        }
    }
    let commits = database.commits().await?;
    agent.stop().await?;
    environment.remove(database).await?;
    let samples = resumes.into_iter().filter_map(|resume| {
        let mut visits = commits.iter().map(|(_, visit)| *visit);
        let first = visits.find(|visit| *visit >= resume)?;
        Some(first.micros_since(resume))
    });
    Ok(Samples::of(samples.collect()))
}
