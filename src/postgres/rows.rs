//! Reads rows with their progress. A user may have made anything of a row, so its numbers and words come as text and are
//! parsed by the core; nothing that is in a table can make this fail.

use std::borrow::Cow;
use std::collections::BTreeSet;

use compact_str::CompactString;
use futures_util::TryStreamExt as _;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgRow, PgTypeInfo, PgValueRef};
use sqlx::query::Query;
use sqlx::{Decode, Postgres, Row as _, Type, ValueRef as _};
use uuid::Uuid;

use super::connection::Connection;
use super::time::from_wire;
use crate::domain::agent::{ReadRequest, XidWatermark};
use crate::domain::batch::Progress;
use crate::domain::bucket::Bucket;
use crate::domain::distribution::RawRow;
use crate::domain::limits::ROWS_PER_READ;
use crate::domain::partner::PartnerId;
use crate::domain::schedule::RowRead;
use crate::domain::time::DbTime;
use crate::domain::visit::{Catalogue, PagePath, Referrer, UserAgent};

/// At most so many rows of a table of the catalogue are read.
const CATALOGUE_ROWS_MAX: i64 = 100_000;

/// Every row with its progress, or those for which a condition holds; `$more`: further columns, `$with`: what is known of
/// the progress beforehand.
macro_rules! rows_where {
    ($condition:literal) => {
        rows_where!(", clock_timestamp()", "", $condition)
    };
    ($more:literal, $with:literal, $condition:literal) => {
        concat!(
            "
  select v.id::uuid, v.partner_id::text, v.config_version::bigint, v.is_active::boolean, v.total_visits::numeric::text,
         v.visits_per_unit::numeric::text, v.time_period::text, public.visit_pacer_utc(v.start_time), public.visit_pacer_utc(v.end_time),
         v.catch_up::text, v.anchor_units::text, v.anchor_at::timestamptz, v.total_distributed::numeric::text,
         p.distributed, p.last_number, p.last_visited_at, p.bucket_at, p.bucket_units::text,
         case when p.reason_code = 'insert_failed' then p.reason_detail ->> 'message' end",
            $more,
            "
    from public.visit_distribution v
    left join public.visit_distribution_progress p on p.distribution_id = v.id",
            $with,
            "
   where ",
            $condition
        )
    };
}

/// `$1`: how many.
const FIRST: &str = rows_where!("true order by v.id limit $1");
/// `$1`: the row that the part comes after; `$2`: how many. Said of both tables, or a merge of their indexes begins at the
/// second one's first row each time.
const AFTER: &str = rows_where!(
    ", clock_timestamp()",
    " and p.distribution_id > $1",
    "v.id > $1 order by v.id limit $2"
);
/// All rows after that one in one pass, in whatever order is cheapest: for COPY, which takes no parameters and reads no clock.
pub(super) const ALL_AFTER: &str = rows_where!("", "", "v.id > ");
/// `$1`: the ids.
const SOME: &str = rows_where!("v.id = any ($1)");
/// `$1`: a horizon; `$2`: how many. A row without `changed_xid` has been seen by no trigger yet. Each branch is a search in an index.
pub const SINCE: &str = rows_where!(
    "v.id in (select c.id from public.visit_distribution c where c.changed_xid >= $1::text::xid8
            union all select c.id from public.visit_distribution c where c.changed_xid is null
            union all select l.distribution_id from public.visit_distribution_progress l where l.decreased_xid >= $1::text::xid8)
     limit $2"
);

/// Rows, and what the database's clock said meanwhile.
#[derive(Debug)]
pub struct Rows {
    /// By id: whoever keeps rows by id takes neighbours in at less cost.
    pub rows: Vec<RowRead>,
    /// There may be more than one statement takes: the last of these.
    pub more_after: Option<Uuid>,
    /// See [`clock`].
    pub db: DbTime,
}

/// Reads rows, by one statement.
pub async fn read(connection: &mut Connection, what: &ReadRequest) -> Result<Rows, sqlx::Error> {
    let most = i64::try_from(ROWS_PER_READ).unwrap_or(i64::MAX);
    let query = match what {
        ReadRequest::All => sqlx::query(FIRST).bind(most),
        ReadRequest::After(id) => sqlx::query(AFTER).bind(id).bind(most),
        ReadRequest::Rows(ids) => sqlx::query(SOME).bind(ids),
        ReadRequest::Since(watermark) => {
            sqlx::query(SINCE).bind(watermark.0.to_string()).bind(most)
        }
    };
    rows(connection, query, !matches!(what, ReadRequest::Rows(_))).await
}

