//! Reads rows with their progress. A user may have made anything of a row, so its values come as text and are parsed by
//! the core; nothing that is in a table can make this fail.

use std::collections::BTreeSet;
use std::io;

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row as _};
use uuid::Uuid;

use super::connection::Connection;
use crate::domain::agent::{Horizon, What};
use crate::domain::batch::Progress;
use crate::domain::bucket::Bucket;
use crate::domain::distribution::RawRow;
use crate::domain::limits::ROWS_PER_READ;
use crate::domain::time::DbTime;
use crate::domain::timetable::RowRead;
use crate::domain::visit::PagePath;

/// Page paths that are read at the most.
const PAGE_PATHS_MAX: i64 = 100_000;

/// Every row with its progress, or those for which a condition holds.
macro_rules! rows_where {
    ($condition:literal) => {
        rows_where!($condition, "")
    };
    ($condition:literal, $of_progress:literal) => {
        concat!(
            "
  select v.id, v.partner_id, v.config_version, v.is_active, v.total_visits::numeric::text as total_visits,
         v.visits_per_unit::numeric::text as visits_per_unit, v.time_period::text as time_period,
         case when isfinite(v.start_time) then trunc(extract(epoch from v.start_time::timestamptz) * 1000000)::text
              else v.start_time::text end as start_time,
         case when isfinite(v.end_time) then trunc(extract(epoch from v.end_time::timestamptz) * 1000000)::text
              else v.end_time::text end as end_time,
         v.catch_up::text as catch_up, v.anchor_units::text as anchor_units,
         trunc(extract(epoch from v.anchor_at) * 1000000)::text as anchor_at,
         v.total_distributed::numeric::text as total_distributed,
         p.distribution_id is not null as has_progress, p.distributed, p.last_number,
         (extract(epoch from p.last_visited_at) * 1000000)::bigint as last_visited_at,
         p.bucket_units::text as bucket_units, (extract(epoch from p.bucket_at) * 1000000)::bigint as bucket_at,
         p.invalid_reason, (extract(epoch from clock_timestamp()) * 1000000)::bigint as clock
    from public.visit_distribution v
    left join public.visit_distribution_progress p on p.distribution_id = v.id",
            $of_progress,
            "
   where ",
            $condition
        )
    };
}

/// Every row in one look, which parts are fetched from: one pass over both tables, in whatever order is cheapest.
const OPEN: &str = concat!(
    "begin; set local cursor_tuple_fraction = 1; declare visit_pacer_rows no scroll cursor for ",
    rows_where!("true")
);
const FETCH: &str = "fetch 5000 from visit_pacer_rows";
const CLOSE: &str = "commit";
const _: () = assert!(ROWS_PER_READ == 5_000, "as FETCH has it");
/// Through a transaction pooler no cursor outlives a call, so there each part is a look of its own, by id; `$1`: how many.
const FIRST: &str = rows_where!("true order by v.id limit $1");
/// `$1`: the row that the part comes after; `$2`: how many. Said of both tables, or a merge of their indexes begins at the
/// second one's first row each time.
const AFTER: &str = rows_where!(
    "v.id > $1 order by v.id limit $2",
    " and p.distribution_id > $1"
);
/// `$1`: the ids.
const SOME: &str = rows_where!("v.id = any ($1)");
/// `$1`: a horizon; `$2`: how many. A row without `changed_xid` has been seen by no trigger yet. Each branch is a search in an index.
pub const SINCE: &str = rows_where!(
    "v.id in (select c.id from public.visit_distribution c where c.changed_xid >= $1::text::xid8
            union all select c.id from public.visit_distribution c where c.changed_xid is null
            union all select l.distribution_id from public.visit_distribution_progress l where l.lowered_xid >= $1::text::xid8)
     limit $2"
);

