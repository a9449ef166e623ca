//! Two transports of change notifications, `postgres_changes` and broadcasts from the database: each alone is enough, each replaces
//! the other, and a dead one is found.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use visit_pacer::demo::stack;
use visit_pacer::domain::transport::Transport;

use crate::harness::{Agent, PATIENCE, Place, server, url_as, wait_until};

const EVENTS: &str = r#"visit_pacer_realtime_events_total{transport="postgres_changes"}"#;
const BROADCASTS: &str = r#"visit_pacer_realtime_events_total{transport="broadcast"}"#;
const SILENT: &str = r#"visit_pacer_realtime_echo_timeouts_total{transport="broadcast"}"#;
const SILENT_CHANGES: &str =
    r#"visit_pacer_realtime_echo_timeouts_total{transport="postgres_changes"}"#;
const REMOVE: &str = include_str!("../../deploy/supabase/broadcast_remove.sql");
const BROADCAST: &str = include_str!("../../deploy/supabase/broadcast.sql");
const ROLE: &str = include_str!("../../deploy/supabase/role.sql");
const UNINSTALL: &str = include_str!("../../deploy/supabase/uninstall.sql");
/// What broadcast.sql creates.
const CREATED: &str = "
  select (select count(*) from pg_trigger where tgname like 'zzz\\_visit\\_pacer\\_broadcast%')
       + (select count(*) from pg_proc where proname like 'visit\\_pacer\\_broadcast%')";
const LIVE_BY_BROADCAST: &str = r#"Realtime is live transport="broadcast""#;
/// A full sync every 30 s, and a margin.
const NOTICED_WITHIN: Duration = Duration::from_secs(90);
/// A canary every minute, 10 s for its echo, and a margin.
const FOUND_DEAD_WITHIN: Duration = Duration::from_secs(120);

/// A place whose edits are broadcast.
async fn place() -> Place {
    let url = server::shared().migrated().await;
    let mut connection = PgConnection::connect(&url).await.expect("a connection");
    stack::broadcasts(&mut connection)
        .await
        .expect("broadcast.sql runs");
    connection.close().await.expect("closed");
    Place::over(url).await
}

async fn agent(place: &Place, listen_by: &str) -> Agent {
    let agent = place
        .start_agent_with(&[("VISIT_PACER_LISTEN_BY", listen_by)])
        .await;
    agent.ready().await;
    if listen_by != "postgres_changes" {
        agent.says(LIVE_BY_BROADCAST).await;
    }
    agent
}

async fn count(agent: &Agent, metric: &str) -> f64 {
    agent.metric(metric).await.unwrap_or_default()
}

/// Waits until a metric is above that.
async fn rises(agent: &Agent, metric: &str, from: f64) {
    wait_until(format!("{metric} rises"), PATIENCE, async || {
        count(agent, metric).await > from
    })
    .await;
}

#[tokio::test]
async fn an_edit_arrives_by_either_transport_while_the_other_is_silent() {
    let place = place().await;
    let agent = agent(&place, "auto").await;
    let row = place.insert(1_000_000, "10 a second", "null").await;
    place.has_stored(row, 1).await;
    for (deaf, heard_by) in [
        (Transport::Changes, BROADCASTS),
        (Transport::Broadcast, EVENTS),
    ] {
        place.realtime.faults().withhold(deaf, true);
        let mut heard = count(&agent, heard_by).await;
        for rate in [20, 30, 10] {
            place.set(row, &format!("visits_per_unit = {rate}")).await;
            rises(&agent, heard_by, heard).await;
            heard = count(&agent, heard_by).await;
        }
        let seen = place.stored(row).await;
        place.set(row, "is_active = false").await;
        rises(&agent, heard_by, heard).await;
        place.set(row, "is_active = true").await;
        place.has_stored(row, seen + 20).await;
        place.realtime.faults().withhold(deaf, false);
    }
    assert_eq!(place.seconds_off_the_curve(row).await, [""; 0]);
    place.finishes(row).await;
}

#[tokio::test]
async fn without_the_publication_broadcasts_are_enough_and_write_backs_have_no_limit() {
    let place = place().await;
    place
        .edit("alter publication supabase_realtime drop table visit_distribution")
        .await;
    place
        .edit(
            "create table write_backs (at timestamptz);
             create function record_write_back() returns trigger language plpgsql as $$
               begin insert into public.write_backs values (clock_timestamp()); return null; end $$;
             create trigger record_write_back after update of total_distributed on visit_distribution
               for each row execute function record_write_back();",
        )
        .await;
    let agent = agent(&place, "broadcast").await;
    let row = place.insert(1_000_000, "20 a second", "null").await;
    place.has_stored(row, 1).await;
    wait_until("twelve write-backs", 2 * PATIENCE, async || {
        place.ask("select count(*) >= 12 from write_backs").await
    })
    .await;
    // With the limit, a row is written back at most every five seconds.
    let unlimited: bool = place
        .ask(
            "select bool_or(gap < interval '3 seconds')
               from (select at - lag(at) over (order by at) as gap from write_backs) gaps",
        )
        .await;
    assert!(unlimited, "write-backs are limited");
    let heard = count(&agent, BROADCASTS).await;
    place.set(row, "is_active = false").await;
    rises(&agent, BROADCASTS, heard).await;
    let paused_at = place.stored(row).await;
    place.set(row, "is_active = true").await;
    place.has_stored(row, paused_at + 20).await;
    assert!(count(&agent, EVENTS).await < 1.0, "nothing is published");
    place.edit(REMOVE).await;
    place.set(row, "visits_per_unit = 30").await;
    agent.says("Edits are not broadcast").await;
    place.finishes(row).await;
}

