//! Realtime fails, in every way it has, while rows are edited: the agent stays on schedule, and the sync finds every edit.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg32;
use sqlx::Connection as _;
use tokio::time::sleep;

use crate::chaos::edits::Edited;
use crate::chaos::{DRAINS_WITHIN, Rows, count};
use crate::harness::proxy::{Line, Proxy};
use crate::harness::{Agent, PATIENCE, Place, long, wait_until};
use crate::oracle::{self, barrier};

/// Ends the sessions of Realtime's replication slot. It is a temporary slot, so this drops it.
pub const DROP_SLOT: &str = "
  select count(pg_terminate_backend(active_pid)) from pg_replication_slots
   where database = current_database() and active_pid is not null";

/// Makes that many random edits, one after another.
async fn edits(place: &Place, edited: &Edited, dice: &mut Pcg32, times: u32) {
    let mut connection = place.connect().await;
    for _ in 0..times {
        edited
            .edit_once(&mut connection, dice)
            .await
            .expect("an edit succeeds");
        sleep(Duration::from_millis(dice.random_range(0..60))).await;
    }
    connection.close().await.expect("closed");
}

/// A place, rows that are not edited and rows that are, and an agent that reaches Realtime through a proxy.
async fn start() -> (Place, Rows, Edited, Proxy, Agent) {
    let place = Place::new().await;
    barrier::record_edits(&place).await;
    let rows = Rows::of(&place).await;
    let edited = Edited::new(&place, 8).await;
    let proxy = Proxy::to(place.realtime.addr().port(), 7).await;
    let supabase_url = proxy.url(&place.realtime.supabase_url());
    let agent = place
        .start_agent_with(&[("SUPABASE_URL", &supabase_url)])
        .await;
    agent.ready().await;
    rows.make_progress(&place).await;
    (place, rows, edited, proxy, agent)
}

async fn end(place: &Place, rows: &Rows, edited: &Edited, agent: &Agent, what: &str) {
    barrier::promises_hold(place, "-infinity").await;
    edited.calm_down(place).await;
    oracle::all_are_on_their_curves(place, DRAINS_WITHIN).await;
    for row in rows.all() {
        assert_eq!(place.seconds_off_the_curve(row).await, [""; 0], "{what}");
    }
    wait_until("Realtime is live again", DRAINS_WITHIN, async || {
        agent.metric("visit_pacer_realtime_live").await == Some(1.0)
    })
    .await;
    oracle::all_stored_exactly_once(place, oracle::ALL, DRAINS_WITHIN).await;
    barrier::promises_hold(place, "-infinity").await;
    println!(
        "{what}: {} edits, longest gap of the neighbour {:.1} s, {} edits found by the sync",
        edited.made(),
        oracle::longest_gap(place, &oracle::visits_of(rows.neighbour), "-infinity").await,
        count(agent, "visit_pacer_sync_repairs_total").await,
    );
}

#[tokio::test]
async fn realtime_that_dies_repeatedly_while_rows_are_edited_delays_edits_and_nothing_else() {
    let (mut place, rows, edited, _proxy, agent) = start().await;
    let mut dice = Pcg32::seed_from_u64(rand::random());
    for round in 0..if long() { 30 } else { 4 } {
        if round % 2 == 0 {
            place.realtime.kill().await;
        } else {
            place.realtime.stop().await;
        }
        edits(&place, &edited, &mut dice, 20).await;
        rows.make_progress(&place).await;
        place
            .realtime
            .start_again()
            .await
            .expect("its port is free");
        edits(&place, &edited, &mut dice, 20).await;
    }
    assert!(
        count(&agent, "visit_pacer_sync_repairs_total").await > 0,
        "no edit was missed by Realtime"
    );
    end(&place, &rows, &edited, &agent, "Realtime killed").await;
}

#[tokio::test]
async fn a_half_open_realtime_socket_is_abandoned_and_the_sync_finds_the_edits() {
    let (place, rows, edited, proxy, agent) = start().await;
    let mut dice = Pcg32::seed_from_u64(rand::random());
    proxy.line(Line::Dead);
    edits(&place, &edited, &mut dice, 40).await;
    // By a heartbeat without an answer, or a missing echo.
    wait_until("the agent has noticed", DRAINS_WITHIN, async || {
        agent.metric("visit_pacer_realtime_live").await == Some(0.0)
    })
    .await;
    edits(&place, &edited, &mut dice, 40).await;
    rows.make_progress(&place).await;
    proxy.line(Line::Passes);
    end(&place, &rows, &edited, &agent, "Realtime half open").await;
}

#[tokio::test]
async fn dropping_the_replication_slot_of_realtime_costs_events_and_no_visit() {
    let (place, rows, edited, _proxy, agent) = start().await;
    let mut dice = Pcg32::seed_from_u64(rand::random());
    let slot = "select count(*) = 1 from pg_replication_slots where database = current_database() and active";
    for _ in 0..if long() { 20 } else { 3 } {
        wait_until("Realtime has its slot", PATIENCE, async || {
            place.ask(slot).await
        })
        .await;
        let name = "select slot_name::text || active_pid from pg_replication_slots where database = current_database()";
        let before: String = place.ask(name).await;
        place.edit(DROP_SLOT).await;
        edits(&place, &edited, &mut dice, 25).await;
        wait_until("Realtime has another slot", PATIENCE, async || {
            place.ask::<bool>(slot).await && place.ask::<String>(name).await != before
        })
        .await;
        rows.make_progress(&place).await;
    }
    end(&place, &rows, &edited, &agent, "slot dropped").await;
}
