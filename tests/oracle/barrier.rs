//! What was committed, by whom and in which order: no visit that its distribution, as committed, did not allow.
//!
//! A trigger records each edit in the table `edits`, and the server records when each transaction was committed
//! (`track_commit_timestamp`). An edit and a batch of one distribution need the same lock, so these times are in the order of the
//! commits, and there is no tolerance.

use super::ledgers_are_sound;
use crate::harness::Place;

/// Records from now on what each edit, insert and delete allows. To be called before any distribution is inserted.
pub async fn record_edits(place: &Place) {
    place
        .edit(
            "create table edits (seq bigint generated always as identity, distribution_id uuid, allows boolean,
               total_visits numeric, partner_id uuid);
             create function record_edit() returns trigger language plpgsql as $$ begin
               if tg_op = 'DELETE' then
                 insert into public.edits (distribution_id, allows) values (old.id, false);
               elsif tg_op = 'INSERT' or new.config_version is distinct from old.config_version then
                 insert into public.edits (distribution_id, allows, total_visits, partner_id)
                 values (new.id, coalesce(new.is_active, false), new.total_visits, new.partner_id);
               end if;
               return null;
             end $$;
             create trigger record_edit after insert or update or delete on visit_distribution
               for each row execute function record_edit();",
        )
        .await;
}

/// Visits that their distribution, as it was committed when they were, did not allow: during a pause, after its deletion, beyond
/// its total, for another partner. Only visits that were stored after a moment.
const NOT_ALLOWED: &str = "
  with states as materialized (
    select e.*, since, lead(since) over (partition by distribution_id order by since, seq) as until
      from edits e cross join lateral (select pg_xact_commit_timestamp(e.xmin) as since) t
  ), visits as materialized (
    select distribution_id, visit_number, partner_id, pg_xact_commit_timestamp(xmin) as stored_at
      from store_visits where distribution_id is not null and created_at > $moment
  )
  select string_agg(format('visit %s of %s at %s: allowed %s, total %s, partner %s', visit_number, distribution_id, stored_at,
                           allows, total_visits, s_partner = v_partner), E'\n')
    from (select v.*, v.partner_id as v_partner, s.allows, s.total_visits, s.partner_id as s_partner
            from visits v left join states s on s.distribution_id = v.distribution_id
                 and v.stored_at >= s.since and (s.until is null or v.stored_at < s.until)
           where s.allows is not true or v.visit_number > s.total_visits or v.partner_id <> s.partner_id
           limit 20) wrong";

/// Fails if a visit is stored that was not allowed, or a ledger is not sound. Permission is checked for the visits after a
/// moment, such as `-infinity`.
pub async fn promises_hold(place: &Place, moment: &str) {
    assert_eq!(
        not_allowed(place, moment).await,
        None,
        "visits that were not allowed"
    );
    ledgers_are_sound(place).await;
}

async fn not_allowed(place: &Place, moment: &str) -> Option<String> {
    place
        .ask(NOT_ALLOWED.replace("$moment", &format!("'{moment}'")))
        .await
}

#[tokio::test]
async fn a_visit_during_a_pause_beyond_the_total_for_another_partner_or_without_a_distribution_is_found()
 {
    let place = Place::new().await;
    record_edits(&place).await;
    let row = place.insert(2, "1 a second", "null").await;
    let partner = place.partner;
    let visit = |number: u8| {
        format!(
            "insert into store_visits (partner_id, distribution_id, visit_number, visited_at)
             values ('{partner}', '{row}', {number}, clock_timestamp() - interval '1 second')"
        )
    };
    place.edit(visit(1)).await;
    place.edit(visit(2)).await;
    assert_eq!(not_allowed(&place, "-infinity").await, None);
    let other = place.new_partner().await;
    let other = format!("update visit_distribution set partner_id = '{other}'");
    for (number, edit) in [
        (3, "update visit_distribution set visits_per_unit = 7"),
        (2, &other),
        (1, "update visit_distribution set is_active = false"),
        (1, "delete from visit_distribution"),
    ] {
        place.edit("truncate store_visits").await;
        place.edit(edit).await;
        place.edit(visit(number)).await;
        let found = not_allowed(&place, "-infinity").await;
        assert!(found.is_some(), "not found after: {edit}");
    }
}
