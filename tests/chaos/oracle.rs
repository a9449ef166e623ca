//! What was committed, by whom and in which order, and whether the promises held in it: read from the database alone.
//!
//! A trigger of ours notes each edit in the table `edits`; the server notes when each transaction was committed
//! (`track_commit_timestamp`). An edit and a batch of the same row hold the same lock, so their times are in the order of their
//! commits: what is found here was wrong, with no tolerance.
//!
//! Does not know what is due: [`all_come_once`] ends the rows and holds what is stored against the curve.

use std::time::Duration;

use crate::harness::{Place, wait_until};

/// Notes from now on what each edit, insert and delete allows; before any row is made.
pub async fn notes_edits(place: &Place) {
    place
        .edit(
            "create table edits (seq bigint generated always as identity, distribution_id uuid, allows boolean,
               total_visits numeric, partner_id uuid);
             create function note_edit() returns trigger language plpgsql as $$ begin
               if tg_op = 'DELETE' then
                 insert into public.edits (distribution_id, allows) values (old.id, false);
               elsif tg_op = 'INSERT' or new.config_version is distinct from old.config_version then
                 insert into public.edits (distribution_id, allows, total_visits, partner_id)
                 values (new.id, coalesce(new.is_active, false), new.total_visits, new.partner_id);
               end if;
               return null;
             end $$;
             create trigger note_edit after insert or update or delete on visit_distribution
               for each row execute function note_edit();",
        )
        .await;
}

/// Visits that their row, as it was committed when they were, did not allow: under a pause, without a row, beyond its total,
/// for another partner. Looks at those that were stored after a moment.
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

/// Rows, also those that are gone, whose visits are not numbered 1, 2, 3 … once each, are in the future, or differ from the
/// counter.
const UNSOUND: &str = "
  select string_agg(format('%s: %s visits, %s numbers from %s to %s, counted %s, %s in the future', distribution_id, visits,
                           numbers, first, last, distributed, early), E'\n')
    from (select distribution_id, count(*) as visits, count(distinct visit_number) as numbers, min(visit_number) as first,
                 max(visit_number) as last, count(*) filter (where visited_at > created_at) as early
            from store_visits where distribution_id is not null group by distribution_id) v
    full join (select distribution_id, distributed from visit_distribution_progress where distributed > 0) p
   using (distribution_id)
   where visits <> numbers or first <> 1 or last <> visits or early > 0 or distributed <> visits
      or visits is null or distributed is null";

/// Fails if anything is stored that should not be, anything twice, or anything counted wrong. What was allowed is checked of
/// the visits after a moment, such as `'-infinity'`.
pub async fn promises_hold(place: &Place, moment: &str) {
    assert_eq!(
        not_allowed(place, moment).await,
        None,
        "visits that their row did not allow"
    );
    ledgers_are_sound(place).await;
}

async fn not_allowed(place: &Place, moment: &str) -> Option<String> {
    place
        .ask(NOT_ALLOWED.replace("$moment", &format!("'{moment}'")))
        .await
}

/// Fails if anything is stored twice, in the future, or counted wrong.
pub async fn ledgers_are_sound(place: &Place) {
    let unsound: Option<String> = place.ask(UNSOUND).await;
    assert_eq!(unsound, None, "rows whose ledger is not sound");
}

/// Gives the rows with such a partner a pace at which they are soon on their curves.
pub async fn calms(place: &Place, of: &str) {
    place
        .edit(format!(
            "update visit_distribution set is_active = true, visits_per_unit = 10, time_period = 'second', end_time = null,
                    start_time = least(coalesce(start_time, clock_timestamp()), clock_timestamp()), catch_up = 40,
                    total_visits = 1000000
              where {of}"
        ))
        .await;
}

/// Waits until every row is on its curve, but for some two seconds' worth.
pub async fn all_are_on_their_curves(place: &Place, limit: Duration) {
    wait_until("every row is on its curve", limit, async || {
        place
            .ask(
                "select bool_and(status = 'completed' or status = 'active' and backlog <= 2 + 2 * visits_per_unit)
                   from visit_distribution_status join visit_distribution using (id)",
            )
            .await
    })
    .await;
}

/// Ends all rows a moment from now, by their totals, and waits; then each has stored what was due until then, once.
pub async fn all_come_once(place: &Place, limit: Duration) {
    place
        .edit(
            "update visit_distribution v
                set total_visits = greatest(visit_distribution_due(id, clock_timestamp() + interval '2 seconds'),
                      (select distributed from visit_distribution_progress p where p.distribution_id = v.id))",
        )
        .await;
    wait_until("every row is completed", limit, async || {
        place
            .ask("select bool_and(status = 'completed') from visit_distribution_status")
            .await
    })
    .await;
    let off: Option<String> = place
        .ask(
            "select string_agg(format('%s: %s of %s', id, stored, total_visits), E'\n')
               from (select id, total_visits, (select count(*) from store_visits where distribution_id = d.id) as stored
                       from visit_distribution d) rows where stored <> total_visits",
        )
        .await;
    assert_eq!(off, None, "rows that have not what was due");
    ledgers_are_sound(place).await;
}

/// The longest time between two batches of any of the rows since a moment, in seconds.
pub async fn longest_gap(place: &Place, of: &str, moment: &str) -> f64 {
    place
        .ask(format!(
            "select coalesce(max(extract(epoch from gap)), 0)::float8 from (
               select created_at - lag(created_at) over (partition by distribution_id order by created_at) as gap, created_at
                 from store_visits where {of}) gaps where created_at > '{moment}'"
        ))
        .await
}

/// Now, by DB time.
pub async fn now(place: &Place) -> String {
    place.ask("select clock_timestamp()::text").await
}

#[tokio::test]
async fn the_oracle_sees_a_visit_that_was_stored_under_a_pause_beyond_the_total_for_another_or_without_a_row()
 {
    let place = Place::new().await;
    notes_edits(&place).await;
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
    let other = "insert into partners (id) values ('00000000-0000-0000-0000-000000000001')";
    place.edit(other).await;
    for (number, edit) in [
        (3, "update visit_distribution set visits_per_unit = 7"),
        (
            2,
            "update visit_distribution set partner_id = '00000000-0000-0000-0000-000000000001'",
        ),
        (1, "update visit_distribution set is_active = false"),
        (1, "delete from visit_distribution"),
    ] {
        place.edit("truncate store_visits").await;
        place.edit(edit).await;
        place.edit(visit(number)).await;
        let seen = not_allowed(&place, "-infinity").await;
        assert!(seen.is_some(), "not seen after: {edit}");
    }
}
