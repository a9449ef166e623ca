//! What the command line asks: status, pause and resume, sync.

use serde_json::Value;
use sqlx::Row as _;
use uuid::Uuid;

use super::connection::Connection;
use super::rows::partner_id;
use crate::domain::partner::PartnerId;
use crate::domain::time::DbTime;

/// One row of the view `visit_distribution_status`, with what helps a reader.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct StatusRow {
    /// `id`
    pub id: Uuid,
    /// `partner_id`
    pub partner_id: Option<PartnerId>,
    /// The partner's name, where the user's table has one.
    pub partner: Option<String>,
    /// `status`
    pub status: String,
    /// `reason`
    pub reason: Option<String>,
    /// `reason_code`
    pub reason_code: Option<String>,
    /// `reason_detail`
    pub reason_detail: Option<Value>,
    /// `visits_per_unit` and `time_period`, in words.
    pub pace: Option<String>,
    /// Visits a second.
    pub asked: Option<f64>,
    /// `visits_per_unit`
    pub visits_per_unit: Option<String>,
    /// `time_period`
    pub time_period: Option<String>,
    /// `start_time`
    pub start_time: Option<DbTime>,
    /// `end_time`
    pub end_time: Option<DbTime>,
    /// `is_active`
    pub is_active: bool,
    /// `total_visits`
    pub total_visits: Option<i64>,
    /// `due`
    pub due: Option<i64>,
    /// `distributed`
    pub distributed: Option<i64>,
    /// `backlog`
    pub backlog: Option<i64>,
    /// `purged`
    pub purged: Option<i64>,
    /// `baseline`
    pub baseline: Option<i64>,
    /// `missing`
    pub missing: Option<i64>,
    /// `last_visit_at`
    pub last_visit_at: Option<DbTime>,
    /// `completes_at`
    pub completes_at: Option<DbTime>,
}

/// Rows that one look returns at the most.
pub const STATUS_ROWS_MAX: i64 = 10_000;

/// The status of the rows, the ones that need somebody first.
pub async fn status(connection: &mut Connection) -> Result<Vec<StatusRow>, sqlx::Error> {
    status_of(connection, None).await
}

/// … of these rows, or of all.
pub async fn status_of(
    connection: &mut Connection,
    only: Option<&[Uuid]>,
) -> Result<Vec<StatusRow>, sqlx::Error> {
    const STATUS: &str = "
      select s.id, s.partner_id::text, to_jsonb(p) ->> 'name' as partner, s.status, s.reason, s.reason_code,
             s.reason_detail::text as reason_detail,
             v.visits_per_unit::text || ' a ' || v.time_period::text as pace,
             case when v.visits_per_unit::numeric between 0 and 1000000000000 then
               (v.visits_per_unit::numeric / public.visit_pacer_unit_seconds(v.time_period::text))::float8 end as asked,
             v.visits_per_unit::text as visits_per_unit, v.time_period::text as time_period,
             public.visit_pacer_utc(v.start_time) as start_time,
             public.visit_pacer_utc(v.end_time) as end_time,
             coalesce(v.is_active, false) as is_active,
             case when s.total_visits between 0 and 1000000000000000 then trunc(s.total_visits)::bigint end as total_visits,
             s.due, s.distributed, s.backlog, s.purged, s.baseline, s.missing, s.last_visit_at, s.completes_at
        from public.visit_distribution_status s
        join public.visit_distribution v on v.id = s.id
        left join public.partners p on p.id = s.partner_id
       where $2::uuid[] is null or s.id = any ($2)
       order by array_position(array['behind','invalid','draining','active','scheduled','paused','ended','completed'], s.status),
                v.created_at desc, s.id
       limit $1";
    let rows = sqlx::query(STATUS)
        .bind(STATUS_ROWS_MAX)
        .bind(only)
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            Ok(StatusRow {
                id: row.try_get("id")?,
                partner_id: partner_id(row)?,
                partner: row.try_get("partner")?,
                status: row.try_get("status")?,
                reason: row.try_get("reason")?,
                reason_code: row.try_get("reason_code")?,
                reason_detail: (row.try_get::<Option<&str>, _>("reason_detail")?)
                    .and_then(|detail| serde_json::from_str(detail).ok()),
                pace: row.try_get("pace")?,
                asked: row.try_get("asked")?,
                visits_per_unit: row.try_get("visits_per_unit")?,
                time_period: row.try_get("time_period")?,
                start_time: row.try_get("start_time")?,
                end_time: row.try_get("end_time")?,
                is_active: row.try_get("is_active")?,
                total_visits: row.try_get("total_visits")?,
                due: row.try_get("due")?,
                distributed: row.try_get("distributed")?,
                backlog: row.try_get("backlog")?,
                purged: row.try_get("purged")?,
                baseline: row.try_get("baseline")?,
                missing: row.try_get("missing")?,
                last_visit_at: row.try_get("last_visit_at")?,
                completes_at: row.try_get("completes_at")?,
            })
        })
        .collect()
}

