//! Three agents, of which one at a time is killed, frozen or stopped at random.

use std::time::Duration;

use nix::sys::signal::Signal;
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg32;
use tokio::time::{Instant, sleep, sleep_until};

use crate::chaos::DRAINS_WITHIN;
use crate::harness::server::Scratch;
use crate::harness::{Agent, Place, Variables, long, wait_until};
use crate::oracle;

/// How often a fault occurs.
const STRIKES_EVERY: Duration = Duration::from_secs(5);
/// Longer than an agent without a heartbeat counts as live.
const STOPPED_FOR: Duration = Duration::from_secs(4);
/// Rows of one visit a second each.
const ROWS: i64 = 300;

/// Agents that share the rows, each with the environment that it is restarted with.
pub struct Crew<'a> {
    folder: &'a Scratch,
    members: Vec<(Agent, Variables)>,
}

impl<'a> Crew<'a> {
    /// One agent for each environment.
    pub async fn start(folder: &'a Scratch, environments: Vec<Variables>) -> Self {
        let mut members = Vec::new();
        for environment in environments {
            let agent = Agent::start(folder, &["run"], &environment).await;
            members.push((agent, environment));
        }
        Self { folder, members }
    }

    /// The present agents.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.members.iter().map(|(agent, _)| agent)
    }

    /// Stops any of them; see [`Self::strike_among`].
    pub async fn strike(&mut self, dice: &mut Pcg32) -> &'static str {
        self.strike_among(self.members.len(), dice).await
    }

    /// Stops any but the last.
    pub async fn strike_but_last(&mut self, dice: &mut Pcg32) -> &'static str {
        self.strike_among(self.members.len() - 1, dice).await
    }

    /// Kills, freezes or terminates one of the first `among` agents and lets it work again. Returns what was done.
    async fn strike_among(&mut self, among: usize, dice: &mut Pcg32) -> &'static str {
        let (agent, environment) = &mut self.members[dice.random_range(0..among)];
        let away = Duration::from_millis(dice.random_range(0..2_000));
        let how = match dice.random_range(0..3) {
            0 => {
                agent.signal(Signal::SIGSTOP);
                sleep(STOPPED_FOR).await;
                agent.signal(Signal::SIGCONT);
                return "SIGSTOP";
            }
            1 => {
                agent.kill();
                "kill -9"
            }
            _ => {
                let status = agent.terminate().await;
                assert_eq!(status.code(), Some(0), "{}", agent.log());
                "SIGTERM"
            }
        };
        sleep(away).await;
        *agent = Agent::start(self.folder, &["run"], environment).await;
        how
    }
}

#[tokio::test]
async fn three_hundred_rows_get_every_visit_once_while_their_three_agents_are_killed_in_turn() {
    let place = Place::new().await;
    place.insert_rows(&place.row().times(ROWS)).await;
    let mut crew = Crew::start(&place.folder, vec![place.environment(); 3]).await;
    wait_until("the rows are shared", DRAINS_WITHIN, async || {
        place
            .ask(format!(
                "select count(*) filter (where rows_owned > 0) = 3 and sum(rows_owned) = {ROWS} from visit_pacer_agents"
            ))
            .await
    })
    .await;
    let began = oracle::now(&place).await;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut dice = Pcg32::seed_from_u64(seed);
    let until = Instant::now() + Duration::from_secs(if long() { 120 } else { 20 });
    let mut struck = Vec::new();
    while Instant::now() < until {
        let next = Instant::now() + STRIKES_EVERY;
        struck.push(crew.strike(&mut dice).await);
        sleep_until(next).await;
    }
    let gap = oracle::longest_gap(&place, oracle::ALL, &began).await;
    let late: f64 = place
        .ask(format!(
            "select percentile_disc(0.99) within group (order by longest)::float8 from (
               select max(extract(epoch from gap)) as longest from (
                 select distribution_id, created_at - lag(created_at) over (partition by distribution_id order by created_at) as gap,
                        created_at from store_visits) gaps where created_at > '{began}' group by distribution_id) rows"
        ))
        .await;
    oracle::all_stored_exactly_once(&place, oracle::ALL, DRAINS_WITHIN).await;
    println!(
        "{} faults ({}); rows of one visit a second: longest gap between two visits {gap:.1} s, of 99 % of the rows {late:.1} s",
        struck.len(),
        struck.join(", ")
    );
}
