//! A table of more rows than one part of a look holds: each row is found, whatever is edited while the look goes on.

use std::time::Duration;

use nix::sys::signal::Signal;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::harness::agent::Agent;
use crate::harness::pooler::{Via, directly_and_pooled};
use crate::harness::{Place, find, wait_until};

/// More than two parts (`ROWS_PER_READ` each).
const ROWS: i64 = 12_000;
/// Edits that are made while an agent reads, each of some rows.
const EDITS: usize = 40;
const LIMIT: Duration = Duration::from_secs(90);

/// Paused rows of one visit each, wherever their ids put them.
async fn many_rows(place: &Place) {
    add(place, ROWS, false).await;
}

async fn add(place: &Place, count: i64, active: bool) {
    place
        .edit(format!(
            "insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit, is_active)
             select '{}', 1, 'second', 10, {active} from generate_series(1, {count})",
            place.partner
        ))
        .await;
}

/// Activates some rows, deletes some, and inserts some, again and again.
async fn edits_here_and_there(place: &Place) {
    let some = |count| {
        format!(
            "select id from visit_distribution where not is_active order by md5(id::text || random()) limit {count}"
        )
    };
    for _ in 0..EDITS {
        let (resumed, removed) = (some(5), some(2));
        place
            .edit(format!(
                "update visit_distribution set is_active = true where id in ({resumed})"
            ))
            .await;
        place
            .edit(format!(
                "delete from visit_distribution where id in ({removed})"
            ))
            .await;
        add(place, 3, true).await;
    }
}

/// Every active row has its one visit, no other row has any, and the agent knows as many rows as there are.
async fn comes_to_rest(place: &Place, agent: &Agent) {
    wait_until("each active row has its visit", LIMIT, async || {
        let owed: i64 = place
            .ask(
                "select count(*) from visit_distribution d left join visit_distribution_progress p on p.distribution_id = d.id
                  where d.is_active and coalesce(p.distributed, 0) < 1",
            )
            .await;
        owed == 0
    })
    .await;
    let wrong: i64 = place
        .ask(
            "select count(*) from visit_distribution d
              cross join lateral (select count(*) as stored from store_visits v where v.distribution_id = d.id) s
              where s.stored <> d.is_active::int",
        )
        .await;
    assert_eq!(wrong, 0, "rows that have another number of visits");
    wait_until(
        "the agent knows the rows that there are",
        LIMIT,
        async || {
            let rows: f64 = place
                .ask("select count(*)::float8 from visit_distribution")
                .await;
            agent.metric("visit_pacer_distributions_scheduled").await == Some(rows)
        },
    )
    .await;
}

directly_and_pooled!(each_row_of_a_large_table_is_found_while_others_are_edited);
async fn each_row_of_a_large_table_is_found_while_others_are_edited(via: Via) {
    let place = via.place().await;
    many_rows(&place).await;
    for _ in 0..via.short(3, 1) {
        let mut agent = place.start_agent().await;
        edits_here_and_there(&place).await;
        agent.ready().await;
        comes_to_rest(&place, &agent).await;
        agent.kill();
    }
    let agent = place.agent().await;
    place
        .edit("update visit_distribution set is_active = true where not is_active")
        .await;
    comes_to_rest(&place, &agent).await;
}

#[tokio::test]
async fn a_role_that_may_have_no_further_connection_reads_a_large_table_all_the_same() {
    let place = Place::new().await;
    many_rows(&place).await;
    let role = format!("few_{}", place.partner.simple());
    let login = format!("{:032x}", rand::random::<u128>());
    place
        .edit(format!(
            "create role {role} login password '{login}' bypassrls connection limit 3;
             grant pg_read_all_data, pg_write_all_data to {role};
             grant execute on all functions in schema public to {role}"
        ))
        .await;
    let mut url = url::Url::parse(&place.url).expect("a URL");
    url.set_username(&role).expect("it has a user");
    url.set_password(Some(&login)).expect("it has a password");
    // The reader has one, the keeper another; the writer has none before there is something to write.
    let third = PgConnection::connect(url.as_str()).await.expect("a way in");
    let agent = place.start_agent_at(url.as_str()).await;
    agent.ready().await;
    third.close().await.expect("a goodbye");
    add(&place, 10, true).await;
    comes_to_rest(&place, &agent).await;
}

/// Ends every COPY that is under way; says whether there was one.
async fn cut_a_scan(connection: &mut PgConnection) -> bool {
    sqlx::query_scalar(AssertSqlSafe(
        "select coalesce(bool_or(pg_terminate_backend(pid)), false) from pg_stat_activity
          where datname = current_database() and application_name = 'visit-pacer' and query like 'copy (%'",
    ))
    .fetch_one(connection)
    .await
    .expect("a word")
}

#[tokio::test]
async fn a_look_that_is_cut_short_begins_anew() {
    let place = Place::new().await;
    add(&place, 10 * ROWS, false).await;
    let mut connection = PgConnection::connect(&place.url).await.expect("a way in");
    let agent = place.start_agent().await;
    wait_until("a look is cut short", LIMIT, async || {
        cut_a_scan(&mut connection).await
    })
    .await;
    agent.ready().await;
    add(&place, 10, true).await;
    comes_to_rest(&place, &agent).await;
}

/// The backend of a COPY that waits until somebody reads what it sent.
async fn waiting_scan(place: &Place) -> Option<i32> {
    place
        .ask(
            "select max(pid) from pg_stat_activity
              where datname = current_database() and query like 'copy (%' and state = 'active' and wait_event = 'ClientWrite'",
        )
        .await
}

/// An agent that is frozen in the middle of a look, while the database has more for it than the network holds.
async fn frozen_in_a_look(place: &Place) -> Agent {
    let under_way = "select exists (select from pg_stat_activity
                      where datname = current_database() and query like 'copy (%' and state = 'active')";
    find("an agent is frozen in a look", LIMIT, async || {
        let mut agent = place.start_agent().await;
        wait_until("a look begins", LIMIT, async || place.ask(under_way).await).await;
        agent.signal(Signal::SIGSTOP);
        // It waits for its reader, or is done by now: what it reads is in memory.
        let waits = find("the look waits or is over", LIMIT, async || {
            let waits = waiting_scan(place).await.is_some();
            (waits || !place.ask::<bool>(under_way).await).then_some(waits)
        })
        .await;
        if !waits {
            agent.kill();
        }
        waits.then_some(agent)
    })
    .await
}

#[tokio::test]
async fn an_agent_that_is_frozen_in_a_look_does_not_keep_the_table_locked() {
    let place = Place::new().await;
    add(&place, 10 * ROWS, false).await;
    let agent = frozen_in_a_look(&place).await;
    let edit = place.edit("alter table visit_distribution add column note text");
    tokio::time::timeout(LIMIT, edit)
        .await
        .expect("the look's lock is let go");

    agent.signal(Signal::SIGCONT);
    agent.ready().await;
    add(&place, 10, true).await;
    comes_to_rest(&place, &agent).await;
}