/// Rows, and what the database's clock said meanwhile.
#[derive(Debug)]
pub struct Rows {
    /// In no order.
    pub rows: Vec<RowRead>,
    /// There may be more than one statement takes: the last of these.
    pub more_after: Option<Uuid>,
    /// See [`clock`].
    pub db: DbTime,
}

/// Reads every row, in parts, or some.
#[derive(Debug, Default)]
pub struct Reader {
    /// There is a cursor, and a transaction around it.
    open: bool,
    /// The next part, read while nobody has asked for it yet.
    next: Option<Rows>,
}

impl Reader {
    /// Reads a part. After a call that failed the connection may be in a transaction that is over: it must not be used on.
    pub async fn read(
        &mut self,
        connection: &mut Connection,
        what: &What,
    ) -> Result<Rows, sqlx::Error> {
        let begins = *what == What::All && !connection.is_pooled();
        let goes_on = matches!(what, What::After(_)) && !connection.is_pooled();
        if goes_on && let Some(mut next) = self.next.take() {
            next.db = clock(connection).await?; // that of the part is older than the call
            return Ok(next);
        }
        if goes_on && !self.open {
            let cut = "the look at every row was cut short";
            return Err(io::Error::new(io::ErrorKind::ConnectionReset, cut).into());
        }
        if begins {
            self.close(connection).await?;
            sqlx::raw_sql(OPEN).execute(connection.simple()).await?;
            self.open = true;
        }
        if !begins && !goes_on {
            return read(connection, what).await;
        }
        self.fetch(connection).await
    }

    /// Reads the next part of every row, if there is one, for who will ask for it: the database works on it meanwhile.
    pub async fn read_ahead(&mut self, connection: &mut Connection) -> Result<(), sqlx::Error> {
        if self.open && self.next.is_none() {
            self.next = Some(self.fetch(connection).await?);
        }
        Ok(())
    }

    async fn fetch(&mut self, connection: &mut Connection) -> Result<Rows, sqlx::Error> {
        let found = sqlx::query(FETCH).fetch_all(&mut *connection).await?;
        let part = rows(connection, &found, true).await?;
        if part.more_after.is_none() {
            self.close(connection).await?;
        }
        Ok(part)
    }

    /// The connection is to be another from now on; whether there was a cursor on it.
    pub fn forget(&mut self) -> bool {
        self.next = None;
        std::mem::take(&mut self.open)
    }

    async fn close(&mut self, connection: &mut Connection) -> Result<(), sqlx::Error> {
        self.next = None;
        if std::mem::take(&mut self.open) {
            sqlx::raw_sql(CLOSE).execute(connection.simple()).await?;
        }
        Ok(())
    }
}

/// Reads rows, by one statement.
pub async fn read(connection: &mut Connection, what: &What) -> Result<Rows, sqlx::Error> {
    let most = i64::try_from(ROWS_PER_READ).unwrap_or(i64::MAX);
    let query: Query<'_, Postgres, PgArguments> = match what {
        What::All => sqlx::query(FIRST).bind(most),
        What::After(id) => sqlx::query(AFTER).bind(id).bind(most),
        What::Rows(ids) => sqlx::query(SOME).bind(ids),
        What::Since(horizon) => sqlx::query(SINCE).bind(horizon.0.to_string()).bind(most),
    };
    let found = query.fetch_all(&mut *connection).await?;
    rows(connection, &found, !matches!(what, What::Rows(_))).await
}

/// The rows of an answer, which may be a part of them.
async fn rows(
    connection: &mut Connection,
    found: &[PgRow],
    is_part: bool,
) -> Result<Rows, sqlx::Error> {
    let db = match found.first() {
        Some(row) => DbTime::from_micros(row.try_get("clock")?),
        None => clock(connection).await?,
    };
    let rows = found.iter().map(row).collect::<Result<Vec<_>, _>>()?;
    let last = rows.last().map(|read| read.row.id);
    Ok(Rows {
        more_after: last.filter(|_| is_part && rows.len() >= ROWS_PER_READ),
        rows,
        db,
    })
}

