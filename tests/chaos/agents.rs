//! Three agents, one of which always dies: kill -9, SIGSTOP, SIGTERM, at random, and three hundred rows hardly see it.

use std::time::Duration;

use nix::sys::signal::Signal;
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg32;
use tokio::time::{Instant, sleep, sleep_until};

use crate::chaos::{DRAINS_WITHIN, oracle};
use crate::harness::server::Scratch;
use crate::harness::{Agent, Place, long, wait_until};

/// One of them is struck this often.
const STRIKES_EVERY: Duration = Duration::from_secs(5);
/// Longer than an agent counts as alive.
const STOPPED_FOR: Duration = Duration::from_secs(4);
/// Rows of one visit a second each.
const ROWS: i64 = 300;

/// Agents that share the rows, each with an environment that it keeps over its lives.
pub struct Crew<'a> {
    folder: &'a Scratch,
    members: Vec<(Agent, Vec<(String, String)>)>,
}

impl<'a> Crew<'a> {
    /// One agent for each environment.
    pub async fn start(folder: &'a Scratch, environments: Vec<Vec<(String, String)>>) -> Self {
        let mut members = Vec::new();
        for environment in environments {
            let agent = Agent::start(folder, &["run"], &environment).await;
            members.push((agent, environment));
        }
        Self { folder, members }
    }

    /// The agents as they are now.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.members.iter().map(|(agent, _)| agent)
    }

    /// Strikes any of them.
    pub async fn strike(&mut self, dice: &mut Pcg32) -> &'static str {
        self.strike_among(self.members.len(), dice).await
    }

    /// Strikes any but the last.
    pub async fn strike_but_last(&mut self, dice: &mut Pcg32) -> &'static str {
        self.strike_among(self.members.len() - 1, dice).await
    }

    /// Strikes one of the first so many, and sees to it that it is there again. Says how it was struck.
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
async fn three_hundred_rows_of_three_agents_of_which_one_always_dies_get_every_visit_once() {
    let place = Place::new().await;
    place
        .edit(format!(
            "insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit)
             select '{}', 1000000, 'second', 1 from generate_series(1, {ROWS})",
            place.partner
        ))
        .await;
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
    let gap = oracle::longest_gap(&place, "true", &began).await;
    let late: f64 = place
        .ask(format!(
            "select percentile_disc(0.99) within group (order by longest)::float8 from (
               select max(extract(epoch from gap)) as longest from (
                 select distribution_id, created_at - lag(created_at) over (partition by distribution_id order by created_at) as gap,
                        created_at from store_visits) gaps where created_at > '{began}' group by distribution_id) rows"
        ))
        .await;
    oracle::all_come_once(&place, DRAINS_WITHIN).await;
    println!(
        "struck {} times ({}); a row of one visit a second saw {gap:.1} s between two visits at the most, 99 of 100 rows at most {late:.1} s",
        struck.len(),
        struck.join(", ")
    );
}
