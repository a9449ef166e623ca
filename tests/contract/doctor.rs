//! The doctor names each fault of a broken database, and its SQL mends it.

use serde_json::Value;
use sqlx::{Connection as _, PgConnection};
use visit_pacer::demo::stack;
use visit_pacer::domain::transport::Transport;

use crate::harness::{Outcome, Place, agent, server};

const BROADCAST: &str = include_str!("../../deploy/supabase/broadcast.sql");
const REMOVE: &str = include_str!("../../deploy/supabase/broadcast_remove.sql");

/// What a doctor said.
struct Diagnosis {
    code: Option<i32>,
    findings: Vec<Value>,
}

impl Diagnosis {
    fn of(outcome: &Outcome) -> Self {
        let (_, text) = outcome.said.split_once('{').expect("a document");
        let document: Value = serde_json::Deserializer::from_str(&format!("{{{text}"))
            .into_iter()
            .next()
            .expect("a document")
            .expect("JSON");
        let findings = document["findings"].as_array().expect("a list").clone();
        Self {
            code: outcome.code,
            findings,
        }
    }

    fn named(&self, check: &str) -> Vec<&Value> {
        self.findings
            .iter()
            .filter(|finding| finding["check"] == check)
            .collect()
    }

    /// The one finding of that check.
    fn the(&self, check: &str) -> &Value {
        let found = self.named(check);
        assert!(!found.is_empty(), "no {check} in {:#?}", self.findings);
        found[0]
    }

    fn is_well(&self, after: &str) {
        let serious: Vec<_> = self
            .findings
            .iter()
            .filter(|finding| finding["severity"] != "info")
            .collect();
        assert!(
            serious.is_empty() && self.code == Some(0),
            "after {after}: {serious:#?}"
        );
    }
}

/// A place whose edits are broadcast.
async fn broadcasting() -> Place {
    let url = server::shared().migrated().await;
    let mut connection = PgConnection::connect(&url).await.expect("a connection");
    stack::broadcasts(&mut connection)
        .await
        .expect("broadcast.sql runs");
    Place::over(url).await
}

async fn doctor(place: &Place) -> Diagnosis {
    Diagnosis::of(&place.command(&["doctor", "--json"]).await)
}

/// Asks with another environment.
async fn doctor_with(place: &Place, name: &str, value: &str) -> Diagnosis {
    let mut environment = place.environment();
    environment.retain(|(old, _)| old != name);
    environment.push((name.to_owned(), value.to_owned()));
    Diagnosis::of(&agent::command(&place.folder, &["doctor", "--json"], &environment).await)
}

/// Runs what a diagnosis prints for a check.
async fn mend(place: &Place, diagnosis: &Diagnosis, check: &str) {
    for finding in diagnosis.named(check) {
        if let Some(sql) = finding["fix"]["sql"].as_str() {
            place
                .try_edit(sql)
                .await
                .unwrap_or_else(|error| panic!("{error}: {sql}"));
        }
        if finding["fix"]["manual"]
            .as_str()
            .is_some_and(|hand| hand.starts_with("visit-pacer migrate"))
        {
            assert_eq!(place.command(&["migrate"]).await.code, Some(0));
        }
    }
}

