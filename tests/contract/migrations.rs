//! The migrations: on an empty database, on the guide's tables with rows in them, and again; nothing of the user's is lost.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use visit_pacer::postgres::migrations::{self, MIGRATIONS};

use crate::harness::server::{self, Scratch};

/// The guide's tables as a user made them, with rows, a policy, rights, and the guide's own functions of other signatures.
const GUIDES: &str = "
  create table partners (id uuid primary key, company text not null);
  create table visit_distribution (
    id uuid primary key default gen_random_uuid(), partner_id uuid not null references partners, total_visits integer not null,
    time_period text not null, visits_per_unit numeric(10,2) not null, is_active boolean default true,
    start_time timestamptz default now(), end_time timestamptz, total_distributed integer default 0,
    last_distribution timestamptz, created_at timestamptz default now(), updated_at timestamptz default now());
  create table store_visits (
    id uuid primary key default gen_random_uuid(), partner_id uuid not null references partners,
    visited_at timestamptz not null default now(), session_duration integer, page_path text);
  alter table visit_distribution enable row level security;
  create policy everybody_reads on visit_distribution for select using (true);
  insert into partners values ('e2731c06-58b4-4f37-96c7-f721af43263c', 'a company');
  insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit, start_time, end_time, total_distributed)
    select id, 150000, 'hour', 6250, now() - interval '3 hours', now() + interval '21 hours', 700 from partners;
  insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit, start_time, end_time, total_distributed)
    select id, 2000, 'minute', 33.33, now() - interval '3 hours', now() - interval '2 hours', 2500 from partners;
  insert into store_visits (partner_id, visited_at) select id, now() - n * interval '1 minute' from partners, generate_series(1, 100) n;
  create function distribute_visits() returns table (partner_id uuid, added integer) language sql as $$ select null::uuid, 1 $$;
  create function sync_distribution_counts() returns integer language sql as $$ select 1 $$;
  create view visit_distribution_status as select id, is_active from visit_distribution;";

async fn empty() -> PgConnection {
    PgConnection::connect(&server::database().await)
        .await
        .expect("a connection")
}

async fn run(connection: &mut PgConnection, sql: impl Into<String>) {
    let sql = sql.into();
    sqlx::raw_sql(AssertSqlSafe(sql.clone()))
        .execute(connection)
        .await
        .unwrap_or_else(|error| panic!("{error}: {sql}"));
}

async fn ask<T>(connection: &mut PgConnection, sql: &'static str) -> T
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    sqlx::query_scalar(sql)
        .fetch_one(connection)
        .await
        .unwrap_or_else(|error| panic!("{error}: {sql}"))
}

async fn migrate(connection: &mut PgConnection) -> usize {
    migrations::apply(connection)
        .await
        .unwrap_or_else(|error| panic!("{error:?}"))
        .len()
}

/// Everything that the schema is made of, and what is in our own tables, as text.
async fn picture(connection: &mut PgConnection) -> String {
    ask(
        connection,
        "select concat_ws(E'\\n',
           (select string_agg(format('%s %s %s %s', attrelid::regclass, attname, atttypid::regtype, atthasdef), E'\\n' order by attrelid, attnum)
              from pg_attribute join pg_class c on c.oid = attrelid
             where relnamespace = 'public'::regnamespace and attnum > 0 and not attisdropped),
           (select string_agg(format('%s %s', oid::regprocedure, prosrc), E'\\n' order by oid::regprocedure::text)
              from pg_proc where pronamespace = 'public'::regnamespace),
           (select string_agg(pg_get_triggerdef(oid), E'\\n' order by tgname) from pg_trigger where not tgisinternal),
           (select string_agg(format('%s %s', oid::regclass, relacl), E'\\n' order by relname) from pg_class where relnamespace = 'public'::regnamespace),
           (select string_agg(format('%s %s', path, weight), E'\\n' order by path) from visit_page_paths),
           (select string_agg(a::text, E'\\n' order by a::text) from visit_user_agents a),
           (select string_agg(r::text, E'\\n' order by r::text) from visit_referrers r),
           (select string_agg(name, E'\\n' order by name) from visit_pacer_replaced))",
    )
    .await
}

