//! Who may see and do what: the public, partners, and the agent under its own role.

use uuid::Uuid;

use super::{Database, GUIDES_PARTNER, OTHER_PARTNER};
use crate::harness::{PATIENCE, Place, refusal, wait_until};

const FIX_RLS: &str = include_str!("../../deploy/supabase/fix_rls.sql");
const FIX_FOREIGN_KEY: &str = include_str!("../../deploy/supabase/fix_foreign_key.sql");
const ROLE: &str = include_str!("../../deploy/supabase/role.sql");

/// What a Supabase project has: a policy of the user's that opens a table, and default rights for everybody.
const OPEN_TO_ALL: &str = "
  grant all on partners, store_visits, visit_distribution to anon, authenticated;
  alter table store_visits enable row level security;
  create policy \"see all\" on store_visits for select using (true)";

const READABLE: [&str; 6] = [
    "partners",
    "visit_distribution",
    "store_visits",
    "visit_distribution_status",
    "organic_store_visits",
    "visit_distribution_progress",
];

impl Database {
    /// As such a role, with such a user's token.
    async fn become_role(&mut self, role: &str, user: Uuid) {
        self.run(format!(
            "reset role; set role {role}; select set_config('request.jwt.claims', '{{\"sub\": \"{user}\"}}', false)"
        ))
        .await;
    }

    /// How many rows are seen; `None`: it is refused.
    async fn sees(&mut self, table: &str) -> Option<i64> {
        let counted = format!(
            "do $$ begin perform set_config('test.seen', (select count(*) from {table})::text, false); end $$"
        );
        self.try_run(counted).await.ok()?;
        Some(
            self.ask("select current_setting('test.seen')::bigint")
                .await,
        )
    }
}

#[tokio::test]
async fn after_the_repair_anon_reads_nothing_and_a_partner_only_what_is_theirs() {
    let mut db = Database::of_the_guide().await;
    db.run(OPEN_TO_ALL).await;
    db.migrate().await;
    db.run(format!(
        "insert into store_visits (partner_id) values ('{OTHER_PARTNER}');
         insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit) values ('{OTHER_PARTNER}', 5, 'hour', 1)"
    ))
    .await;
    db.become_role("anon", Uuid::nil()).await;
    assert_eq!(
        db.sees("store_visits").await,
        Some(501),
        "as the user had it, until a person repairs it"
    );
    db.run("reset role").await;
    for _ in 0..2 {
        db.run(FIX_RLS).await;
    }
    let (one, another, stranger) = (
        Uuid::from_u128(11),
        Uuid::from_u128(12),
        Uuid::from_u128(13),
    );
    db.run(format!(
        "insert into visit_pacer_partner_users values ('{one}', '{GUIDES_PARTNER}'), ('{another}', '{OTHER_PARTNER}')"
    ))
    .await;

    db.become_role("anon", Uuid::nil()).await;
    for table in READABLE.into_iter().chain(["visit_pacer_partner_users"]) {
        assert!(
            matches!(db.sees(table).await, None | Some(0)),
            "anon reads {table}"
        );
    }
    for (user, partner, visits) in [(one, GUIDES_PARTNER, 500), (another, OTHER_PARTNER, 1)] {
        db.become_role("authenticated", user).await;
        assert_eq!(db.sees("store_visits").await, Some(visits));
        assert_eq!(db.sees("partners").await, Some(1));
        assert_eq!(db.sees("visit_distribution").await, Some(1));
        let others = format!(
            "(select from store_visits where partner_id <> '{partner}' union all select from visit_distribution where partner_id <> '{partner}') others"
        );
        assert_eq!(db.sees(&others).await, Some(0), "not each other's");
    }
    db.become_role("authenticated", stranger).await;
    assert_eq!(db.sees("store_visits").await, Some(0));
    let joins =
        format!("insert into visit_pacer_partner_users values ('{stranger}', '{OTHER_PARTNER}')");
    db.try_run(joins)
        .await
        .expect_err("nobody makes themselves a partner");
    db.run("update visit_distribution set is_active = false; delete from store_visits")
        .await;
    db.run("reset role; set role service_role; select * from distribute_visits(); select * from sync_distribution_counts(); reset role").await;
    let untouched: bool = db
        .ask("select bool_and(is_active) and (select count(*) from organic_store_visits) = 501 from visit_distribution")
        .await;
    assert!(untouched, "nor do they write");
}

