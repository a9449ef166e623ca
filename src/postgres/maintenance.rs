//! The keeper's statements: everything beside reading rows and storing visits.

use sqlx::Row as _;
use uuid::Uuid;

use super::connection::Connection;
use crate::domain::agent::{CountDifference, Published, WrittenBack};
use crate::domain::decimal::parse_scaled;
use crate::domain::limits::AGENT_GONE_AFTER;
use crate::domain::ownership::PeerAgent;
use crate::domain::schedule::Control;
use crate::domain::time::DbTime;

/// Who this process is: new at each start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Random.
    pub id: Uuid,
    /// For people: the host's name and the process id.
    pub name: String,
}

/// What this agent says of itself at each beat.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SelfReport {
    /// `live`, or why not.
    pub realtime: String,
    /// Rows in its schedule.
    pub rows: i64,
    /// … those that are its to store.
    pub rows_owned: i64,
}

/// What a beat finds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The control row.
    pub control: Control,
    /// The other agents that are there.
    pub peers: Vec<PeerAgent>,
    /// The database's clock.
    pub db: DbTime,
}

const BEAT: &str = "
  with beat as (
    insert into public.visit_pacer_agents as a (id, name, version, realtime, rows_known, rows_owned, serving)
    values ($1, $2, $3, $4, $5, $6, $7)
    on conflict (id) do update set last_heartbeat_at = clock_timestamp(), realtime = excluded.realtime, rows_known = excluded.rows_known,
                                   rows_owned = excluded.rows_owned, serving = excluded.serving
  ), control as (
    insert into public.visit_pacer_control (id)
    select true where not exists (select from public.visit_pacer_control) on conflict do nothing
    returning *
  ), gone as (
    delete from public.visit_pacer_agents where last_heartbeat_at < clock_timestamp() - interval '1 day' and id <> $1
  ), others as (
    -- One that was seen in the future was seen before the clock was set back.
    select array_agg(id) filter (where serving) as serving, array_agg(id) filter (where not serving) as idle
      from public.visit_pacer_agents
     where id <> $1 and last_heartbeat_at between clock_timestamp() - $8 * interval '1 second' and clock_timestamp() + interval '1 second'
  )
  select paused, catch_up::text as catch_up, echo_budget::text as echo_budget,
         least(extract(epoch from give_up_after) * 1000000, 9000000000000000)::bigint as give_up_after,
         clock_timestamp() as clock,
         coalesce(serving, '{}') as serving, coalesce(idle, '{}') as idle
    from (select * from public.visit_pacer_control union all select * from control) control cross join others";

/// Is seen, reads the control row, and sees the other agents.
pub async fn beat(
    connection: &mut Connection,
    identity: &Identity,
    serving: bool,
    report: &SelfReport,
) -> Result<Seen, sqlx::Error> {
    let row = sqlx::query(BEAT)
        .bind(identity.id)
        .bind(&identity.name)
        .bind(env!("CARGO_PKG_VERSION"))
        .bind(&report.realtime)
        .bind(report.rows)
        .bind(report.rows_owned)
        .bind(serving)
        .bind(AGENT_GONE_AFTER.as_secs_f64())
        .fetch_one(connection)
        .await?;
    let scaled = |name: &str, decimals: u32, otherwise: i64| {
        row.try_get::<String, _>(name).map(|text| {
            parse_scaled(&text, decimals)
                .ok()
                .and_then(|v| i64::try_from(v).ok())
                .unwrap_or(otherwise)
        })
    };
    let usual = Control::default();
    let control = Control {
        paused: row.try_get("paused")?,
        catch_up_milli: scaled("catch_up", 3, usual.catch_up_milli)?,
        give_up_after_us: row.try_get("give_up_after")?,
        write_back_budget_micro: scaled("echo_budget", 6, usual.write_back_budget_micro)?,
    };
    let peers = |column: &str, serving: bool| {
        let peer = |id| PeerAgent { id, serving };
        row.try_get::<Vec<Uuid>, _>(column)
            .map(|ids| ids.into_iter().map(peer).collect::<Vec<_>>())
    };
    Ok(Seen {
        control,
        peers: [peers("serving", true)?, peers("idle", false)?].concat(),
        db: row.try_get("clock")?,
    })
}

/// Is seen no more.
pub async fn goodbye(connection: &mut Connection, identity: &Identity) -> Result<(), sqlx::Error> {
    sqlx::query("delete from public.visit_pacer_agents where id = $1")
        .bind(identity.id)
        .execute(connection)
        .await
        .map(|_| ())
}

/// Writes `total_distributed` and `last_distribution` of these rows back, where they are behind. Rows that somebody holds
/// are left out.
pub async fn write_back(
    connection: &mut Connection,
    ids: &[Uuid],
) -> Result<Vec<WrittenBack>, sqlx::Error> {
    const WRITE_BACK: &str = "
      with held as materialized (
        select v.id, p.distributed, v.total_distributed is distinct from p.distributed as changed
          from public.visit_distribution v join public.visit_distribution_progress p on p.distribution_id = v.id
         where v.id = any ($1) for no key update of v skip locked
      ), written as (
        update public.visit_distribution v
           set total_distributed = held.distributed, last_distribution = clock_timestamp()
          from held where held.changed and v.id = held.id
      )
      select id, distributed, changed from held";
    let rows = sqlx::query(WRITE_BACK)
        .bind(ids)
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            Ok(WrittenBack {
                id: row.try_get("id")?,
                distributed: row.try_get("distributed")?,
                changed: row.try_get("changed")?,
            })
        })
        .collect()
}

