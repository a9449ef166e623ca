//! Out again: the users' tables, functions, views, rights and publication are as they were.

use visit_pacer::postgres::migrations::MIGRATIONS;

use super::{Database, GUIDES_PARTNER};
use crate::harness::refusal;

pub const UNINSTALL: &str = include_str!("../../deploy/supabase/uninstall.sql");

/// Everything that `public` is made of, and what is in the user's tables, as text.
pub const PICTURE: &str = "
  select format('column %s %s %s %s %s %s', attrelid::regclass, attname, format_type(atttypid, atttypmod), attnotnull,
                (select pg_get_expr(adbin, adrelid) from pg_attrdef where adrelid = attrelid and adnum = attnum), col_description(attrelid, attnum))
    from pg_attribute join pg_class c on c.oid = attrelid
   where relnamespace = 'public'::regnamespace and relkind in ('r', 'v', 'm') and attnum > 0 and not attisdropped
  union all select format('relation %s %s %s %s %s', oid::regclass, relkind, relrowsecurity, reloptions,
                (select string_agg(a::text, ',' order by a::text) from unnest(relacl) a))
    from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'v', 'm')
  union all select format('index %s', indexdef) from pg_indexes where schemaname = 'public'
  union all select format('view %s', pg_get_viewdef(oid)) from pg_class where relnamespace = 'public'::regnamespace and relkind in ('v', 'm')
  union all select format('function %s %s', pg_get_functiondef(oid), (select string_agg(a::text, ',' order by a::text) from unnest(proacl) a))
    from pg_proc where pronamespace = 'public'::regnamespace
  union all select format('trigger %s', pg_get_triggerdef(oid)) from pg_trigger where not tgisinternal
  union all select format('constraint %s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
    from pg_constraint where connamespace = 'public'::regnamespace
  union all select format('policy %s %s', tablename, policyname) from pg_policies where schemaname = 'public'
  union all select format('published %s', tablename) from pg_publication_tables
  union all select format('partner %s', p) from partners p
  union all select format('distribution %s %s %s %s %s %s %s %s', id, partner_id, total_visits, time_period, visits_per_unit, is_active, start_time,
                to_jsonb(v) -> 'total_distributed') from visit_distribution v
  union all select format('visit %s', to_jsonb(s) - 'user_agent' - 'device_type' - 'referrer' - 'distribution_id' - 'visit_number') from store_visits s
  order by 1";

/// A database of the guide with a publication and rights of the user's own.
async fn guides() -> Database {
    let mut db = Database::of_the_guide().await;
    db.run("create publication supabase_realtime for table partners; revoke all on visit_distribution, store_visits from service_role")
        .await;
    db
}

/// What is there now and was not, and the other way round.
pub fn differences(before: &[String], after: &[String]) -> Vec<String> {
    let gone = before.iter().filter(|line| !after.contains(line));
    let new = after.iter().filter(|line| !before.contains(line));
    gone.map(|line| format!("gone: {line}"))
        .chain(new.map(|line| format!("new: {line}")))
        .collect()
}

#[tokio::test]
async fn without_the_generated_visits_everything_is_as_it_was() {
    let mut db = guides().await;
    let before = db.said(PICTURE).await;
    assert!(before.len() > 500, "{} lines", before.len());
    db.migrate().await;
    assert_eq!(db.sql_functions(GUIDES_PARTNER, 50).await[0].0, 50);
    assert!(!differences(&before, &db.said(PICTURE).await).is_empty());
    db.run(format!("set visit_pacer.keep_visits = 'no'; {UNINSTALL}"))
        .await;
    assert_eq!(differences(&before, &db.said(PICTURE).await), [""; 0]);
}

#[tokio::test]
async fn the_generated_visits_may_stay_labelled_and_all_else_is_as_it_was_and_a_second_time_it_goes_on()
 {
    let mut db = guides().await;
    let before = db.said(PICTURE).await;
    db.migrate().await;
    assert_eq!(db.sql_functions(GUIDES_PARTNER, 50).await[0].0, 50);
    db.run(UNINSTALL).await;
    let left = differences(&before, &db.said(PICTURE).await);
    let expected = |line: &&String| {
        [
            "visit ",
            "column store_visits ",
            "index CREATE UNIQUE INDEX store_visits_distribution",
            "distribution ",
        ]
        .iter()
        .any(|kind| line.contains(kind))
    };
    assert_eq!(
        left.iter()
            .filter(|line| !expected(line))
            .collect::<Vec<_>>(),
        [""; 0]
    );
    let visits =
        "select count(*), max(visit_number) from store_visits where distribution_id is not null";
    assert_eq!(
        db.said(visits).await,
        ["50|550"],
        "numbers above the 500 of before"
    );

    db.migrate().await;
    let ledger = "select distributed, baseline from visit_distribution_status";
    assert_eq!(db.said(ledger).await, ["550|500"]);
    assert_eq!(db.sql_functions(GUIDES_PARTNER, 5).await[0].0, 5);
    assert_eq!(db.said(visits).await, ["55|555"]);
}

#[tokio::test]
async fn while_an_agent_lives_or_a_view_of_the_users_stands_on_ours_nothing_is_changed() {
    let mut db = Database::migrated().await;
    db.run(
        "insert into visit_pacer_agents (id, name) values (gen_random_uuid(), 'one that lives')",
    )
    .await;
    let before = db.said(PICTURE).await;
    let refused = db
        .try_run(UNINSTALL)
        .await
        .expect_err("an agent is running");
    assert!(refusal(&refused).1.contains("an agent is running"));
    db.run("rollback; delete from visit_pacer_agents").await;
    assert_eq!(differences(&before, &db.said(PICTURE).await), [""; 0]);

    db.run("create view theirs as select * from visit_distribution_status")
        .await;
    let refused = db
        .try_run(UNINSTALL)
        .await
        .expect_err("a view stands on ours");
    assert!(
        refused.to_string().contains("visit_distribution_status"),
        "{refused}"
    );
    db.run("rollback; drop view theirs").await;
    assert_eq!(differences(&before, &db.said(PICTURE).await), [""; 0]);
    db.run(UNINSTALL).await;
    let again = db.try_run(UNINSTALL).await.expect_err("nothing is left");
    assert!(
        refusal(&again)
            .1
            .contains("visit-pacer is not in this database")
    );
}

#[tokio::test]
async fn it_works_from_each_state_that_a_half_applied_migration_leaves() {
    for applied in 0..MIGRATIONS.len() {
        let mut db = guides().await;
        let before = db.said(PICTURE).await;
        for file in MIGRATIONS.iter().take(applied + 1) {
            db.run(file.sql).await;
        }
        db.run(UNINSTALL).await;
        assert_eq!(
            differences(&before, &db.said(PICTURE).await),
            [""; 0],
            "{applied}"
        );
    }
}
