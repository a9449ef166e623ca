//! The one write: a batch becomes one call of `visit_pacer_store()`, in one statement of its own transaction.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use sqlx::Row as _;
use uuid::Uuid;

use super::connection::Connection;
use crate::domain::batch::{Batch, BatchRow};
use crate::domain::time::DbTime;
use crate::domain::visit::Generator;

const STORE: &str = "
  select id, (extract(epoch from clock_timestamp()) * 1000000)::bigint as clock
    from public.visit_pacer_store($1, $2, $3, $4, $5, $6, $7, $8, $9::text[]::numeric[], $10,
                                  $11, $12, $13, $14, $15, $16, $17, $18, $19, $20) as id";

/// A batch as the statement takes it: one array per column.
#[derive(Default)]
pub struct Columns<'a> {
    rows: Vec<Uuid>,
    versions: Vec<i64>,
    last_numbers: Vec<i64>,
    distributed: Vec<i64>,
    bucket_at_before: Vec<Option<DateTime<Utc>>>,
    counts: Vec<i32>,
    cuts: Vec<Option<DateTime<Utc>>>,
    last_visited_at: Vec<Option<DateTime<Utc>>>,
    bucket_units: Vec<Option<String>>,
    bucket_at: Vec<Option<DateTime<Utc>>>,
    visit_rows: Vec<Uuid>,
    visit_partners: Vec<Uuid>,
    visit_numbers: Vec<i64>,
    visit_ids: Vec<Uuid>,
    visit_moments: Vec<Option<DateTime<Utc>>>,
    visit_durations: Vec<i32>,
    visit_paths: Vec<&'a str>,
    visit_agents: Vec<&'static str>,
    visit_referrers: Vec<Option<&'static str>>,
    visit_devices: Vec<&'static str>,
}

impl<'a> Columns<'a> {
    /// Draws the visits of a batch.
    pub fn of(batch: &Batch, generator: &'a Generator) -> Self {
        let mut columns = Self::default();
        for row in &batch.rows {
            columns.push_row(row);
            for (number, moment) in (row.before.last_number + 1..).zip(&row.visit_times) {
                columns.push_visit(row, number, *moment, generator);
            }
        }
        columns
    }

    fn push_row(&mut self, row: &BatchRow) {
        let datetime = |at: Option<DbTime>| at.and_then(DbTime::to_datetime);
        self.rows.push(row.id);
        self.versions.push(row.version);
        self.last_numbers.push(row.before.last_number);
        self.distributed.push(row.before.distributed);
        self.bucket_at_before
            .push(datetime(row.before.bucket.at_column()));
        self.counts
            .push(i32::try_from(row.visits()).unwrap_or(i32::MAX));
        self.cuts.push(row.at.to_datetime());
        self.last_visited_at
            .push(datetime(row.after.last_visited_at));
        self.bucket_units.push(row.after.bucket.units_column());
        self.bucket_at.push(datetime(row.after.bucket.at_column()));
    }

    fn push_visit(
        &mut self,
        row: &BatchRow,
        number: i64,
        moment: DbTime,
        generator: &'a Generator,
    ) {
        let visit = generator.visit(row.id, row.partner_id, number, moment);
        self.visit_rows.push(row.id);
        self.visit_partners.push(row.partner_id);
        self.visit_numbers.push(number);
        self.visit_ids.push(visit.id);
        self.visit_moments.push(moment.to_datetime());
        self.visit_durations.push(visit.session_duration);
        self.visit_paths.push(visit.page_path);
        self.visit_agents.push(visit.user_agent);
        self.visit_referrers.push(visit.referrer);
        self.visit_devices.push(visit.device_type);
    }
}

/// Stores a batch. Returns the rows that were stored, and what the database's clock said (`None` where none was).
pub async fn store(
    connection: &mut Connection,
    columns: &Columns<'_>,
) -> Result<(BTreeSet<Uuid>, Option<DbTime>), sqlx::Error> {
    let answer = sqlx::query(STORE)
        .bind(&columns.rows)
        .bind(&columns.versions)
        .bind(&columns.last_numbers)
        .bind(&columns.distributed)
        .bind(&columns.bucket_at_before)
        .bind(&columns.counts)
        .bind(&columns.cuts)
        .bind(&columns.last_visited_at)
        .bind(&columns.bucket_units)
        .bind(&columns.bucket_at)
        .bind(&columns.visit_rows)
        .bind(&columns.visit_partners)
        .bind(&columns.visit_numbers)
        .bind(&columns.visit_ids)
        .bind(&columns.visit_moments)
        .bind(&columns.visit_durations)
        .bind(&columns.visit_paths)
        .bind(&columns.visit_agents)
        .bind(&columns.visit_referrers)
        .bind(&columns.visit_devices)
        .fetch_all(connection)
        .await?;
    let mut stored = BTreeSet::new();
    let mut db = None;
    for row in &answer {
        stored.insert(row.try_get("id")?);
        db = Some(DbTime::from_micros(row.try_get("clock")?));
    }
    Ok((stored, db))
}
