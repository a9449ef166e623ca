//! More traffic than anybody recorded: large transactions, edits without end, many active rows.
//!
//! How long the agent took is printed, not asserted; that its schedule is right and its reads are
//! bounded is asserted.

use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};

use crate::harness::subscriber::Subscriber;
use crate::harness::{Agent, PATIENCE, Place, long, wait_until};

/// A small machine with many tests at once has taken in a flood within this time.
const TAKEN_IN_WITHIN: Duration = Duration::from_secs(60);
/// 200 edits a second: so many in one message, each a transaction of its own …
const EDITS_A_MESSAGE: u32 = 20;
/// … and a message this often.
const MESSAGE_EVERY: Duration = Duration::from_millis(100);
/// A row is read for its event, and again where a batch met the edit first, each time that it did.
const READS_AN_EDIT: f64 = 3.0;
/// One flood at a time: each of them is all that a small machine can take.
static FLOOD: Semaphore = Semaphore::const_new(1);
/// Syncs beyond those of the clock: the first ones, and those that Realtime asks for.
const SYNCS_BESIDE: f64 = 3.0;
/// A full sync while Realtime is live comes this often at the most, in seconds.
const SYNC_EVERY: f64 = 30.0;

/// What the agent has read and heard so far.
#[derive(Clone, Copy)]
struct Reads {
    rows: f64,
    syncs: f64,
    events: f64,
}

impl Reads {
    async fn of(agent: &Agent) -> Self {
        let metric = async |name: &str| {
            let name = format!("visit_pacer_{name}_total");
            agent.metric(&name).await.expect("the metric")
        };
        Self {
            rows: metric("distributions_read").await,
            syncs: metric("syncs").await,
            events: metric("realtime_events").await,
        }
    }
}

/// So many rows that start now, at so many visits an hour.
async fn rows(place: &Place, count: u32, an_hour: u32) {
    let partner = place.partner;
    place
        .edit(format!(
            "insert into visit_distribution
                (partner_id, total_visits, time_period, visits_per_unit, start_time)
             select '{partner}', 1000000, 'hour', {an_hour}, now()
               from generate_series(1, {count})"
        ))
        .await;
}

/// Waits until the agent has heard of so many edits since `before`, or has read the whole table since
/// the last; prints how long after it that was, and holds what the agent read against what those
/// edits allow: each row once for its event, once more where a batch met the edit first.
async fn takes_in(agent: &Agent, before: Reads, began: Instant, edits: u32) {
    let last_edit = Instant::now();
    let syncs_then = Reads::of(agent).await.syncs;
    let edits = f64::from(edits);
    wait_until(
        "the agent knows of all edits",
        TAKEN_IN_WITHIN,
        async || {
            let now = Reads::of(agent).await;
            now.events >= before.events + edits || now.syncs >= syncs_then + 2.0
        },
    )
    .await;
    let lag = last_edit.elapsed();
    let now = Reads::of(agent).await;
    let (rows, syncs) = (now.rows - before.rows, now.syncs - before.syncs);
    println!(
        "{edits} edits in {:?} ({:.0} a second): all known {lag:?} after the last; {rows} rows read, {syncs} syncs",
        last_edit - began,
        edits / (last_edit - began).as_secs_f64()
    );
    assert!(
        rows <= READS_AN_EDIT * edits,
        "{rows} rows read for {edits} edits"
    );
    let allowed = SYNCS_BESIDE + began.elapsed().as_secs_f64() / SYNC_EVERY;
    assert!(
        syncs <= allowed,
        "{syncs} syncs, expected {allowed} at most"
    );
}

/// Each row comes to its curve soon after its last edit, and is on it at every second from then on. While edits overtake
/// its batches a row may come to owe more than its bucket holds, which then drains at twice the pace; a visit that is only
/// stored late is dated right, and waited for.
async fn all_are_on_their_curves(place: &Place) {
    wait_until("every row is on its curve", PATIENCE, async || {
        let off: i64 = place.ask(OFF_THE_CURVE).await;
        off == 0
    })
    .await;
}

/// Rows that are off their curve after they were on it, or do not come to it in time.
const OFF_THE_CURVE: &str = "
    with seconds as (
      select d.id, d.anchor_at, at, visit_distribution_due(d.id, at) = (select count(*) from store_visits v
               where v.distribution_id = d.id and v.visited_at <= at) as on_it
        from visit_distribution d
       cross join lateral generate_series(d.anchor_at + interval '2 seconds',
               clock_timestamp() - interval '3 seconds', interval '1 second') at
    ), came as (
      select id, coalesce(min(at) filter (where on_it), 'infinity') as at from seconds group by id
    )
    select count(distinct s.id) from seconds s join came c on c.id = s.id
     where c.at > s.anchor_at + interval '25 seconds' or (s.at > c.at and not s.on_it)";

#[tokio::test]
async fn five_thousand_rows_edited_in_one_transaction_are_all_right_two_seconds_later() {
    let _alone = FLOOD.acquire().await.expect("never closed");
    let place = Place::new().await;
    rows(&place, 5_000, 60).await;
    let agent = place.agent().await;
    let before = Reads::of(&agent).await;
    let began = Instant::now();
    place
        .edit("update visit_distribution set visits_per_unit = 180")
        .await;
    takes_in(&agent, before, began, 5_000).await;
    place.agents_work_for(8).await;
    all_are_on_their_curves(&place).await;
}

#[tokio::test]
async fn after_two_hundred_edits_a_second_the_schedule_is_right_and_reads_were_bounded() {
    let _alone = FLOOD.acquire().await.expect("never closed");
    let place = Place::new().await;
    rows(&place, 50, 3_600).await;
    let agent = place.agent().await;
    let ids: Vec<uuid::Uuid> = sqlx::query_scalar("select id from visit_distribution")
        .fetch_all(&place.db)
        .await
        .expect("the rows are there");
    let before = Reads::of(&agent).await;
    let began = Instant::now();
    let messages = if long() { 600 } else { 80 };
    let mut edits = (1..).zip(ids.iter().cycle()).map(|(edit, id)| {
        let pace = 3_600 + edit;
        format!("begin; update visit_distribution set visits_per_unit = {pace} where id = '{id}'; commit;")
    });
    let size = usize::try_from(EDITS_A_MESSAGE).expect("small");
    for message in 0..messages {
        sleep_until(began + message * MESSAGE_EVERY).await;
        place
            .edit(edits.by_ref().take(size).collect::<String>())
            .await;
    }
    takes_in(&agent, before, began, messages * EDITS_A_MESSAGE).await;
    place.agents_work_for(8).await;
    all_are_on_their_curves(&place).await;
}

#[tokio::test]
async fn ten_thousand_active_rows_cost_other_subscribers_no_more_than_the_echo_budget() {
    let _alone = FLOOD.acquire().await.expect("never closed");
    let place = Place::new().await;
    rows(&place, 10_000, 600).await;
    let subscriber = Subscriber::to(&place).await;
    let began = Instant::now();
    let _agent = place.agent().await;
    place.agents_work_for(if long() { 60 } else { 15 }).await;
    let events = subscriber.updates();
    let elapsed = began.elapsed();
    let a_second = f64::from(u32::try_from(events).expect("few")) / elapsed.as_secs_f64();
    println!("10,000 active rows: {events} events in {elapsed:?}, {a_second:.2} a second");
    let allowed = 20 + elapsed.as_secs() / 5 + 1;
    assert!(
        (1..=allowed).contains(&events),
        "{events} events, expected 1 to {allowed}"
    );
}
