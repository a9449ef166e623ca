//! One distribution from near: what is stored of it over time, cheap however many visits there are.
//!
//! Visits are numbered in the order of `visited_at`, so a few hundred searches in the index of numbers draw the whole curve, and
//! the latest seconds are the latest numbers.

use sqlx::Row as _;
use uuid::Uuid;

use super::connection::Connection;
use crate::domain::time::DbTime;

/// Points of the curve of what is stored.
pub const POINTS: i32 = 200;
/// Visits that are counted for the latest seconds at the most.
const VISITS_MAX: i64 = 150_000;

/// What is stored, cumulatively, at moments: the numbers are counts as `distributed` has them.
pub async fn stored(
    connection: &mut Connection,
    id: Uuid,
) -> Result<Vec<(DbTime, i64)>, sqlx::Error> {
    const STORED: &str = "
      with progress as (
        select distributed, last_number from public.visit_distribution_progress where distribution_id = $1
      ), first as (
        select visit_number from public.store_visits where distribution_id = $1 order by visit_number limit 1
      ), probes as (
        select distinct f.visit_number + (p.last_number - f.visit_number) * k / ($2 - 1) as number
          from progress p cross join first f cross join generate_series(0, $2 - 1) k
      )
      select distinct (extract(epoch from s.visited_at) * 1000000)::bigint as at, p.distributed - p.last_number + s.visit_number as count
        from progress p cross join probes
       cross join lateral (select visited_at, visit_number from public.store_visits
                            where distribution_id = $1 and visit_number >= probes.number order by visit_number limit 1) s
       order by 2";
    let rows = sqlx::query(STORED)
        .bind(id)
        .bind(POINTS)
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            Ok((
                DbTime::from_micros(row.try_get("at")?),
                row.try_get("count")?,
            ))
        })
        .collect()
}

/// How many visits are dated in each second from one moment (a full second) to another. Seconds without any are left out.
pub async fn seconds(
    connection: &mut Connection,
    id: Uuid,
    from: DbTime,
    to: DbTime,
) -> Result<Vec<(DbTime, i64)>, sqlx::Error> {
    // No more numbers than the row's rate can have filled by twice the time, or by hand at once.
    const SECONDS: &str = "
      with bounds as (
        select to_timestamp($2::bigint / 1000000.0) as lower, to_timestamp($3::bigint / 1000000.0) as upper
      ), reach as (
        select least($4, 10000 + 4 * coalesce(v.visits_per_unit::numeric / public.visit_pacer_unit_seconds(v.time_period::text), 0)
                           * greatest(1, extract(epoch from clock_timestamp() - b.lower)))::bigint as visits
          from public.visit_distribution v cross join bounds b where v.id = $1
      )
      select (extract(epoch from date_trunc('second', s.visited_at)) * 1000000)::bigint as at, count(*) as visits
        from bounds b
       cross join lateral (select visited_at from public.store_visits where distribution_id = $1
                            order by visit_number desc limit (select visits from reach)) s
       where s.visited_at >= b.lower and s.visited_at < b.upper
       group by 1 order by 1";
    let rows = sqlx::query(SECONDS)
        .bind(id)
        .bind(from.as_micros())
        .bind(to.as_micros())
        .bind(VISITS_MAX)
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            Ok((
                DbTime::from_micros(row.try_get("at")?),
                row.try_get("visits")?,
            ))
        })
        .collect()
}

/// Names of partners, where the user's table has them.
pub async fn partners(connection: &mut Connection) -> Result<Vec<(Uuid, String)>, sqlx::Error> {
    /// Partners that are named at the most.
    const PARTNERS_MAX: i64 = 20_000;
    let rows = sqlx::query(
        "select id, name from (select p.id, to_jsonb(p) ->> 'name' as name from public.partners p limit $1) n where name is not null",
    )
    .bind(PARTNERS_MAX)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| Ok((row.try_get("id")?, row.try_get("name")?)))
        .collect()
}

/// An edit of a row's pace.
pub struct RowEdit {
    /// When it took effect.
    pub at: DbTime,
    /// In words.
    pub what: String,
    /// Who.
    pub by: Option<String>,
}

/// The edits of a row's pace that are known, oldest first.
pub async fn edits(_connection: &mut Connection, _id: Uuid) -> Result<Vec<RowEdit>, sqlx::Error> {
    Ok(Vec::new())
}
