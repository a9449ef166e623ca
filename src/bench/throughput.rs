//! Visits per second through the whole writer (locks, compare-and-set, numbers, progress, indexes, foreign keys) against
//! COPY of the same rows into the same table: one connection, then two.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use sqlx::{Executor as _, PgConnection};
use tokio::task::JoinSet;

use super::copy::copy;
use super::environment::{BenchDatabase, BenchEnvironment, Workload};
use super::figures::{Cell, ReportTable, ratio};
use crate::domain::batch::{Batch, BatchRow, Progress};
use crate::domain::distribution::Distribution;
use crate::domain::schedule::RowRead;
use crate::domain::time::SECOND_US;
use crate::domain::visit::Generator;
use crate::postgres::batches::{BatchRecords, store};
use crate::postgres::connection::Connection;
use crate::postgres::reconnect::Database;
use crate::postgres::rows;

/// Visits in a batch.
const VISITS: i32 = 10_000;
/// Rounds of alternating turns, so that a machine that slows down affects both alike.
const ROUNDS: u32 = 11;

/// Distributions of a batch in which each has many visits.
const FEW_ROWS: u32 = 10;

/// COPY and the writer, measured in turn.
struct Pair {
    rows: u32,
    connections: u32,
    /// Visits a second.
    copied: f64,
    stored: f64,
    /// The median of the turns' own ratios, stored to copied.
    ratio: f64,
}

/// How visits are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum StoreMethod {
    Copy,
    Writer,
}

/// Measures for `seconds` each.
pub async fn measure(
    environment: &mut BenchEnvironment,
    seconds: u32,
) -> anyhow::Result<ReportTable> {
    let mut table = ReportTable::new(
        "Throughput, batches of 10,000 visits",
        "method | rows in a batch | connections | visits/s | of COPY",
    );
    let mut found = Vec::new();
    for connections in [1, 2] {
        for rows in [FEW_ROWS, 10_000] {
            found.push(pair(environment, rows, connections, seconds).await?);
        }
    }
    for pair in &found {
        for (name, figure, of_copy) in [
            ("COPY (binary, client side)", pair.copied, 1.0),
            ("visit-pacer", pair.stored, pair.ratio),
        ] {
            table.rows.push(vec![
                Cell::word(name),
                Cell::whole(pair.rows),
                Cell::whole(pair.connections),
                Cell::Number(figure, 0),
                Cell::Number(of_copy, 2),
            ]);
        }
    }
    for pair in found.iter().filter(|pair| pair.rows == FEW_ROWS) {
        let what = format!(
            "0.9 of COPY of the same visits with {} connection(s), {FEW_ROWS} rows in a batch",
            pair.connections
        );
        table.at_least(&what, pair.ratio, 0.9);
        let same = found
            .iter()
            .filter(|other| other.connections == pair.connections);
        let best = same.map(|other| other.copied).fold(0.0, f64::max);
        let what = format!(
            "0.9 of the best COPY with {} connection(s), {FEW_ROWS} rows in a batch",
            pair.connections
        );
        table.at_least(&what, ratio(pair.stored, best), 0.9);
    }
    table.note("Medians of alternating turns of COPY and the writer. “of COPY” is the median of the turns' own ratios; the best COPY is the best of the medians.");
    table.note("There is no goal for batches of 10,000 distributions with one visit each: there each visit costs a lock, a comparison and a row of progress.");
    Ok(table)
}

