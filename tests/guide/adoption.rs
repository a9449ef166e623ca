//! Rows and visits that were there before our schema came: their past is closed, until a person opens it.

use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinSet;

use super::{Database, GUIDES_PARTNER, said};
use crate::harness::{PATIENCE, Place, find};

/// A row that ended a month ago, of which the user's own column says 5000, with 5000 visits in its window.
const ENDED: &str = "
  insert into visit_distribution (id, partner_id, total_visits, time_period, visits_per_unit, start_time, end_time, total_distributed)
    select 'd0000000-0000-0000-0000-000000000009', id, 10000, 'hour', 1000, now() - interval '31 days', now() - interval '30 days', 5000
      from partners where name = 'of the guide';
  insert into store_visits (partner_id, visited_at)
    select id, now() - interval '31 days' + n * interval '1 second' from partners, generate_series(1, 5000) n where name = 'of the guide'";

const LEDGER: &str = "
  select status, distributed, baseline, missing, purged, total_distributed,
         (select count(*) from store_visits v where v.distribution_id = d.id)
    from visit_distribution_status s join visit_distribution d using (id)
   where id = 'd0000000-0000-0000-0000-000000000009'";

#[tokio::test]
async fn for_a_row_that_ended_a_month_ago_nothing_is_issued_and_nothing_lowered_and_its_visits_can_be_adopted()
 {
    let mut db = Database::of_the_guide().await;
    db.run(ENDED).await;
    db.migrate().await;
    assert_eq!(db.said(LEDGER).await, ["ended|5000|5000|0|0|5000|0"]);
    db.run("select * from distribute_visits()").await;
    let told = db.said("select message from sync_distribution_counts(lower => true) where distribution_id = 'd0000000-0000-0000-0000-000000000009'").await;
    assert!(
        told.len() == 1
            && told[0].contains(&format!(
                "select * from adopt_existing_visits('{GUIDES_PARTNER}')"
            )),
        "{told:?}"
    );
    assert_eq!(
        db.said(LEDGER).await,
        ["ended|5000|5000|0|0|5000|0"],
        "nothing issued, nothing lowered"
    );

    let adopted = db
        .said(format!(
            "select adopted from adopt_existing_visits('{GUIDES_PARTNER}') where distribution_id = 'd0000000-0000-0000-0000-000000000009'"
        ))
        .await;
    assert_eq!(adopted, ["5000"]);
    assert_eq!(db.said(LEDGER).await, ["ended|5000|0|0|0|5000|5000"]);
    let in_order: bool = db
        .ask(
            "select bool_and(visit_number > coalesce(before, 5000)) from (
               select visit_number, lag(visit_number) over (order by visited_at) as before from store_visits
                where distribution_id = 'd0000000-0000-0000-0000-000000000009') v",
        )
        .await;
    assert!(in_order, "new numbers, in the order of visited_at");
    let again = format!("select * from adopt_existing_visits('{GUIDES_PARTNER}')");
    assert_eq!(db.said(again).await, [""; 0]);
}

#[tokio::test]
async fn a_visit_that_is_deleted_while_it_is_adopted_leaves_its_number_to_no_other() {
    let place = Place::new().await;
    let row = place.insert(1_000, "10 a second", "null").await;
    place
        .edit(format!(
            "insert into store_visits (partner_id, visited_at)
             select '{}', clock_timestamp() + n * interval '1 hour' from generate_series(1, 5) n",
            place.partner
        ))
        .await;
    let mut user = PgConnection::connect(&place.url)
        .await
        .expect("a connection");
    let mut transaction = user.begin().await.expect("a transaction");
    sqlx::query(
        "delete from store_visits where visited_at = (select min(visited_at) from store_visits)",
    )
    .execute(&mut *transaction)
    .await
    .expect("it is there");
    let adopt = format!(
        "select adopted from adopt_existing_visits('{}')",
        place.partner
    );
    let database = place.db.clone();
    let mut adopting = JoinSet::new();
    adopting.spawn(async move { said(&database, adopt).await });
    find("the adoption waits for the user", PATIENCE, async || {
        let waits = "select exists (select from pg_stat_activity
                      where datname = current_database() and wait_event_type = 'Lock' and query like '%adopt_existing%')";
        place.ask::<bool>(waits).await.then_some(())
    })
    .await;
    transaction.commit().await.expect("a commit");
    let adopted = adopting.join_next().await.expect("it was begun");
    assert_eq!(adopted.expect("no panic"), ["4"]);

    let _agent = place.agent().await;
    place.has_stored(row, 5).await;
    let numbers = format!(
        "select count(*) = count(distinct visit_number), min(visit_number) from store_visits where distribution_id = '{row}'"
    );
    assert_eq!(said(&place.db, numbers).await, ["t|2"]);
    let quarantine =
        "select count(*) from visit_distribution_progress where reason_code is not null";
    assert_eq!(place.ask::<i64>(quarantine).await, 0);
}

