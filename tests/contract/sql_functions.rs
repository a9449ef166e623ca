//! The commands for the SQL functions: plan, distribute, backfill, purge, adopt, uninstall.

use serde_json::Value;
use uuid::Uuid;

use crate::harness::Place;

#[tokio::test]
async fn a_plan_of_a_row_says_when_it_ends_by_db_time() {
    let place = Place::new().await;
    let id = place
        .insert(2_000, "30 a minute", "interval '1 hour'")
        .await;
    place.set(id, "is_active = false").await;
    let said = place
        .command(&["plan", "--json", "--id", &id.to_string()])
        .await
        .said;
    let plan: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(plan["ends"]["how"], "short of the total");
    let ends: String = place
        .ask(format!(
            "select to_char(end_time at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')
               from visit_distribution where id = '{id}'"
        ))
        .await;
    assert_eq!(plan["ends"]["when"]["at"], ends.as_str());

    // The proposed rate fits.
    let rate = plan["misfit"]["visits_per_unit_that_fits"]
        .as_str()
        .expect("a rate");
    place
        .set(id, &format!("visits_per_unit = {rate}, is_active = true"))
        .await;
    let due: i64 = place
        .ask(format!(
            "select visit_distribution_due('{id}', '{ends}'::timestamptz)"
        ))
        .await;
    assert!((1_999..=2_000).contains(&due), "{rate}: {due}");
}

#[tokio::test]
async fn distribute_stores_at_once_and_purge_removes_visits_for_ever() {
    let place = Place::new().await;
    let id = place.insert(50, "1 a hour", "null").await;
    let (id_text, partner) = (id.to_string(), place.partner.to_string());
    let distributed = place
        .command(&["distribute", "--partner", &partner, "--visits", "40"])
        .await;
    assert!(
        distributed.said.contains("40 visits added"),
        "{distributed:?}"
    );
    assert_eq!(place.stored(id).await, 40);

    let refused = place.command(&["purge", "--distribution", &id_text]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.said.contains("--yes"), "{refused:?}");
    assert_eq!(place.stored(id).await, 40, "nothing without --yes");

    let purged = place
        .command(&["purge", "--yes", "--distribution", &id_text])
        .await;
    assert!(purged.said.contains("removed 40 visits"), "{purged:?}");
    assert_eq!(place.stored(id).await, 0);
    let look = place.look(id).await;
    assert_eq!(look.distributed, 40, "purged visits stay counted: {look:?}");
    assert_eq!(place.command(&["sync"]).await.code, Some(0));
    assert_eq!(place.look(id).await.distributed, 40);
}

#[tokio::test]
async fn backfill_and_adopt_of_unknown_ids_say_so() {
    let place = Place::new().await;
    let unknown = Uuid::nil().to_string();
    let backfill = place
        .command(&["backfill", "--distribution", &unknown])
        .await;
    assert!(
        backfill.said.contains("there is no distribution"),
        "{backfill:?}"
    );
    let adopt = place.command(&["adopt", "--partner", &unknown]).await;
    assert!(adopt.said.contains("has no distribution"), "{adopt:?}");
}

#[tokio::test]
async fn uninstall_leaves_the_tables_as_they_were() {
    let place = Place::new().await;
    let id = place.insert(50, "1 a hour", "null").await;
    let partner = place.partner.to_string();
    place
        .command(&["distribute", "--partner", &partner, "--visits", "5"])
        .await;
    place
        .edit(format!(
            "insert into store_visits (partner_id) values ('{partner}')"
        ))
        .await;

    let refused = place.command(&["uninstall"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert_eq!(place.stored(id).await, 5, "nothing without --yes");

    let gone = place.command(&["uninstall", "--yes"]).await;
    assert_eq!(gone.code, Some(0), "{gone:?}");
    let left: String = place
        .ask(
            "select coalesce(string_agg(name, ', '), '') from (
               select relname::text as name from pg_class where relnamespace = 'public'::regnamespace and relname like '%visit\\_pacer%'
               union all select proname::text from pg_proc where pronamespace = 'public'::regnamespace
               union all select attname::text from pg_attribute where attrelid = 'visit_distribution'::regclass and attname like 'anchor%') ours",
        )
        .await;
    assert_eq!(left, "");
    assert_eq!(place.all_stored().await, 1, "the organic one");

    let migrated = place.command(&["migrate"]).await;
    assert_eq!(migrated.code, Some(0), "{migrated:?}");
    assert_eq!(place.look(id).await.distributed, 0);
}

#[tokio::test]
async fn uninstall_keeps_the_visits_with_keep_visits() {
    let place = Place::new().await;
    place.insert(50, "1 a hour", "null").await;
    let partner = place.partner.to_string();
    place
        .command(&["distribute", "--partner", &partner, "--visits", "5"])
        .await;
    let gone = place
        .command(&["uninstall", "--keep-visits", "--yes"])
        .await;
    assert_eq!(gone.code, Some(0), "{gone:?}");
    let labelled: i64 = place
        .ask("select count(*) from store_visits where distribution_id is not null")
        .await;
    assert_eq!(labelled, 5);
}