/// The rows of an answer, which may be a part of them; each is taken apart while the database is at the next.
async fn rows(
    connection: &mut Connection,
    query: Query<'_, Postgres, PgArguments>,
    is_part: bool,
) -> Result<Rows, sqlx::Error> {
    let mut rows = Vec::new();
    let mut first = None;
    let mut found = query.fetch(&mut *connection);
    while let Some(found) = found.try_next().await? {
        let mut cells = Answered {
            row: &found,
            next: 0,
        };
        rows.push(row(&mut cells).map_err(sqlx::Error::Decode)?);
        let clock = time(&mut cells).map_err(sqlx::Error::Decode)?;
        first = first.or(clock);
    }
    drop(found);
    rows.sort_unstable_by_key(|read: &RowRead| read.row.id);
    let db = match first {
        Some(at) => at,
        None => clock(connection).await?,
    };
    let last = rows.last().map(|read| read.row.id);
    Ok(Rows {
        more_after: last.filter(|_| is_part && rows.len() >= ROWS_PER_READ),
        rows,
        db,
    })
}

/// Reads every row, part by part; for who need not bound them.
pub async fn every(connection: &mut Connection) -> Result<Rows, sqlx::Error> {
    let mut all = read(connection, &ReadRequest::All).await?;
    while let Some(last) = all.more_after {
        let part = read(connection, &ReadRequest::After(last)).await?;
        all.rows.extend(part.rows);
        all.more_after = part.more_after;
        all.db = part.db;
    }
    Ok(all)
}

/// The rows that were deleted since; `None` among them: the table was truncated.
pub async fn gone(
    connection: &mut Connection,
    since: XidWatermark,
) -> Result<BTreeSet<Option<Uuid>>, sqlx::Error> {
    let gone: Vec<Option<Uuid>> = sqlx::query_scalar(
        "select distinct g.distribution_id from public.visit_pacer_deletions g where g.xid >= $1::text::xid8
            and not exists (select from public.visit_distribution v where v.id = g.distribution_id)",
    )
    .bind(since.0.to_string())
    .fetch_all(connection)
    .await?;
    Ok(gone.into_iter().collect())
}

/// Where a look at the table that begins after this one's answer leaves off.
pub async fn watermark(connection: &mut Connection) -> Result<XidWatermark, sqlx::Error> {
    let oldest: String = sqlx::query_scalar("select pg_snapshot_xmin(pg_current_snapshot())::text")
        .fetch_one(connection)
        .await?;
    let oldest = oldest
        .parse()
        .map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    Ok(XidWatermark(oldest))
}

/// What the database's clock says.
pub async fn clock(connection: &mut Connection) -> Result<DbTime, sqlx::Error> {
    sqlx::query_scalar("select clock_timestamp()")
        .fetch_one(connection)
        .await
}

/// Reads what visits are drawn from.
pub async fn catalogue(connection: &mut Connection) -> Result<Catalogue, sqlx::Error> {
    let page_paths = "select path, trunc(weight * 1000000)::bigint, partner_id::text from public.visit_page_paths limit $1";
    let user_agents = "select user_agent, device_type, trunc(weight * 1000000)::bigint from public.visit_user_agents limit $1";
    let referrers = "select referrer, trunc(desktop_weight * 1000000)::bigint, trunc(handheld_weight * 1000000)::bigint
                       from public.visit_referrers limit $1";
    Ok(Catalogue {
        page_paths: entries(connection, page_paths, |(path, weight, partner)| {
            let partner: Option<LossyText> = partner;
            PagePath {
                path: lossy(path),
                weight_parts: parts(weight),
                partner: partner.map(|LossyText(id)| PartnerId::from(&*id)),
            }
        })
        .await?,
        user_agents: entries(connection, user_agents, |(text, device_type, weight)| {
            UserAgent {
                text: lossy(text),
                device_type: lossy(device_type),
                weight_parts: parts(weight),
            }
        })
        .await?,
        referrers: entries(connection, referrers, |(site, desktop, handheld)| {
            let site: Option<LossyText> = site;
            Referrer {
                site: site.map(lossy),
                desktop_parts: parts(desktop),
                handheld_parts: parts(handheld),
            }
        })
        .await?,
    })
}

