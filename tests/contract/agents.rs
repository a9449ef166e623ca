//! Several agents share the distributions; when one is lost, the others take over.

use nix::sys::signal::Signal;

use crate::harness::{Agent, PATIENCE, Place, find, wait_until};
use crate::oracle::{self, all_stored_exactly_once};

const ROWS: i64 = 40;

async fn place() -> Place {
    let place = Place::new().await;
    let row = place.row().rate("5 a second").times(ROWS);
    place.insert_rows(&row).await;
    place
}

async fn owned(agent: &Agent) -> i64 {
    let rows = agent
        .metric("visit_pacer_distributions_owned")
        .await
        .unwrap_or(0.0);
    format!("{rows:.0}").parse().expect("a whole number")
}

/// Waits until these agents own all rows, each of them some.
async fn share_all(agents: &[&Agent]) {
    wait_until("the rows are shared", PATIENCE, async || {
        let mut all = 0;
        for agent in agents {
            let rows = owned(agent).await;
            if rows == 0 {
                return false;
            }
            all += rows;
        }
        all == ROWS
    })
    .await;
}

/// Waits until every row has a visit after that moment. Returns the longest gap between two batches of any row since then, in
/// seconds.
async fn longest_gap_since(place: &Place, moment: &str) -> f64 {
    wait_until("every row makes progress", PATIENCE, async || {
        place
            .ask(format!(
                "select count(distinct distribution_id) = {ROWS} from store_visits where created_at > '{moment}'"
            ))
            .await
    })
    .await;
    oracle::longest_gap(place, oracle::ALL, moment).await
}

#[tokio::test]
async fn an_agent_is_ready_once_it_has_read_the_control_row_and_sql_sees_that_it_is_live() {
    let place = place().await;
    let other = place
        .hold("lock table visit_pacer_agents in share mode")
        .await;
    let agent = place.start_agent().await;
    agent
        .unready("visit_pacer_control has not been read yet")
        .await;
    assert_eq!(place.all_stored().await, 0, "all may be paused");
    other.rollback().await;

    agent.ready().await;
    assert!(place.ask::<bool>("select visit_pacer_agent_alive()").await);
}

#[tokio::test]
async fn two_agents_share_the_rows_report_how_many_each_owns_and_do_not_conflict() {
    let place = place().await;
    let agents = [place.agent().await, place.agent().await];
    share_all(&[&agents[0], &agents[1]]).await;
    let said = place.command(&["status"]).await.said;
    let both: i64 = owned(&agents[0]).await + owned(&agents[1]).await;
    assert_eq!(both, ROWS);
    wait_until(
        "status shows how many each agent owns",
        PATIENCE,
        async || {
            let said = place.command(&["status"]).await.said;
            said.matches(&format!(" of {ROWS} distributions")).count() == 2
        },
    )
    .await;
    assert!(said.contains("2 agents"), "{said}");

    let counted = async |name: &str| {
        let mut sum = 0.0;
        for agent in &agents {
            sum += agent.metric(name).await.unwrap_or(0.0);
        }
        sum
    };
    find("a time in which no row is refused", PATIENCE, async || {
        let before = counted("visit_pacer_distributions_skipped_total").await;
        place.agents_work_for(3).await;
        (counted("visit_pacer_distributions_skipped_total").await <= before).then_some(())
    })
    .await;
    for agent in &agents {
        assert!(agent.metric("visit_pacer_visits_stored_total").await > Some(0.0));
    }
    all_stored_exactly_once(&place, oracle::ALL, PATIENCE).await;
}

#[tokio::test]
async fn the_rows_of_a_killed_or_frozen_agent_are_taken_over_and_an_agent_that_returns_gets_them_back()
 {
    let place = place().await;
    let mut first = place.agent().await;
    let second = place.agent().await;
    share_all(&[&first, &second]).await;

    let frozen_at = oracle::now(&place).await;
    first.signal(Signal::SIGSTOP);
    share_all(&[&second]).await;
    let gap = longest_gap_since(&place, &oracle::now(&place).await).await;
    let over_all = longest_gap_since(&place, &frozen_at).await;
    println!("frozen: taken over, longest gap {:.1} s", gap.max(over_all));
    first.signal(Signal::SIGCONT);
    share_all(&[&first, &second]).await;

    let killed_at = oracle::now(&place).await;
    first.kill();
    share_all(&[&second]).await;
    let gap = longest_gap_since(&place, &killed_at).await;
    println!("killed: taken over, longest gap {gap:.1} s");

    let third = place.agent().await;
    share_all(&[&second, &third]).await;
    all_stored_exactly_once(&place, oracle::ALL, PATIENCE).await;
}

#[tokio::test]
async fn a_stopping_agent_releases_its_rows_at_once_and_a_new_agent_takes_over_its_share_without_a_gap()
 {
    let place = place().await;
    let first = place.agent().await;
    share_all(&[&first]).await;
    let begun = oracle::now(&place).await;
    let mut second = place.agent().await;
    share_all(&[&first, &second]).await;
    let shared_at = oracle::now(&place).await;
    let gap = longest_gap_since(&place, &shared_at).await;
    println!(
        "started: longest gap of a row {gap:.1} s, {:.1} s while it started",
        longest_gap_since(&place, &begun).await
    );

    let stopped_at = oracle::now(&place).await;
    assert_eq!(second.terminate().await.code(), Some(0));
    let agents: i64 = place.ask("select count(*) from visit_pacer_agents").await;
    assert_eq!(agents, 1, "its row is deleted");
    share_all(&[&first]).await;
    let gap = longest_gap_since(&place, &stopped_at).await;
    println!("stopped: released, longest gap {gap:.1} s");
    all_stored_exactly_once(&place, oracle::ALL, PATIENCE).await;
}