#[tokio::test]
async fn on_an_empty_database_each_file_applies_records_itself_and_twice_changes_nothing() {
    let mut connection = empty().await;
    assert_eq!(migrate(&mut connection).await, MIGRATIONS.len());
    let first = picture(&mut connection).await;
    assert_eq!(
        migrate(&mut connection).await,
        0,
        "what is recorded is not applied again"
    );
    for file in MIGRATIONS {
        run(&mut connection, format!("begin; {} commit;", file.sql)).await;
    }
    assert_eq!(
        picture(&mut connection).await,
        first,
        "applied by hand once more"
    );
    let recorded: Vec<String> =
        sqlx::query_scalar("select version from visit_pacer_migrations order by 1")
            .fetch_all(&mut connection)
            .await
            .expect("versions");
    assert_eq!(
        recorded,
        MIGRATIONS
            .iter()
            .map(|file| file.version)
            .collect::<Vec<_>>()
    );
    let published: Vec<String> = sqlx::query_scalar(
        "select tablename::text from pg_publication_tables where pubname = 'supabase_realtime' order by 1",
    )
    .fetch_all(&mut connection)
    .await
    .expect("the publication");
    assert_eq!(published, ["visit_distribution", "visit_pacer_canary"]);
}

/// Who may do what with the user's three tables, their row security and their columns' types.
const USERS_TABLES: &str = "
  select string_agg(format('%s %s %s %s', c.oid::regclass, c.relrowsecurity, r.rolname,
                           has_table_privilege(r.oid, c.oid, p)), E'\n' order by c.relname, r.rolname, p)
         || (select string_agg(format('%s %s', attname, atttypid::regtype), E'\n' order by attnum) from pg_attribute
              where attrelid = 'visit_distribution'::regclass and attnum between 1 and 12)
    from pg_class c, pg_roles r, unnest(array['select', 'insert', 'update', 'delete', 'truncate']) p
   where c.relname in ('partners', 'visit_distribution', 'store_visits') and r.rolname in ('anon', 'authenticated')";

#[tokio::test]
async fn on_the_guides_tables_rows_policies_rights_and_types_stay() {
    let mut connection = empty().await;
    run(&mut connection, GUIDES).await;
    let before: String = ask(&mut connection, USERS_TABLES).await;
    let visits = "select md5(string_agg(format('%s %s %s', id, visited_at, page_path), '' order by id)) from store_visits";
    let visits_before: String = ask(&mut connection, visits).await;
    assert_eq!(migrate(&mut connection).await, MIGRATIONS.len());
    assert_eq!(ask::<String>(&mut connection, USERS_TABLES).await, before);
    assert_eq!(ask::<String>(&mut connection, visits).await, visits_before);
    let policies = "select count(*) from pg_policies where policyname = 'everybody_reads'";
    assert_eq!(ask::<i64>(&mut connection, policies).await, 1);
    let organic = "select count(*) from organic_store_visits";
    assert_eq!(
        ask::<i64>(&mut connection, organic).await,
        100,
        "visits of before are organic"
    );
}

#[tokio::test]
async fn for_rows_that_were_there_the_past_is_closed_also_when_all_is_applied_again() {
    let mut connection = empty().await;
    run(&mut connection, GUIDES).await;
    assert_eq!(migrate(&mut connection).await, MIGRATIONS.len());
    for file in MIGRATIONS {
        run(&mut connection, format!("begin; {} commit;", file.sql)).await;
    }
    let rows = sqlx::query(
        "select p.distributed, p.baseline, p.last_number, visit_distribution_due(v.id) as due, s.status
           from visit_distribution v join visit_distribution_progress p on p.distribution_id = v.id
           join visit_distribution_status s on s.id = v.id order by v.total_visits desc",
    )
    .fetch_all(&mut connection)
    .await
    .expect("rows have progress");
    let numbers =
        |n: usize| -> (i64, i64, i64) { (rows[n].get(0), rows[n].get(1), rows[n].get(2)) };
    assert_eq!(
        numbers(0),
        (700, 700, 700),
        "what was distributed before is the baseline"
    );
    assert_eq!(numbers(1), (2000, 2000, 2000), "bounded by the total");
    let due: i64 = rows[0].get("due");
    assert!(
        (700..760).contains(&due),
        "nothing is owed for the time before, but {due} are due"
    );
    assert_eq!(rows[1].get::<String, _>("status"), "completed");
}