#[tokio::test]
async fn a_missing_foreign_key_is_made_and_orphans_are_told_and_kept() {
    let mut db = Database::of_the_guide().await;
    db.run("alter table store_visits drop constraint store_visits_partner_id_fkey; insert into store_visits (partner_id) values (gen_random_uuid())").await;
    db.run(FIX_FOREIGN_KEY).await;
    let key = "select convalidated::text from pg_constraint where conrelid = 'store_visits'::regclass and contype = 'f'";
    assert_eq!(db.said(key).await, ["false"], "it holds for new visits");
    assert_eq!(
        db.ask::<i64>("select count(*) from store_visits").await,
        501
    );
    let orphan = db
        .try_run("insert into store_visits (partner_id) values (gen_random_uuid())")
        .await;
    assert_eq!(refusal(&orphan.expect_err("no such partner")).0, "23503");
    db.run("delete from store_visits s where not exists (select from partners p where p.id = s.partner_id)").await;
    for _ in 0..2 {
        db.run(FIX_FOREIGN_KEY).await;
        assert_eq!(db.said(key).await, ["true"]);
    }
}

/// What the agent's own role is refused; each by want of rights.
const REFUSED: [&str; 25] = [
    "drop table store_visits",
    "alter table store_visits add x integer",
    "alter table visit_distribution disable trigger all",
    "truncate store_visits",
    "truncate visit_distribution_progress",
    "delete from store_visits",
    "delete from visit_distribution",
    "delete from visit_distribution_progress",
    "update visit_distribution set is_active = false",
    "update visit_distribution set total_visits = 1",
    "update visit_distribution_progress set baseline = 9",
    "update visit_pacer_control set paused = true",
    "update store_visits set visited_at = now()",
    "insert into visit_distribution (total_visits) values (1)",
    "insert into partners default values",
    "select * from partners",
    "select page_path from store_visits",
    "select purge_old_visits('1 second')",
    "select * from distribute_visits()",
    "select visit_pacer_purge_distribution(null)",
    "drop function visit_pacer_may_store()",
    "create table public.x ()",
    "create schema z",
    "create role z",
    "set session_replication_role = replica",
];

#[tokio::test]
async fn as_the_role_visit_pacer_the_agent_runs_and_can_drop_and_alter_nothing() {
    let mut place = Place::apart().await;
    place
        .edit(
            "alter table partners enable row level security; alter table store_visits enable row level security;
             alter table visit_distribution enable row level security",
        )
        .await;
    let mut owner = Database::at(place.url.clone()).await;
    let without = owner.try_run(ROLE).await.expect_err("no password");
    assert!(refusal(&without).1.contains("set visit_pacer.password"));
    owner.run("rollback").await;
    for _ in 0..2 {
        owner
            .run(format!(
                "set visit_pacer.password = 'a long enough password'; {ROLE}"
            ))
            .await;
    }
    let mut url = url::Url::parse(&place.url).expect("a URL");
    url.set_username("visit_pacer").expect("a host");
    url.set_password(Some("a long enough password"))
        .expect("a host");
    place.url = url.into();

    let mut agent = place.agent().await;
    let row = place.insert(200, "20 a second", "null").await;
    place.has_stored(row, 20).await;
    place.set(row, "is_active = false").await;
    place
        .set(row, "is_active = true, visits_per_unit = 40")
        .await;
    place
        .edit("delete from visit_pacer_control; delete from store_visits where visit_number <= 5")
        .await;
    wait_until("the control row is made again", PATIENCE, async || {
        place
            .ask("select exists (select from visit_pacer_control)")
            .await
    })
    .await;
    let look = place.becomes(row, "completed").await;
    assert_eq!(look.stored, 195, "{look:?}");
    agent.still_runs();
    assert!(
        !agent.log().contains("permission denied"),
        "{}",
        agent.log()
    );
    agent.terminate().await;

    let mut db = Database::at(place.url.clone()).await;
    for statement in REFUSED {
        let refused = db.try_run(statement).await.expect_err(statement);
        let (code, words) = refusal(&refused);
        assert_eq!(code, "42501", "{statement}: {words}");
    }
    let others = db.try_run(format!(
        "insert into store_visits (id, partner_id, visited_at) values (gen_random_uuid(), '{}', now())",
        place.partner
    ));
    assert_eq!(
        refusal(&others.await.expect_err("an organic visit")).0,
        "42501"
    );
}