/// Reads every row, part by part; for who need not bound them.
pub async fn every(connection: &mut Connection) -> Result<Rows, sqlx::Error> {
    let mut reader = Reader::default();
    let mut all = reader.read(connection, &What::All).await?;
    while let Some(last) = all.more_after {
        let part = reader.read(connection, &What::After(last)).await?;
        all.rows.extend(part.rows);
        all.more_after = part.more_after;
        all.db = part.db;
    }
    Ok(all)
}

/// The rows that were deleted since; `None` among them: the table was truncated.
pub async fn gone(
    connection: &mut Connection,
    since: Horizon,
) -> Result<BTreeSet<Option<Uuid>>, sqlx::Error> {
    let gone: Vec<Option<Uuid>> = sqlx::query_scalar(
        "select distinct g.distribution_id from public.visit_pacer_gone g where g.xid >= $1::text::xid8
            and not exists (select from public.visit_distribution v where v.id = g.distribution_id)",
    )
    .bind(since.0.to_string())
    .fetch_all(connection)
    .await?;
    Ok(gone.into_iter().collect())
}

/// Where a look at the table that begins after this one's answer leaves off.
pub async fn horizon(connection: &mut Connection) -> Result<Horizon, sqlx::Error> {
    let oldest: String = sqlx::query_scalar("select pg_snapshot_xmin(pg_current_snapshot())::text")
        .fetch_one(connection)
        .await?;
    let oldest = oldest
        .parse()
        .map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    Ok(Horizon(oldest))
}

/// What the database's clock says.
pub async fn clock(connection: &mut Connection) -> Result<DbTime, sqlx::Error> {
    sqlx::query_scalar("select (extract(epoch from clock_timestamp()) * 1000000)::bigint")
        .fetch_one(connection)
        .await
        .map(DbTime::from_micros)
}

/// The catalogue that page paths are drawn from.
pub async fn page_paths(connection: &mut Connection) -> Result<Vec<PagePath>, sqlx::Error> {
    let rows = sqlx::query(
        "select path, trunc(weight * 1000000)::bigint as parts, partner_id from public.visit_page_paths \
         order by path, partner_id limit $1",
    )
    .bind(PAGE_PATHS_MAX)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let parts: i64 = row.try_get("parts")?;
            Ok(PagePath {
                path: row.try_get("path")?,
                weight_parts: u64::try_from(parts).unwrap_or(0),
                partner: row.try_get("partner_id")?,
            })
        })
        .collect()
}

fn row(row: &PgRow) -> Result<RowRead, sqlx::Error> {
    let time = |name| {
        row.try_get::<Option<i64>, _>(name)
            .map(|at| at.map(DbTime::from_micros))
    };
    let written: Option<String> = row.try_get("total_distributed")?;
    let progress = if row.try_get("has_progress")? {
        let units: Option<String> = row.try_get("bucket_units")?;
        Some(Progress {
            distributed: row.try_get("distributed")?,
            last_number: row.try_get("last_number")?,
            bucket: Bucket::from_columns(units.as_deref(), time("bucket_at")?),
            last_visited_at: time("last_visited_at")?,
            invalid: row.try_get("invalid_reason")?,
        })
    } else {
        None
    };
    Ok(RowRead {
        row: RawRow {
            id: row.try_get("id")?,
            partner_id: row.try_get("partner_id")?,
            config_version: row.try_get("config_version")?,
            is_active: row.try_get("is_active")?,
            total_visits: row.try_get("total_visits")?,
            visits_per_unit: row.try_get("visits_per_unit")?,
            time_period: row.try_get("time_period")?,
            start_time: row.try_get("start_time")?,
            end_time: row.try_get("end_time")?,
            catch_up: row.try_get("catch_up")?,
            anchor_units: row.try_get("anchor_units")?,
            anchor_at: row.try_get("anchor_at")?,
        },
        progress,
        written: written.and_then(|text| text.parse().ok()),
    })
}