#[tokio::test]
async fn a_running_agent_notices_when_broadcasts_begin_and_end() {
    let place = place().await;
    place.edit(REMOVE).await;
    let agent = place.agent().await;
    let row = place.insert(1_000_000, "10 a second", "null").await;
    place.has_stored(row, 1).await;
    place.edit(BROADCAST).await;
    wait_until("it listens to broadcasts too", NOTICED_WITHIN, async || {
        agent.log().contains(LIVE_BY_BROADCAST)
    })
    .await;
    place.realtime.faults().withhold(Transport::Changes, true);
    let heard = count(&agent, BROADCASTS).await;
    place.set(row, "visits_per_unit = 20").await;
    rises(&agent, BROADCASTS, heard).await;
    place.realtime.faults().withhold(Transport::Changes, false);

    place.edit(REMOVE).await;
    wait_until("it listens to them no more", NOTICED_WITHIN, async || {
        agent.log().contains("Edits are not broadcast any more")
    })
    .await;
    let heard = count(&agent, EVENTS).await;
    place.set(row, "visits_per_unit = 10").await;
    rises(&agent, EVENTS, heard).await;
    agent.ready().await;
    place.finishes(row).await;
}

#[tokio::test]
async fn a_dead_broadcast_channel_is_found_by_its_canary() {
    let place = place().await;
    let agent = agent(&place, "auto").await;
    place.realtime.faults().withhold(Transport::Broadcast, true);
    wait_until("the silence is noticed", FOUND_DEAD_WITHIN, async || {
        count(&agent, SILENT).await >= 1.0
    })
    .await;
    assert!(count(&agent, SILENT_CHANGES).await < 1.0);
    agent.ready().await;
    place
        .realtime
        .faults()
        .withhold(Transport::Broadcast, false);
    let row = place.insert(1_000, "10 a second", "null").await;
    rises(&agent, BROADCASTS, 0.0).await;
    place.finishes(row).await;
}

#[tokio::test]
async fn under_its_own_role_the_agent_receives_broadcasts_once_broadcast_sql_was_run_after_role_sql()
 {
    let place = Place::apart().await;
    let mut owner = place.connect().await;
    stack::broadcasts(&mut owner)
        .await
        .expect("broadcast.sql runs");
    let mut realtime = stack::realtime(&place.url, 0, place.jwt_secret.clone())
        .await
        .expect("a server that reads messages");
    let password = format!("{:032x}", rand::random::<u128>());
    place
        .edit(format!("set visit_pacer.password = '{password}'; {ROLE}"))
        .await;
    let url = url_as(&place.url, "visit_pacer", &password);
    let agent = place
        .start_agent_with(&[
            ("DATABASE_URL", &url),
            ("SUPABASE_URL", &realtime.supabase_url()),
            ("SUPABASE_JWT_SECRET", place.jwt_secret.expose()),
            ("SUPABASE_JWT_ROLE", "visit_pacer"),
        ])
        .await;
    agent.ready().await;
    assert!(!agent.log().contains(LIVE_BY_BROADCAST));
    place.edit(BROADCAST).await;
    wait_until("it listens to broadcasts too", NOTICED_WITHIN, async || {
        agent.log().contains(LIVE_BY_BROADCAST)
    })
    .await;
    realtime.faults().withhold(Transport::Changes, true);
    let row = place.insert(1_000_000, "10 a second", "null").await;
    rises(&agent, BROADCASTS, 0.0).await;
    place.has_stored(row, 10).await;
    let mut as_agent = PgConnection::connect(&url).await.expect("a login");
    sqlx::query("select visit_pacer_broadcast_canary()")
        .execute(&mut as_agent)
        .await
        .expect("its canary");
    sqlx::query(
        "insert into realtime.messages (topic, extension) values ('visit_pacer', 'broadcast')",
    )
    .execute(&mut as_agent)
    .await
    .expect_err("nothing else");
    assert!(
        !agent.log().contains("permission denied"),
        "{}",
        agent.log()
    );
    place.finishes(row).await;
    drop(agent);
    realtime.stop().await;
}

#[tokio::test]
async fn a_broadcast_that_fails_never_fails_an_edit() {
    let place = place().await;
    let row = place.insert(1_000, "10 a second", "null").await;
    place
        .edit("drop function realtime.send(jsonb, text, text, boolean)")
        .await;
    place.set(row, "is_active = false").await;
    place.edit("drop table realtime.messages").await;
    place.set(row, "is_active = true").await;
    place
        .edit(format!("delete from visit_distribution where id = '{row}'"))
        .await;
}

#[tokio::test]
async fn what_broadcast_sql_created_is_removed_by_broadcast_remove_sql_and_by_uninstall_sql() {
    let place = place().await;
    assert_eq!(place.ask::<i64>(CREATED).await, 4);
    place.edit(REMOVE).await;
    place.edit(REMOVE).await;
    assert_eq!(place.ask::<i64>(CREATED).await, 0);
    let mut connection = place.connect().await;
    for _ in 0..2 {
        stack::broadcasts(&mut connection)
            .await
            .expect("broadcast.sql runs again");
    }
    connection.close().await.expect("closed");
    assert_eq!(place.ask::<i64>(CREATED).await, 4);
    place.edit(UNINSTALL).await;
    assert_eq!(place.ask::<i64>(CREATED).await, 0);
}
