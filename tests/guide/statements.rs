//! The guide's own statements, as written but for its placeholder partner; those that read `cron.job` are in `cron.rs`.

use super::{Database, GUIDES_PARTNER, OTHER_PARTNER, said};
use crate::harness::{PATIENCE, Place, find};

const SYNC: &str = "
-- This will update total_distributed to match actual visits
SELECT * FROM sync_distribution_counts();";

const MANUAL_TEST: &str = "
-- Test with your partner ID (replace with actual ID)
SELECT * FROM distribute_visits_for_partner('e2731c06-58b4-4f37-96c7-f721af43263c', 50);";

const EXAMPLE_1: &str = "
-- This will distribute ~6,250 visits per hour
-- ~104 visits per minute
-- ~1.7 visits per second
INSERT INTO visit_distribution (
  partner_id,
  total_visits,
  time_period,
  visits_per_unit,
  is_active,
  start_time,
  end_time
) VALUES (
  'your-partner-id',
  150000,
  'hour',
  6250.00,
  true,
  NOW(),
  NOW() + INTERVAL '24 hours'
);";

const EXAMPLE_2: &str = "
-- This will distribute ~33 visits per minute
-- ~0.55 visits per second
INSERT INTO visit_distribution (
  partner_id,
  total_visits,
  time_period,
  visits_per_unit,
  is_active,
  start_time,
  end_time
) VALUES (
  'your-partner-id',
  2000,
  'minute',
  33.33,
  true,
  NOW(),
  NOW() + INTERVAL '1 hour'
);";

const CHECK_STATUS: &str = "
SELECT
    vd.partner_id,
    vd.total_visits,
    vd.total_distributed,
    vd.visits_per_unit,
    vd.time_period,
    vd.is_active,
    COUNT(sv.id) as actual_store_visits,
    CASE
        WHEN vd.total_distributed = COUNT(sv.id) THEN '✅ In Sync'
        ELSE 'Out of Sync'
    END as sync_status,
    ROUND((vd.total_distributed / NULLIF(vd.total_visits, 0)) * 100, 2) as completion_percentage
FROM visit_distribution vd
LEFT JOIN store_visits sv ON vd.partner_id = sv.partner_id
WHERE vd.is_active = true
GROUP BY vd.id
ORDER BY vd.partner_id;";

const RUN: &str = "
-- Run distribution manually
SELECT * FROM distribute_visits();";

const CHECK_RESULTS: &str = "
-- Check results
SELECT partner_id, visits_added, total_distributed_now, message
FROM distribute_visits();";

#[tokio::test]
async fn every_statement_runs_as_written_and_gives_what_the_guide_says() {
    let mut db = Database::migrated().await;
    db.run(format!(
        "insert into partners (id) values ('{GUIDES_PARTNER}'), ('{OTHER_PARTNER}')"
    ))
    .await;
    assert_eq!(db.said(SYNC).await, [""; 0], "nothing to sync yet");
    let none = db.said(MANUAL_TEST).await;
    assert!(
        none.len() == 1 && none[0].contains("|0|0|this partner has no active distribution"),
        "{none:?}"
    );

    let (first, second) = (GUIDES_PARTNER.to_string(), OTHER_PARTNER.to_string());
    db.run(EXAMPLE_1.replace("your-partner-id", &first)).await;
    db.run(EXAMPLE_2.replace("your-partner-id", &second)).await;
    let sql_functions = db.said(MANUAL_TEST).await;
    let expected = format!("{first}|50|50|added by hand; 149950 left of its total");
    assert_eq!(sql_functions, [expected]);
    assert_eq!(db.said(SYNC).await, [""; 0], "no discrepancy to fix");
    assert_eq!(
        db.said(CHECK_STATUS).await,
        [
            format!("{second}|2000|0|33.33|minute|t|0|✅ In Sync|0.00"),
            format!("{first}|150000|50|6250.00|hour|t|50|✅ In Sync|0.03"),
        ]
    );

    // Ten minutes in, as cron would find it.
    db.run("update visit_distribution set start_time = now() - interval '10 minutes', end_time = now() + interval '50 minutes'").await;
    for statement in [RUN, CHECK_RESULTS] {
        let told = db.said(statement).await;
        assert_eq!(
            told.len(),
            2,
            "a row for each active distribution: {told:?}"
        );
        assert!(told.iter().all(|row| row.contains("owed: ")), "{told:?}");
    }
}

#[tokio::test]
async fn without_an_agent_one_call_catches_up_and_total_distributed_is_no_longer_0() {
    let mut db = Database::migrated().await;
    let partner = db.partner().await;
    db.insert(
        partner,
        2_000,
        "33.33 a minute",
        "-10 minutes",
        "50 minutes",
    )
    .await;
    let told = db.said(RUN).await;
    let added = told[0]
        .split('|')
        .nth(1)
        .and_then(|added| added.parse().ok());
    assert!(
        added.is_some_and(|added| (333..340).contains(&added)),
        "{told:?}"
    );
    assert!(told[0].ends_with("|owed: 0"), "{told:?}");
    let rest = db.said(CHECK_RESULTS).await;
    assert!(rest[0].ends_with("|owed: 0"), "{rest:?}");
    let status = db.said(CHECK_STATUS).await;
    assert!(status[0].contains("|✅ In Sync|16."), "{status:?}");
    let believable: bool = db
        .ask(
            "select bool_and(session_duration between 5 and 3600 and page_path like '/%') and count(distinct page_path) > 5
               and count(distinct session_duration) > 50 from store_visits",
        )
        .await;
    assert!(believable, "realistic session durations and page paths");
}

#[tokio::test]
async fn with_an_agent_the_status_query_says_in_sync_within_an_echo_interval() {
    let place = Place::new().await;
    let _agent = place.agent().await;
    let partner = place.partner.to_string();
    place
        .edit(EXAMPLE_2.replace("your-partner-id", &partner))
        .await;
    find("visits, and In Sync", PATIENCE, async || {
        let told = said(&place.db, CHECK_STATUS).await;
        let stored: i64 = told[0].split('|').nth(6)?.parse().ok()?;
        (stored > 3 && told[0].contains("✅ In Sync")).then_some(())
    })
    .await;
    assert_eq!(said(&place.db, SYNC).await, [""; 0]);
}