/// COPY and the writer, in turn.
async fn pair(
    environment: &mut BenchEnvironment,
    rows: u32,
    connections: u32,
    seconds: u32,
) -> anyhow::Result<Pair> {
    let mut database = environment.database().await?;
    let workload = Workload {
        start_in: -5,
        ..Workload::running(rows * connections, &[("second", "1")])
    };
    database.insert(workload).await?;
    let time = Duration::from_secs(u64::from(seconds)) / ROUNDS;
    let (mut copied, mut stored) = (Vec::new(), Vec::new());
    let mut lanes = lanes(&database, rows).await?;
    for _ in 0..ROUNDS {
        for (method, rates) in [
            (StoreMethod::Copy, &mut copied),
            (StoreMethod::Writer, &mut stored),
        ] {
            database
                .connection
                .execute("truncate public.store_visits; checkpoint")
                .await?;
            let began = Instant::now();
            let mut running = JoinSet::new();
            for lane in lanes.drain(..) {
                running.spawn(lane.run(method, time));
            }
            let mut visits = 0;
            while let Some(ended) = running.join_next().await {
                let (lane, batches) = ended.context("a lane failed")??;
                visits += batches * VISITS;
                lanes.push(lane);
            }
            rates.push(f64::from(visits) / began.elapsed().as_secs_f64());
        }
    }
    drop(lanes);
    environment.remove(database).await?;
    let each = stored.iter().zip(&copied);
    Ok(Pair {
        rows,
        connections,
        ratio: median(
            each.map(|(stored, copied)| ratio(*stored, *copied))
                .collect(),
        ),
        copied: median(copied),
        stored: median(stored),
    })
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(0.0)
}

/// A connection for each method, with rows of their own.
struct BenchLane {
    generator: Generator,
    copying: (PgConnection, Batch),
    storing: (Connection, Batch),
}

/// Divides the distributions among lanes of `rows_each`.
async fn lanes(bench: &BenchDatabase, rows_each: u32) -> anyhow::Result<Vec<BenchLane>> {
    let database = Database::from_url(&bench.url)?;
    let mut connection = database.connect().await?;
    let catalogue = rows::catalogue(&mut connection).await?;
    let known = rows::every(&mut connection).await?.rows;
    let mut lanes = Vec::new();
    for some in known.chunks(usize::try_from(rows_each)?) {
        let visits = VISITS / i32::try_from(rows_each)?;
        let parts = some.iter().filter_map(|read| part(read, visits.into()));
        let batch = Batch {
            rows: parts.collect(),
        };
        lanes.push(BenchLane {
            generator: Generator::new(&catalogue),
            copying: (bench.connect().await?, batch.clone()),
            storing: (database.connect().await?, batch),
        });
    }
    Ok(lanes)
}

/// The part of a distribution in a batch of `visits` visits.
fn part(read: &RowRead, visits: i64) -> Option<BatchRow> {
    let row = Distribution::parse(&read.row).ok()?;
    let after = read.progress.clone()?;
    // As if a batch had just been stored: `advance` continues from there.
    let before = Progress {
        distributed: after.distributed - visits,
        last_number: after.last_number - visits,
        ..after.clone()
    };
    Some(BatchRow {
        id: row.id,
        partner_id: row.partner_id,
        version: row.version,
        before,
        after,
        at: row.curve.from?,
        visit_times: Vec::new(),
    })
}

/// Advances to the next visits, spread over a second as by the curve.
fn advance(batch: &mut Batch) {
    for row in &mut batch.rows {
        let visits = row.visits();
        row.before = row.after.clone();
        row.after.distributed += visits;
        row.after.last_number += visits;
        let apart = SECOND_US / visits;
        row.visit_times = (0..visits)
            .map(|place| row.at.plus_micros(place * apart))
            .collect();
        row.after.last_visited_at = row.visit_times.last().copied();
    }
}

impl BenchLane {
    /// Stores batches for this time, and returns their number.
    async fn run(mut self, method: StoreMethod, time: Duration) -> anyhow::Result<(Self, i32)> {
        let began = Instant::now();
        let mut batches = 0;
        while began.elapsed() < time {
            match method {
                StoreMethod::Copy => {
                    let (connection, batch) = &mut self.copying;
                    advance(batch);
                    copy(connection, batch, &self.generator).await?;
                }
                StoreMethod::Writer => {
                    let (connection, batch) = &mut self.storing;
                    advance(batch);
                    let records = BatchRecords::of(batch, &self.generator);
                    let (stored, _) = store(connection, &records).await?;
                    ensure!(
                        stored.len() == batch.rows.len(),
                        "the writer stored {} rows of {}",
                        stored.len(),
                        batch.rows.len()
                    );
                }
            }
            batches += 1;
        }
        Ok((self, batches))
    }
}
