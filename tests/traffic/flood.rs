//! More traffic than was recorded: large transactions, many edits, many active rows. The schedule must be right and the reads
//! bounded; how long it took is printed.

use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::harness::subscriber::{Subscriber, WriteBacks};
use crate::harness::{Agent, Place, long, wait_until};
use crate::oracle::all_stay_on_their_curves;

/// A limit for reading all edits on a small machine.
const READ_WITHIN: Duration = Duration::from_secs(60);
/// 200 edits a second: that many in one message, each in its own transaction …
const EDITS_A_MESSAGE: u32 = 20;
/// … and a message this often.
const MESSAGE_EVERY: Duration = Duration::from_millis(100);
/// A row is read for its event, and again each time that a batch was refused for the edit.
const READS_AN_EDIT: f64 = 3.0;
/// One flood at a time, as much as a small machine can do.
static FLOOD: Semaphore = Semaphore::const_new(1);
/// Syncs besides the periodic ones: the first, and those that Realtime causes.
const OTHER_SYNCS: f64 = 3.0;
/// The interval of full syncs while Realtime is live, in seconds.
const SYNC_EVERY: f64 = 30.0;

/// What the agent has read and received so far.
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

/// Inserts that many rows.
async fn rows(place: &Place, count: i64, rate: &str) -> Vec<Uuid> {
    let row = place.row().rate(rate).times(count);
    place.insert_rows(&row).await
}

/// Waits until the agent has received the events of that many edits since `before`, or has read the whole table since the last.
/// Fails if it read more than these edits allow.
async fn reads_all(agent: &Agent, before: Reads, began: Instant, edits: u32) {
    let last_edit = Instant::now();
    let syncs_then = Reads::of(agent).await.syncs;
    let edits = f64::from(edits);
    wait_until("the agent has read all edits", READ_WITHIN, async || {
        let now = Reads::of(agent).await;
        now.events >= before.events + edits || now.syncs >= syncs_then + 2.0
    })
    .await;
    let lag = last_edit.elapsed();
    let now = Reads::of(agent).await;
    let (rows, syncs) = (now.rows - before.rows, now.syncs - before.syncs);
    println!(
        "{edits} edits in {:?} ({:.0} a second): all read {lag:?} after the last; {rows} rows read, {syncs} syncs",
        last_edit - began,
        edits / (last_edit - began).as_secs_f64()
    );
    assert!(
        rows <= READS_AN_EDIT * edits,
        "{rows} rows read for {edits} edits"
    );
    let allowed = OTHER_SYNCS + began.elapsed().as_secs_f64() / SYNC_EVERY;
    assert!(
        syncs <= allowed,
        "{syncs} syncs, expected {allowed} at most"
    );
}

#[tokio::test]
async fn five_thousand_rows_edited_in_one_transaction_are_on_their_new_curves() {
    let _alone = FLOOD.acquire().await.expect("never closed");
    let place = Place::new().await;
    rows(&place, 5_000, "60 a hour").await;
    let agent = place.agent().await;
    let before = Reads::of(&agent).await;
    let began = Instant::now();
    place
        .edit("update visit_distribution set visits_per_unit = 180")
        .await;
    reads_all(&agent, before, began, 5_000).await;
    place.agents_work_for(8).await;
    all_stay_on_their_curves(&place).await;
}

#[tokio::test]
async fn after_two_hundred_edits_a_second_the_schedule_is_right_and_reads_were_bounded() {
    let _alone = FLOOD.acquire().await.expect("never closed");
    let place = Place::new().await;
    let ids = rows(&place, 50, "3600 a hour").await;
    let agent = place.agent().await;
    let before = Reads::of(&agent).await;
    let began = Instant::now();
    let messages = if long() { 600 } else { 80 };
    let mut edits = (1..).zip(ids.iter().cycle()).map(|(edit, id)| {
        let rate = 3_600 + edit;
        format!("begin; update visit_distribution set visits_per_unit = {rate} where id = '{id}'; commit;")
    });
    let size = usize::try_from(EDITS_A_MESSAGE).expect("small");
    for message in 0..messages {
        sleep_until(began + message * MESSAGE_EVERY).await;
        place
            .edit(edits.by_ref().take(size).collect::<String>())
            .await;
    }
    reads_all(&agent, before, began, messages * EDITS_A_MESSAGE).await;
    place.agents_work_for(8).await;
    all_stay_on_their_curves(&place).await;
}

#[tokio::test]
async fn ten_thousand_active_rows_cost_other_subscribers_no_more_than_the_write_back_budget() {
    let _alone = FLOOD.acquire().await.expect("never closed");
    let place = Place::new().await;
    rows(&place, 10_000, "600 a hour").await;
    let subscriber = Subscriber::to(&place).await;
    let budget = WriteBacks::from_now();
    let _agent = place.agent().await;
    place.agents_work_for(if long() { 60 } else { 15 }).await;
    budget.holds(&subscriber).await;
}
