//! Whether the promises held, judged from the database alone.
//!
//! Exactly once: [`ledgers_are_sound`], [`all_stored_exactly_once`]. Exact rate: [`Place::seconds_off_the_curve`],
//! [`Place::densest`]. A pause as a barrier, after any number of edits: `barrier`. Each step of an interleaving: `step`.
//!
//! Invariant: nothing is judged by the clock of the test, so a slow machine changes no verdict.

pub mod barrier;
pub mod step;

use std::time::Duration;

use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::harness::{PATIENCE, Place, find, wait_until};

/// Every distribution, in SQL.
pub const ALL: &str = "true";

/// These distributions, in SQL.
fn these(ids: &[Uuid]) -> String {
    let ids: Vec<String> = ids.iter().map(|id| format!("'{id}'")).collect();
    format!("id in ({})", ids.join(", "))
}

/// Distributions, also deleted ones, whose visits are not numbered 1, 2, 3 … once each, are in the future, go back in time, or
/// are not as many as the counter says.
const UNSOUND: &str = "
  select string_agg(format('%s: %s visits, %s ids, %s numbers from %s to %s, counter %s, %s in the future, %s back in time',
                           distribution_id, visits, ids, numbers, first, last, distributed, early, falling), E'\n')
    from (select distribution_id, count(*) as visits, count(distinct id) as ids, count(distinct visit_number) as numbers,
                 min(visit_number) as first, max(visit_number) as last, count(*) filter (where visited_at > created_at) as early,
                 count(*) filter (where visited_at < before) as falling
            from (select *, lag(visited_at) over (partition by distribution_id order by visit_number) as before
                    from store_visits where distribution_id is not null) numbered
           group by distribution_id) v
    full join (select distribution_id, distributed from visit_distribution_progress where distributed > 0) p
   using (distribution_id)
   where (visits, ids, numbers, first, last, early, falling) is distinct from (distributed, distributed, distributed, 1::bigint, distributed, 0::bigint, 0::bigint)
     and ($which)";

/// Fails if a visit of any distribution is missing from the numbers, stored twice, in the future, or not counted.
pub async fn ledgers_are_sound(place: &Place) {
    ledgers_of(place, ALL).await;
}

async fn ledgers_of(place: &Place, which: &str) {
    let unsound: Option<String> = place.ask(UNSOUND.replace("$which", which)).await;
    assert_eq!(unsound, None, "distributions whose visits are not sound");
}

/// Ends these distributions (all of them: [`ALL`]) two seconds from now, by their totals, and waits. Then each has stored what was
/// due until then, once.
pub async fn all_stored_exactly_once(place: &Place, which: &str, limit: Duration) {
    place
        .edit(format!(
            "update visit_distribution d
                set total_visits = greatest(visit_distribution_due(id, clock_timestamp() + interval '2 seconds'),
                      (select distributed from visit_distribution_progress p where p.distribution_id = d.id))
              where {which}"
        ))
        .await;
    wait_until("every distribution is completed", limit, async || {
        place
            .ask(format!(
                "select bool_and(status = 'completed') from visit_distribution_status where {which}"
            ))
            .await
    })
    .await;
    let wrong: Option<String> = place
        .ask(format!(
            "select string_agg(format('%s: %s of %s', id, stored, total_visits), E'\n')
               from (select id, total_visits, (select count(*) from store_visits where distribution_id = d.id) as stored
                       from visit_distribution d where {which}) d where stored <> total_visits"
        ))
        .await;
    assert_eq!(wrong, None, "distributions without what was due");
    let which = format!("distribution_id in (select id from visit_distribution where {which})");
    ledgers_of(place, &which).await;
}

/// Waits until every distribution is on its curve, up to two seconds' worth.
pub async fn all_are_on_their_curves(place: &Place, limit: Duration) {
    wait_until("every distribution is on its curve", limit, async || {
        place
            .ask(
                "select bool_and(status = 'completed' or status = 'active' and backlog <= 2 + 2 * visits_per_unit)
                   from visit_distribution_status join visit_distribution using (id)",
            )
            .await
    })
    .await;
}

/// Distributions that left their curve after they had reached it, or did not reach it within 25 s of visit time.
const OFF_THE_CURVE_AGAIN: &str = "
  with seconds as (
    select d.id, d.anchor_at, at, visit_distribution_due(d.id, at) = (select count(*) from store_visits v
             where v.distribution_id = d.id and v.visited_at <= at) as on_it
      from visit_distribution d
     cross join lateral generate_series(d.anchor_at + interval '2 seconds',
             clock_timestamp() - interval '3 seconds', interval '1 second') at
  ), reached as (
    select id, coalesce(min(at) filter (where on_it), 'infinity') as at from seconds group by id
  )
  select count(distinct s.id) from seconds s join reached r on r.id = s.id
   where r.at > s.anchor_at + interval '25 seconds' or (s.at > r.at and not s.on_it)";