#[tokio::test]
async fn functions_and_views_in_the_way_are_kept_as_text_and_replaced() {
    let mut connection = empty().await;
    run(&mut connection, GUIDES).await;
    assert_eq!(migrate(&mut connection).await, MIGRATIONS.len());
    // What is kept of functions and views; the table also notes other things that uninstalling has to know.
    let kept = "select string_agg(name, ' ' order by name) from visit_pacer_replaced
                 where definition ilike 'create%function%' or definition ilike 'create view%'";
    let in_the_way = "distribute_visits sync_distribution_counts visit_distribution_status";
    assert_eq!(ask::<String>(&mut connection, kept).await, in_the_way);
    let text =
        "select definition from visit_pacer_replaced where name = 'sync_distribution_counts'";
    let text: String = ask(&mut connection, text).await;
    assert!(text.to_lowercase().contains("returns integer"), "{text}");
    for call in [
        "distribute_visits()",
        "sync_distribution_counts()",
        "visit_distribution_status",
    ] {
        run(&mut connection, format!("select * from {call}")).await;
    }
    run(
        &mut connection,
        "create view theirs as select id, status from visit_distribution_status",
    )
    .await;
    for file in MIGRATIONS {
        run(&mut connection, format!("begin; {} commit;", file.sql)).await;
    }
    let again: String = ask(&mut connection, kept).await;
    assert_eq!(again, in_the_way, "our own are not taken for the user's");
}

#[tokio::test]
async fn a_database_without_any_of_supabases_roles_is_served_too() {
    let folder = Scratch::new();
    let plain = server::start(folder.path().join("postgres")).await;
    let mut connection = PgConnection::connect(&plain.url("postgres"))
        .await
        .expect("a connection");
    assert_eq!(migrate(&mut connection).await, MIGRATIONS.len());
    let roles: i64 = ask(
        &mut connection,
        "select count(*) from pg_roles where rolname in ('anon', 'authenticated', 'service_role')",
    )
    .await;
    assert_eq!(roles, 0, "nobody made them");
}

#[tokio::test]
async fn the_guides_two_examples_and_its_status_query_run_as_written() {
    let mut connection = empty().await;
    migrate(&mut connection).await;
    run(
        &mut connection,
        "insert into partners (id) values ('e2731c06-58b4-4f37-96c7-f721af43263c');
         INSERT INTO visit_distribution (partner_id, total_visits, time_period, visits_per_unit, is_active, start_time, end_time)
         VALUES ('e2731c06-58b4-4f37-96c7-f721af43263c', 150000, 'hour', 6250.00, true, NOW(), NOW() + INTERVAL '24 hours');
         INSERT INTO visit_distribution (partner_id, total_visits, time_period, visits_per_unit, is_active, start_time, end_time)
         VALUES ('e2731c06-58b4-4f37-96c7-f721af43263c', 2000, 'minute', 33.33, true, NOW(), NOW() + INTERVAL '1 hour');",
    )
    .await;
    let status = sqlx::query(
        "SELECT vd.partner_id, vd.total_visits, vd.total_distributed, vd.visits_per_unit, vd.time_period, vd.is_active,
                COUNT(sv.id) as actual_store_visits,
                CASE WHEN vd.total_distributed = COUNT(sv.id) THEN '✅ In Sync' ELSE 'Out of Sync' END as sync_status,
                ROUND((vd.total_distributed / NULLIF(vd.total_visits, 0)) * 100, 2) as completion_percentage
           FROM visit_distribution vd LEFT JOIN store_visits sv ON vd.partner_id = sv.partner_id
          WHERE vd.is_active = true GROUP BY vd.id ORDER BY vd.partner_id",
    )
    .fetch_all(&mut connection)
    .await
    .expect("the guide's own query");
    assert_eq!(status.len(), 2);
    let ends: Vec<i64> = sqlx::query_scalar(
        "select visit_distribution_due(id, end_time) from visit_distribution order by total_visits desc",
    )
    .fetch_all(&mut connection)
    .await
    .expect("what is due at the end");
    assert_eq!(ends, [150_000, 2_000]);
}

