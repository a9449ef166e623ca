//! A database that cannot take visit-pacer is refused beforehand, and nothing of it is changed.

use sqlx::Connection as _;
use visit_pacer::postgres::migrations::{self, MIGRATIONS, MigrateError};

use super::Database;

/// Users' tables, with the columns that a case replaces.
fn tables(partner: &str, distribution: &str, visits: &str) -> String {
    format!(
        "create table partners (id {partner} primary key, name text);
         create table visit_distribution (
           {distribution}, partner_id {partner} references partners (id), total_visits integer, time_period text,
           visits_per_unit numeric, is_active boolean default true, start_time timestamptz default now(), end_time timestamptz);
         create table store_visits ({visits}, partner_id {partner} references partners (id), session_duration integer, page_path text);"
    )
}

const UUID: &str = "id uuid primary key default gen_random_uuid()";
const VISITS: &str =
    "id uuid primary key default gen_random_uuid(), visited_at timestamptz default now()";

/// Everything in the schema `public`, as names.
const OBJECTS: &str = "
  select format('%s %s', classid::regclass, pg_describe_object(classid, objid, 0))
    from pg_depend where refclassid = 'pg_namespace'::regclass and refobjid = 'public'::regnamespace
  union all
  select format('%s %s %s', attrelid::regclass, attname, atttypid::regtype) from pg_attribute a join pg_class c on c.oid = a.attrelid
   where c.relnamespace = 'public'::regnamespace and attnum > 0 and not attisdropped
  order by 1";

async fn refusal(db: &mut Database) -> String {
    match migrations::apply(&mut db.connection).await {
        Err(MigrateError::Refused(message)) => message,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn what_cannot_work_is_refused_naming_table_column_and_type_and_nothing_is_changed() {
    let cases = [
        (
            tables("uuid", "id bigint primary key", VISITS),
            "public.visit_distribution.id is bigint; expected uuid",
        ),
        (
            tables("uuid", "id uuid", VISITS),
            "public.visit_distribution.id has no primary key or unique constraint; add one",
        ),
        (
            tables("numeric", UUID, VISITS),
            "public.partners.id is numeric; expected uuid, bigint, integer or text",
        ),
        (
            tables(
                "uuid",
                UUID,
                "id bigint primary key, visited_at timestamptz",
            ),
            "public.store_visits.id is bigint without a default",
        ),
        (
            tables("uuid", UUID, "id uuid primary key, visited_at integer"),
            "public.store_visits.visited_at is integer, which does not take",
        ),
        (
            tables("uuid", UUID, &format!("{VISITS}, distribution_id bigint")),
            "public.store_visits.distribution_id is bigint; expected uuid",
        ),
        (
            tables("uuid", UUID, VISITS) + "create table visit_page_paths (url text)",
            "public.visit_page_paths exists and is not part of visit-pacer; rename it",
        ),
        (
            tables("uuid", UUID, VISITS) + "create table organic_store_visits (a integer)",
            "public.organic_store_visits exists and is a table",
        ),
        (
            tables("uuid", UUID, VISITS)
                + "create view organic_store_visits as select 1 as one; create view on_it as select * from organic_store_visits",
            "view organic_store_visits is replaced by one of visit-pacer, and rule _RETURN on view on_it depends on it",
        ),
        (
            "create view partners as select 1 as id".to_owned(),
            "public.partners is not a table",
        ),
    ];
    for (sql, expected) in cases {
        let mut db = Database::empty().await;
        db.run(sql).await;
        let before = db.said(OBJECTS).await;
        let message = refusal(&mut db).await;
        assert!(message.contains(expected), "{message}");
        assert!(message.contains("nothing was changed"), "{message}");
        assert_eq!(db.said(OBJECTS).await, before, "{expected}");
    }
}

#[tokio::test]
async fn a_file_that_fails_takes_the_files_before_it_back() {
    let mut db = Database::empty().await;
    // A type of this name makes a later file fail, where no preflight looks.
    db.run("create type visit_distribution_progress as enum ('a')")
        .await;
    let before = db.said(OBJECTS).await;
    let refused = migrations::apply(&mut db.connection).await;
    assert!(
        matches!(refused, Err(MigrateError::Database(_))),
        "{refused:?}"
    );
    assert_eq!(db.said(OBJECTS).await, before);
}

#[tokio::test]
async fn while_a_session_reads_the_table_migrate_waits_in_short_tries_and_the_application_goes_on()
{
    let mut db = Database::empty().await;
    db.run(tables("uuid", UUID, VISITS) + "insert into partners values (gen_random_uuid(), 'a')")
        .await;
    let mut reader = Database::at(db.url.clone()).await;
    reader.run("begin; select count(*) from store_visits").await;
    let mut application = Database::at(db.url.clone()).await;
    application.run("set lock_timeout = '5s'").await;
    let mut migrating = tokio::task::JoinSet::new();
    migrating.spawn(async move {
        let applied = migrations::apply(&mut db.connection).await;
        let applied = applied.expect("applied once the reader has ended");
        db.connection.close().await.expect("closed");
        applied
    });
    // As long as the reader's transaction is open, inserts of the application succeed, several tries of the migration long.
    let waits =
        "select count(*) from pg_locks where not granted and relation = 'store_visits'::regclass";
    let mut tries_seen = 0;
    while tries_seen < 2 {
        tries_seen += usize::from(reader.ask::<i64>(waits).await > 0);
        application
            .run("insert into store_visits (partner_id) select id from partners")
            .await;
    }
    reader.run("commit").await;
    let applied = migrating.join_next().await.expect("one task");
    assert_eq!(applied.expect("no panic").len(), MIGRATIONS.len());
}