/// Breaks a sound database in each way; each time the fault is named, what is printed is run, and all is well again.
async fn each_is_named_and_mended(faults: &[(&str, &str, &str)]) {
    let place = Place::new().await;
    doctor(&place).await.is_well("nothing");
    for (sql, check, words) in faults {
        place.edit(*sql).await;
        let diagnosis = doctor(&place).await;
        let finding = diagnosis.the(check);
        let what = finding["what"].as_str().unwrap_or_default();
        assert!(what.contains(words), "{check}: {what}");
        let stops = diagnosis.findings.iter().any(|f| f["severity"] == "error");
        assert_eq!(diagnosis.code, Some(i32::from(stops)), "{check}");
        mend(&place, &diagnosis, check).await;
        doctor(&place).await.is_well(sql);
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_schema_is_named_and_its_sql_mends_it() {
    each_is_named_and_mended(&[
        (
            "delete from visit_pacer_migrations where version in ('20261201000500', '20261201000600')",
            "migrations",
            "20261201000500_visit_pacer_functions.sql, 20261201000600_visit_pacer_retention.sql",
        ),
        (
            "alter table visit_distribution drop column updated_at",
            "columns",
            "visit_distribution has no column updated_at",
        ),
        (
            "drop view visit_distribution_status; drop function distribute_visits(integer)",
            "objects",
            "visit_distribution_status, distribute_visits()",
        ),
        (
            "do $$ declare text_of constant text := pg_get_viewdef('visit_distribution_status'::regclass); begin
               drop view visit_distribution_status;
               alter table visit_distribution alter column total_visits type text;
               execute 'create view visit_distribution_status as ' || text_of;
               comment on view visit_distribution_status is 'visit-pacer: as it was';
             end $$",
            "types",
            "visit_distribution.total_visits is of type text; expected bigint",
        ),
        (
            "alter table store_visits drop constraint store_visits_pkey",
            "primary-key",
            "store_visits has no primary key",
        ),
        (
            "drop index store_visits_distribution_visit_number",
            "duplicate-guard",
            "no valid unique index",
        ),
        (
            "alter table visit_distribution replica identity nothing",
            "replica-identity",
            "visit_distribution has no replica identity",
        ),
    ])
    .await;
}

#[tokio::test]
async fn each_trigger_of_the_migrations_that_is_missing_or_disabled_is_named_and_its_sql_mends_it()
{
    each_is_named_and_mended(&[
        (
            "alter table visit_distribution disable trigger zzz_visit_pacer_before_edit",
            "triggers",
            "zzz_visit_pacer_before_edit of visit_distribution is disabled",
        ),
        (
            "drop trigger zzz_visit_pacer_before_edit on visit_distribution",
            "triggers",
            "is missing",
        ),
        (
            "alter table visit_distribution enable trigger zzz_visit_pacer_after_insert",
            "triggers",
            "is not ENABLE ALWAYS",
        ),
        (
            "drop trigger zzz_visit_pacer_after_truncate on visit_distribution",
            "triggers",
            "zzz_visit_pacer_after_truncate of visit_distribution is missing",
        ),
        (
            "alter table visit_distribution_progress disable trigger zzz_visit_pacer_mark_decrease",
            "triggers",
            "zzz_visit_pacer_mark_decrease of visit_distribution_progress is disabled",
        ),
        ("drop table visit_referrers", "objects", "visit_referrers"),
    ])
    .await;
}

#[tokio::test]
async fn what_keeps_edits_from_realtime_is_named_and_its_sql_mends_it() {
    each_is_named_and_mended(&[
        (
            "drop publication supabase_realtime",
            "publication",
            "there is no publication",
        ),
        (
            "alter publication supabase_realtime drop table visit_distribution",
            "publication",
            "visit_distribution is not in the publication",
        ),
        (
            "alter publication supabase_realtime drop table visit_pacer_canary",
            "published-canary",
            "visit_pacer_canary is not in",
        ),
        (
            "alter publication supabase_realtime add table store_visits",
            "published-visits",
            "store_visits is in the publication",
        ),
        (
            "drop publication supabase_realtime; create publication supabase_realtime for all tables",
            "published-visits",
            "FOR ALL TABLES",
        ),
        (
            "alter publication supabase_realtime set (publish = 'insert')",
            "published-operations",
            "leaves out",
        ),
        (
            "alter publication supabase_realtime drop table visit_distribution;
             alter publication supabase_realtime add table visit_distribution (id)",
            "published-part",
            "column list",
        ),
        (
            "revoke select on visit_distribution from service_role",
            "service-role",
            "service_role may not read public.visit_distribution",
        ),
    ])
    .await;
}

#[tokio::test]
async fn what_keeps_edits_from_being_broadcast_is_named_and_mended() {
    let place = broadcasting().await;
    doctor(&place).await.is_well("broadcast.sql");
    let mendable = [
        (
            "alter table visit_distribution disable trigger zzz_visit_pacer_broadcast_new",
            "broadcast-parts",
            "zzz_visit_pacer_broadcast_new is disabled",
        ),
        (
            "alter table visit_distribution disable trigger zzz_visit_pacer_broadcast_edited",
            "broadcast-parts",
            "zzz_visit_pacer_broadcast_edited is disabled",
        ),
    ];
    for (sql, check, words) in mendable {
        place.edit(sql).await;
        let diagnosis = doctor(&place).await;
        let finding = diagnosis.the(check);
        assert!(finding["what"].to_string().contains(words), "{finding}");
        assert_eq!(finding["severity"], "warning");
        mend(&place, &diagnosis, check).await;
        doctor(&place).await.is_well(sql);
    }
    let missing = [
        "drop trigger zzz_visit_pacer_broadcast_new on visit_distribution",
        "drop function visit_pacer_broadcast_canary()",
    ];
    for sql in missing {
        place.edit(sql).await;
        let diagnosis = doctor(&place).await;
        let mend = &diagnosis.the("broadcast-parts")["fix"]["manual"];
        assert!(
            mend.to_string()
                .contains("run deploy/supabase/broadcast.sql again")
        );
        place.edit(BROADCAST).await;
        doctor(&place).await.is_well(sql);
    }
    place.realtime.faults().withhold(Transport::Broadcast, true);
    let dead = doctor(&place).await;
    assert_eq!(dead.the("broadcast-echo")["severity"], "warning");
    assert!(dead.named("echo").is_empty() && dead.code == Some(0));
    place
        .realtime
        .faults()
        .withhold(Transport::Broadcast, false);
    place.edit(REMOVE).await;
    let without = doctor(&place).await;
    assert_eq!(without.the("broadcast-offer")["severity"], "info");
    without.is_well("broadcast_remove.sql");
}

#[tokio::test]
async fn a_role_that_may_not_read_the_topic_is_told_and_its_sql_lets_it() {
    let place = broadcasting().await;
    let role = format!("listener_{}", place.partner.simple());
    place
        .edit(format!(
            "create role {role}; grant usage on schema public to {role};
             grant select on visit_distribution, visit_pacer_canary to {role};
             create policy listener on visit_pacer_canary for select to {role} using (true)"
        ))
        .await;
    let mut environment = place.environment();
    let jwt_secret = place.jwt_secret.expose().to_owned();
    environment.push(("SUPABASE_JWT_SECRET".to_owned(), jwt_secret));
    environment.push(("SUPABASE_JWT_ROLE".to_owned(), role));
    let look = async || {
        Diagnosis::of(&agent::command(&place.folder, &["doctor", "--json"], &environment).await)
    };
    let diagnosis = look().await;
    let what = diagnosis.the("broadcast")["what"].to_string();
    assert!(what.contains("do not have permissions to read"), "{what}");
    mend(&place, &diagnosis, "broadcast").await;
    assert!(look().await.named("broadcast").is_empty());
    assert!(look().await.named("broadcast-echo").is_empty());
}

#[tokio::test]
async fn what_is_wrong_with_rows_and_settings_is_named_and_its_sql_mends_it() {
    each_is_named_and_mended(&[
        ("delete from visit_pacer_control", "control", "no row"),
        (
            "update visit_pacer_control set paused = true",
            "paused",
            "everything is paused",
        ),
        ("delete from visit_pacer_canary", "canary", "no row"),
        ("delete from visit_page_paths", "page-paths", "no row"),
        (
            "alter table visit_distribution disable trigger user;
             insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit) select id, 10, 'hour', 1 from partners;
             alter table visit_distribution enable always trigger zzz_visit_pacer_before_edit, enable always trigger zzz_visit_pacer_after_insert,
               enable always trigger zzz_visit_pacer_after_edit_insert, enable always trigger zzz_visit_pacer_after_edit_update,
               enable always trigger zzz_visit_pacer_after_delete, enable always trigger zzz_visit_pacer_after_truncate",
            "unanchored-rows",
            "1 rows",
        ),
        (
            "alter table visit_distribution disable trigger user;
             insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit) select id, 10, 'week', 1 from partners;
             alter table visit_distribution enable always trigger zzz_visit_pacer_before_edit, enable always trigger zzz_visit_pacer_after_insert,
               enable always trigger zzz_visit_pacer_after_edit_insert, enable always trigger zzz_visit_pacer_after_edit_update,
               enable always trigger zzz_visit_pacer_after_delete, enable always trigger zzz_visit_pacer_after_truncate;
             select visit_pacer_initialise()",
            "invalid-rows",
            "time_period is 'week'",
        ),
        (
            "do $$ begin execute format('alter database %I set default_transaction_isolation = serializable', current_database()); end $$",
            "settings",
            "default_transaction_isolation=serializable",
        ),
        (
            "do $$ begin execute format('alter database %I set default_transaction_read_only = on', current_database()); end $$",
            "settings",
            "default_transaction_read_only=on",
        ),
    ])
    .await;
}