#[tokio::test]
async fn visits_in_the_windows_of_two_rows_are_left_alone_and_told() {
    let mut db = Database::migrated().await;
    let partner = db.partner().await;
    db.insert(partner, 100, "1 a hour", "-2 hours", "2 hours")
        .await;
    db.insert(partner, 100, "1 a hour", "-1 hour", "2 hours")
        .await;
    db.run(format!(
        "insert into store_visits (partner_id, visited_at) select '{partner}', now() - n * interval '45 minutes' from generate_series(1, 3) n"
    ))
    .await;
    let mut told = db
        .said(format!(
            "select adopted, message from adopt_existing_visits('{partner}')"
        ))
        .await;
    told.sort_unstable();
    assert_eq!(
        told,
        [
            "0|1 visits lie in the windows of several distributions and stay as they are",
            "1|1 visits belong to this distribution now; distributed: 1",
        ],
        "and one before both stays organic"
    );
    let organic = "select count(*) from organic_store_visits";
    assert_eq!(db.ask::<i64>(organic).await, 2);
}

/// Eight seconds of 20 a second before the migration, of which 50 were distributed.
const OPEN: &str = "
  create table partners (id uuid primary key default gen_random_uuid());
  create table visit_distribution (
    id uuid primary key default gen_random_uuid(), partner_id uuid references partners, total_visits integer, time_period text,
    visits_per_unit numeric, is_active boolean default true, start_time timestamptz default now(), end_time timestamptz,
    total_distributed integer default 0);
  create table store_visits (id uuid primary key default gen_random_uuid(), partner_id uuid references partners, visited_at timestamptz);
  insert into partners values ('00000000-0000-0000-0000-000000000002');
  insert into visit_distribution (id, partner_id, total_visits, time_period, visits_per_unit, start_time, end_time, total_distributed)
    select 'd0000000-0000-0000-0000-000000000009', id, 100000, 'second', 20, now() - interval '8 seconds', now() + interval '1 hour', 50
      from partners";

#[tokio::test]
async fn backfill_on_an_open_row_has_the_agent_issue_what_the_time_before_the_migration_owes_at_twice_the_pace()
 {
    let url = crate::harness::server::database().await;
    let mut connection = PgConnection::connect(&url).await.expect("a connection");
    sqlx::raw_sql(OPEN)
        .execute(&mut connection)
        .await
        .expect("tables of before");
    connection.close().await.expect("a goodbye");
    let place = Place::over(url).await;
    place.record_fires().await;
    let _agent = place.agent().await;
    let row = uuid::uuid!("d0000000-0000-0000-0000-000000000009");
    place.has_stored(row, 20).await;
    let at_the_migration: i64 = place
        .ask("select visit_distribution_due(id, anchor_at) from visit_distribution")
        .await;
    assert_eq!(
        at_the_migration,
        50,
        "nothing is owed for the time before: {:?}",
        place.look(row).await
    );

    let owed_before: i64 = place
        .ask("select round(extract(epoch from anchor_at - start_time) * 20)::bigint - 50 from visit_distribution")
        .await;
    let owed = said(
        &place.db,
        format!("select owed from visit_pacer_backfill('{row}')"),
    )
    .await;
    let owed: i64 = owed[0].parse().expect("a number");
    assert!(
        owed_before >= 109 && (owed_before - 2..=owed_before + 10 * 20).contains(&owed),
        "what the time before owed, {owed_before}, and what is due meanwhile, not {owed}"
    );
    let look = find("what was owed is stored", PATIENCE, async || {
        let look = place.look(row).await;
        (look.due.is_some_and(|due| due - look.distributed <= 20 + 2)).then_some(look)
    })
    .await;
    assert_eq!(
        look.distributed,
        look.stored + 50,
        "the baseline is counted, and not stored again: {look:?}"
    );
    let since_start = format!(
        "select floor(extract(epoch from clock_timestamp() - start_time) * 20 + 0.5)::bigint - visit_distribution_due(id)
           from visit_distribution where id = '{row}'"
    );
    let off: i64 = place.ask(since_start).await;
    assert!(
        off.abs() <= 1,
        "as if the pace had held from the start, but for {off}"
    );
    let densest = place.densest(row, "5 seconds").await;
    assert!(densest <= 5 * 2 * 20 + 41, "{densest} in 5 s");
    let again = said(
        &place.db,
        format!("select message from visit_pacer_backfill('{row}')"),
    )
    .await;
    assert!(
        again[0].starts_with("nothing is owed for the past"),
        "{again:?}"
    );
}
