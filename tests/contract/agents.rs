//! Several agents as one: they share the rows, and the loss of one is hardly seen.

use nix::sys::signal::Signal;
use sqlx::Connection as _;

use crate::harness::{Agent, PATIENCE, Place, find, wait_until};

const ROWS: i64 = 40;

async fn place() -> Place {
    let place = Place::new().await;
    place
        .edit(format!(
            "insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit)
             select '{}', 1000000, 'second', 5 from generate_series(1, {ROWS})",
            place.partner
        ))
        .await;
    place
}

async fn owned(agent: &Agent) -> i64 {
    let rows = agent
        .metric("visit_pacer_distributions_owned")
        .await
        .unwrap_or(0.0);
    format!("{rows:.0}").parse().expect("a whole number")
}

/// Waits until each of the agents has some of the rows, and all have all of them.
async fn ownership(agents: &[&Agent]) {
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

async fn now(place: &Place) -> String {
    place.ask("select clock_timestamp()::text").await
}

/// Waits until every row has had a visit after that moment; says how many seconds the longest wait between two batches of
/// any row was since then.
async fn longest_gap_since(place: &Place, moment: &str) -> f64 {
    wait_until("every row goes on", PATIENCE, async || {
        place
            .ask(format!(
                "select count(distinct distribution_id) = {ROWS} from store_visits where created_at > '{moment}'"
            ))
            .await
    })
    .await;
    place
        .ask(format!(
            "select max(extract(epoch from gap))::float8 from (
               select created_at - lag(created_at) over (partition by distribution_id order by created_at) as gap, created_at
                 from store_visits) gaps where created_at > '{moment}'"
        ))
        .await
}

/// Ends all rows some seconds from now, and holds each one's visits against its curve.
async fn everything_came_once(place: &Place) {
    place
        .edit(
            "update visit_distribution set total_visits = visit_distribution_due(id, clock_timestamp() + interval '2 seconds')",
        )
        .await;
    wait_until("all rows are completed", PATIENCE, async || {
        place
            .ask("select bool_and(status = 'completed') from visit_distribution_status")
            .await
    })
    .await;
    let wrong: i64 = place
        .ask(
            "select count(*) from (
               select d.id, d.total_visits, count(*) as stored, max(v.visit_number) as last, bool_or(v.visited_at > v.created_at) as early
                 from visit_distribution d join store_visits v on v.distribution_id = d.id group by d.id) rows
              where stored <> total_visits or last <> total_visits or early",
        )
        .await;
    assert_eq!(
        wrong, 0,
        "rows whose visits are not exactly those that were due"
    );
}

#[tokio::test]
async fn an_agent_is_ready_once_it_knows_the_control_row_and_whoever_asks_whether_an_agent_lives_sees_it()
 {
    let place = place().await;
    let mut somebody = sqlx::PgConnection::connect(&place.url)
        .await
        .expect("a connection");
    let mut transaction = somebody.begin().await.expect("a transaction");
    sqlx::query("lock table visit_pacer_agents in share mode")
        .execute(&mut *transaction)
        .await
        .expect("nobody has it");
    let agent = place.start_agent().await;
    agent
        .unready("visit_pacer_control has not been read yet")
        .await;
    let stored: i64 = place.ask("select count(*) from store_visits").await;
    assert_eq!(stored, 0, "everything may be paused");
    transaction.rollback().await.expect("it lets go");

    agent.ready().await;
    assert!(place.ask::<bool>("select visit_pacer_agent_alive()").await);
}

#[tokio::test]
async fn two_agents_share_the_rows_say_how_many_each_has_and_get_in_nobodys_way() {
    let place = place().await;
    let agents = [place.agent().await, place.agent().await];
    ownership(&[&agents[0], &agents[1]]).await;
    let said = place.command(&["status"]).await.said;
    let both: i64 = owned(&agents[0]).await + owned(&agents[1]).await;
    assert_eq!(both, ROWS);
    wait_until("status tells who has how many", PATIENCE, async || {
        let said = place.command(&["status"]).await.said;
        said.matches(&format!(" of {ROWS} rows")).count() == 2
    })
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
    everything_came_once(&place).await;
}

#[tokio::test]
async fn the_rows_of_an_agent_that_is_killed_or_stopped_are_taken_over_and_one_that_comes_back_has_them_again()
 {
    let place = place().await;
    let mut first = place.agent().await;
    let second = place.agent().await;
    ownership(&[&first, &second]).await;

    let stopped_at = now(&place).await;
    first.signal(Signal::SIGSTOP);
    ownership(&[&second]).await;
    let gap = longest_gap_since(&place, &now(&place).await).await;
    let over_all = longest_gap_since(&place, &stopped_at).await;
    println!(
        "stopped: taken over after at most {:.1} s",
        gap.max(over_all)
    );
    first.signal(Signal::SIGCONT);
    ownership(&[&first, &second]).await;

    let killed_at = now(&place).await;
    first.kill();
    ownership(&[&second]).await;
    let gap = longest_gap_since(&place, &killed_at).await;
    println!("killed: taken over after at most {gap:.1} s");

    let third = place.agent().await;
    ownership(&[&second, &third]).await;
    everything_came_once(&place).await;
}

#[tokio::test]
async fn an_agent_that_stops_hands_over_at_once_and_one_that_joins_takes_its_share_without_a_gap() {
    let place = place().await;
    let first = place.agent().await;
    ownership(&[&first]).await;
    let begun = now(&place).await;
    let mut second = place.agent().await;
    ownership(&[&first, &second]).await;
    let joined = now(&place).await;
    let gap = longest_gap_since(&place, &joined).await;
    println!(
        "joined: {gap:.1} s at the most between two batches of a row, {:.1} s while it joined",
        longest_gap_since(&place, &begun).await
    );

    let stopped_at = now(&place).await;
    assert_eq!(second.terminate().await.code(), Some(0));
    let agents: i64 = place.ask("select count(*) from visit_pacer_agents").await;
    assert_eq!(agents, 1, "it has said goodbye");
    ownership(&[&first]).await;
    let gap = longest_gap_since(&place, &stopped_at).await;
    println!("stopped: handed over after at most {gap:.1} s");
    everything_came_once(&place).await;
}
