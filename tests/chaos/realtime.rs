//! Realtime goes, in each way that it has, while rows are edited: the agents pace on, and see each edit by the sync.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg32;
use sqlx::{Connection as _, PgConnection};
use tokio::time::sleep;

use crate::chaos::edits::Edited;
use crate::chaos::{DRAINS_WITHIN, Rows, count, oracle};
use crate::harness::proxy::{Line, Proxy};
use crate::harness::{Agent, PATIENCE, Place, long, wait_until};

/// Ends the sessions that hold Realtime's slot; the slot is a temporary one, and gone with them.
pub const DROP_SLOT: &str = "
  select count(pg_terminate_backend(active_pid)) from pg_replication_slots
   where database = current_database() and active_pid is not null";

/// So many random edits, one after another; then none of those that are due may be missing, nor any stored that is not.
async fn edits(place: &Place, edited: &Edited, dice: &mut Pcg32, times: u32) {
    let mut connection = PgConnection::connect(&place.url)
        .await
        .expect("a connection");
    for _ in 0..times {
        edited
            .edit_once(&mut connection, dice)
            .await
            .expect("an edit is let through");
        sleep(Duration::from_millis(dice.random_range(0..60))).await;
    }
    connection.close().await.expect("a goodbye");
}

/// A place, the rows that nobody edits and those that somebody does, and an agent that reaches Realtime by way of a proxy.
async fn start() -> (Place, Rows, Edited, Proxy, Agent) {
    let place = Place::new().await;
    oracle::notes_edits(&place).await;
    let rows = Rows::of(&place).await;
    let edited = Edited::new(&place, 8).await;
    let proxy = Proxy::to(place.realtime.addr().port(), 7).await;
    let mut environment = place.environment();
    for (name, value) in &mut environment {
        if name == "SUPABASE_URL" {
            *value = proxy.url(&place.realtime.supabase_url());
        }
    }
    let agent = Agent::start(&place.folder, &["run"], &environment).await;
    agent.ready().await;
    rows.go_on(&place).await;
    (place, rows, edited, proxy, agent)
}

async fn end(place: &Place, rows: &Rows, edited: &Edited, agent: &Agent, what: &str) {
    oracle::promises_hold(place, "-infinity").await;
    oracle::calms(place, &edited.condition()).await;
    oracle::all_are_on_their_curves(place, DRAINS_WITHIN).await;
    for row in rows.all() {
        assert_eq!(place.seconds_off_the_curve(row).await, [""; 0], "{what}");
    }
    wait_until("the agent hears again", DRAINS_WITHIN, async || {
        agent.metric("visit_pacer_realtime_live").await == Some(1.0)
    })
    .await;
    oracle::all_come_once(place, DRAINS_WITHIN).await;
    oracle::promises_hold(place, "-infinity").await;
    println!(
        "{what}: {} edits, the neighbour waited {:.1} s at the most, {} edits were found by the sync",
        edited.made(),
        oracle::longest_gap(
            place,
            &format!("distribution_id = '{}'", rows.neighbour),
            "-infinity"
        )
        .await,
        count(agent, "visit_pacer_sync_repairs_total").await,
    );
}

#[tokio::test]
async fn realtime_that_dies_again_and_again_while_rows_are_edited_delays_edits_and_nothing_else() {
    let (mut place, rows, edited, _proxy, agent) = start().await;
    let mut dice = Pcg32::seed_from_u64(rand::random());
    for round in 0..if long() { 30 } else { 4 } {
        if round % 2 == 0 {
            place.realtime.kill().await;
        } else {
            place.realtime.stop().await;
        }
        edits(&place, &edited, &mut dice, 20).await;
        rows.go_on(&place).await;
        place
            .realtime
            .start_again()
            .await
            .expect("its port is free");
        edits(&place, &edited, &mut dice, 20).await;
    }
    assert!(
        count(&agent, "visit_pacer_sync_repairs_total").await > 0,
        "Realtime told all of it"
    );
    end(&place, &rows, &edited, &agent, "Realtime killed").await;
}

#[tokio::test]
async fn a_realtime_socket_that_is_half_open_is_given_up_and_edits_are_seen_by_the_sync() {
    let (place, rows, edited, proxy, agent) = start().await;
    let mut dice = Pcg32::seed_from_u64(rand::random());
    proxy.line(Line::Dead);
    edits(&place, &edited, &mut dice, 40).await;
    // A heartbeat that nobody answers, or an echo that does not come.
    wait_until("the agent has noticed", DRAINS_WITHIN, async || {
        agent.metric("visit_pacer_realtime_live").await == Some(0.0)
    })
    .await;
    edits(&place, &edited, &mut dice, 40).await;
    rows.go_on(&place).await;
    proxy.line(Line::Passes);
    end(&place, &rows, &edited, &agent, "Realtime half open").await;
}

#[tokio::test]
async fn a_replication_slot_that_is_taken_from_realtime_costs_events_and_no_visit() {
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
        rows.go_on(&place).await;
    }
    end(&place, &rows, &edited, &agent, "slot dropped").await;
}
