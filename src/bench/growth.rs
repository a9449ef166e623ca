//! What grows with the number of distributions, and what does not: a sync without changes, a full read, and the schedule's
//! own work for what is due.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::environment::BenchDatabase;
use super::figures::{Cell, ReportTable};
use crate::domain::agent::ReadRequest;
use crate::domain::batch::Progress;
use crate::domain::distribution::RawRow;
use crate::domain::schedule::{ReadSequence, RowRead, Schedule};
use crate::domain::time::{DbTime, SECOND_US};
use crate::postgres::failure::Failure;
use crate::postgres::reconnect::Database;
use crate::postgres::rows;
use crate::postgres::scan::Reader;

/// Measured syncs without changes; the median counts.
const SYNCS: usize = 21;

/// The duration of reading the table, without an agent.
pub struct ReadDurations {
    /// Of a sync that finds no changes.
    pub sync: Duration,
    /// Of all rows.
    pub full: Duration,
}

/// Reads the table as the agent's reader does.
pub async fn read_durations(database: &BenchDatabase) -> anyhow::Result<ReadDurations> {
    let database = Database::from_url(&database.url)?;
    let mut connection = database.connect().await?;
    let mut took = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let watermark = rows::watermark(&mut connection)
            .await
            .map_err(Failure::from)?;
        let began = Instant::now();
        let sync = async {
            rows::watermark(&mut connection).await?;
            rows::read(&mut connection, &ReadRequest::Since(watermark)).await?;
            rows::gone(&mut connection, watermark).await
        };
        sync.await.map_err(Failure::from)?;
        took.push(began.elapsed());
    }
    took.sort_unstable();
    let began = Instant::now();
    let mut reader = Reader::new(database);
    let mut what = ReadRequest::All;
    while let Some(last) = reader.read(&mut connection, &what).await?.more_after {
        what = ReadRequest::After(last);
    }
    Ok(ReadDurations {
        sync: took.get(SYNCS / 2).copied().unwrap_or_default(),
        full: began.elapsed(),
    })
}

/// Distributions, and those of them that are active at six visits a minute.
const LOADS: [(u32, u32); 5] = [
    (1_000, 1_000),
    (10_000, 1_000),
    (100_000, 1_000),
    (1_000_000, 1_000),
    (1_000_000, 100_000),
];
/// 2027-01-15, in microseconds since the Unix epoch: some full second.
const T0: i64 = 1_800_000_000_000_000;
/// The time between two visits of a distribution.
const PERIOD_US: i64 = 10_000_000;
/// Simulated seconds.
const SECONDS: u32 = 20;

/// The schedule's work for what is due, without a database.
pub fn ticks() -> ReportTable {
    let mut table = ReportTable::new(
        "The schedule's own work",
        "distributions | active | visits/s | fires/s | µs per visit | % of a core",
    );
    for (known, active) in LOADS {
        let (fires, visits, took) = work(known, active);
        let per_second = |count: u32| Cell::Number(f64::from(count) / f64::from(SECONDS), 0);
        let percent = took.as_secs_f64() * 100.0 / f64::from(SECONDS);
        table.rows.push(vec![
            Cell::whole(known),
            Cell::whole(active),
            per_second(visits),
            per_second(fires),
            Cell::Number(took.as_secs_f64() * 1e6 / f64::from(visits.max(1)), 2),
            Cell::Number(percent, 2),
        ]);
        if active == 100_000 {
            let what =
                "the schedule's CPU with 100,000 active distributions, % of a core, under 10";
            table.at_most(what, percent, 10.0);
        }
    }
    table
}

fn work(known: u32, active: u32) -> (u32, u32, Duration) {
    let mut schedule = Schedule::default();
    let start = DbTime::from_micros(T0);
    for n in 0..known {
        // Their starts are spread over the time between two visits.
        let since = PERIOD_US * i64::from(n % active) / i64::from(active);
        let read = row(n < active, start.plus_micros(-since));
        schedule.apply(read.row.id, Some(read), ReadSequence(1), start);
    }
    let (mut fires, mut visits) = (0, 0);
    let end = start.plus_micros(i64::from(SECONDS) * SECOND_US);
    let began = Instant::now();
    while let Some(now) = schedule.next_deadline().filter(|at| *at < end) {
        let Some(batch) = schedule.plan(now, i64::MAX) else {
            continue;
        };
        let stored: BTreeSet<Uuid> = batch.rows.iter().map(|row| row.id).collect();
        schedule.answered(&batch, &stored, ReadSequence(2), now);
        fires += 1;
        visits += u32::try_from(batch.visits()).unwrap_or(0);
    }
    (fires, visits, began.elapsed())
}

fn row(active: bool, start: DbTime) -> RowRead {
    let start = Some(start);
    RowRead {
        row: RawRow {
            id: Uuid::from_u128(rand::random()),
            partner_id: Some(Uuid::nil().into()),
            config_version: Some(1),
            is_active: Some(active),
            total_visits: Some("1000000".into()),
            visits_per_unit: Some("6".into()),
            time_period: Some("minute".into()),
            start_time: start,
            end_time: None,
            catch_up: None,
            anchor_units: Some("0".into()),
            anchor_at: start,
        },
        progress: Some(Progress::default()),
        written: Some(0),
    }
}