/// The entries of one table of the catalogue.
async fn entries<R, T>(
    connection: &mut Connection,
    sql: &'static str,
    entry: impl Fn(R) -> T,
) -> Result<Vec<T>, sqlx::Error>
where
    R: for<'r> sqlx::FromRow<'r, PgRow> + Send + Unpin,
{
    let rows = sqlx::query_as(sql)
        .bind(CATALOGUE_ROWS_MAX)
        .fetch_all(connection)
        .await?;
    Ok(rows.into_iter().map(entry).collect())
}

fn parts(weight: i64) -> u64 {
    u64::try_from(weight).unwrap_or(0)
}

/// The column `partner_id` of a query, which has it as text.
pub(super) fn partner_id(row: &PgRow) -> Result<Option<PartnerId>, sqlx::Error> {
    let text: Option<&str> = row.try_get("partner_id")?;
    Ok(text.map(PartnerId::from))
}

/// A column of type text. A database of the encoding `SQL_ASCII` may hold bytes that are no UTF-8: they must not fail the whole read.
struct LossyText(String);

impl Type<Postgres> for LossyText {
    fn type_info() -> PgTypeInfo {
        <String as Type<Postgres>>::type_info()
    }

    fn compatible(ty: &PgTypeInfo) -> bool {
        <String as Type<Postgres>>::compatible(ty)
    }
}

impl Decode<'_, Postgres> for LossyText {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        Ok(Self(
            String::from_utf8_lossy(value.as_bytes()?).into_owned(),
        ))
    }
}

fn lossy(LossyText(text): LossyText) -> String {
    text
}

/// The cells of one row, in the binary format that queries and COPY share.
pub(super) trait Cells {
    /// The next one.
    fn next(&mut self) -> Result<Option<&[u8]>, BoxDynError>;
}

/// A row that a query answered with.
struct Answered<'r> {
    row: &'r PgRow,
    next: usize,
}

impl Cells for Answered<'_> {
    fn next(&mut self) -> Result<Option<&[u8]>, BoxDynError> {
        let cell = self.row.try_get_raw(self.next)?;
        self.next += 1;
        if cell.is_null() {
            return Ok(None);
        }
        cell.as_bytes().map(Some)
    }
}

/// Takes a row apart: its cells in the order of `rows_where`, and of the types that are said there.
pub(super) fn row(cells: &mut impl Cells) -> Result<RowRead, BoxDynError> {
    let row = RawRow {
        id: uuid(cells)?.ok_or("a row without an id")?,
        partner_id: text(cells)?.map(|text| PartnerId::from(&*text)),
        config_version: int8(cells)?,
        is_active: boolean(cells)?,
        total_visits: text(cells)?.map(|text| CompactString::from(&*text)),
        visits_per_unit: text(cells)?.map(|text| CompactString::from(&*text)),
        time_period: text(cells)?.map(|text| CompactString::from(&*text)),
        start_time: time(cells)?,
        end_time: time(cells)?,
        catch_up: text(cells)?.map(|text| CompactString::from(&*text)),
        anchor_units: text(cells)?.map(|text| CompactString::from(&*text)),
        anchor_at: time(cells)?,
    };
    let written = text(cells)?.and_then(|text| text.parse().ok());
    let counts = int8(cells)?.zip(int8(cells)?);
    let last_visited_at = time(cells)?;
    let bucket_at = time(cells)?;
    let bucket = Bucket::from_columns(text(cells)?.as_deref(), bucket_at);
    let invalid = text(cells)?.map(Cow::into_owned);
    let progress = counts.map(|(distributed, last_number)| Progress {
        distributed,
        last_number,
        bucket,
        last_visited_at,
        invalid,
    });
    Ok(RowRead {
        row,
        progress,
        written,
    })
}

fn uuid(cells: &mut impl Cells) -> Result<Option<Uuid>, BoxDynError> {
    Ok(cells.next()?.map(Uuid::from_slice).transpose()?)
}

fn int8(cells: &mut impl Cells) -> Result<Option<i64>, BoxDynError> {
    let number = |cell: &[u8]| cell.try_into().map(i64::from_be_bytes);
    Ok(cells.next()?.map(number).transpose()?)
}

fn boolean(cells: &mut impl Cells) -> Result<Option<bool>, BoxDynError> {
    Ok(cells.next()?.map(|cell| cell != [0]))
}

/// See [`LossyText`].
fn text(cells: &mut impl Cells) -> Result<Option<Cow<'_, str>>, BoxDynError> {
    Ok(cells.next()?.map(String::from_utf8_lossy))
}

fn time(cells: &mut impl Cells) -> Result<Option<DbTime>, BoxDynError> {
    Ok(int8(cells)?.map(from_wire))
}
