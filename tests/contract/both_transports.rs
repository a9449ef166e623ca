//! Two ways to hear of an edit, `postgres_changes` and broadcasts from the database: each alone is enough, each covers for
//! the other, and a dead one is found.

use std::time::{Duration, Instant};

use sqlx::{Connection as _, PgConnection};
use visit_pacer::demo::stack;
use visit_pacer::domain::transport::Transport;

use crate::harness::{Agent, PATIENCE, Place, server, wait_until};

const EVENTS: &str = r#"visit_pacer_realtime_events_total{transport="postgres_changes"}"#;
const BROADCASTS: &str = r#"visit_pacer_realtime_events_total{transport="broadcast"}"#;
const SILENT: &str = r#"visit_pacer_realtime_echo_timeouts_total{transport="broadcast"}"#;
const SILENT_CHANGES: &str =
    r#"visit_pacer_realtime_echo_timeouts_total{transport="postgres_changes"}"#;
const REMOVE: &str = include_str!("../../deploy/supabase/broadcast_remove.sql");
const BROADCAST: &str = include_str!("../../deploy/supabase/broadcast.sql");
const ROLE: &str = include_str!("../../deploy/supabase/role.sql");
const UNINSTALL: &str = include_str!("../../deploy/supabase/uninstall.sql");
/// What broadcast.sql makes.
const MADE: &str = "
  select (select count(*) from pg_trigger where tgname like 'zzz\\_visit\\_pacer\\_broadcast%')
       + (select count(*) from pg_proc where proname like 'visit\\_pacer\\_broadcast%')";
const LIVE_BY_BROADCAST: &str = r#"Realtime is live transport="broadcast""#;
/// A full sync each 30 s, and a margin.
const NOTICED_WITHIN: Duration = Duration::from_secs(90);
/// A canary a minute, 10 s for its echo, and a margin.
const FOUND_DEAD_WITHIN: Duration = Duration::from_secs(120);

/// A place whose edits are broadcast.
async fn place() -> Place {
    let url = server::shared().migrated().await;
    let mut connection = PgConnection::connect(&url).await.expect("a connection");
    stack::broadcasts(&mut connection)
        .await
        .expect("broadcast.sql runs");
    connection.close().await.expect("a goodbye");
    Place::over(url).await
}

async fn agent(place: &Place, listen_by: &str) -> Agent {
    let mut environment = place.environment();
    environment.push(("VISIT_PACER_LISTEN_BY".to_owned(), listen_by.to_owned()));
    let agent = Agent::start(&place.folder, &["run"], &environment).await;
    agent.ready().await;
    if listen_by != "postgres_changes" {
        agent.says(LIVE_BY_BROADCAST).await;
    }
    agent
}

async fn count(agent: &Agent, metric: &str) -> f64 {
    agent.metric(metric).await.unwrap_or_default()
}

/// Waits until a metric has risen from what it was; says after how long.
async fn rises(agent: &Agent, metric: &str, from: f64) -> Duration {
    let since = Instant::now();
    wait_until(format!("{metric} rises"), PATIENCE, async || {
        count(agent, metric).await > from
    })
    .await;
    since.elapsed()
}

#[tokio::test]
async fn an_edit_is_heard_by_either_way_while_the_other_tells_nothing() {
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
        for pace in [20, 30, 10] {
            place.set(row, &format!("visits_per_unit = {pace}")).await;
            let took = rises(&agent, heard_by, heard).await;
            println!("{deaf:?} deaf: heard within {took:?} of the edit, as the metrics tell");
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
async fn without_the_publication_broadcasts_are_enough_and_write_backs_cost_nobody_anything() {
    let place = place().await;
    place
        .edit("alter publication supabase_realtime drop table visit_distribution")
        .await;
    let agent = agent(&place, "broadcast").await;
    let row = place.insert(1_000_000, "20 a second", "null").await;
    place.has_stored(row, 1).await;
    let mut written = count(&agent, "visit_pacer_write_backs_total").await;
    let since = Instant::now();
    // Within the echo budget, one row would be written back eight times in this time.
    for _ in 0..12 {
        rises(&agent, "visit_pacer_write_backs_total", written).await;
        written += 1.0;
    }
    println!("12 write-backs in {:?}", since.elapsed());
    assert!(since.elapsed() < Duration::from_secs(50));
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
async fn an_agent_that_runs_notices_that_edits_are_broadcast_from_now_on_and_no_more() {
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
async fn a_dead_broadcast_channel_is_found_by_its_canary_and_told_apart() {
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
async fn under_its_own_role_the_agent_hears_broadcasts_once_broadcast_sql_was_run_after_role_sql() {
    let place = Place::apart().await;
    let mut owner = PgConnection::connect(&place.url)
        .await
        .expect("a connection");
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
    let mut url = url::Url::parse(&place.url).expect("a URL");
    url.set_username("visit_pacer").expect("a host");
    url.set_password(Some(&password)).expect("a host");
    let mut environment = place.environment();
    environment.retain(|(name, _)| name != "DATABASE_URL" && name != "SUPABASE_URL");
    for (name, value) in [
        ("DATABASE_URL", url.to_string()),
        ("SUPABASE_URL", realtime.supabase_url()),
        ("SUPABASE_JWT_SECRET", place.jwt_secret.expose().to_owned()),
        ("SUPABASE_JWT_ROLE", "visit_pacer".to_owned()),
    ] {
        environment.push((name.to_owned(), value));
    }
    let agent = Agent::start(&place.folder, &["run"], &environment).await;
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
    let mut as_agent = PgConnection::connect(url.as_str()).await.expect("a login");
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
async fn what_broadcast_sql_made_goes_with_its_removal_and_with_the_uninstallation() {
    let place = place().await;
    assert_eq!(place.ask::<i64>(MADE).await, 4);
    place.edit(REMOVE).await;
    place.edit(REMOVE).await;
    assert_eq!(place.ask::<i64>(MADE).await, 0);
    let mut connection = PgConnection::connect(&place.url)
        .await
        .expect("a connection");
    for _ in 0..2 {
        stack::broadcasts(&mut connection)
            .await
            .expect("broadcast.sql runs again");
    }
    connection.close().await.expect("a goodbye");
    assert_eq!(place.ask::<i64>(MADE).await, 4);
    place.edit(UNINSTALL).await;
    assert_eq!(place.ask::<i64>(MADE).await, 0);
}
