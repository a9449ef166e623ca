//! Visits per second through the whole writer (locks, compare-and-set, numbers, progress, indexes, foreign keys) against
//! COPY of the same rows into the same table: one connection, then two.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use sqlx::{Executor as _, PgConnection};
use tokio::task::JoinSet;

use super::copy::copy;
use super::figures::{Cell, Table, ratio};
use super::ground::{Field, Ground, Rows};
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
/// Rounds in which everybody is measured in turn, so that a machine that slows down slows all alike.
const ROUNDS: u32 = 11;

/// Rows that a batch is of, where each asks for much.
const FEW_ROWS: u32 = 10;

/// Both ways, measured in turn.
struct Pair {
    rows: u32,
    connections: u32,
    /// Visits a second.
    copied: f64,
    stored: f64,
    /// Of the second to the first.
    ratio: f64,
}

/// Who stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Copy,
    Writer,
}

/// Measures it; `seconds` for each way.
pub async fn measure(ground: &mut Ground, seconds: u32) -> anyhow::Result<Table> {
    let mut table = Table::new(
        "Throughput, batches of 10,000 visits",
        &[
            "who",
            "rows in a batch",
            "connections",
            "visits/s",
            "of COPY",
        ],
    );
    let mut found = Vec::new();
    for connections in [1, 2] {
        for rows in [FEW_ROWS, 10_000] {
            found.push(pair(ground, rows, connections, seconds).await?);
        }
    }
    for pair in &found {
        for (who, figure, of_copy) in [
            ("COPY (binary, client side)", pair.copied, 1.0),
            ("visit-pacer", pair.stored, pair.ratio),
        ] {
            table.rows.push(vec![
                Cell::word(who),
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
    table.notes.push(
        "Medians of turns that COPY and the writer take; “of COPY” is the median of the turns' own ratios, the best COPY that of the medians."
            .to_owned(),
    );
    table.notes.push(
        "Batches of 10,000 rows of one visit are judged by no aim: there each visit costs a lock, a comparison and a row of progress."
            .to_owned(),
    );
    Ok(table)
}

/// COPY and the writer, in turn.
async fn pair(
    ground: &mut Ground,
    rows: u32,
    connections: u32,
    seconds: u32,
) -> anyhow::Result<Pair> {
    let mut field = ground.field().await?;
    let asked = Rows {
        count: rows * connections,
        rates: &[("second", "1")],
        start_in: -5,
        start_over: 0,
        active: true,
    };
    field.rows(asked).await?;
    let time = Duration::from_secs(u64::from(seconds)) / ROUNDS;
    let (mut copied, mut stored) = (Vec::new(), Vec::new());
    let mut lanes = lanes(&mut field, rows).await?;
    for _ in 0..ROUNDS {
        for (who, rates) in [(Who::Copy, &mut copied), (Who::Writer, &mut stored)] {
            field
                .connection
                .execute("truncate public.store_visits; checkpoint")
                .await?;
            let began = Instant::now();
            let mut running = JoinSet::new();
            for lane in lanes.drain(..) {
                running.spawn(lane.run(who, time));
            }
            let mut visits = 0;
            while let Some(ended) = running.join_next().await {
                let (lane, batches) = ended.context("a lane panicked")??;
                visits += batches * VISITS;
                lanes.push(lane);
            }
            rates.push(f64::from(visits) / began.elapsed().as_secs_f64());
        }
    }
    drop(lanes);
    ground.clear(field).await?;
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

/// One connection, with rows of its own.
struct Lane {
    generator: Generator,
    copying: (PgConnection, Batch),
    storing: (Connection, Batch),
}

/// Deals the field's rows out, so many to a lane.
async fn lanes(field: &mut Field, rows_each: u32) -> anyhow::Result<Vec<Lane>> {
    let database = Database::from_url(&field.url)?;
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
        lanes.push(Lane {
            generator: Generator::new(&catalogue),
            copying: (field.connect().await?, batch.clone()),
            storing: (database.connect().await?, batch),
        });
    }
    Ok(lanes)
}

/// A row's part of a batch of so many visits.
fn part(read: &RowRead, visits: i64) -> Option<BatchRow> {
    let row = Distribution::parse(&read.row).ok()?;
    let after = read.progress.clone()?;
    // As if the batch before had just been stored: `turn` goes on from there.
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

/// On to the next visits, spread over a second as the curve would.
fn turn(batch: &mut Batch) {
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

impl Lane {
    /// Stores batches for so long; how many.
    async fn run(mut self, who: Who, time: Duration) -> anyhow::Result<(Self, i32)> {
        let began = Instant::now();
        let mut batches = 0;
        while began.elapsed() < time {
            match who {
                Who::Copy => {
                    let (connection, batch) = &mut self.copying;
                    turn(batch);
                    copy(connection, batch, &self.generator).await?;
                }
                Who::Writer => {
                    let (connection, batch) = &mut self.storing;
                    turn(batch);
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