/// Waits until every distribution, once it had reached its curve after its last edit, was on it at every second. While edits
/// overtake its batches, its backlog may exceed its bucket, and then drains at twice the rate.
pub async fn all_stay_on_their_curves(place: &Place) {
    wait_until(
        "every distribution stays on its curve",
        PATIENCE,
        async || place.ask::<i64>(OFF_THE_CURVE_AGAIN).await == 0,
    )
    .await;
}

/// The longest time between two batches of any of these visits since a moment, in seconds. `which` is a condition on
/// `store_visits`.
pub async fn longest_gap(place: &Place, which: &str, moment: &str) -> f64 {
    place
        .ask(format!(
            "select coalesce(max(extract(epoch from gap)), 0)::float8 from (
               select created_at - lag(created_at) over (partition by distribution_id order by created_at) as gap, created_at
                 from store_visits where {which}) gaps where created_at > '{moment}'"
        ))
        .await
}

/// The visits of this distribution, for [`longest_gap`].
pub fn visits_of(id: Uuid) -> String {
    format!("distribution_id = '{id}'")
}

/// The present DB time.
pub async fn now(place: &Place) -> String {
    place.ask("select clock_timestamp()::text").await
}

impl Place {
    /// Fails if a visit of this distribution is missing from the numbers, stored twice, in the future, or not counted.
    pub async fn ledger_is_sound(&self, id: Uuid) {
        ledgers_of(self, &visits_of(id)).await;
    }

    /// Waits until a distribution has stored what is due; then checks its ledger. Returns the visits.
    pub async fn settles(&self, id: Uuid) -> i64 {
        let observed = find(format!("{id} has what is due"), PATIENCE, async || {
            let observed = self.look(id).await;
            (Some(observed.stored) == observed.due).then_some(observed)
        })
        .await;
        self.ledger_is_sound(id).await;
        observed.stored
    }

    /// Ends these running distributions and expects every visit that was due, once; see [`all_stored_exactly_once`].
    pub async fn finish(&self, ids: &[Uuid]) {
        all_stored_exactly_once(self, &these(ids), PATIENCE).await;
    }

    /// The same of one distribution.
    pub async fn finishes(&self, id: Uuid) {
        self.finish(&[id]).await;
    }

    /// Records from now on the instant that each batch is for; [`Self::densest`] needs it.
    pub async fn record_fires(&self) {
        self.edit(
            "create table fires (distribution_id uuid, at timestamptz, visits bigint);
             create function record_fire() returns trigger language plpgsql as $$ begin
               insert into public.fires values (new.distribution_id, new.bucket_at, new.distributed - old.distributed);
               return null;
             end $$;
             create trigger record_fire after update on visit_distribution_progress for each row
               when (new.last_number > old.last_number) execute function record_fire()",
        )
        .await;
    }

    /// The most visits of a distribution within any span of that length, by the instants that its batches are for.
    pub async fn densest(&self, id: Uuid, span: &str) -> i64 {
        self.ask(format!(
            "select coalesce(max(n), 0)::bigint from (
               select sum(visits) over (order by at range between current row and interval '{span}' following) as n
                 from fires where distribution_id = '{id}') spans"
        ))
        .await
    }

    /// Seconds since the start of a distribution at whose end the visits (by `visited_at`) are not those of the curve. Only
    /// seconds that have passed. Left out are the two seconds after an edit, or after an edited start of the window, while the
    /// backlog from before still drains.
    pub async fn seconds_off_the_curve(&self, id: Uuid) -> Vec<String> {
        sqlx::query_scalar(AssertSqlSafe(format!(
            "select format('%s: %s instead of %s', at, counted, due)
               from visit_distribution d
               cross join lateral generate_series(case when d.anchor_at = d.start_time then d.start_time
                   else greatest(d.anchor_at, d.start_time) + interval '2 seconds' end,
                 least(coalesce(d.end_time, 'infinity'), clock_timestamp() - interval '3 seconds'), interval '1 second') at
               cross join lateral (select visit_distribution_due(d.id, at) as due,
                 (select count(*) from store_visits v where v.distribution_id = d.id and v.visited_at <= at) as counted) c
              where d.id = '{id}' and counted <> due order by at"
        )))
        .fetch_all(&self.db)
        .await
        .expect("the distribution exists")
    }
}