/// Touches the canary, so that an event of it must follow.
pub async fn touch_canary(connection: &mut Connection, by: &Identity) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update public.visit_pacer_canary set touched_at = clock_timestamp(), touched_by = $1",
    )
    .bind(by.id)
    .execute(connection)
    .await
    .map(|_| ())
}

/// Broadcasts a canary, so that each agent that listens must hear it.
pub async fn broadcast_canary(connection: &mut Connection) -> Result<(), sqlx::Error> {
    sqlx::query("select public.visit_pacer_broadcast_canary()")
        .execute(connection)
        .await
        .map(|_| ())
}

/// Anchors rows that no trigger has seen; says how many.
pub async fn initialise(connection: &mut Connection) -> Result<usize, sqlx::Error> {
    let rows: i64 = sqlx::query_scalar("select public.visit_pacer_initialise()")
        .fetch_one(connection)
        .await?;
    Ok(usize::try_from(rows).unwrap_or(0))
}

/// Compares the counters of these distributions with what is stored. One that differs is locked only after it was counted.
pub async fn reconcile(
    connection: &mut Connection,
    ids: &[Uuid],
) -> Result<Vec<CountDifference>, sqlx::Error> {
    let differing: Vec<(Uuid, i64, i64)> =
        sqlx::query_as("select * from public.visit_pacer_count_mismatches($1)")
            .bind(ids)
            .fetch_all(&mut *connection)
            .await?;
    let mut differences = Vec::new();
    for (id, difference, highest) in differing {
        let row = sqlx::query("select * from public.visit_pacer_reconcile_row($1, $2, $3, false)")
            .bind(id)
            .bind(difference)
            .bind(highest)
            .fetch_optional(&mut *connection)
            .await?;
        if let Some(row) = row {
            let missing: i64 = row.try_get("missing")?;
            differences.push(CountDifference {
                id,
                missing,
                changed: missing == 0, // a counter or a number was raised
                message: row.try_get("message")?,
            });
        }
    }
    Ok(differences)
}

/// Keeps the reason why a row's insert fails, for whoever looks; false where somebody holds the row. That may be the very
/// batch that failed: the server tells of an error before it lets go of the locks.
pub async fn mark_invalid(
    connection: &mut Connection,
    id: Uuid,
    why: &str,
) -> Result<bool, sqlx::Error> {
    const MARK: &str = "
      with held as materialized (
        select v.id from public.visit_distribution v where v.id = $1 for no key update skip locked)
      update public.visit_distribution_progress p
         set reason_code = 'insert_failed', reason_detail = jsonb_build_object('message', $2::text), reason_at = clock_timestamp()
        from held where p.distribution_id = held.id";
    sqlx::query(MARK)
        .bind(id)
        .bind(why)
        .execute(connection)
        .await
        .map(|done| done.rows_affected() > 0)
}

/// Up to so many distributions are compared with their last edits at each sync; larger tables by `sync_distribution_counts()`.
const DRIFT_ROWS_MAX: i64 = 50_000;

/// Follows what nobody tells the agent of the user's tables: adapts the write to the columns of `store_visits`, and anchors rows that
/// were edited while triggers were disabled.
pub async fn follow_tables(connection: &mut Connection) -> Result<(), sqlx::Error> {
    const FOLLOW: &str = "
      select case when (select c.reltuples <= $1 from pg_class c where c.oid = 'public.visit_distribution'::regclass)
               then public.visit_pacer_initialise() else public.visit_pacer_refresh_columns()::integer end";
    sqlx::query(FOLLOW)
        .bind(DRIFT_ROWS_MAX)
        .execute(connection)
        .await
        .map(|_| ())
}

/// Which tables Realtime publishes, and whether edits are broadcast.
pub async fn published(connection: &mut Connection) -> Result<Published, sqlx::Error> {
    // The catalogue is asked by names alone: our role may have no rights in the schema realtime.
    const PUBLISHED: &str = "
      with published as (
        select tablename, pubname = 'supabase_realtime' as realtime from pg_publication_tables where schemaname = 'public')
      select exists (select from published where realtime and tablename = 'visit_distribution') as distributions,
             exists (select from published where realtime and tablename = 'visit_pacer_canary') as canary,
             exists (select from published where realtime and tablename = 'store_visits') as visits,
             exists (select from published where tablename = 'visit_distribution') as anywhere,
             exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                      where n.nspname = 'realtime' and c.relname = 'messages')
             and exists (select from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                          where n.nspname = 'realtime' and p.proname = 'send')
             and exists (select from pg_trigger t
                          where t.tgrelid = 'public.visit_distribution'::regclass and not t.tgisinternal
                            and t.tgname = 'zzz_visit_pacer_broadcast_edited' and t.tgenabled in ('O', 'A'))
             and exists (select from pg_proc p where p.oid = to_regproc('public.visit_pacer_broadcast_canary')
                            and has_function_privilege(p.oid, 'execute')) as broadcasts";
    let row = sqlx::query(PUBLISHED).fetch_one(connection).await?;
    Ok(Published {
        distributions: row.try_get("distributions")?,
        canary: row.try_get("canary")?,
        visits: row.try_get("visits")?,
        anywhere: row.try_get("anywhere")?,
        broadcasts: row.try_get("broadcasts")?,
    })
}