#[tokio::test]
async fn an_owner_who_is_no_superuser_can_apply_them() {
    let url = server::database().await;
    let mut superuser = PgConnection::connect(&url).await.expect("a connection");
    let owner = format!("owner_{:016x}", rand::random::<u64>());
    let database: String = ask(&mut superuser, "select current_database()::text").await;
    run(
        &mut superuser,
        format!("create role {owner} login createrole password 'the owner'; alter database {database} owner to {owner}; alter schema public owner to {owner}"),
    )
    .await;
    let mut as_owner = url::Url::parse(&url).expect("a URL");
    as_owner.set_username(&owner).expect("a host");
    as_owner.set_password(Some("the owner")).expect("a host");
    let mut connection = PgConnection::connect(as_owner.as_str())
        .await
        .expect("the owner is let in");
    run(&mut connection, GUIDES).await;
    assert_eq!(migrate(&mut connection).await, MIGRATIONS.len());
}

#[tokio::test]
async fn what_is_ours_is_closed_to_anon_and_authenticated_and_open_to_service_role() {
    let mut connection = PgConnection::connect(&server::shared().migrated().await)
        .await
        .expect("a connection");
    let open: Vec<String> = sqlx::query_scalar(
        "select format('%s: %s', r.rolname, c.relname) from pg_class c, pg_roles r
          where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'v') and r.rolname in ('anon', 'authenticated')
            and has_table_privilege(r.oid, c.oid, 'select, insert, update, delete, truncate')
         union all
         select format('%s: %s', r.rolname, p.proname) from pg_proc p, pg_roles r
          where p.pronamespace = 'public'::regnamespace and r.rolname in ('anon', 'authenticated')
            and p.prorettype <> 'trigger'::regtype and has_function_privilege(r.oid, p.oid, 'execute')",
    )
    .fetch_all(&mut connection)
    .await
    .expect("rights");
    assert_eq!(open, [""; 0], "open to the public roles");
    let closed: Vec<String> = sqlx::query_scalar(
        "select c.relname::text from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'v')
            and not has_table_privilege('service_role', c.oid, 'select')",
    )
    .fetch_all(&mut connection)
    .await
    .expect("rights");
    assert_eq!(closed, [""; 0], "closed to service_role");
    let unguarded: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r' and not relrowsecurity",
    )
    .fetch_all(&mut connection)
    .await
    .expect("row security");
    assert_eq!(unguarded, [""; 0], "without row level security");
}

#[tokio::test]
async fn several_at_once_wait_for_each_other_and_all_succeed() {
    let url = server::database().await;
    let connect = async || PgConnection::connect(&url).await.expect("a connection");
    let (mut first, mut second, mut third) = (connect().await, connect().await, connect().await);
    let (first, second, third) = tokio::join!(
        migrations::apply(&mut first),
        migrations::apply(&mut second),
        migrations::apply(&mut third)
    );
    let applied: usize = [first, second, third]
        .into_iter()
        .map(|applied| applied.expect("applied").len())
        .sum();
    assert_eq!(applied, MIGRATIONS.len(), "each file once");
}

#[tokio::test]
async fn the_catalogue_begins_with_browsers_that_look_like_their_device_and_sites_without_a_path() {
    let mut connection = PgConnection::connect(&server::shared().migrated().await)
        .await
        .expect("a connection");
    let unlike: Vec<String> = sqlx::query_scalar(
        "select user_agent from visit_user_agents
          where user_agent not like 'Mozilla/5.0 (%'
             or device_type <> case when user_agent like '%iPad%' then 'tablet' when user_agent like '%Mobile%' then 'mobile'
                                    when user_agent like '%Android%' then 'tablet' else 'desktop' end
         union all select referrer from visit_referrers where referrer !~ '^https://[^/]+/$'",
    )
    .fetch_all(&mut connection)
    .await
    .expect("the catalogue");
    assert_eq!(unlike, [""; 0]);
    let devices = "select string_agg(device_type, ' ' order by weight desc)
                     from (select device_type, sum(weight) as weight from visit_user_agents group by 1) d";
    assert_eq!(
        ask::<String>(&mut connection, devices).await,
        "mobile desktop tablet"
    );
    let direct = "select count(*) from visit_referrers where referrer is null";
    assert_eq!(ask::<i64>(&mut connection, direct).await, 1);
}
