//! One distribution from near: what is stored of it over time, cheap however many visits there are.
//!
//! Visits are numbered in the order of `visited_at`, so a few hundred searches in the index of numbers draw the whole curve, and
//! the latest seconds are the latest numbers.

use compact_str::CompactString;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::connection::Connection;
use super::rows::partner_id;
use crate::domain::distribution::RawRow;
use crate::domain::history::{Edit, History};
use crate::domain::partner::PartnerId;
use crate::domain::time::DbTime;

/// Points of the curve of what is stored.
pub const POINTS: i32 = 200;
/// Edits that are read at the most.
const EDITS_MAX: i64 = 400;
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
      select distinct s.visited_at::timestamptz as at, p.distributed - p.last_number + s.visit_number as count
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
        .map(|row| Ok((row.try_get("at")?, row.try_get("count")?)))
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
      with reach as (
        select least($4, 10000 + 4 * coalesce(v.visits_per_unit::numeric / public.visit_pacer_unit_seconds(v.time_period::text), 0)
                           * greatest(1, extract(epoch from clock_timestamp() - $2)))::bigint as visits
          from public.visit_distribution v where v.id = $1
      )
      select date_trunc('second', s.visited_at)::timestamptz as at, count(*) as visits
        from (select visited_at from public.store_visits where distribution_id = $1
               order by visit_number desc limit (select visits from reach)) s
       where s.visited_at >= $2 and s.visited_at < $3
       group by 1 order by 1";
    let rows = sqlx::query(SECONDS)
        .bind(id)
        .bind(from)
        .bind(to)
        .bind(VISITS_MAX)
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| Ok((row.try_get("at")?, row.try_get("visits")?)))
        .collect()
}

/// Partners that are read at the most.
pub const PARTNERS_MAX: usize = 20_000;

/// Partners, with their names where the user's table has them.
pub async fn partners(
    connection: &mut Connection,
) -> Result<Vec<(PartnerId, Option<String>)>, sqlx::Error> {
    let rows =
        sqlx::query("select p.id::text as partner_id, to_jsonb(p) ->> 'name' as name from public.partners p limit $1")
            .bind(i64::try_from(PARTNERS_MAX).unwrap_or(i64::MAX))
            .fetch_all(connection)
            .await?;
    rows.iter()
        .map(|row| {
            let text: &str = row.try_get("partner_id")?;
            Ok((text.into(), row.try_get("name")?))
        })
        .collect()
}

/// The edits of a row's pace that are known.
pub async fn history(connection: &mut Connection, id: Uuid) -> Result<History, sqlx::Error> {
    const HISTORY: &str = "
      select config_version, edited_at, edited_by, partner_id, is_active,
             total_visits::text as total_visits, visits_per_unit::text as visits_per_unit, time_period,
             start_time, end_time, anchor_units::text as anchor_units, anchor_at
        from public.visit_pacer_edits where distribution_id = $1 order by config_version desc limit $2";
    let rows = sqlx::query(HISTORY)
        .bind(id)
        .bind(EDITS_MAX)
        .fetch_all(connection)
        .await?;
    let edits: Result<Vec<Edit>, sqlx::Error> = rows.iter().map(|row| edit(id, row)).collect();
    Ok(History::new(edits?))
}

fn edit(id: Uuid, row: &PgRow) -> Result<Edit, sqlx::Error> {
    let text = |column| {
        let text: Option<&str> = row.try_get(column)?;
        Ok::<_, sqlx::Error>(text.map(CompactString::from))
    };
    Ok(Edit {
        at: row.try_get("edited_at")?,
        by: row.try_get("edited_by")?,
        row: RawRow {
            id,
            partner_id: partner_id(row)?,
            config_version: row.try_get("config_version")?,
            is_active: row.try_get("is_active")?,
            total_visits: text("total_visits")?,
            visits_per_unit: text("visits_per_unit")?,
            time_period: text("time_period")?,
            start_time: row.try_get("start_time")?,
            end_time: row.try_get("end_time")?,
            catch_up: None,
            anchor_units: text("anchor_units")?,
            anchor_at: row.try_get("anchor_at")?,
        },
    })
}

/// How many visits are dated in each of the steps from one moment to another, by the number of the step; steps without any
/// are left out. Counts every visit of the row in that time, so it is for a person who asks, not for a loop.
pub async fn steps(
    connection: &mut Connection,
    id: Uuid,
    (from, to): (DbTime, DbTime),
    step_us: i64,
) -> Result<Vec<(i64, i64)>, sqlx::Error> {
    const STEPS: &str = "
      select (extract(epoch from visited_at::timestamptz - $2) * 1000000)::bigint / $4 as step, count(*) as visits
        from public.store_visits
       where distribution_id = $1 and visited_at >= $2 and visited_at < $3
       group by 1 order by 1";
    let rows = sqlx::query(STEPS)
        .bind(id)
        .bind(from)
        .bind(to)
        .bind(step_us)
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| Ok((row.try_get("step")?, row.try_get("visits")?)))
        .collect()
}

/// Visits of a row, as `distributed` counts them, that are dated before a moment.
pub async fn before(connection: &mut Connection, id: Uuid, at: DbTime) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "select coalesce((select p.distributed from public.visit_distribution_progress p where p.distribution_id = $1), 0)
              - (select count(*) from public.store_visits
                  where distribution_id = $1 and visited_at >= $2)",
    )
    .bind(id)
    .bind(at)
    .fetch_one(connection)
    .await
}
