//! The write: one call of `visit_pacer_store()` stores a batch, as a transaction of its own.
//!
//! Owns the two composite types of its arguments: their fields here and in the migration have the same order.

use std::collections::BTreeSet;
use std::sync::Arc;

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::PgRecordEncoder;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo};
use sqlx::{Encode, Postgres, Row as _, Type};
use uuid::Uuid;

use super::connection::Connection;
use crate::domain::batch::{Batch, BatchRow};
use crate::domain::time::DbTime;
use crate::domain::visit::{Generator, Visit};

const STORE: &str =
    "select id, clock_timestamp() as clock from public.visit_pacer_store($1, $2) as id";

/// A batch with its visits, as the arguments of the statement.
pub struct BatchRecords<'b> {
    rows: Vec<RowRecord<'b>>,
    visits: Vec<VisitRecord<'b>>,
}

impl<'b> BatchRecords<'b> {
    /// Draws the visits of a batch.
    pub fn of(batch: &'b Batch, generator: &'b Generator) -> Self {
        let visits_of = |row: &'b BatchRow| {
            let partner: Arc<str> = row.partner_id.to_string().into();
            (row.before.last_number + 1..)
                .zip(&row.visit_times)
                .map(move |(number, at)| VisitRecord {
                    row,
                    partner: Arc::clone(&partner),
                    visit: generator.visit(row.id, &row.partner_id, number, *at),
                })
        };
        Self {
            rows: batch.rows.iter().map(RowRecord).collect(),
            visits: batch.rows.iter().flat_map(visits_of).collect(),
        }
    }
}

/// `visit_pacer_batch_row`
struct RowRecord<'b>(&'b BatchRow);

impl Encode<'_, Postgres> for RowRecord<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let Self(row) = self;
        let mut record = PgRecordEncoder::new(buffer);
        record
            .encode(row.id)?
            .encode(row.version)?
            .encode(row.before.last_number)?
            .encode(row.before.distributed)?
            .encode(row.before.bucket.at_column())?
            .encode(i32::try_from(row.visits()).unwrap_or(i32::MAX))?
            .encode(row.at)?
            .encode(row.after.last_visited_at)?
            .encode(row.after.bucket.units_column())?
            .encode(row.after.bucket.at_column())?
            .finish();
        Ok(IsNull::No)
    }
}

/// `visit_pacer_batch_visit`
struct VisitRecord<'b> {
    row: &'b BatchRow,
    partner: Arc<str>,
    visit: Visit<'b>,
}

impl Encode<'_, Postgres> for VisitRecord<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let Self {
            row,
            partner,
            visit,
        } = self;
        let mut record = PgRecordEncoder::new(buffer);
        record
            .encode(row.id)?
            .encode(&**partner)?
            .encode(visit.number)?
            .encode(visit.id)?
            .encode(visit.visited_at)?
            .encode(visit.session_duration)?
            .encode(visit.page_path)?
            .encode(visit.user_agent)?
            .encode(visit.referrer)?
            .encode(visit.device_type)?
            .finish();
        Ok(IsNull::No)
    }
}

/// A composite type of ours and its array type.
macro_rules! composite {
    ($record:ident, $name:literal) => {
        impl Type<Postgres> for $record<'_> {
            fn type_info() -> PgTypeInfo {
                PgTypeInfo::with_name(concat!("public.", $name))
            }
        }
        impl PgHasArrayType for $record<'_> {
            fn array_type_info() -> PgTypeInfo {
                PgTypeInfo::array_of(concat!("public.", $name))
            }
        }
    };
}
composite!(RowRecord, "visit_pacer_batch_row");
composite!(VisitRecord, "visit_pacer_batch_visit");

/// SQLSTATEs of a write that was made for other columns than `store_visits` has now: `undefined_column`, `datatype_mismatch`,
/// `generated_always`.
const COLUMNS_CHANGED: [&str; 3] = ["42703", "42804", "428C9"];

/// Adapts the write to the columns of `store_visits`; true if they had changed.
pub async fn refresh_columns(connection: &mut Connection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select public.visit_pacer_refresh_columns()")
        .fetch_one(connection)
        .await
}

/// Stores a batch. Returns the distributions that were stored, and the database's clock (`None` if none was stored). Where the user
/// has altered the columns of `store_visits`, the write is adapted and the batch stored after all.
pub async fn store(
    connection: &mut Connection,
    records: &BatchRecords<'_>,
) -> Result<(BTreeSet<Uuid>, Option<DbTime>), sqlx::Error> {
    match call(connection, records).await {
        Err(error) if is_about_columns(&error) && refresh_columns(connection).await? => {
            call(connection, records).await
        }
        answer => answer,
    }
}

fn is_about_columns(error: &sqlx::Error) -> bool {
    let code = error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| COLUMNS_CHANGED.contains(&&*code))
}

async fn call(
    connection: &mut Connection,
    records: &BatchRecords<'_>,
) -> Result<(BTreeSet<Uuid>, Option<DbTime>), sqlx::Error> {
    let answer = sqlx::query(STORE)
        .bind(&records.rows)
        .bind(&records.visits)
        .fetch_all(connection)
        .await?;
    let mut stored = BTreeSet::new();
    let mut db = None;
    for row in &answer {
        stored.insert(row.try_get("id")?);
        db = Some(row.try_get("clock")?);
    }
    Ok((stored, db))
}
