//! The users' own tables: other types, other columns, another time zone, many rows, and an owner who is no superuser.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use url::Url;

use super::{Database, GUIDES_PARTNER};
use crate::harness::{PATIENCE, Place, server, wait_until};

/// The types of one user's columns.
struct Types {
    total_visits: &'static str,
    time_period: &'static str,
    visits_per_unit: &'static str,
    moment: &'static str,
    total_distributed: &'static str,
    visited_at: &'static str,
    session_duration: &'static str,
}

const WHOLE: Types = Types {
    total_visits: "integer",
    time_period: "varchar(10)",
    visits_per_unit: "integer",
    moment: "timestamp",
    total_distributed: "integer",
    visited_at: "timestamp",
    session_duration: "integer",
};
const FLOATING: Types = Types {
    total_visits: "double precision",
    time_period: "period",
    visits_per_unit: "double precision",
    moment: "timestamp",
    total_distributed: "double precision",
    visited_at: "timestamp",
    session_duration: "numeric",
};
const SCALED: Types = Types {
    total_visits: "numeric(12,2)",
    time_period: "char(6)",
    visits_per_unit: "numeric(10,2)",
    moment: "timestamptz(0)",
    total_distributed: "numeric(12,2)",
    visited_at: "timestamptz(0)",
    session_duration: "bigint",
};
const MIXED: Types = Types {
    total_visits: "bigint",
    time_period: "period",
    visits_per_unit: "real",
    moment: "timestamptz",
    total_distributed: "bigint",
    visited_at: "timestamptz",
    session_duration: "smallint",
};

/// Such tables, with a row of 60 a minute that began ten minutes ago, and columns of `store_visits` that nothing of ours fills.
/// Moments without a zone are UTC.
fn tables(types: &Types) -> String {
    let Types {
        total_visits,
        time_period,
        visits_per_unit,
        moment,
        total_distributed,
        visited_at,
        session_duration,
    } = types;
    format!(
        "set timezone = 'UTC';
         create type period as enum ('second', 'minute', 'hour', 'day');
         create table partners (id uuid primary key);
         create table visit_distribution (
           id uuid primary key default gen_random_uuid(), partner_id uuid references partners, total_visits {total_visits},
           time_period {time_period} not null, visits_per_unit {visits_per_unit}, is_active boolean not null default true,
           start_time {moment} default now(), end_time {moment}, total_distributed {total_distributed} default 0);
         create table store_visits (
           id uuid primary key default gen_random_uuid(), partner_id uuid not null references partners,
           visited_at {visited_at} not null default now(), session_duration {session_duration}, page_path varchar(40),
           duration_seconds integer not null, source text not null default 'web');
         insert into partners values ('{GUIDES_PARTNER}');
         insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit, start_time, end_time, total_distributed)
           values ('{GUIDES_PARTNER}', 1000, 'minute', 60, now() - interval '10 minutes', now() + interval '20 minutes', 100);
         insert into store_visits (partner_id, visited_at, duration_seconds)
           select '{GUIDES_PARTNER}', now() - n * interval '1 minute', 5 from generate_series(1, 50) n;"
    )
}

/// What fills those columns, for every way in.
const FILL: &str = "
  create function fill() returns trigger language plpgsql as $$ begin
    if new.distribution_id is not null then new.duration_seconds := new.session_duration; end if; return new; end $$;
  create trigger fill before insert on store_visits for each row execute function fill();";

#[tokio::test]
async fn other_types_further_columns_and_another_time_zone_are_served_by_the_functions() {
    for types in [WHOLE, FLOATING, SCALED, MIXED] {
        let mut db = Database::empty().await;
        db.run(tables(&types)).await;
        db.migrate().await;
        let status = "select status, distributed, baseline, due - distributed < 30 from visit_distribution_status";
        assert_eq!(
            db.said(status).await,
            ["active|100|100|t"],
            "the past is closed"
        );
        let told = db.sql_functions(GUIDES_PARTNER, 10).await;
        assert!(
            told[0].0 == 0 && told[0].1.contains("duration_seconds"),
            "nothing fills a column of the user's, and it says so: {told:?}"
        );

        db.run(FILL).await;
        db.run("set timezone = 'Asia/Tokyo'; update visit_distribution set visits_per_unit = 600")
            .await;
        assert_eq!(db.sql_functions(GUIDES_PARTNER, 10).await[0].0, 10);
        db.run("update visit_distribution set is_active = false; update visit_distribution set is_active = true")
            .await;
        wait_until("what came due since", PATIENCE, async || {
            db.distribute().await[0].0 > 0
        })
        .await;
        let odd: i64 = db
            .ask(
                "select count(*) from store_visits s
                  where distribution_id is not null
                    and (public.visit_pacer_utc(visited_at) not between now() - interval '5 minutes' and clock_timestamp() + interval '1 second'
                      or duration_seconds is distinct from session_duration::integer or source <> 'web' or page_path not like '/%')",
            )
            .await;
        assert_eq!(
            odd, 0,
            "visits of another moment or shape: {}",
            types.visited_at
        );
        let told = db.said("select counted_before - counted_now, missing from sync_distribution_counts() where message not like '%adopt%'").await;
        assert_eq!(told, [""; 0]);
        let adopted = db
            .said(format!(
                "select adopted > 5 from adopt_existing_visits('{GUIDES_PARTNER}')"
            ))
            .await;
        assert_eq!(adopted[0], "t", "{}", types.moment);
    }
}