#[tokio::test]
async fn columns_that_nothing_fills_get_a_trigger_through_which_agent_and_functions_pass() {
    let place = Place::new().await;
    place
        .edit(
            "create type channel as enum ('web', 'app');
             alter table store_visits add column duration_seconds integer not null,
               add column \"Landing Page\" text not null, add column channel channel not null, add column is_bot boolean not null,
               add column noted_at timestamptz not null default now()",
        )
        .await;
    let diagnosis = doctor(&place).await;
    let what = diagnosis.the("not-null")["what"].as_str().expect("words");
    assert!(
        what.ends_with("duration_seconds, \"Landing Page\", channel, is_bot"),
        "{what}"
    );
    assert_eq!(diagnosis.code, Some(1));
    mend(&place, &diagnosis, "not-null").await;
    doctor(&place).await.is_well("the trigger");

    let id = place.insert(1_000, "10 a second", "null").await;
    let _agent = place.agent().await;
    place.has_stored(id, 5).await;
    let unlike: i64 = place
        .ask("select count(*) from store_visits where duration_seconds is distinct from session_duration or channel <> 'web' or is_bot")
        .await;
    assert_eq!(unlike, 0);
    let organic = place
        .try_edit(format!(
            "insert into store_visits (partner_id) values ('{}')",
            place.partner
        ))
        .await;
    assert!(organic.is_err(), "organic visits are the user's own matter");
}

