//! A table with more rows than one read returns: each row is found, whatever is edited during a full sync.

use std::time::Duration;

use nix::sys::signal::Signal;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::harness::agent::Agent;
use crate::harness::pooler::{Via, directly_and_pooled};
use crate::harness::{Place, find, url_as, wait_until};

/// More than two reads (`ROWS_PER_READ` each).
const ROWS: i64 = 12_000;
/// Edits during the full sync, each of some rows.
const EDITS: usize = 40;
const LIMIT: Duration = Duration::from_secs(90);

/// Inserts paused rows of one visit each.
async fn many_rows(place: &Place) {
    add(place, ROWS, false).await;
}

async fn add(place: &Place, count: i64, active: bool) {
    let row = place.row().total(1).rate("10 a second");
    let row = row.with("is_active", active.to_string()).times(count);
    place.insert_rows(&row).await;
}

/// Activates some rows, deletes some, and inserts some, repeatedly.
async fn edit_some(place: &Place) {
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

/// Waits until every active row has its one visit; no other row has any, and the agent knows as many rows as exist.
async fn settles(place: &Place, agent: &Agent) {
    wait_until("each active row has its visit", LIMIT, async || {
        let missing: i64 = place
            .ask(
                "select count(*) from visit_distribution d left join visit_distribution_progress p on p.distribution_id = d.id
                  where d.is_active and coalesce(p.distributed, 0) < 1",
            )
            .await;
        missing == 0
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
        edit_some(&place).await;
        agent.ready().await;
        settles(&place, &agent).await;
        agent.kill();
    }
    let agent = place.agent().await;
    place
        .edit("update visit_distribution set is_active = true where not is_active")
        .await;
    settles(&place, &agent).await;
}

#[tokio::test]
async fn a_role_with_no_further_connection_reads_a_large_table() {
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
    let url = url_as(&place.url, &role, &login);
    // Reader and maintenance have one each; the writer connects when there is something to write.
    let third = PgConnection::connect(&url).await.expect("a connection");
    let agent = place.start_agent_at(&url).await;
    agent.ready().await;
    third.close().await.expect("closed");
    add(&place, 10, true).await;
    settles(&place, &agent).await;
}

/// Ends every COPY in progress. Returns whether there was one.
async fn end_copies(connection: &mut PgConnection) -> bool {
    sqlx::query_scalar(AssertSqlSafe(
        "select coalesce(bool_or(pg_terminate_backend(pid)), false) from pg_stat_activity
          where datname = current_database() and application_name = 'visit-pacer' and query like 'copy (%'",
    ))
    .fetch_one(connection)
    .await
    .expect("an answer")
}

#[tokio::test]
async fn an_interrupted_full_sync_begins_again() {
    let place = Place::new().await;
    add(&place, 10 * ROWS, false).await;
    let mut connection = place.connect().await;
    let agent = place.start_agent().await;
    wait_until("a full sync is interrupted", LIMIT, async || {
        end_copies(&mut connection).await
    })
    .await;
    agent.ready().await;
    add(&place, 10, true).await;
    settles(&place, &agent).await;
}

/// The server process of a COPY that waits for its reader.
async fn waiting_copy(place: &Place) -> Option<i32> {
    place
        .ask(
            "select max(pid) from pg_stat_activity
              where datname = current_database() and query like 'copy (%' and state = 'active' and wait_event = 'ClientWrite'",
        )
        .await
}

/// An agent frozen within a full sync, while the server has more to send than the network buffers.
async fn frozen_in_full_sync(place: &Place) -> Agent {
    let copying = "select exists (select from pg_stat_activity
                      where datname = current_database() and query like 'copy (%' and state = 'active')";
    find("an agent is frozen in a full sync", LIMIT, async || {
        let mut agent = place.start_agent().await;
        wait_until("a full sync begins", LIMIT, async || {
            place.ask(copying).await
        })
        .await;
        agent.signal(Signal::SIGSTOP);
        // Or it has ended by now.
        let waits = find("the COPY waits or has ended", LIMIT, async || {
            let waits = waiting_copy(place).await.is_some();
            (waits || !place.ask::<bool>(copying).await).then_some(waits)
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
async fn an_agent_frozen_in_a_full_sync_does_not_keep_the_table_locked() {
    let place = Place::new().await;
    add(&place, 10 * ROWS, false).await;
    let agent = frozen_in_full_sync(&place).await;
    let edit = place.edit("alter table visit_distribution add column note text");
    tokio::time::timeout(LIMIT, edit)
        .await
        .expect("the table is not locked");

    agent.signal(Signal::SIGCONT);
    agent.ready().await;
    add(&place, 10, true).await;
    settles(&place, &agent).await;
}