#[tokio::test]
async fn an_agent_keeps_the_pace_on_such_tables_in_a_database_far_from_utc() {
    let url = server::database().await;
    let mut connection = PgConnection::connect(&url).await.expect("a connection");
    let prepared = format!(
        "{} {FILL} delete from visit_distribution;
         do $$ begin execute format('alter database %I set timezone = ''Asia/Tokyo''', current_database()); end $$;",
        tables(&FLOATING).replace("new.distribution_id", "new.partner_id")
    );
    sqlx::raw_sql(AssertSqlSafe(prepared))
        .execute(&mut connection)
        .await
        .expect("tables");
    connection.close().await.expect("a goodbye");
    let place = Place::over(url).await;
    let agent = place.agent().await;
    let row = place
        .ask(format!(
            "insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit, start_time, end_time)
             values ('{}', 150, 'minute', 1800, now() at time zone 'UTC', now() at time zone 'UTC' + interval '1 hour') returning id",
            place.partner
        ))
        .await;
    place.has_stored(row, 20).await;
    place.set(row, "is_active = false").await;
    let paused = place.stored(row).await;
    place.agents_work_for(2).await;
    assert_eq!(place.stored(row).await, paused, "a pause is a barrier");
    place.set(row, "is_active = true").await;
    place.becomes(row, "completed").await;
    let off: i64 = place
        .ask(format!(
            "select count(*) from store_visits where distribution_id = '{row}'
                and abs(extract(epoch from visited_at at time zone 'UTC' - created_at)) > 3"
        ))
        .await;
    assert_eq!(off, 0, "visits hours away");
    assert_eq!(place.stored(row).await, 150);
    assert!(!agent.log().contains("ERROR"), "{}", agent.log());
}

/// The URL of the same database for another login.
fn as_login(url: &str, name: &str, password: &str) -> String {
    let mut url = Url::parse(url).expect("a URL");
    url.set_username(name).expect("a host");
    url.set_password(Some(password)).expect("a host");
    url.into()
}

#[tokio::test]
async fn a_database_made_by_hand_with_100_000_visits_is_migrated_by_an_owner_with_only_createrole_and_goes_on()
 {
    let url = server::database().await;
    let owner = format!("owner_{:016x}", rand::random::<u64>());
    let mut superuser = Database::at(url.clone()).await;
    let database: String = superuser.ask("select current_database()::text").await;
    superuser
        .run(format!(
            "create role {owner} login createrole password 'the owner';
             alter database {database} owner to {owner}; alter schema public owner to {owner}"
        ))
        .await;
    let owners_url = as_login(&url, &owner, "the owner");
    let mut db = Database::at(owners_url.clone()).await;
    db.run(super::TABLES).await;
    db.run(format!(
        "insert into store_visits (partner_id, visited_at, page_path)
           select '{GUIDES_PARTNER}', now() - interval '90 days' + n * interval '1 minute', '/' || n from generate_series(1, 99500) n"
    ))
    .await;
    let content = "select count(*), md5(string_agg(format('%s %s %s', id, visited_at, page_path), '' order by id)) from store_visits where distribution_id is null";
    let before = db
        .said(content.replace(" where distribution_id is null", ""))
        .await;
    assert!(before[0].starts_with("100000|"), "{before:?}");
    db.migrate().await;
    assert_eq!(db.said(content).await, before, "nothing is lost");
    let status = "select status, distributed, baseline, missing, due between 500 and 560 from visit_distribution_status";
    assert_eq!(db.said(status).await, ["active|500|500|0|t"]);

    let mut place = Place::over(url).await;
    place.url = owners_url;
    let _agent = place.agent().await;
    let row = uuid::uuid!("d0000000-0000-0000-0000-000000000001");
    place.set(row, "visits_per_unit = 36000").await;
    place.has_stored(row, 30).await;
    let look = place.becomes(row, "active").await;
    assert_eq!(look.distributed, look.stored + 500, "{look:?}");
    assert_eq!(db.said(content).await, before, "nor afterwards");
}
