//! How soon: from the COMMIT of an edit to the schedule that follows it, and to the first visit after a resume.
//!
//! The first is told by the agent's own log, at level debug; so both clocks must be one machine's: the embedded stack alone is
//! measured. Edits come at moments that know nothing of the agent's, one at a time.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use sqlx::Row as _;
use uuid::Uuid;

use super::figures::{Cell, Spread, Table};
use super::ground::{Field, Ground, Rows};
use super::program::{Program, Told};
use crate::domain::time::DbTime;

const ROWS: u32 = 100;
const RATES: &[(&str, &str)] = &[("minute", "60")];
/// Edits are so far apart, and a part of that more, so that they meet every moment of a second.
const EDITS_APART: Duration = Duration::from_millis(80);
const APART_MORE_MS: u64 = 37;
/// The last edit has been followed so long after it.
const SETTLES: Duration = Duration::from_secs(3);
/// A resumed row that asks for so much owes a visit within a millisecond.
const FAST: &[(&str, &str)] = &[("second", "1000")];
const RESUMES: u32 = 20;
/// A paused row rests so long, and a resumed one runs so long.
const RESTS: Duration = Duration::from_millis(1_337);
const TOLD: Told = Told {
    max_visits_per_second: 20_000,
    log: Some("visit_pacer=debug"),
};

/// A line of the log that tells of a row.
#[derive(Deserialize)]
struct Line {
    timestamp: String,
    message: String,
    distribution: Option<Uuid>,
}

/// Measures it; `seconds` of edits.
pub async fn measure(
    ground: &mut Ground,
    seconds: u32,
) -> anyhow::Result<(Table, Vec<(String, Spread)>)> {
    let mut table = Table::new(
        "Reaction, from the COMMIT of an edit",
        &["to", "edits", "p50, ms", "p99, ms", "max, ms"],
    );
    if ground.server_pid().is_none() {
        table
            .notes
            .push("Not measured: the server's clock is not this machine's.".to_owned());
        return Ok((table, Vec::new()));
    }
    let followed = followed(ground, seconds).await?;
    let resumed = resumed(ground).await?;
    for (to, seen) in [
        ("the schedule changed", &followed),
        ("the first visit after a resume", &resumed),
    ] {
        let [p50, p99, max] = seen.cells();
        table.rows.push(vec![
            Cell::word(to),
            Cell::whole(u32::try_from(seen.len())?),
            p50,
            p99,
            max,
        ]);
    }
    table.at_most(
        "p99 of the schedule's change, ms, under 100",
        followed.percentile(99),
        100.0,
    );
    table.notes.push("A row fires once a second, so a first visit waits half a second on the average, however soon its edit is known.".to_owned());
    Ok((table, vec![("edit to schedule".to_owned(), followed)]))
}

/// Rows, and an agent that follows them.
async fn followed_rows(ground: &mut Ground, rows: Rows<'_>) -> anyhow::Result<(Field, Program)> {
    let mut field = ground.field().await?;
    field.starts_realtime().await?;
    field.rows(rows).await?;
    let mut agent = Program::agent(&field, TOLD)?;
    agent.ready().await?;
    Ok((field, agent))
}

async fn followed(ground: &mut Ground, seconds: u32) -> anyhow::Result<Spread> {
    let rows = Rows {
        count: ROWS,
        rates: RATES,
        start_in: -1,
        start_over: 0,
        active: true,
    };
    let (mut field, agent) = followed_rows(ground, rows).await?;
    let ids: Vec<Uuid> = sqlx::query_scalar("select id from public.visit_distribution order by id")
        .fetch_all(&mut field.connection)
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
            .fetch_one(&mut field.connection)
            .await?
            .try_get(0)?;
        commits.insert((*id, version), committed(&mut field, *id).await?);
        tokio::time::sleep(EDITS_APART + Duration::from_millis(turn * 7 % APART_MORE_MS)).await;
    }
    tokio::time::sleep(SETTLES).await;
    let log = agent.stop_and_read_log().await?;
    ground.clear(field).await?;
    let mut after = Vec::new();
    for line in log
        .lines()
        .filter_map(|line| serde_json::from_str::<Line>(line).ok())
    {
        let version = line
            .message
            .strip_prefix("the schedule follows the row, version ");
        let version = version.and_then(|version| version.parse().ok());
        if let (Some(id), Some(version)) = (line.distribution, version)
            && let Some(at) = commits.remove(&(id, version))
        {
            let told: DateTime<Utc> = line.timestamp.parse().context("the log's timestamp")?;
            after.push(DbTime::from(told).micros_since(at));
        }
    }
    anyhow::ensure!(
        commits.is_empty(),
        "{} edits were not followed",
        commits.len()
    );
    Ok(Spread::of(after))
}

/// When the row was last committed.
async fn committed(field: &mut Field, id: Uuid) -> anyhow::Result<DbTime> {
    let at = sqlx::query_scalar(
        "select (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint from public.visit_distribution where id = $1",
    );
    Ok(DbTime::from_micros(
        at.bind(id).fetch_one(&mut field.connection).await?,
    ))
}

async fn resumed(ground: &mut Ground) -> anyhow::Result<Spread> {
    let rows = Rows {
        count: 1,
        rates: FAST,
        start_in: -1,
        start_over: 0,
        active: false,
    };
    let (mut field, agent) = followed_rows(ground, rows).await?;
    let id: Uuid = sqlx::query_scalar("select id from public.visit_distribution")
        .fetch_one(&mut field.connection)
        .await?;
    let mut resumes = Vec::new();
    for _ in 0..RESUMES {
        for active in [true, false] {
            let edited = sqlx::query("update public.visit_distribution set is_active = $1");
            edited.bind(active).execute(&mut field.connection).await?;
            if active {
                resumes.push(committed(&mut field, id).await?);
            }
            tokio::time::sleep(RESTS).await;
        }
    }
    let commits = field.commits().await?;
    agent.stop().await?;
    ground.clear(field).await?;
    let first = |at: DbTime| {
        commits
            .iter()
            .map(|(_, visit)| *visit)
            .find(|visit| *visit >= at)
    };
    Ok(Spread::of(
        resumes
            .into_iter()
            .filter_map(|at| Some(first(at)?.micros_since(at)))
            .collect(),
    ))
}