/// An agent as it was last seen.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct AgentRow {
    /// Host and process.
    pub name: String,
    /// Seconds since its last beat.
    pub seen_seconds_ago: f64,
    /// `live`, or why not.
    pub realtime: Option<String>,
    /// Rows in its schedule.
    pub rows: i64,
    /// … those that are its to store.
    pub rows_owned: i64,
    /// It knows the rows, and its batches get through.
    pub serving: bool,
    /// Its version.
    pub version: Option<String>,
}

/// The agents that were seen within the last minute.
pub async fn agents(connection: &mut Connection) -> Result<Vec<AgentRow>, sqlx::Error> {
    let rows = sqlx::query(
        "select name, extract(epoch from clock_timestamp() - last_heartbeat_at)::float8 as seen, realtime, rows_known, rows_owned, serving, version
           from public.visit_pacer_agents where last_heartbeat_at > clock_timestamp() - interval '1 minute' order by started_at, id",
    )
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(AgentRow {
                name: row.try_get("name")?,
                seen_seconds_ago: row.try_get("seen")?,
                realtime: row.try_get("realtime")?,
                rows: row.try_get("rows_known")?,
                rows_owned: row.try_get("rows_owned")?,
                serving: row.try_get("serving")?,
                version: row.try_get("version")?,
            })
        })
        .collect()
}

/// Sets `is_active` of these rows; returns the ids that were there.
pub async fn set_active(
    connection: &mut Connection,
    ids: &[Uuid],
    active: bool,
) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar(
        "update public.visit_distribution set is_active = $2 where id = any ($1) returning id",
    )
    .bind(ids)
    .bind(active)
    .fetch_all(connection)
    .await
}

/// Sets the rate of a row; false where there is no such row.
pub async fn set_rate(
    connection: &mut Connection,
    id: Uuid,
    visits_per_unit: &str,
    time_period: &str,
) -> Result<bool, sqlx::Error> {
    // The columns' own types, whatever the user's are, take the text in.
    let done = sqlx::query(
        "update public.visit_distribution v set visits_per_unit = n.visits_per_unit, time_period = n.time_period
           from jsonb_populate_record(null::public.visit_distribution,
                  jsonb_build_object('visits_per_unit', $2::text, 'time_period', $3::text)) n
          where v.id = $1",
    )
    .bind(id)
    .bind(visits_per_unit)
    .bind(time_period)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// The control row's `paused`.
pub async fn paused(connection: &mut Connection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select coalesce((select paused from public.visit_pacer_control limit 1), false)",
    )
    .fetch_one(connection)
    .await
}

/// Sets the control row's `paused`; returns how many visits are owed by all rows together.
pub async fn set_paused(connection: &mut Connection, paused: bool) -> Result<i64, sqlx::Error> {
    sqlx::query(
        "insert into public.visit_pacer_control (id, paused) values (true, $1)
         on conflict (id) do update set paused = excluded.paused",
    )
    .bind(paused)
    .execute(&mut *connection)
    .await?;
    sqlx::query_scalar(
        "select coalesce(sum(backlog), 0)::bigint from public.visit_distribution_status",
    )
    .fetch_one(connection)
    .await
}

/// One line of `sync_distribution_counts()`.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct SyncRow {
    /// `distribution_id`
    pub distribution_id: Uuid,
    /// `counted_before`
    pub counted_before: Option<i64>,
    /// `counted_now`
    pub counted_now: Option<i64>,
    /// `missing`
    pub missing: Option<i64>,
    /// `message`
    pub message: Option<String>,
}

/// Makes the counters agree with what is stored.
pub async fn sync(connection: &mut Connection, lower: bool) -> Result<Vec<SyncRow>, sqlx::Error> {
    connection.without_timeout().await?;
    let rows = sqlx::query("select * from public.sync_distribution_counts(lower => $1)")
        .bind(lower)
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            Ok(SyncRow {
                distribution_id: row.try_get("distribution_id")?,
                counted_before: row.try_get("counted_before")?,
                counted_now: row.try_get("counted_now")?,
                missing: row.try_get("missing")?,
                message: row.try_get("message")?,
            })
        })
        .collect()
}