#[tokio::test]
async fn a_constraint_that_refuses_every_visit_is_told_in_the_databases_words() {
    let place = Place::new().await;
    place
        .edit("alter table store_visits add constraint short_visits check (session_duration < 5)")
        .await;
    let diagnosis = doctor(&place).await;
    let what = diagnosis.the("insert")["what"].as_str().expect("words");
    assert!(what.contains("short_visits"), "{what}");
    assert_eq!(diagnosis.code, Some(1));
    assert_eq!(
        place.ask::<i64>("select count(*) from store_visits").await,
        0
    );
}

#[tokio::test]
async fn a_role_of_the_agents_own_is_told_each_right_that_it_lacks_and_works_once_it_has_them() {
    let place = Place::new().await;
    let role = format!("agent_{}", place.partner.simple());
    let login = format!("{:032x}", rand::random::<u128>());
    place
        .edit(format!(
            "create role {role} login password '{login}'; grant usage on schema public to {role}"
        ))
        .await;
    let mut url = url::Url::parse(&place.url).expect("a URL");
    url.set_username(&role).expect("it has a user");
    url.set_password(Some(&login)).expect("it has a password");

    // Rights come first; what row level security hides is seen once they are there.
    for _ in 0..2 {
        let diagnosis = doctor_with(&place, "DATABASE_URL", url.as_str()).await;
        for check in ["grants", "row-security"] {
            mend(&place, &diagnosis, check).await;
        }
        if diagnosis.code == Some(0) {
            break;
        }
    }
    doctor_with(&place, "DATABASE_URL", url.as_str())
        .await
        .is_well("its grants and policies");

    let id = place.insert(1_000, "10 a second", "null").await;
    let mut environment = place.environment();
    environment.retain(|(name, _)| name != "DATABASE_URL");
    environment.push(("DATABASE_URL".to_owned(), url.to_string()));
    let _agent = agent::Agent::start(&place.folder, &["run"], &environment).await;
    place.has_stored(id, 5).await;
}

#[tokio::test]
async fn a_wrong_key_a_dead_realtime_and_a_wrong_password_are_told_apart() {
    let place = Place::new().await;
    let publishable = doctor_with(&place, "SUPABASE_SERVICE_ROLE_KEY", "sb_publishable_x").await;
    assert_eq!(publishable.the("key")["severity"], "error");
    assert_eq!(publishable.the("realtime")["severity"], "error");

    let away = doctor_with(&place, "SUPABASE_URL", "http://127.0.0.1:1").await;
    assert_eq!(away.code, Some(1));
    assert!(away.named("key").is_empty());
    away.the("realtime");

    let mut url = url::Url::parse(&place.url).expect("a URL");
    url.set_password(Some("not-this-one")).expect("a URL");
    let refused = doctor_with(&place, "DATABASE_URL", url.as_str()).await;
    let what = refused.the("database")["what"].as_str().expect("words");
    assert!(what.contains("login refused"), "{what}");
}
